"""Quality of a pair of checkpoints on held-out procedural panoramas, beside a trivial baseline.

The baseline is the mean log-depth map (and mean normal map) of panoramas of the training split.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from pager.data.panoinfinigen import Frame
from pager.data.procedural import KINDS, SceneKind, render_frame, split_seeds
from pager.depth import DepthRange
from pager.metrics.depth import depth_metrics
from pager.metrics.normals import normals_metrics
from pager.pipeline import PagerPipeline
from shared_pano_utils.metrics import seam_error

HELD_OUT = {"room": 32, "corridor": 16, "outdoor": 16}
BASELINE_PANORAMAS = 64
MAX_DEPTH_M = 75.0

Predictor = Callable[[np.ndarray], Tensor]


@dataclass(frozen=True, kw_only=True)
class Row:
    """Metrics of one panorama."""

    kind: SceneKind
    seed: int
    values: dict[str, float]


def held_out_frames(
    size: tuple[int, int], counts: dict[str, int] | None = None, split: str = "test"
) -> Iterable[tuple[SceneKind, int, Frame]]:
    """Render scenes whose seeds are never trained on: (kind, seed, frame)."""
    for kind in KINDS:
        for seed in split_seeds(split, kind, (counts or HELD_OUT)[kind]):
            yield kind, seed, render_frame(seed, kind, 0, size)


def mean_maps(size: tuple[int, int], counts: dict[str, int]) -> tuple[Tensor, Tensor]:
    """Mean depth (1, H, W) metres, averaged in log space, and mean normals (3, H, W)."""
    depth_range = DepthRange(max_m=MAX_DEPTH_M)
    total = torch.zeros(1, *size, dtype=torch.float64)
    count = torch.zeros(1, *size, dtype=torch.float64)
    normals = torch.zeros(3, *size, dtype=torch.float64)
    for _, _, frame in held_out_frames(size, counts, "train"):
        depth = torch.from_numpy(frame.depth)[None].double()
        valid = depth_range.valid(depth)
        total += torch.where(valid, depth, torch.ones_like(depth)).log()
        count += valid
        normals += torch.from_numpy(frame.normals).movedim(-1, 0) * valid
    return (total / count.clamp_min(1)).exp(), F.normalize(normals, dim=0)


def depth_row(pred: Tensor, frame: Frame) -> dict[str, float]:
    """Scale-aligned errors, and the seam ratio at +-180 degrees beside that of the truth."""
    target = torch.from_numpy(frame.depth)[None]
    mask = DepthRange(max_m=MAX_DEPTH_M).valid(target)
    values = depth_metrics(pred, target, mask, alignment="scale")
    return {**values, "wrap_ratio": float(seam_error(pred.float().log())["wrap_ratio"])}


def normals_row(pred: Tensor, frame: Frame) -> dict[str, float]:
    """Angular errors where there is a surface."""
    target = torch.from_numpy(frame.normals).movedim(-1, 0)
    mask = DepthRange(max_m=MAX_DEPTH_M).valid(torch.from_numpy(frame.depth)[None])
    return normals_metrics(pred, target, mask)


def evaluate_tiny(
    pipelines: list[PagerPipeline], size: tuple[int, int], counts: dict[str, int] | None = None
) -> dict[str, dict[str, list[Row]]]:
    """Score the pipelines and the baseline on the held-out panoramas.

    Returns:
        modality -> {"model": rows, "baseline": rows}.
    """
    baseline_counts = {k: v * BASELINE_PANORAMAS // 64 for k, v in (counts or HELD_OUT).items()}
    mean_depth, mean_normals = mean_maps(size, baseline_counts)
    table: dict[str, dict[str, list[Row]]] = {
        p.modality: {"model": [], "baseline": []} for p in pipelines
    }
    frames = held_out_frames(size, counts)
    for kind, seed, frame in tqdm(
        frames, total=sum((counts or HELD_OUT).values()), desc="held out"
    ):
        for pipeline in pipelines:
            result = pipeline(frame.rgb)
            is_depth = pipeline.modality == "depth"
            score = depth_row if is_depth else normals_row
            values = result.depth if is_depth else result.normals
            assert values is not None
            rows = table[pipeline.modality]
            rows["model"].append(
                Row(kind=kind, seed=seed, values=score(torch.from_numpy(values), frame))
            )
            trivial = mean_depth if is_depth else mean_normals
            rows["baseline"].append(Row(kind=kind, seed=seed, values=score(trivial, frame)))
    return table


def summarize(rows: list[Row]) -> dict[str, dict[str, float]]:
    """Mean of every metric over all panoramas ("all") and per kind."""
    groups = {"all": rows, **{kind: [r for r in rows if r.kind == kind] for kind in KINDS}}
    return {
        name: {key: float(np.mean([r.values[key] for r in group])) for key in group[0].values}
        for name, group in groups.items()
        if group
    }
