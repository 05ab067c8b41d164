"""Losses of a training step, all of them functions of one residual ``r = v - (epsilon - x0)``.

The yaw and the cube loss (paper section 3.4) resample prediction and target alike. Resampling is
linear, so it is enough to resample the residual once: a turned panorama by half-integer columns
is a horizontal low-pass of the error, six cube faces weigh it about by solid angle (spec 5.3).

Two definitions of the sampling grid: "original" lays the first and the last column on the same
meridian and clamps at the seam, as the released code; "half_pixel" has the pixel centres of
`shared_pano_utils` and wraps. Coordinates are float64, grids and samples float32: half precision
would misplace rows by up to two (D12).
"""

import functools
import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

AuxGrid = Literal["original", "half_pixel"]
Reduction = Literal["cells", "grid"]
YAW_ANGLES_DEG = (60.0, 180.0, 300.0)  # of the released code; the paper says "random"
FACES = ("+X", "-X", "+Y", "-Y", "+Z", "-Z")  # right, left, down, up, front, back


class FlowLosses(NamedTuple):
    """Losses of every sample (B,), not yet averaged over the batch."""

    total: Tensor
    velocity: Tensor
    yaw: Tensor
    cube: Tensor


def yaw_residual(residual: Tensor, angles_deg: Tensor, grid: AuxGrid = "original") -> Tensor:
    """Turn panoramas about the vertical; column j of the result lies at longitude j + angle.

    With the "original" grid the first and the last row are turned by 180 degrees more: in float32
    the cosine of +-90 degrees is slightly negative, and the released code takes it as it is.

    Args:
        residual: (B, C, h, w), float32.
        angles_deg: (B,) one for each sample, on the CPU.
        grid: see the module.

    Returns:
        (B, C, h, w).

    Source: L_yaw of paper section 3.4, rotation of the released code.
    """
    height, width = residual.shape[-2:]
    period = width - 1 if grid == "original" else width
    shift = angles_deg.double()[:, None] / 360 * period
    rows = torch.arange(height, dtype=torch.float64)
    at_pole = (rows == 0) | (rows == height - 1)
    flip = at_pole * (period / 2) if grid == "original" else torch.zeros_like(rows)
    columns = torch.arange(width, dtype=torch.float64) + flip[:, None] + shift[..., None]
    place = torch.stack(
        torch.broadcast_tensors(torch.remainder(columns, period), rows[:, None]), -1
    )  # [b, h, w, 2]
    return _sample(residual, _normalise(place, height, width, grid).to(residual.device), grid)


def cube_residual(residual: Tensor, grid: AuxGrid = "original") -> Tensor:
    """Sample the six faces of side h / 2, in the order of `FACES`, upright as seen from inside.

    Args:
        residual: (B, C, h, w), float32.
        grid: see the module.

    Returns:
        (B, 6, C, h/2, h/2).

    Source: L_cube of paper section 3.4.
    """
    height, width = residual.shape[-2:]
    side = height // 2
    faces = _cube_grid(height, width, grid, residual.device)  # [1, 6*side, side, 2]
    sampled = _sample(residual, faces.expand(len(residual), -1, -1, -1), grid)
    return sampled.unflatten(2, (len(FACES), side)).movedim(2, 1)


