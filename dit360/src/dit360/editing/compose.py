"""The kept part of the source over the result, and numbers that say how well it worked."""

import numpy as np
import torch
from torch.nn import functional as F

from dit360.editing.masks import dilate
from shared_pano_utils import pad_erp


def paste_kept(
    generated: np.ndarray, source: np.ndarray, keep: np.ndarray, feather_px: int
) -> np.ndarray:
    """Lay the kept part of the source over the generated panorama.

    Args:
        generated: (H, W, 3) uint8.
        source: (H, W, 3) uint8.
        keep: (H, W) bool.
        feather_px: inside the kept part, the source fades in over this width from its border; 1
            is a hard edge, 0 leaves `generated` as it is.

    Returns:
        (H, W, 3) uint8: the source wherever the border is further away than `feather_px`,
        `generated` wherever `keep` is False.
    """
    if feather_px == 0:
        return generated
    # The mean over 2r + 1 pixels of a region that was shrunk by r rises from 0 at the border
    # to 1 at a distance of 2r.
    radius = min(feather_px // 2, len(keep))
    inner = ~dilate(torch.tensor(~keep), radius)
    wide = torch.as_tensor(pad_erp(inner[None].float(), radius))
    for size in ((2 * radius + 1, 1), (1, 2 * radius + 1)):
        wide = F.avg_pool2d(wide, size, stride=1)
    alpha = wide[0, ..., None].numpy()
    mixed = generated + alpha * (source.astype(np.float32) - generated)
    return np.round(mixed).astype(np.uint8)


def kept_psnr_db(image: np.ndarray, source: np.ndarray, keep: np.ndarray) -> float:
    """Peak signal-to-noise ratio over the kept pixels of two (H, W, 3) uint8 images."""
    error = image[keep].astype(np.float64) - source[keep]
    mean_square = np.square(error).mean()
    return float(10 * np.log10(255**2 / mean_square)) if mean_square else float("inf")


def border_step(image: np.ndarray, keep: np.ndarray) -> float:
    """Compare the colour step across the border of a mask with the steps beside it.

    Steps are taken between neighbouring pixels along rows, around the seam, and along columns. The
    steps beside one are the two before and the two behind it in its row or column.

    Args:
        image: (H, W, 3) uint8.
        keep: (H, W) bool, with both values.

    Returns:
        Mean step across over mean step beside; near 1 the border cannot be seen. 1 if both are 0.
    """
    erp = torch.tensor(image).movedim(-1, 0).double()
    region = torch.tensor(keep)[None].double()
    across, beside = [], []
    for is_column in (False, True):
        # Two steps on each side of the outermost one need pixels beyond the edge.
        pad = (0, 0, 2, 2) if is_column else (2, 3, 0, 0)
        lines, marks = (torch.as_tensor(pad_erp(x, pad)) for x in (erp, region))
        if is_column:
            lines, marks = lines.mT, marks.mT
        steps = lines.diff().abs().mean(0)  # [rows, n + 4]
        borders = marks.diff()[0, :, 2:-2] != 0
        around = steps.unfold(-1, 5, 1)  # [rows, n, 5]
        across.append(around[borders][:, 2])
        beside.append(around[borders][:, [0, 1, 3, 4]].mean(-1))
    jump, usual = torch.cat(across).mean().item(), torch.cat(beside).mean().item()
    if jump == usual == 0:
        return 1.0
    return jump / usual if usual else float("inf")
