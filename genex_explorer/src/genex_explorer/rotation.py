"""Turning on the spot: a panorama shifted along its rows, and the original's truncating roll.

The network only walks to the image centre, so that a turn is a yaw of the panorama: degrees to the
right positive, content moves left. Turns by whole columns are exact, and a full circle in such
turns is the identity.
"""

import math
from typing import Literal, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from shared_pano_utils import rotate_erp

Erp = TypeVar("Erp", Tensor, np.ndarray)
TurnMode = Literal["bilinear", "fourier"]


def roll_columns(width: int, yaw_deg: float) -> int:
    """Whole columns nearest to a turn, in [0, width): ``torch.roll(x, -columns, -1)`` turns right.

    >>> roll_columns(1024, 45), roll_columns(1024, -45), roll_columns(1024, 90.1)
    (128, 896, 256)
    """
    return round(yaw_deg % 360 / 360 * width) % width


def turn(erp: Erp, yaw_deg: float, mode: TurnMode = "bilinear") -> Erp:
    """Turn the viewer of a panorama.

    An exact roll if ``yaw_deg * W / 360`` is a whole number, whatever the mode and dtype. Add up
    several turns and turn once: every fractional bilinear turn blurs a little.

    Args:
        erp: tensor (*, C, H, W) or array (*, H, W, C).
        yaw_deg: to the right.
        mode: of a fraction of a column; "fourier" shifts by phase and keeps the spectrum.

    Returns:
        Of the shape, kind and dtype of `erp`.

    Raises:
        ValueError: the angle is not finite, or the mode is unknown.
    """
    if not math.isfinite(yaw_deg):
        raise ValueError(f"turn is {yaw_deg} degrees; give a finite number")
    if mode not in ("bilinear", "fourier"):
        raise ValueError(f"mode is {mode!r}; use 'bilinear' or 'fourier'")
    width = erp.shape[-1] if isinstance(erp, Tensor) or erp.ndim == 2 else erp.shape[-2]
    columns = yaw_deg % 360 / 360 * width
    if abs(columns - round(columns)) < 1e-6:
        mode = "bilinear"  # moves whole columns exactly, the phase only up to rounding
    return cast(Erp, rotate_erp(erp, yaw_deg % 360, mode=mode))


def truncated_indices(
    height: int, width: int, yaw_deg: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Source rows (H,) and columns (W,) of the original's turn, int64.

    It went from pixels to angles and back, and cut the fraction off: where rounding in `dtype`
    leaves 6.9999995 instead of 7, the neighbour is taken. The order of operations is the
    original's, since the rounding hangs on it.
    """
    longitude = torch.arange(width, dtype=dtype) / width * 2 * math.pi
    turned = (longitude + torch.tensor(yaw_deg, dtype=dtype).deg2rad()) % (2 * math.pi)
    columns = (turned / (2 * math.pi) * width).long().clamp(max=width - 1)
    latitude = torch.arange(height, dtype=dtype) / height * math.pi - math.pi / 2
    rows = ((latitude + math.pi / 2) / math.pi * height).long().clamp(0, height - 1)
    return rows, columns


def legacy_roll(x: Tensor, yaw_deg: float) -> Tensor:
    """Turn as the original's spherical-consistency loss did, for comparisons; see `turn` for ours.

    Truncated float32 indices: at 1024 columns a turn by 0 degrees misplaces 81 columns by one, by
    45 degrees 284, by 90.1 degrees none. Rows suffer too: 73 of 576 show the row above.

    Args:
        x: (*, H, W).
        yaw_deg: to the right.

    Returns:
        (*, H, W), differentiable.
    """
    rows, columns = truncated_indices(x.shape[-2], x.shape[-1], yaw_deg, torch.float32)
    return x[..., rows.to(x.device), :][..., columns.to(x.device)]
