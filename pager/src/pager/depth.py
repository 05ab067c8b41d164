"""Depth parametrisation of the network and the alignments used by losses and metrics."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

Alignment = Literal["metric", "scale", "scale_and_shift", "log_scale", "median"]

MIN_DEPTH_M = 0.01
MAX_DEPTH_M = 75.0
INDOOR_MAX_DEPTH_M = 15.0
FAR_FRACTION = 0.95  # of the range; where training says "sky", predictions come near its end


@dataclass(frozen=True, kw_only=True)
class DepthRange:
    """Map between metres and the network's [-1, 1], logarithmic unless `log_scale` is off.

    >>> round(DepthRange().normalize(torch.tensor(5.0)).item(), 6)
    0.392995
    """

    min_m: float = MIN_DEPTH_M
    max_m: float = MAX_DEPTH_M
    log_scale: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.min_m < self.max_m:
            raise ValueError(f"depth range is {self.min_m}..{self.max_m} m; expected 0 < min < max")

    def normalize(self, depth_m: Tensor) -> Tensor:
        """Metres (any shape, clipped to the range first) to [-1, 1]."""
        depth_m = depth_m.clamp(self.min_m, self.max_m)
        if self.log_scale:
            low, high = math.log(self.min_m), math.log(self.max_m)
            return 2 * (depth_m.log() - low) / (high - low) - 1
        return 2 * (depth_m - self.min_m) / (self.max_m - self.min_m) - 1

    def denormalize(self, value: Tensor) -> Tensor:
        """Network output (clamped to [-1, 1]) to metres; float32 whatever the input dtype."""
        unit = (value.float().clamp(-1, 1) + 1) / 2
        if self.log_scale:
            low, high = math.log(self.min_m), math.log(self.max_m)
            return (low + unit * (high - low)).exp()
        return self.min_m + unit * (self.max_m - self.min_m)

    def valid(self, depth_m: Tensor) -> Tensor:
        """Pixels that carry a measurement: finite, above 1.01 min and below 0.99 max."""
        return depth_m.isfinite() & (depth_m > 1.01 * self.min_m) & (depth_m < 0.99 * self.max_m)


def least_squares_scale_shift(pred: Tensor, target: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and shift per sample that bring `pred` closest to `target` over `mask`.

    Args:
        pred: (b, ...).
        target: (b, ...).
        mask: (b, ...) bool.

    Returns:
        Two (b,) tensors; zeros where the 2x2 normal equations are singular.
    """
    p, g, m = (t.flatten(1) for t in (pred, target, mask.to(pred.dtype)))
    spp, sp, n = (m * p * p).sum(1), (m * p).sum(1), m.sum(1)
    spg, sg = (m * p * g).sum(1), (m * g).sum(1)
    determinant = spp * n - sp * sp
    solvable = determinant > 0
    safe = torch.where(solvable, determinant, torch.ones_like(determinant))
    scale = (n * spg - sp * sg) / safe
    shift = (spp * sg - sp * spg) / safe
    zero = torch.zeros_like(scale)
    return torch.where(solvable, scale, zero), torch.where(solvable, shift, zero)


def align(pred: Tensor, target: Tensor, mask: Tensor, alignment: Alignment) -> Tensor:
    """Return `pred` (b, ...) in metres aligned to `target` over `mask`, one fit per sample.

    "scale" minimises the squared error in depth, "scale_and_shift" adds an offset, "log_scale"
    matches the mean log depth, "median" the median depth, "metric" changes nothing.
    """
    if alignment == "metric":
        return pred
    expand = (-1,) + (1,) * (pred.dim() - 1)
    weight = mask.to(pred.dtype).flatten(1)
    if alignment == "scale":
        p, g = pred.flatten(1), torch.where(mask, target, torch.zeros_like(target)).flatten(1)
        scale = (weight * p * g).sum(1) / (weight * p * p).sum(1).clamp_min(1e-12)
        return pred * scale.view(expand)
    if alignment == "scale_and_shift":
        clean = torch.where(mask, target, torch.zeros_like(target))
        scale, shift = least_squares_scale_shift(pred, clean, mask)
        return pred * scale.view(expand) + shift.view(expand)
    if alignment == "log_scale":
        ratio = torch.where(mask, (target / pred).log(), torch.zeros_like(pred)).flatten(1)
        return pred * (ratio.sum(1) / weight.sum(1).clamp_min(1)).exp().view(expand)
    if alignment == "median":
        pairs = zip(pred, target, mask, strict=True)
        ratios = [_median(g[m]) / _median(p[m]).clamp_min(1e-12) for p, g, m in pairs]
        return pred * torch.stack(ratios).view(expand)
    *names, last = get_args(Alignment)
    raise ValueError(f"alignment is {alignment!r}; use {', '.join(names)} or {last}")


def _median(values: Tensor) -> Tensor:
    """Median of (n,), the mean of the two middle values if n is even; 1 without values."""
    if not len(values):
        return values.new_ones(())
    ordered = values.sort().values  # torch.quantile refuses more than 2^24 values: 8K panoramas
    return (ordered[(len(values) - 1) // 2] + ordered[len(values) // 2]) / 2
