"""Angular errors of surface normals."""

import torch
from torch import Tensor

from pager.metrics.depth import Weighting, pixel_weights

THRESHOLDS_DEG = (5.0, 7.5, 11.25, 22.5, 30.0)


def normals_metrics(
    pred: Tensor, target: Tensor, mask: Tensor, *, weighting: Weighting = "uniform"
) -> dict[str, float]:
    """Compare normals (3, H, W), in one frame and of any length, over `mask` (1, H, W) bool.

    Returns:
        `mean` and `median` (degrees), `mse` (square degrees) and the fractions `delta_5` ...
        `delta_30` below an angle. The median is always uniform over pixels.

    Raises:
        ValueError: no valid pixel, or a prediction that is not finite at a valid pixel.
    """
    if not mask.any():
        raise ValueError("the panorama has no valid ground-truth pixel; leave it out")
    angle = angles_deg(pred, target)[mask]
    broken = int((~angle.isfinite()).sum())
    if broken:
        raise ValueError(f"{broken} of {len(angle)} valid pixels are predicted as NaN or infinity")
    weight = pixel_weights(mask, weighting)[mask]
    weight = weight / weight.sum()
    metrics = {
        "mean": float((weight * angle).sum()),
        "median": float(angle.median()),
        "mse": float((weight * angle.square()).sum()),
    }
    for threshold in THRESHOLDS_DEG:
        metrics[f"delta_{threshold:g}"] = float((weight * (angle < threshold)).sum())
    return metrics


def angles_deg(pred: Tensor, target: Tensor) -> Tensor:
    """Angles (1, H, W) in degrees, float64, between vectors (3, H, W); 90 for a zero vector."""
    pred, target = pred.double(), target.double()
    # The arc cosine of a rounded dot product would leave 1e-6 degrees between equal vectors.
    sine = torch.linalg.vector_norm(torch.linalg.cross(pred, target, dim=0), dim=0)
    cosine = (pred * target).sum(0)
    angle = torch.rad2deg(torch.atan2(sine, cosine))
    is_zero = (pred == 0).all(0) | (target == 0).all(0)
    return torch.where(is_zero, 90.0, angle)[None]
