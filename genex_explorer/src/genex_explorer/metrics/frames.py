"""Cases of an evaluation folder and the metrics of single frames.

A case is a folder with a generated walk (`navigated`) and the true one (`original`). PSNR and
SSIM are those of the original code, which squashes frames to 64x64, while the paper writes
1024x576. The spherical ones weight every pixel with its solid angle, and the seam ratio looks at
the border at +-180 degrees.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from genex_explorer.data.clips import find_images, natural_key, read_clip
from genex_explorer.video import read_video
from shared_pano_utils import metrics as sphere

PSNR_CAP = 100.0  # decibels, for a mean square error below 1e-10
WINDOW_PX, WINDOW_SIGMA = 11, 1.5
C1, C2 = 0.01**2, 0.03**2
CODE_RESOLUTION, PAPER_RESOLUTION = (64, 64), (1024, 576)

# The original's generator misspelt the last image and its scorer looked for the right name.
_NAVIGATED_IMAGES = ("navigated.png", "navigatied.png")
_VIDEOS = ("{}.mp4", "{}")


# ---- cases --------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Case:
    """One pair of walks.

    Attributes:
        id: folder relative to the root of the evaluation.
        navigated: generated: a video, a folder of frames or an image.
        original: true, likewise.
    """

    id: str
    navigated: Path
    original: Path


def find_cases(root: Path, *, images_only: bool = False) -> list[Case]:
    """Find every folder at or below `root` that holds ``navigated.*`` and ``original.*``.

    ``*`` is .mp4, nothing (a folder of frames) or .png (a walk of one frame, as IECC writes it).

    Args:
        root: folder of the evaluation.
        images_only: look for the images of IECC only.

    Raises:
        FileNotFoundError: no such folder, no case in it, a case lacks one of the two, or a folder
            directly below `root` holds none.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"folder {root} does not exist")
    folders = [root, *(path for path in root.rglob("*") if path.is_dir())]
    patterns = () if images_only else _VIDEOS
    cases = []
    for folder in sorted(folders, key=lambda path: natural_key(path.relative_to(root).as_posix())):
        navigated = _first(folder, [p.format("navigated") for p in patterns], _NAVIGATED_IMAGES)
        original = _first(folder, [p.format("original") for p in patterns], ["original.png"])
        if navigated is None and original is None:
            continue
        if navigated is None or original is None:
            missing = "navigated" if navigated is None else "original"
            raise FileNotFoundError(
                f"{folder} holds no {missing} beside {(navigated or original or folder).name}; "
                "a case needs both: add it or remove the folder"
            )
        identity = folder.relative_to(root).as_posix()
        cases.append(Case(id=identity, navigated=navigated, original=original))
    _check_complete(root, cases)
    return cases


def _first(folder: Path, *names: Sequence[str]) -> Path | None:
    paths = (folder / name for group in names for name in group)
    return next((path for path in paths if path.exists()), None)


def _check_complete(root: Path, cases: list[Case]) -> None:
    if not cases:
        raise FileNotFoundError(
            f"{root} holds no case; expected <case>/navigated.mp4 and <case>/original.mp4 (or "
            "folders of frames, or .png) in it"
        )
    used = {case.id.split("/")[0] for case in cases}
    for folder in sorted(root.iterdir()):
        is_visible_folder = folder.is_dir() and not folder.name.startswith(".")
        if "." not in used and is_visible_folder and folder.name not in used:
            raise FileNotFoundError(
                f"case {folder} holds neither navigated nor original; add both or remove it"
            )


def read_frames_of(path: Path) -> np.ndarray:
    """Read a video, a folder of frames or one image as (F, H, W, 3) uint8.

    Raises:
        ValueError: unreadable, or without a frame.
    """
    if path.is_dir():
        images = find_images(path)
        if not images:
            raise ValueError(f"{path} holds no image; it must be a folder of frames")
        return read_clip(tuple(images))
    return read_video(path) if path.suffix == ".mp4" else read_clip((path,))


