"""Angular errors of surface normals."""

import torch
import torch.nn.functional as F
from torch import Tensor

from pager.metrics.depth import Weighting, pixel_weights

THRESHOLDS_DEG = (5.0, 7.5, 11.25, 22.5, 30.0)


def normals_metrics(
    pred: Tensor, target: Tensor, mask: Tensor, *, weighting: Weighting = "uniform"
) -> dict[str, float]:
    """Compare normals (3, H, W), in one frame, over `mask` (1, H, W) bool.

    Returns:
        `mean` and `median` (degrees), `mse` (square degrees) and the fractions `delta_5` ...
        `delta_30` below an angle. The median is always uniform over pixels.
    """
    if not mask.any():
        raise ValueError("the panorama has no valid ground-truth pixel; leave it out")
    cosine = F.cosine_similarity(pred.double(), target.double(), dim=0, eps=1e-12)
    angle = torch.rad2deg(torch.acos(cosine.clamp(-1, 1)))[mask[0]]
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
