"""Photos on a panorama canvas, with the mask of where they are (paper section 3.2, spec 5.6)."""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from dit360.data.dataset import LATENT_PX, TOKEN_PX
from shared_pano_utils import pad_erp, perspective_to_erp


@dataclass(frozen=True, kw_only=True)
class Camera:
    """How a photo looks into the panorama, degrees.

    Attributes:
        fov_deg: horizontal field of view; pixels are square.
        yaw_deg: to the right of the front, the centre column.
        pitch_deg: up.
        roll_deg: clockwise.
    """

    fov_deg: float = 90.0
    yaw_deg: float = 0.0
    pitch_deg: float = 0.0
    roll_deg: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.fov_deg <= 170:
            raise ValueError(
                f"the field of view is {self.fov_deg} degrees; a photo has 1 to 170, "
                "see the lens data (24 mm full frame: 74)"
            )
        if not -90 <= self.pitch_deg <= 90:
            raise ValueError(f"pitch is {self.pitch_deg} degrees; use -90 (down) to 90 (up)")
        for name, angle_deg in (("yaw", self.yaw_deg), ("roll", self.roll_deg)):
            if not math.isfinite(angle_deg):
                raise ValueError(f"{name} is {angle_deg} degrees; use a finite angle")


def crop_square(photo: np.ndarray) -> np.ndarray:
    """The largest square around the centre of (h, w, 3)."""
    height, width = photo.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return photo[top : top + side, left : left + side]


def place_photo(
    photo: np.ndarray, height: int, camera: Camera, *, erode_cells: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Re-project a photo into a panorama.

    Args:
        photo: (h, w, 3) uint8.
        height: of the panorama, pixels; the width is twice that.
        camera: where the photo looks.
        erode_cells: cells of the latent grid (8 px) by which the mask is smaller than the photo:
            the VAE mixes the black canvas into the latents along the border.

    Returns:
        Canvas (height, 2 height, 3) uint8, black where no photo is, and supervised
        (height, 2 height) bool.

    Raises:
        ValueError: nothing of the mask is left.
    """
    h, w = photo.shape[:2]
    tangent = math.tan(math.radians(camera.fov_deg) / 2)
    vertical_deg = 2 * math.degrees(math.atan(tangent * h / w))
    canvas, seen = perspective_to_erp(
        _at_erp_resolution(photo, height, tangent),
        (height, 2 * height),
        fov=(camera.fov_deg, vertical_deg),  # reducing rounds the aspect ratio of the pixels
        yaw=camera.yaw_deg,
        pitch=camera.pitch_deg,
        roll=camera.roll_deg,
    )
    supervised = erode(np.asarray(seen)[..., 0], erode_cells * LATENT_PX)
    if not supervised.any():
        raise ValueError(
            f"no supervised pixel is left of a photo of {camera.fov_deg} degrees at height "
            f"{height} with {erode_cells} eroded cells; use fewer cells or a larger panorama"
        )
    return np.asarray(canvas), supervised


def erode(supervised: np.ndarray, radius: int) -> np.ndarray:
    """Shrink (H, W) bool by `radius` pixels along both axes, across the seam and the poles."""
    if radius == 0:
        return supervised
    outside = 1 - torch.from_numpy(supervised)[None].float()
    padded = torch.as_tensor(pad_erp(outside, radius))
    window = 2 * radius + 1  # separable: rows, then columns
    grown = F.max_pool2d(F.max_pool2d(padded, (window, 1), 1), (1, window), 1)
    return grown[0].numpy() == 0


def random_yaw(rng: np.random.Generator, height: int, step_px: int = TOKEN_PX) -> float:
    """A direction uniform over the circle, in whole steps of panorama columns; degrees.

    Steps of 16 px keep the tokens of equal photos equal, whatever their direction (spec 3.1).
    """
    steps = max(2 * height // step_px, 1)
    return float(rng.integers(steps)) * 360 / steps - 180


def _at_erp_resolution(photo: np.ndarray, height: int, tangent: float) -> np.ndarray:
    """Reduce a photo that is finer at its centre than the panorama, so that it does not alias."""
    h, w = photo.shape[:2]
    scale = height / math.pi / (w / 2 / tangent)  # pixels per radian: panorama / photo
    if scale >= 1:
        return photo
    size = (max(round(w * scale), 2), max(round(h * scale), 2))
    return np.asarray(Image.fromarray(photo).resize(size, Image.Resampling.LANCZOS))
