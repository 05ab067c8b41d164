"""Procedural scenes of `shared_pano_utils.synthetic`, written in PanoInfinigen's layout."""

import logging
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from pager.data.panoinfinigen import INDEX_NAME, Frame, write_split
from pager.geometry import rdf_to_pager
from shared_pano_utils.synthetic import Scene

logger = logging.getLogger(__name__)

SceneKind = Literal["room", "corridor", "outdoor"]
KINDS: tuple[SceneKind, ...] = ("room", "corridor", "outdoor")
FOLDER_KINDS: dict[str, tuple[SceneKind, ...]] = {
    "indoor": ("room", "corridor"),
    "outdoor": ("outdoor",),
}
SPLIT_SEED_OFFSET = {"train": 0, "val": 10_000_000, "test": 20_000_000}
KIND_SEED_OFFSET, SCENES_PER_SEED, DATA_SEEDS = 1_000_000, 100_000, 10


def split_seeds(split: str, kind: SceneKind, count: int, seed: int = 0) -> list[int]:
    """Scene seeds of a split; splits, kinds and data seeds never share one.

    Raises:
        ValueError: `seed` or `count` would reach into other splits.
    """
    if not (0 <= seed < DATA_SEEDS and 0 <= count <= SCENES_PER_SEED):
        raise ValueError(
            f"seed {seed} with {count} scenes of a kind: use a seed from 0 to {DATA_SEEDS - 1} and "
            f"at most {SCENES_PER_SEED} scenes, so that splits stay apart"
        )
    kind_offset = KIND_SEED_OFFSET * KINDS.index(kind)
    base = SPLIT_SEED_OFFSET[split] + kind_offset + SCENES_PER_SEED * seed
    return list(range(base, base + count))


def render_frame(seed: int, kind: SceneKind, view: int, size: tuple[int, int]) -> Frame:
    """Render view number `view` of a scene: colour, radial depth, normals in the `pager` frame."""
    scene = Scene.random(seed, kind)
    render = scene.render(
        scene.random_pose(view), size=size, outputs=("rgb", "depth", "normals_cam"), aa=2
    )
    assert render.rgb is not None
    assert render.depth is not None
    assert render.normals_cam is not None
    return Frame(
        rgb=(render.rgb * 255).round().to(torch.uint8).movedim(0, -1).numpy(),
        depth=render.depth[0].numpy(),
        normals=rdf_to_pager(render.normals_cam).movedim(0, -1).numpy(),
    )


def render_scene(
    seed: int, *, kind: SceneKind, views: int, size: tuple[int, int]
) -> tuple[str, list[Frame]]:
    """Scene id and its frames; one process renders with one thread."""
    torch.set_num_threads(1)
    return f"{kind}{seed:08d}", [render_frame(seed, kind, view, size) for view in range(views)]


def write_procedural(
    data_path: Path,
    *,
    split: str,
    scenes_per_kind: dict[SceneKind, int],
    views: int = 1,
    size: tuple[int, int] = (128, 256),
    seed: int = 0,
    workers: int = 1,
    overwrite: bool = False,
) -> int:
    """Render a split; rooms and corridors become `indoor`, the rest `outdoor`.

    Returns:
        The number of panoramas written; finished parts are kept unless `overwrite`.
    """
    total = 0
    for folder, kinds in FOLDER_KINDS.items():
        target = data_path / "PanoInfinigen" / folder / split
        jobs: list[tuple[SceneKind, int]] = [
            (kind, scene_seed)
            for kind in kinds
            for scene_seed in split_seeds(split, kind, scenes_per_kind.get(kind, 0), seed)
        ]
        if not jobs:
            continue
        if (target / INDEX_NAME).exists() and not overwrite:
            logger.info("%s exists; --overwrite renders it again", target)
            continue
        total += write_split(target, _rendered(jobs, views, size, workers))
    return total


def _rendered(
    jobs: list[tuple[SceneKind, int]], views: int, size: tuple[int, int], workers: int
) -> Iterator[tuple[str, list[Frame]]]:
    from tqdm.auto import tqdm

    render = partial(_render_job, views=views, size=size)
    bar = partial(tqdm, total=len(jobs), desc="scenes")
    if workers <= 1:
        yield from bar(map(render, jobs))
        return
    with ProcessPoolExecutor(workers) as pool:
        yield from bar(pool.map(render, jobs, chunksize=4))


def _render_job(
    job: tuple[SceneKind, int], *, views: int, size: tuple[int, int]
) -> tuple[str, list[Frame]]:
    kind, seed = job
    return render_scene(seed, kind=kind, views=views, size=size)
