"""Sampling maps in closed form: where in the source each output pixel looks.

Directions are kept as three separate tensors (x, y, z), not normalised, built from one-dimensional
float64 factors, so that a two-dimensional float32 map costs a few additions and two arc tangents.
Everything is differentiable with respect to rotations and intrinsics.
"""

import math
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from .geometry import PixelGrid, axis_coordinates, border_to_index

Directions = tuple[Tensor, Tensor, Tensor]
Locate = TypeVar("Locate", bound=Callable[..., tuple[Tensor, ...]])

# 0.5 MB per float32 tensor.
_BLOCK_PIXELS = 2**17
# Squared length below which a ray counts as vertical: keeps gradients at the poles finite.
_TINY = 1e-30


def view_directions(
    R: Tensor, K: Tensor, size: tuple[int, int], grid: PixelGrid, dtype: torch.dtype
) -> Directions:
    """Rays of every pixel of B pinhole views.

    Args:
        R: (B, 3, 3) camera to reference.
        K: (B, 3, 3) pixels.
        size: (h, w).
        grid: pixel registration of the views.
        dtype: dtype of the result.

    Returns:
        x, y, z, each (B, h, w), in the reference frame.
    """
    h, w = size
    matrix = R @ torch.linalg.inv(K.to(R))
    axis = {"dtype": matrix.dtype, "device": matrix.device}
    x = axis_coordinates(w, grid, **axis) * w
    y = axis_coordinates(h, grid, **axis) * h
    along_x = (matrix[..., 0, None] * x + matrix[..., 2, None]).to(dtype)  # [B, 3, w]
    along_y = (matrix[..., 1, None] * y).to(dtype)  # [B, 3, h]
    rays = (along_x[:, k, None, :] + along_y[:, k, :, None] for k in range(3))
    return tuple(rays)  # pyright: ignore[reportReturnType]


def erp_directions(
    R: Tensor, size: tuple[int, int], grid: PixelGrid, dtype: torch.dtype
) -> Directions:
    """Unit rays of every ERP pixel turned by `R` (3, 3): x, y, z, each (1, H, W)."""
    h, w = size
    axis = {"dtype": R.dtype, "device": R.device}
    lon = (axis_coordinates(w, grid, **axis) - 0.5) * (2 * math.pi)
    lat = (0.5 - axis_coordinates(h, grid, **axis)) * math.pi
    cos_lat = lat.cos().to(dtype)[:, None]
    around = (R[:, 0, None] * lon.sin() + R[:, 2, None] * lon.cos()).to(dtype)  # [3, w]
    upward = (-R[:, 1, None] * lat.sin()).to(dtype)  # [3, h]
    rays = (torch.addcmul(upward[k, :, None], cos_lat, around[k])[None] for k in range(3))
    return tuple(rays)  # pyright: ignore[reportReturnType]


def by_rows(locate: Locate) -> Locate:
    """Apply `locate` to blocks of rows, whose temporaries stay in the processor's cache."""

    @wraps(locate)
    def blockwise(rays: Directions, *args: Any) -> tuple[Tensor, ...]:
        rows = max(1, _BLOCK_PIXELS * rays[0].shape[-2] // max(1, rays[0].numel()))
        blocks = zip(*(component.split(rows, -2) for component in rays), strict=True)
        located = zip(*(locate(block, *args) for block in blocks), strict=True)
        return tuple(torch.cat(parts, -2) for parts in located)

    return cast("Locate", blockwise)


@by_rows
def locate_in_erp(
    rays: Directions, size: tuple[int, int], grid: PixelGrid
) -> tuple[Tensor, Tensor]:
    """Fractional (column, row) in an (H, W) ERP of every ray."""
    x, y, z = rays
    horizontal_sq = x * x + z * z
    vertical = horizontal_sq < _TINY
    lon = torch.atan2(x, torch.where(vertical, 1.0, z))
    lat = torch.atan2(-y, horizontal_sq.clamp_min(_TINY).sqrt())
    column = border_to_index(lon * (0.5 / math.pi) + 0.5, size[1], grid)
    return column, border_to_index(lat * (-1 / math.pi) + 0.5, size[0], grid)


def locate_in_cube(
    rays: Directions, side: int, tangent: float, grid: PixelGrid
) -> tuple[Tensor, Tensor, Tensor]:
    """Face index (as a float) and fractional (column, row) on that face of every ray.

    The face is the one with the largest |component|, ties to the lower index of F R B L U D;
    `tangent` is the half extent of a face, tan(fov/2).
    """
    x, y, z = rays
    ax, az = x.abs(), z.abs()
    along_z = (az > ax) | ((az == ax) & ((z > 0) | (x < 0)))
    forward = torch.where(along_z, z, x)
    cap = y.abs() > forward.abs()
    side_face = torch.where(along_z, 1 - z.sign(), 2 - x.sign())
    face = torch.where(cap, 4.5 + 0.5 * y.sign(), side_face)
    # u is x/z on F and B, -z/x on R and L, x/|y| on U and D; v is y/|forward|, -z/y on U and D.
    u = torch.where(cap, x, torch.where(along_z, x, -z)) / torch.where(cap, y.abs(), forward)
    v = torch.where(cap, -z, y) / torch.where(cap, y, forward.abs())
    scale = 0.5 / tangent
    column = border_to_index(u * scale + 0.5, side, grid)
    return face, column, border_to_index(v * scale + 0.5, side, grid)


def locate_in_view(
    rays: Directions, K: Tensor, size: tuple[int, int], grid: PixelGrid
) -> tuple[Tensor, Tensor, Tensor]:
    """Fractional (column, row) in an (h, w) view, and the feather weight of every ray.

    `rays` are in the frame of the camera. The weight is ``max(1e-4, (1-|u|)(1-|v|))``, with u and v
    in [-1, 1] between the image borders, inside the view and 0 outside of it.
    """
    h, w = size
    x, y, z = rays
    ahead = z > 0
    z = torch.where(ahead, z, 1.0)
    K = K.to(x)
    s = (K[0, 0] * x + K[0, 1] * y) / z / w + K[0, 2] / w
    t = K[1, 1] * y / z / h + K[1, 2] / h
    u, v = (2 * s - 1).abs(), (2 * t - 1).abs()
    inside = ahead & (u <= 1) & (v <= 1)
    feather = ((1 - u) * (1 - v)).clamp_min(1e-4) * inside
    # Rays far outside only need a finite position: they are masked by the weight.
    column = border_to_index(s.clamp(-1, 2), w, grid)
    return column, border_to_index(t.clamp(-1, 2), h, grid), feather
