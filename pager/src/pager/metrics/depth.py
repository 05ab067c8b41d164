"""Depth metrics of one panorama, uniform over pixels or weighted by solid angle."""

from typing import Literal

import torch
from torch import Tensor

from pager.depth import MIN_DEPTH_M, Alignment, align
from shared_pano_utils import sphere_weights

Weighting = Literal["uniform", "area"]

# What the original's evaluation files hold, in their order.
ORIGINAL_METRICS = ("abs_relative_difference", "rmse_linear", "delta1_acc", "delta2_acc")


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
        pred: (1, H, W) metres, up to what `alignment` removes; anything outside `mask`.
        target: (1, H, W) metres.
        mask: (1, H, W) bool, pixels that count.
        alignment: fit of `pred` before the comparison, over `mask` and never weighted.
        weighting: "uniform" as the original scripts, or "area" on the sphere.

    Returns:
        `abs_relative_difference`, `squared_relative_difference` (metres), `rmse_linear` (metres),
        `delta1_acc`, `delta2_acc`, `delta3_acc` (fractions), and of aligned depths raised to 1 cm:
        `rmse_log`, `log10`, `i_rmse` (1/metres), `silog_rmse` (x 100).

    Raises:
        ValueError: no valid pixel, or a prediction that is not finite (for a logarithmic
            alignment: not positive) at a valid pixel.
    """
    if not mask.any():
        raise ValueError("the panorama has no valid ground-truth pixel; leave it out")
    p, g = pred[mask].double(), target[mask].double()
    _check(p, alignment)
    p = align(p[None], g[None], torch.ones_like(p[None], dtype=torch.bool), alignment)[0]
    weight = pixel_weights(mask, weighting)[mask]
    weight = weight / weight.sum()

    def mean(values: Tensor) -> Tensor:
        return (weight * values).sum()

    error = p - g
    # A negative aligned depth is an outlier, whatever its ratio, and has no logarithm.
    ratio = torch.where(p > 0, torch.maximum(p / g, g / p), torch.inf)
    positive = p.clamp_min(MIN_DEPTH_M)
    log_error = positive.log() - g.log()
    variance = mean(log_error.square()) - mean(log_error).square()
    metrics = {
        "abs_relative_difference": mean(error.abs() / g),
        "rmse_linear": mean(error.square()).sqrt(),
        "delta1_acc": mean((ratio < 1.25).double()),
        "delta2_acc": mean((ratio < 1.25**2).double()),
        "delta3_acc": mean((ratio < 1.25**3).double()),
        "squared_relative_difference": mean(error.square() / g),
        "rmse_log": mean(log_error.square()).sqrt(),
        "log10": mean((positive.log10() - g.log10()).abs()),
        "i_rmse": mean((1 / positive - 1 / g).square()).sqrt(),
        "silog_rmse": 100 * variance.clamp_min(0).sqrt(),
    }
    return {name: float(value) for name, value in metrics.items()}


def _check(pred: Tensor, alignment: Alignment) -> None:
    broken = int((~pred.isfinite()).sum())
    if broken:
        raise ValueError(f"{broken} of {len(pred)} valid pixels are predicted as NaN or infinity")
    negative = int((pred <= 0).sum())
    if negative and alignment in ("log_scale", "median"):
        raise ValueError(
            f"{negative} of {len(pred)} valid pixels are predicted as zero or less; "
            f"the alignment {alignment} needs positive depth, use scale or metric"
        )


def pixel_weights(mask: Tensor, weighting: Weighting) -> Tensor:
    """Weights (1, H, W) float64 of the pixels of a panorama."""
    if weighting == "uniform":
        return torch.ones(mask.shape, dtype=torch.float64)
    return sphere_weights("erp", (mask.shape[-2], mask.shape[-1]))[None]
