"""Pictures of predictions, truths and errors, (H, W, 3) uint8, and panels of several of them."""

import cv2
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

DEPTH_COLORMAP = "Spectral"
ERROR_COLORMAP = "seismic"
ANGLE_COLORMAP = "magma"
LARGEST_ANGLE_DEG = 60.0
ERROR_QUANTILE = 0.99
PANEL_WIDTH_PX = 960
CAPTION_PX = 28

GREEN, RED, BLUE, GREY = (40, 180, 70), (220, 40, 40), (70, 110, 255), (70, 70, 70)


def depth_pictures(
    pred: Tensor, target: Tensor, mask: Tensor, names: tuple[str, str] = ("prediction", "truth")
) -> dict[str, np.ndarray]:
    """Colour two depth maps (1, H, W) on one logarithmic scale, that of the truth, near is red."""
    truth = np.log(target[mask].double().numpy())
    low, high = np.quantile(truth, (0.01, 0.99))
    pictures = {}
    for name, depth in zip(names, (pred, target), strict=True):
        value = np.log(depth[0].double().nan_to_num(0).clamp(1e-6, 1e6).numpy())
        unit = np.clip((value - low) / max(high - low, 1e-6), 0, 1)
        pictures[name] = _colors(DEPTH_COLORMAP, unit)
    pictures[names[1]][~mask[0].numpy()] = 0
    return pictures


def normals_picture(normals: Tensor) -> np.ndarray:
    """Colour normals (3, H, W) as ``(n + 1) / 2``."""
    value = normals.nan_to_num(0).clamp(-1, 1).movedim(0, -1).numpy()
    return ((value + 1) * 127.5).round().astype(np.uint8)


def signed_error_picture(error: Tensor, mask: Tensor) -> tuple[str, np.ndarray]:
    """Colour errors (1, H, W) in metres: red is too far, blue too near; white outside the mask.

    The range is symmetric and holds 99 % of the errors, so that one wild pixel hides nothing.
    """
    value = np.where(mask[0].numpy(), error[0].double().nan_to_num(0).numpy(), 0.0)
    limit = float(np.quantile(np.abs(value[mask[0].numpy()]), ERROR_QUANTILE))
    unit = np.clip(value / max(limit, 1e-9), -1, 1) / 2 + 0.5
    return f"error, -{limit:.3g} m blue to +{limit:.3g} m red", _colors(ERROR_COLORMAP, unit)


def angle_picture(angle_deg: Tensor, mask: Tensor) -> tuple[str, np.ndarray]:
    """Colour angles (1, H, W) in degrees, black to white; grey outside the mask."""
    picture = _colors(ANGLE_COLORMAP, (angle_deg[0].numpy() / LARGEST_ANGLE_DEG).clip(0, 1))
    picture[~mask[0].numpy()] = GREY
    return f"angle, 0 black to {LARGEST_ANGLE_DEG:.0f} degrees white", picture


def edge_picture(found: Tensor, true: Tensor) -> tuple[str, np.ndarray]:
    """Colour edge maps, bool (1, H, W): green in both, red predicted only, blue true only."""
    picture = np.zeros((*found.shape[1:], 3), np.uint8)
    for color, pixels in ((GREEN, found & true), (RED, found & ~true), (BLUE, true & ~found)):
        picture[pixels[0].numpy()] = color
    return "edges: green right, red invented, blue missed", picture


def captioned(picture: np.ndarray, caption: str) -> np.ndarray:
    """Set a line of text below a picture."""
    width = picture.shape[1]
    strip = Image.new("RGB", (width, CAPTION_PX))
    font = ImageFont.load_default(CAPTION_PX * 0.6)
    ImageDraw.Draw(strip).text((6, CAPTION_PX * 0.15), caption, font=font)
    return np.concatenate([picture, np.asarray(strip)])


def panel(pictures: dict[str, np.ndarray]) -> np.ndarray:
    """Arrange four pictures of one size as 2 x 2, each with its name below."""
    cells = [captioned(_fit(picture), name) for name, picture in pictures.items()]
    return np.concatenate(
        [np.concatenate(cells[:2], axis=1), np.concatenate(cells[2:], axis=1)], axis=0
    )


def _fit(picture: np.ndarray) -> np.ndarray:
    height, width = picture.shape[:2]
    size = (PANEL_WIDTH_PX, round(PANEL_WIDTH_PX * height / width))
    shrinks = size[0] < width
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_NEAREST)


def _colors(name: str, unit: np.ndarray) -> np.ndarray:
    return (matplotlib.colormaps[name](unit)[..., :3] * 255).round().astype(np.uint8)
