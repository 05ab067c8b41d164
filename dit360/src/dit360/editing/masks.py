"""Panoramas and masks of an edit: reading, checking, growing, and the tokens that are kept.

In this package `keep` is True where the source is preserved (white in an outpainting mask), as in
the original. Diffusers masks are the opposite and exist only where a stock pipeline is called.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from dit360.editing.settings import Task
from shared_pano_utils import pad_erp
from shared_pano_utils.imageio import read_erp, read_image

TOKEN_PX = 16
"""Side of a token: 2 x 2 latent cells of 8 pixels."""
CELL_PX = 8
WHITE = 255
"""Original rule: a mask is 1 where its grey value is exactly 255, anti-aliased edges are 0."""


def check_height(height: int) -> None:
    """Refuse a panorama height that does not make whole tokens."""
    if height < 2 * TOKEN_PX or height % TOKEN_PX:
        raise ValueError(
            f"the height is {height}; use a multiple of {TOKEN_PX} from {2 * TOKEN_PX}, "
            "the model was trained with 1024"
        )


def read_source(path: Path, height: int) -> np.ndarray:
    """Read a panorama and resize it as the original does (bicubic).

    Returns:
        (height, 2 * height, 3) uint8.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not an image, or not twice as wide as high.
    """
    erp = read_erp(path)
    if len(erp) == height:
        return erp
    return np.array(Image.fromarray(erp).resize((2 * height, height), Image.Resampling.BICUBIC))


def read_keep(path: Path, height: int, task: Task, white: int = WHITE) -> np.ndarray:
    """Read a mask file of any size and mode.

    Args:
        path: 2:1 like the panorama.
        height: of the panorama in pixels.
        task: white is what to preserve ("outpaint"), or the hole ("inpaint").
        white: grey value 1..255 from which a pixel is white.

    Returns:
        (height, 2 * height) bool, True = preserve.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not an image, another aspect, or all of one colour.
    """
    grey = Image.fromarray(read_image(path)).convert("L")
    if grey.width != 2 * grey.height:
        raise ValueError(
            f"{path}: the mask is {grey.width}x{grey.height}; it must be twice as wide as high, "
            "like the panorama; crop it or draw it again"
        )
    grey = grey.resize((2 * height, height), Image.Resampling.NEAREST)
    is_white = np.asarray(grey) >= white
    if is_white.all() or not is_white.any():
        color = "white" if is_white.all() else "black"
        hint = "" if is_white.any() else f" (its largest value is {np.asarray(grey).max()})"
        raise ValueError(
            f"{path}: the mask is {color} everywhere{hint}; white, from --mask_threshold {white}, "
            "is what outpainting preserves and inpainting paints; draw both colours"
        )
    return is_white if task == "outpaint" else ~is_white


def resize_keep(keep: np.ndarray, cells: int) -> np.ndarray:
    """Grow the kept region by latent cells of 8 pixels, or shrink it if `cells` is negative.

    With -1 a token is kept only if all of its pixels are; with -2 it also lies one cell away from
    the hole, whose content a latent at the border holds too.

    Args:
        keep: (H, W) bool; regions continue around the seam and across the poles.
        cells: number of cells.

    Returns:
        (H, W) bool.
    """
    if cells == 0:
        return keep
    region = keep if cells > 0 else ~keep
    grown = dilate(torch.tensor(region), abs(cells) * CELL_PX).numpy()
    return grown if cells > 0 else ~grown


def dilate(region: Tensor, radius_px: int) -> Tensor:
    """Grow a region (H, 2H), bool, by a square of 2 * radius_px + 1 pixels on the sphere."""
    radius_px = min(radius_px, len(region))  # everything
    wide = torch.as_tensor(pad_erp(region[None].float(), radius_px))
    for size in ((2 * radius_px + 1, 1), (1, 2 * radius_px + 1)):
        wide = F.max_pool2d(wide, size, stride=1)
    return wide[0] > 0


def token_keep(keep: np.ndarray) -> np.ndarray:
    """Tokens to preserve: those whose middle pixel is (nearest resize to the token grid).

    Args:
        keep: (H, W) bool.

    Returns:
        (H / 16, W / 16) bool.

    Raises:
        ValueError: no token is kept, or all are.
    """
    tokens = keep[TOKEN_PX // 2 :: TOKEN_PX, TOKEN_PX // 2 :: TOKEN_PX]
    if tokens.all() or not tokens.any():
        what = "nothing is left to paint" if tokens.all() else "nothing of the source is kept"
        raise ValueError(
            f"the mask has {int(tokens.sum())} of {tokens.size} tokens ({TOKEN_PX}x{TOKEN_PX} "
            f"pixels) to keep: {what}; use a larger region, or --mask_erode and --mask_dilate"
        )
    return tokens
