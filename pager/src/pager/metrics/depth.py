"""Depth metrics of one panorama, uniform over pixels or weighted by solid angle."""

from typing import Literal

import torch
from torch import Tensor

from pager.depth import Alignment, align
from shared_pano_utils import sphere_weights

Weighting = Literal["uniform", "area"]


def depth_metrics(
    pred: Tensor,
    target: Tensor,
    mask: Tensor,
    *,
    alignment: Alignment = "scale",
    weighting: Weighting = "uniform",
) -> dict[str, float]:
    """Compare predicted with true distances.

    Args:
        pred: (1, H, W) metres, up to what `alignment` removes.
        target: (1, H, W) metres.
        mask: (1, H, W) bool, pixels that count.
        alignment: least-squares fit of `pred` before the comparison.
        weighting: "uniform" as the original scripts, or "area" on the sphere.

    Returns:
        `abs_relative_difference`, `rmse_linear` (metres), `delta1_acc`, `delta2_acc`.

    Raises:
        ValueError: no valid pixel.
    """
    if not mask.any():
        raise ValueError("the panorama has no valid ground-truth pixel; leave it out")
    aligned = align(pred[None].double(), target[None].double(), mask[None], alignment)[0]
    p, g = aligned[mask], target[mask].double()
    weight = pixel_weights(mask, weighting)[mask]
    weight = weight / weight.sum()
    # A negative aligned depth is an outlier, whatever its ratio.
    ratio = torch.where(p > 0, torch.maximum(p / g, g / p), torch.inf)
    return {
        "abs_relative_difference": float((weight * (p - g).abs() / g).sum()),
        "rmse_linear": float((weight * (p - g).square()).sum().sqrt()),
        "delta1_acc": float((weight * (ratio < 1.25)).sum()),
        "delta2_acc": float((weight * (ratio < 1.25**2)).sum()),
    }


def pixel_weights(mask: Tensor, weighting: Weighting) -> Tensor:
    """Weights (1, H, W) float64 of the pixels of a panorama."""
    if weighting == "uniform":
        return torch.ones(mask.shape, dtype=torch.float64)
    return sphere_weights("erp", (mask.shape[-2], mask.shape[-1]))[None]
