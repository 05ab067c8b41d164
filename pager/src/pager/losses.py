"""Training losses on decoded faces: `pred`, `target` (b, 6, C, S, S), `mask` (b, 6, 1, S, S) bool.

Every loss returns one value per panorama (b,); a panorama without valid pixels contributes zero.
Formulas: PaGeR as released (aligned L1, gradient L1, normals consistency, cosine).
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from pager.depth import DepthRange, least_squares_scale_shift
from pager.geometry import erp_directions
from shared_pano_utils import cubemap_to_erp
from shared_pano_utils.geometry import PY360_E2X


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over `mask` per sample, (b, ...) -> (b,); zero where the mask is empty."""
    weight = mask.to(values.dtype).expand_as(values).flatten(1)
    return (values.flatten(1) * weight).sum(1) / weight.sum(1).clamp_min(1)


def align_relative(pred: Tensor, target: Tensor, mask: Tensor, *, log_scale: bool) -> Tensor:
    """Remove what relative depth leaves free: an offset in log depth, else scale and shift.

    The fit runs over the six faces together and gradients flow through it.
    """
    expand = (-1,) + (1,) * (pred.dim() - 1)
    if log_scale:
        return pred + masked_mean(target - pred, mask).view(expand)
    scale, shift = least_squares_scale_shift(pred, target, mask)
    return pred * scale.view(expand) + shift.view(expand)


def l1_loss(pred: Tensor, target: Tensor, mask: Tensor, invalid_mask_weight: float = 0.0) -> Tensor:
    """Mean absolute error over valid pixels, plus the weighted error over invalid ones."""
    error = (pred - target).abs()
    loss = masked_mean(error, mask)
    if invalid_mask_weight > 0:
        loss = loss + invalid_mask_weight * masked_mean(error, ~mask)
    return loss


def gradient_loss(pred: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """L1 between forward differences inside each face, where the 2x2 block is valid."""
    error = pred - target
    block = mask[..., :-1, :-1] & mask[..., 1:, :-1] & mask[..., :-1, 1:] & mask[..., 1:, 1:]
    along_x = (error[..., :-1, 1:] - error[..., :-1, :-1]).abs()
    along_y = (error[..., 1:, :-1] - error[..., :-1, :-1]).abs()
    return (masked_mean(along_x, block) + masked_mean(along_y, block)) / 2


def cosine_loss(pred: Tensor, target: Tensor, mask: Tensor, *, dim: int = -3) -> Tensor:
    """One minus the cosine between vectors along `dim`, mean over valid pixels."""
    cosine = F.cosine_similarity(pred, target, dim=dim, eps=1e-6).unsqueeze(dim)
    return masked_mean(1 - cosine, mask)


def normals_from_radial(depth_m: Tensor) -> Tensor:
    """Normals (b, 3, H, W), `pager` frame, of radial ERP depth (b, 1, H, W) by cross products.

    Central differences along longitude (wrapping) and latitude (replicated at the poles).
    """
    points = depth_m * erp_directions(depth_m.shape[-2:], depth_m.device, depth_m.dtype)
    along_lon = points.roll(-1, -1) - points.roll(1, -1)
    rows = F.pad(points, (0, 0, 1, 1), mode="replicate")
    along_lat = rows[..., 2:, :] - rows[..., :-2, :]
    return F.normalize(torch.linalg.cross(along_lon, along_lat, dim=1), dim=1, eps=1e-12)


def normals_consistency_loss(
    pred: Tensor, normals: Tensor, mask: Tensor, depth_range: DepthRange
) -> Tensor:
    """Cosine loss between normals of the predicted depth and the true ones on the ERP.

    Args:
        pred: (b, 6, 1, S, S) normalised depth.
        normals: (b, 3, H, W) unit, `pager` frame.
        mask: (b, 1, H, W) bool.
        depth_range: maps predictions to metres.
    """
    height, width = normals.shape[-2:]
    erp = cast(Tensor, cubemap_to_erp(pred, (height, width), reg=PY360_E2X))
    return cosine_loss(normals_from_radial(depth_range.denormalize(erp)), normals, mask)
