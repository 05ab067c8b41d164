"""An ordinary photo placed on the sphere, as the known part of a panorama (spec 5.6)."""

import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from shared_pano_utils import perspective_to_erp

MIN_FOV_DEG, MAX_FOV_DEG = 10.0, 150.0
PHOTO_ERODE = 1
"""Latent cells at a photo's border that are painted anew: they hold its surroundings too."""


def place_photo(
    photo: np.ndarray,
    height: int,
    *,
    fov_deg: float = 90.0,
    yaw_deg: float = 0.0,
    pitch_deg: float = 0.0,
    roll_deg: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Paint a pinhole photo into a panorama.

    Args:
        photo: (h, w, 3) uint8.
        height: of the panorama in pixels.
        fov_deg: horizontal field of view of the photo, 10..150.
        yaw_deg: direction to the right of the middle of the panorama.
        pitch_deg: direction above the horizon.
        roll_deg: clockwise turn of the camera.

    Returns:
        The panorama (H, 2H, 3) uint8, in which the photo's colours run out smoothly over the rest,
        and (H, 2H) bool, True where the photo is.

    Raises:
        ValueError: an absurd field of view.
    """
    if not MIN_FOV_DEG <= fov_deg <= MAX_FOV_DEG:
        raise ValueError(
            f"the field of view is {fov_deg:g} degrees; use {MIN_FOV_DEG:g} to {MAX_FOV_DEG:g}, "
            "the horizontal angle of the camera"
        )
    size = (height, 2 * height)
    # At most as fine as the panorama: interpolation would alias.
    half_width = math.tan(math.radians(fov_deg) / 2)
    # Before reducing, which rounds the aspect ratio of the pixels.
    vertical_deg = 2 * math.degrees(math.atan(half_width * photo.shape[0] / photo.shape[1]))
    focal_px = size[1] / (2 * math.pi)
    scale = 2 * focal_px * half_width / photo.shape[1]
    if scale < 1:
        smaller = [max(2, round(side * scale)) for side in (photo.shape[1], photo.shape[0])]
        photo = np.array(Image.fromarray(photo).resize(smaller, Image.Resampling.LANCZOS))
    erp, seen = perspective_to_erp(
        photo, size, fov=(fov_deg, vertical_deg), yaw=yaw_deg, pitch=pitch_deg, roll=roll_deg
    )
    keep = np.asarray(seen)[..., 0]
    return continue_colors(np.asarray(erp), keep), keep


def continue_colors(erp: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Fill the unknown part with ever coarser means of the known one (push-pull).

    A black surrounding would leak into the latents at the border, and into the attention of the
    known tokens.

    Args:
        erp: (H, W, 3) uint8.
        keep: (H, W) bool, the known part, not empty.

    Returns:
        (H, W, 3) uint8, `erp` where `keep` is True.
    """
    weight = torch.tensor(keep)[None, None].float()
    color = torch.tensor(erp).movedim(-1, 0)[None].float() * weight
    levels: list[tuple[Tensor, Tensor]] = []
    while max(color.shape[-2:]) > 1:
        levels.append((color, weight))
        color, weight = (F.avg_pool2d(x, 2, ceil_mode=True) for x in (color, weight))
    filled = color / weight
    for color, weight in reversed(levels):
        wrapped = F.pad(filled, (1, 1, 0, 0), mode="circular")
        fine = F.interpolate(wrapped, scale_factor=2, mode="bilinear")
        fine = fine[..., : color.shape[-2], 2 : 2 + color.shape[-1]]
        filled = torch.where(weight > 0, color / weight.clamp(min=1e-12), fine)
    smooth = filled[0].movedim(0, -1).round().clamp(0, 255).to(torch.uint8).numpy()
    return np.where(keep[..., None], erp, smooth)
