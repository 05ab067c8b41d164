"""Finding clips (folders of numbered frames) and reading their frames."""

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from shared_pano_utils.imageio import read_image

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}


@dataclass(frozen=True, kw_only=True)
class Clip:
    """Frames of one straight walk, in order.

    Attributes:
        id: folder relative to the root of the data set.
        frames: files in natural order.
    """

    id: str
    frames: tuple[Path, ...]


def natural_key(name: str) -> list[Any]:
    """Sort key by which ``frame_2`` comes before ``frame_10``, whatever numbers stand before it."""
    return [int(part) if part.isdecimal() else part.lower() for part in re.split(r"(\d+)", name)]


def find_images(folder: Path) -> list[Path]:
    """Images directly in `folder`, in natural order, dot-files left out."""
    files = (
        path
        for path in folder.iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES
        and not path.name.startswith(".")
        and path.is_file()
    )
    return sorted(files, key=lambda path: natural_key(path.name))


def find_clips(root: Path, min_frames: int = 1, strict_frames: int | None = None) -> list[Clip]:
    """Find every folder below `root`, at any depth, that directly holds images.

    Both documented layouts, ``<clip>/`` and ``<scene>/<clip>/``, are found; other files and
    folders are passed over.

    Args:
        root: folder of the data set.
        min_frames: frames a clip must have at least.
        strict_frames: frames a clip must have exactly, if given.

    Raises:
        FileNotFoundError: no such folder, or it holds no clip.
        ValueError: a clip is too short, has the wrong length, or two frames of the same number.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"{root} does not exist; pass a folder of clips")
    clips = []
    has_videos = False
    for name, folders, files in os.walk(root, followlinks=True):  # scenes may be linked from disks
        folders[:] = [folder for folder in folders if not folder.startswith(".")]
        has_videos |= any(file.lower().endswith(".mp4") for file in files)
        folder = Path(name)
        frames = find_images(folder)
        if frames:
            _check_frames(folder, frames, min_frames, strict_frames)
            clips.append(Clip(id=folder.relative_to(root).as_posix(), frames=tuple(frames)))
    if not clips:
        hint = "; it holds videos: run prepare_dataset.py first" if has_videos else ""
        raise FileNotFoundError(
            f"{root} holds no folder with {', '.join(sorted(IMAGE_SUFFIXES))} frames{hint}"
        )
    return sorted(clips, key=lambda clip: (natural_key(clip.id), clip.id))


def _check_frames(folder: Path, frames: list[Path], least: int, exact: int | None) -> None:
    if exact is not None and len(frames) != exact:
        raise ValueError(
            f"{folder} has {len(frames)} frames, --strict_frames asks for {exact}; prepare it again"
        )
    if len(frames) < least:
        raise ValueError(
            f"{folder} has {len(frames)} frames, a window needs {least}; use a smaller --num_frames "
            "or --frame_stride, or remove this clip"
        )
    numbers: dict[Any, Path] = {}
    for frame in frames:
        digits = re.findall(r"\d+", frame.stem)
        key = tuple(map(int, digits)) if digits else frame.stem
        if key in numbers:
            raise ValueError(
                f"{frame} and {numbers[key].name} have the same number; keep one of them"
            )
        numbers[key] = frame


def read_clip(frames: tuple[Path, ...], size: tuple[int, int] | None = None) -> np.ndarray:
    """Read frames (F, H, W, 3) uint8, resized to (width, height) by antialiased bicubic.

    Raises:
        ValueError: a file is not an image, or the frames differ in size.
    """
    images, first = [], None
    for path in frames:
        image = read_image(path)
        first = first or image.shape
        if image.shape != first:
            raise ValueError(
                f"{path} is {image.shape[1]}x{image.shape[0]}, {frames[0].name} before it is "
                f"{first[1]}x{first[0]}; a clip has frames of one size, prepare it again"
            )
        if size is not None and image.shape[1::-1] != size:
            image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
        images.append(image)
    return np.stack(images)


def to_unit(images: np.ndarray) -> Tensor:
    """(F, H, W, 3) uint8 -> (F, 3, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(images).movedim(-1, 1).contiguous().float() / 127.5 - 1


def stable_hash(*parts: Any) -> int:
    """A seed in [0, 2^63) from any values, the same on every machine and in every process."""
    text = "/".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1