def flow_losses(
    residual: Tensor,
    weights: Tensor,
    *,
    lambda_yaw: float = 0.0,
    lambda_cube: float = 0.0,
    angles_deg: Tensor | None = None,
    grid: AuxGrid = "original",
    supervised: Tensor | None = None,
    perspective_weight: float = 0.5,
    reduction: Reduction = "cells",
) -> FlowLosses:
    """Losses of a batch in which panoramas and photos on a canvas may be mixed.

    A panorama costs ``L_v + lambda_yaw L_yaw + lambda_cube L_cube`` (spec 5.3). A sample that is
    not supervised everywhere is a photo: only its supervised cells count, times
    `perspective_weight`, and no auxiliary loss (spec 5.4). Without any such cell its loss is a
    differentiable zero.

    Args:
        residual: (B, C, h, w) prediction minus target, float32.
        weights: (B,) of the noise levels.
        lambda_yaw: weight of the yaw loss; 0 leaves it out.
        lambda_cube: weight of the cube loss; 0 leaves it out.
        angles_deg: (B,) for the yaw loss, on the CPU.
        grid: of the auxiliary losses.
        supervised: (B, h, w) bool; None = everywhere.
        perspective_weight: 0.5 in the released code, 1 in the paper.
        reduction: mean over the supervised "cells" of a photo (released code), or over the whole
            "grid" with zeros elsewhere (paper).
    """
    mean_square = functools.partial(_weighted_mean_square, weights=weights)
    velocity = mean_square(residual)
    yaw = cube = torch.zeros_like(velocity)
    if lambda_yaw:
        assert angles_deg is not None
        yaw = mean_square(yaw_residual(residual, angles_deg, grid))
    if lambda_cube:
        cube = mean_square(cube_residual(residual, grid))
    if supervised is None:
        return FlowLosses(velocity + lambda_yaw * yaw + lambda_cube * cube, velocity, yaw, cube)
    is_panorama = supervised.flatten(1).all(1)
    cells = residual.shape[-2] * residual.shape[-1]
    counted = supervised.flatten(1).sum(1).clamp(min=1) if reduction == "cells" else cells
    of_photo = mean_square(residual * supervised[:, None]) * (cells / counted)
    velocity = torch.where(is_panorama, velocity, perspective_weight * of_photo)
    yaw, cube = yaw * is_panorama, cube * is_panorama
    return FlowLosses(velocity + lambda_yaw * yaw + lambda_cube * cube, velocity, yaw, cube)


def _weighted_mean_square(residual: Tensor, weights: Tensor) -> Tensor:
    """Mean of ``w r^2`` over all but the first dimension: (B, ...) to (B,)."""
    return weights * residual.square().flatten(1).mean(1)


@functools.lru_cache(maxsize=8)
def _cube_grid(height: int, width: int, grid: AuxGrid, device: torch.device) -> Tensor:
    """Where the faces lie in a panorama: (1, 6 * h/2, h/2, 2) for `grid_sample`."""
    columns, rows = cube_coordinates(height, width, grid)
    place = torch.stack([columns, rows], -1).flatten(0, 1)[None]
    return _normalise(place, height, width, grid).to(device)


def cube_coordinates(height: int, width: int, grid: AuxGrid) -> tuple[Tensor, Tensor]:
    """Columns and rows of the panorama under the cells of the faces.

    Returns:
        Two tensors (6, h/2, h/2), float64, in cells: ``theta = atan2(x, z)``,
        ``phi = asin(y)`` with y down.
    """
    side = height // 2
    if grid == "original":
        cell = torch.linspace(-1, 1, side, dtype=torch.float64)
    else:
        cell = (2 * torch.arange(side, dtype=torch.float64) + 1) / side - 1
    down, right = torch.meshgrid(cell, cell, indexing="ij")
    one = torch.ones_like(right)
    faces = (
        (one, down, -right),
        (-one, down, right),
        (right, one, -down),
        (right, -one, down),
        (right, down, one),
        (-right, down, -one),
    )
    x, y, z = (torch.stack(axis) for axis in zip(*faces, strict=True))
    theta = torch.atan2(x, z)
    phi = torch.atan2(y, torch.hypot(x, z))
    if grid == "original":
        return (theta / (2 * math.pi) + 0.5) * (width - 1), (phi / math.pi + 0.5) * (height - 1)
    return (theta / (2 * math.pi) + 0.5) * width - 0.5, (phi / math.pi + 0.5) * height - 0.5


def _normalise(place: Tensor, height: int, width: int, grid: AuxGrid) -> Tensor:
    """Cells (..., 2) as (column, row) to the float32 coordinates of `_sample`."""
    columns, rows = place.unbind(-1)
    if grid == "half_pixel":  # `_sample` lays a column of the other end on both sides
        columns, width = columns + 1, width + 2
    return torch.stack([2 * columns / (width - 1) - 1, 2 * rows / (height - 1) - 1], -1).float()


def _sample(residual: Tensor, place: Tensor, grid: AuxGrid) -> Tensor:
    """Bilinear, clamped to the rows; at the seam clamped ("original") or wrapped."""
    if grid == "half_pixel":
        residual = F.pad(residual, (1, 1, 0, 0), mode="circular")
    return F.grid_sample(residual, place, "bilinear", "border", align_corners=True)
