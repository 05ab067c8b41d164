"""Depth edges: are they where they should be, and are they there at all."""

import math
from typing import Literal, cast

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pager.depth import MAX_DEPTH_M, MIN_DEPTH_M
from shared_pano_utils import pad_erp

EdgeConvention = Literal["original", "sphere"]

THRESHOLD = 0.01
CAP_PX = 75.0
_PAD = 3
_SOBEL = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]], dtype=torch.float64)


def edge_metrics(
    pred: Tensor,
    target: Tensor,
    mask: Tensor,
    *,
    convention: EdgeConvention = "original",
    threshold: float = THRESHOLD,
    cap_px: float = CAP_PX,
) -> dict[str, float]:
    """Compare the edges of a predicted with those of a true depth map.

    Needs no alignment: both maps are brought to [0, 1] by their extremes over `mask`.

    Args:
        pred: (1, H, W), any scale and shift; anything outside `mask`.
        target: (1, H, W) metres.
        mask: (1, H, W) bool, pixels that count.
        convention: "original" treats +-180 degrees as a border and sees edges to unmeasured
            pixels; "sphere" wraps around, and an edge needs nine measured pixels.
        threshold: smallest Sobel magnitude of an edge.
        cap_px: longest distance in pixels. The original takes the largest depth in metres for it,
            always 75.

    Returns:
        `edge_dbe_accuracy` (pixels), the mean distance from predicted edges to true ones nearer
        than the cap; `edge_dbe_completeness` (pixels), the mean capped distance in both
        directions; `edge_precision`, `edge_recall`. Without any edge in both maps all is perfect.

    Raises:
        ValueError: no valid pixel, or a prediction that is not finite at a valid pixel.
    """
    if not mask.any():
        raise ValueError("the panorama has no valid ground-truth pixel; leave it out")
    edges = edge_maps(pred, target, mask, convention=convention, threshold=threshold)
    found, true = (edge[0].numpy() for edge in edges)
    both = int((found & true).sum())
    wrap = convention == "sphere"
    to_true = _distance(true, cap_px, wrap=wrap)[found]
    to_found = _distance(found, cap_px, wrap=wrap)[true]
    near = to_true[to_true < cap_px]
    if near.size:
        accuracy = float(near.mean())
        completeness = float(np.concatenate([to_true, to_found]).mean())
    else:
        accuracy = completeness = 0.0 if not (found.any() or true.any()) else cap_px
    precision = both / found.sum() if found.any() else 0.0
    return {
        "edge_dbe_accuracy": accuracy,
        "edge_dbe_completeness": completeness,
        "edge_precision": float(precision) if true.any() else 1.0,
        "edge_recall": float(both / true.sum()) if true.any() else 1.0,
    }


def edge_maps(
    pred: Tensor,
    target: Tensor,
    mask: Tensor,
    *,
    convention: EdgeConvention = "original",
    threshold: float = THRESHOLD,
) -> tuple[Tensor, Tensor]:
    """Edges of both maps, bool (1, H, W) each; arguments as in `edge_metrics`."""
    broken = int((~pred[mask].isfinite()).sum())
    if broken:
        raise ValueError(f"{broken} valid pixels are predicted as NaN or infinity")
    # Outside the mask the original's files hold its smallest depth, its truth lies in its range.
    pred = torch.where(mask, pred, MIN_DEPTH_M)
    target = torch.where(mask, target, target.nan_to_num(0).clamp(MIN_DEPTH_M, MAX_DEPTH_M))
    return (
        depth_edges(pred, mask, convention=convention, threshold=threshold),
        depth_edges(target, mask, convention=convention, threshold=threshold),
    )


def depth_edges(
    depth: Tensor,
    mask: Tensor,
    *,
    convention: EdgeConvention = "original",
    threshold: float = THRESHOLD,
) -> Tensor:
    """Mark the edges of a depth map (1, H, W), finite, inside `mask`; bool (1, H, W).

    3x3 Sobel magnitude above `threshold`, dilated by 3x3. Only the values inside the mask are
    scaled to [0, 1], as in the original.
    """
    depth = depth.double()
    low, high = depth[mask].min(), depth[mask].max()
    scaled = (depth - low) / torch.where(high > low, high - low, 1.0)
    padded = _pad(torch.where(mask, scaled, depth), convention)
    kernels = torch.stack([_SOBEL, _SOBEL.T])[:, None]
    strong = F.conv2d(padded, kernels).square().sum(1, keepdim=True).sqrt() > threshold
    if convention == "sphere":
        strong &= F.max_pool2d(1 - _pad(mask.double(), convention), 3, stride=1) == 0
    dilated = F.max_pool2d(strong.double(), 3, stride=1) > 0
    inner = _PAD - 2  # two 3x3 windows have eaten one pixel each
    return dilated[0, :, inner:-inner, inner:-inner] & mask


def _pad(image: Tensor, convention: EdgeConvention) -> Tensor:
    """(1, H, W) to (1, 1, H + 6, W + 6)."""
    if convention == "sphere":
        return cast(Tensor, pad_erp(image[None], _PAD))
    return F.pad(image[None], (_PAD,) * 4, mode="replicate")


def _distance(edges: np.ndarray, cap_px: float, *, wrap: bool) -> np.ndarray:
    """Euclidean distance (H, W) in pixels to the nearest edge, at most `cap_px`."""
    if not edges.any():
        return np.full(edges.shape, cap_px)
    border = min(math.ceil(cap_px), edges.shape[1]) if wrap else 0
    wide = np.pad(edges, ((0, 0), (border, border)), mode="wrap")
    distance = cv2.distanceTransform((~wide).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    inner = distance[:, border : border + edges.shape[1]]
    return np.minimum(inner.astype(np.float64), cap_px)
