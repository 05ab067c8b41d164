"""Procedural clips of `shared_pano_utils.synthetic`: straight walks, rendered like GenEx-DB.

A clip walks `step_m` metres a frame towards the centre of its images (paper: 0.4 m). Beside the
frames lies `clip.json` with the seed of the scene and the start of the walk, so that any other
view of the same place can be rendered as ground truth.
"""

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from genex_explorer.paths import STEP_M
from genex_explorer.video import write_video
from shared_pano_utils.imageio import write_image, write_json
from shared_pano_utils.synthetic import Pose, Scene

SceneKind = Literal["room", "corridor", "outdoor"]
KINDS: tuple[SceneKind, ...] = ("room", "corridor", "outdoor")
SPLITS = ("train", "val", "test")
SPLIT_SEEDS, KIND_SEEDS, CLIP_SEEDS = 10_000_000, 1_000_000, 32
CLIP_NAME = "clip.json"


@dataclass(frozen=True, kw_only=True)
class ClipOptions:
    """How clips are rendered.

    Attributes:
        frames: images per clip.
        step_m: metres between two of them.
        size: (width, height) of the panoramas in pixels.
        aa: colour at edges is the mean of aa x aa rays.
        file_format: numbered JPEG files, or one H.264 file per clip.
    """

    frames: int = 50
    step_m: float = STEP_M
    size: tuple[int, int] = (1024, 512)
    aa: int = 2
    file_format: Literal["frames", "mp4"] = "frames"


def first_seed(split: str, kind: SceneKind, index: int) -> int:
    """First scene seed of a clip; splits, kinds and clips never share one.

    Raises:
        ValueError: more clips than seeds.
    """
    last = KIND_SEEDS // CLIP_SEEDS - 1
    if not 0 <= index <= last:
        raise ValueError(f"clip number {index}: a kind has clips 0 to {last} in each split")
    offset = SPLIT_SEEDS * SPLITS.index(split) + KIND_SEEDS * KINDS.index(kind)
    return offset + CLIP_SEEDS * index


def find_walk(split: str, kind: SceneKind, index: int, options: ClipOptions) -> tuple[Scene, Any]:
    """Scene and poses of a clip: of the first of its seeds that has a free straight path.

    Raises:
        ValueError: none has; the walk is too long for this kind of place.
    """
    seed = first_seed(split, kind, index)
    for candidate in range(seed, seed + CLIP_SEEDS):
        scene = Scene.random(candidate, kind)
        try:
            return scene, scene.forward_path(options.frames, options.step_m, seed=candidate)
        except ValueError:
            continue  # this place is too small or too full
    length = (options.frames - 1) * options.step_m
    raise ValueError(
        f"no {kind} with a straight free path of {length:.1f} m among {CLIP_SEEDS} seeds; use "
        "fewer --frames_per_video or a smaller --step_m"
    )


def render_erp(scene: Scene, pose: Pose, options: ClipOptions) -> np.ndarray:
    """Panorama (H, W, 3) uint8 at a pose."""
    width, height = options.size
    rgb = scene.render(pose, (height, width), outputs=("rgb",), aa=options.aa).rgb
    assert rgb is not None
    return (rgb * 255).round().to(torch.uint8).movedim(0, -1).contiguous().numpy()


def write_clip(
    root: Path, job: tuple[SceneKind, int], *, split: str, options: ClipOptions, overwrite: bool
) -> bool:
    """Render a clip below `root`; complete ones are kept unless `overwrite`.

    Returns:
        Whether it was rendered now.
    """
    kind, index = job
    torch.set_num_threads(1)  # one process renders with one thread
    target = root / kind / f"video_{index:05d}"
    record = target / CLIP_NAME if options.file_format == "frames" else target.with_suffix(".json")
    made_with = {"split": split, **asdict(options), "size": list(options.size)}
    if record.exists() and not overwrite:
        _check_record(record, made_with)
        return False
    scene, poses = find_walk(split, kind, index, options)
    frames = [render_erp(scene, pose, options) for pose in poses]
    start = {"R": poses[0].R.tolist(), "t": poses[0].t.tolist()}
    contents = {"kind": kind, "seed": scene.seed, "start": start, **made_with}
    if options.file_format == "mp4":
        write_video(target.with_suffix(".mp4"), np.stack(frames), fps=10)
        write_json(record, contents)
        return True
    partial = target.with_name(f".{target.name}.partial")
    for old in (partial, target):
        shutil.rmtree(old, ignore_errors=True)
    for number, frame in enumerate(frames, 1):
        write_image(partial / f"frame_{number:04d}.jpg", frame, gpano=True)
    write_json(partial / CLIP_NAME, contents)
    partial.rename(target)
    return True


def _check_record(record: Path, made_with: dict[str, Any]) -> None:
    """Refuse to mix clips that were rendered with other options."""
    stored = json.loads(record.read_text(encoding="utf-8"))
    for name, value in made_with.items():
        if stored.get(name) != value:
            raise ValueError(
                f"{record.parent} was rendered with {name} {stored.get(name)}, not {value}; pass "
                "--overwrite or choose another --output_dir"
            )


def write_clips(
    root: Path,
    counts: dict[SceneKind, int],
    *,
    split: str = "train",
    options: ClipOptions,
    workers: int = 1,
    overwrite: bool = False,
) -> int:
    """Render clips ``<root>/<kind>/video_00000/frame_0001.jpg`` (or ``.../video_00000.mp4``).

    Returns:
        The number of clips rendered now; a second run adds only what is missing.
    """
    jobs = [(kind, index) for kind in KINDS for index in range(counts.get(kind, 0))]
    for kind in KINDS:
        first_seed(split, kind, max(counts.get(kind, 0) - 1, 0))
    write = partial(write_clip, root, split=split, options=options, overwrite=overwrite)
    return sum(_mapped(write, jobs, workers))


def _mapped(write: Any, jobs: list[Any], workers: int) -> Iterator[bool]:
    from tqdm.auto import tqdm

    bar = partial(tqdm, total=len(jobs), desc="clips", leave=False)
    if workers <= 1:
        yield from bar(map(write, jobs))
        return
    with ProcessPoolExecutor(workers) as pool:
        yield from bar(pool.map(write, jobs, chunksize=4))