def read_case(case: Case, num_frames: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Read the navigated and the original walk, both (F, H, W, 3) uint8.

    Args:
        case: from `find_cases`.
        num_frames: length of the cases before it, if there are any.

    Raises:
        ValueError: unreadable, or the lengths differ.
    """
    navigated, original = read_frames_of(case.navigated), read_frames_of(case.original)
    if len(navigated) != len(original):
        raise ValueError(
            f"{case.navigated} has {len(navigated)} frames, {case.original.name} beside it "
            f"{len(original)}; both must have the same number: cut the longer one"
        )
    if num_frames is not None and len(navigated) != num_frames:
        raise ValueError(
            f"{case.navigated} has {len(navigated)} frames, the cases before it {num_frames}; all "
            "must have the same number: evaluate them apart"
        )
    return navigated, original


# ---- resolution ---------------------------------------------------------------------------------


def regime_of(size: tuple[int, int]) -> str:
    """``code`` for 64x64, ``paper`` for 1024x576, ``custom`` for any other (width, height)."""
    return {CODE_RESOLUTION: "code", PAPER_RESOLUTION: "paper"}.get(size, "custom")


def to_resolution(frames: np.ndarray, size: tuple[int, int]) -> Tensor:
    """Resize frames without regard to the aspect, as every published number does.

    The `code` regime is bilinear without antialiasing, OpenCV's default; others are antialiased.

    Args:
        frames: (F, H, W, 3) uint8.
        size: (width, height).

    Returns:
        (F, 3, height, width) float32 in [0, 1], multiples of 1/255.
    """
    images = torch.from_numpy(frames).movedim(-1, 1)
    if frames.shape[2:0:-1] != size:
        images = functional.interpolate(
            images.float(), size[::-1], mode="bilinear", antialias=regime_of(size) != "code"
        )
    return (images + 0.5).floor().clamp(0, 255) / 255  # halves go up, as in OpenCV


# ---- metrics ------------------------------------------------------------------------------------


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of images (N, C, H, W) in [0, 1]: (N,) decibels, at most 100."""
    return sphere.psnr(a.double(), b.double()).clamp(max=PSNR_CAP)


def ws_psnr(a: Tensor, b: Tensor) -> Tensor:
    """`psnr` of panoramas, every pixel counting with its solid angle."""
    return sphere.ws_psnr(a.double(), b.double()).clamp(max=PSNR_CAP)


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity of images (N, C, H, W) in [0, 1]: (N,), mean over channels.

    Gaussian windows of 11 x 11 pixels, sigma 1.5, that lie inside the image; population variances.

    Raises:
        ValueError: the images are smaller than a window.
    """
    if min(a.shape[-2:]) < WINDOW_PX:
        raise ValueError(
            f"SSIM needs images of {WINDOW_PX}x{WINDOW_PX} pixels or more, these are "
            f"{a.shape[-1]}x{a.shape[-2]}; use a larger --resolution"
        )
    x, y = a.double(), b.double()
    mean_x, mean_y = _blur(x), _blur(y)
    var_x, var_y = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + C1) / (mean_x**2 + mean_y**2 + C1)
    structure = (2 * covariance + C2) / (var_x + var_y + C2)
    return (luminance * structure).mean((-3, -2, -1))


def ws_ssim(a: Tensor, b: Tensor) -> Tensor:
    """`ssim` of panoramas: windows wrap around and count with the solid angle of their centre."""
    return sphere.ws_ssim(a.double(), b.double())


FRAME_METRICS = {"psnr": psnr, "ssim": ssim, "ws_psnr": ws_psnr, "ws_ssim": ws_ssim}


def seam_ratio(frames: np.ndarray) -> np.ndarray:
    """Step across the border at +-180 degrees over the steps beside it; 1 means no seam.

    Args:
        frames: panoramas (F, H, W, 3) uint8 as they were made: resizing would blur the border.

    Returns:
        (F,) float64; infinite where only the border has a step.

    Raises:
        ValueError: fewer than 6 columns.
    """
    strip = frames[:, :, [0, 1, 2, -3, -2, -1]] if frames.shape[2] >= 6 else frames
    return sphere.seam_error(strip)["wrap_ratio"]


def _blur(x: Tensor) -> Tensor:
    offset = torch.arange(WINDOW_PX, dtype=x.dtype, device=x.device) - WINDOW_PX // 2
    window = torch.softmax(-(offset**2) / (2 * WINDOW_SIGMA**2), 0)
    maps = x.flatten(0, 1)[:, None]
    blurred = functional.conv2d(
        functional.conv2d(maps, window[None, None, None]), window[None, None, :, None]
    )
    return blurred.unflatten(0, x.shape[:2])[:, :, 0]


# ---- curves -------------------------------------------------------------------------------------


def curve(values: Sequence[np.ndarray], setting: Sequence[int]) -> dict[str, Any]:
    """Mean and standard deviation over clips at every time index, in the original's JSON shape.

    Args:
        values: (F,) of every clip.
        setting: (F, 3, H, W) of the images that were compared.

    Returns:
        ``value`` and ``value_std`` by time index; ``mean`` of all indices but the first, which the
        model was given (of a single frame, that one); null where a value is infinite.
    """
    table = np.stack(values).astype(np.float64)
    spread = np.full(table.shape[1], np.inf)
    finite = np.isfinite(table).all(0)
    spread[finite] = table[:, finite].std(0)
    return {
        "value": {str(i): finite_or_none(v) for i, v in enumerate(table.mean(0))},
        "value_std": {str(i): finite_or_none(v) for i, v in enumerate(spread)},
        "mean": finite_or_none(table[:, min(1, table.shape[1] - 1) :].mean()),
        "video_setting": list(setting),
        "video_setting_name": "time, channel, height, width",
    }


def finite_or_none(value: float) -> float | None:
    """The number for JSON, which has no infinity."""
    return float(value) if np.isfinite(value) else None
