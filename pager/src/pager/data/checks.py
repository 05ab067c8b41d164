"""What must hold for a sample, so that a damaged or misread data set is found before training."""

import torch
from torch import Tensor

from pager.data.registry import Entry, Sample
from pager.geometry import erp_directions

# The median distance of a scene; a wrong unit (mm, km) falls outside by orders of magnitude.
MEDIAN_DEPTH_M = (0.1, 500.0)
UNIT_TOLERANCE = 0.02
NOT_UNIT_FRACTION = 0.01  # renderers average normals at silhouettes
# A surface faces the camera that sees it; smooth shading and thin parts break that at few pixels.
FACING_AWAY_COSINE = 0.1
FACING_AWAY_FRACTION = 0.05


def check_sample(sample: Sample, entry: Entry) -> dict[str, str]:
    """What is wrong with each map of a sample (rgb, depth, normals); empty when it is sound.

    Args:
        sample: see `registry.Sample`.
        entry: the data set it is from.
    """
    rgb = sample["rgb"]
    if rgb.dtype != torch.uint8 or rgb.dim() != 3 or rgb.shape[0] != 3:
        return {"rgb": f"rgb is {rgb.dtype} {tuple(rgb.shape)}, expected uint8 (3, H, W)"}
    problems: dict[str, str | None] = {}
    height, width = rgb.shape[1:]
    if width != 2 * height and (height, width) != entry.raster:
        problems["rgb"] = f"panorama is {width}x{height}, width must be 2 x height"
    elif bool((rgb == rgb[:, :1, :1]).all()):
        problems["rgb"] = "the picture is one flat colour"
    for name, promised, check in (
        ("depth", entry.has_depth, _check_depth),
        ("normals", entry.has_normals, _check_normals),
    ):
        if name in sample:
            problems[name] = check(sample[name], (height, width))
        elif promised and not entry.maps_optional:
            problems[name] = f"{name} is missing"
    return {name: problem for name, problem in problems.items() if problem is not None}


def measured(depth: Tensor) -> Tensor:
    """Pixels (1, H, W) bool that hold a distance."""
    return depth.isfinite() & (depth > 0)


def _check_depth(depth: Tensor, size: tuple[int, int]) -> str | None:
    if depth.dtype != torch.float32 or depth.shape != (1, *size):
        return f"depth is {depth.dtype} {tuple(depth.shape)}, expected float32 {(1, *size)}"
    if bool((depth < 0).any()):
        return f"depth has {int((depth < 0).sum())} negative pixels"
    valid = measured(depth)
    if not valid.any():
        return "depth has no measured pixel"
    median = float(depth[valid].median())
    low, high = MEDIAN_DEPTH_M
    if not low <= median <= high:
        return f"median depth is {median:g} m, expected {low:g} to {high:g}; is the unit right?"
    return None


def _check_normals(normals: Tensor, size: tuple[int, int]) -> str | None:
    if normals.dtype != torch.float32 or normals.shape != (3, *size):
        return f"normals are {normals.dtype} {tuple(normals.shape)}, expected float32 {(3, *size)}"
    if bool(normals.isinf().any()):
        return "normals are infinite"
    length = normals.norm(dim=0)
    has_normal = length > 0  # neither zero nor NaN
    if not has_normal.any():
        return "no pixel has a normal"
    off = float(((length[has_normal] - 1).abs() > UNIT_TOLERANCE).float().mean())
    if off > NOT_UNIT_FRACTION:
        return f"normals are not of unit length at {off:.1%} of the pixels"
    cosine = (normals * erp_directions(size)).sum(0)[has_normal]
    away = float((cosine > FACING_AWAY_COSINE).float().mean())
    if away > FACING_AWAY_FRACTION:
        return f"normals face away from the camera at {away:.0%} of the pixels; wrong frame?"
    return None
