"""Image, 16-bit PNG and JSON files: strict readers, atomic writers.

A reader either returns what its name says or raises one line that names the file. A writer puts
the data under a temporary name in the same folder and renames it at the end, so a full disk, an
error or Ctrl-C never leaves a half-written file under the final name.
"""

import io
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from . import metadata

try:
    from PIL import Image, ImageOps
except ImportError as error:
    raise ImportError(
        "reading and writing images needs Pillow: pip install 'shared-pano-utils[cli]'"
    ) from error

_MIN_ERP_SIZE = (16, 32)
_EIGHT_BIT_MODES = frozenset(
    {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"}
)
_SIXTEEN_BIT_GREY_MODES = frozenset({"I;16", "I;16B", "I;16L", "I;16N"})
_SAVE_OPTIONS: dict[str, dict[str, Any]] = {
    ".png": {"format": "PNG"},
    ".jpg": {"format": "JPEG", "quality": 95, "subsampling": 0},
    ".jpeg": {"format": "JPEG", "quality": 95, "subsampling": 0},
    ".webp": {"format": "WEBP", "quality": 95},
    ".tif": {"format": "TIFF", "compression": "tiff_deflate"},
    ".tiff": {"format": "TIFF", "compression": "tiff_deflate"},
    ".bmp": {"format": "BMP"},
}
IMAGE_SUFFIXES = tuple(_SAVE_OPTIONS)


# ---- reading ------------------------------------------------------------------------------------


def read_image(path: str | Path) -> np.ndarray:
    """Read an 8-bit colour image: PNG, JPEG, WebP, TIFF, BMP and what else Pillow decodes.

    The EXIF orientation is applied. Grey and palette images become colour, alpha is dropped, and
    16-bit colour PNG is reduced to its high byte. 16-bit grey and float images hold measurements
    (depth, labels) rather than colours and are refused.

    Returns:
        (H, W, 3) uint8 RGB, writable.

    Raises:
        FileNotFoundError: `path` does not exist.
        ValueError: not an image, truncated, or not 8 bits a channel.
    """
    return _to_rgb(_decode(path), str(path))


def decode_image(data: bytes, name: str = "image") -> np.ndarray:
    """Decode the bytes of an image file by the rules of `read_image`; errors begin with `name`."""
    return _to_rgb(_decode(io.BytesIO(data), name=name), name)


def read_erp(path: str | Path) -> np.ndarray:
    """Read a panorama that covers the full sphere: `read_image` plus a check of its shape.

    Returns:
        (H, W, 3) uint8 RGB with W = 2 H, at least 16 x 32.

    Raises:
        FileNotFoundError: `path` does not exist.
        ValueError: as `read_image`, or the size is not that of a panorama.
    """
    array = read_image(path)
    height, width = array.shape[:2]
    if width != 2 * height:
        raise ValueError(
            f"{path}: panorama is {width}x{height}; width must be 2 x height; "
            "crop or resize it first"
        )
    if (height, width) < _MIN_ERP_SIZE:
        raise ValueError(
            f"{path}: panorama is {width}x{height}; the smallest allowed is "
            f"{_MIN_ERP_SIZE[1]}x{_MIN_ERP_SIZE[0]}; use a larger one"
        )
    return array


def read_png16(path: str | Path) -> np.ndarray:
    """Read a 16-bit grey image (PNG or TIFF) as (H, W) uint16, values unchanged.

    Raises:
        FileNotFoundError: `path` does not exist.
        ValueError: not an image, truncated, or not 16-bit grey.
    """
    image = _decode(path)
    if image.mode not in _SIXTEEN_BIT_GREY_MODES:
        raise ValueError(
            f"{path}: pixels are of kind {image.mode}, expected 16-bit grey (I;16); "
            "read 8-bit images with read_image"
        )
    return np.array(image).astype(np.uint16, copy=False)


def is_png16(path: str | Path) -> bool:
    """Whether the image is 16-bit grey, from its header; errors as in `read_png16`."""
    return _decode(path, header_only=True).mode in _SIXTEEN_BIT_GREY_MODES


def _to_rgb(image: Image.Image, name: str) -> np.ndarray:
    if image.mode not in _EIGHT_BIT_MODES:
        raise ValueError(
            f"{name}: pixels are of kind {image.mode} (16-bit grey or float), expected an 8-bit "
            "colour image; read depth with read_png16 or numpy.load"
        )
    image = ImageOps.exif_transpose(image)
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")
    return np.array(image.convert("RGB"))


def _decode(
    source: str | Path | io.BytesIO, *, name: str | None = None, header_only: bool = False
) -> Image.Image:
    name = name or str(source)
    if not isinstance(source, io.BytesIO) and not Path(source).is_file():
        raise FileNotFoundError(f"{name}: no such file")
    try:
        with Image.open(source) as image:
            if not header_only:
                image.load()
            return image
    except PermissionError:
        raise
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise ValueError(f"{name}: not a readable image ({error}); replace the file") from error


# ---- writing ------------------------------------------------------------------------------------


@contextmanager
def atomic_path(path: str | Path, *, fsync: bool = False) -> Iterator[Path]:
    """Give a temporary path with the same suffix and folder; rename it to `path` at the end.

    Missing parent folders are made. If the body raises anything, Ctrl-C included, the temporary
    file is removed and an older file under `path` stays as it was.

    Args:
        path: final name.
        fsync: force the data to the disk before the rename (survives a power cut).
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{secrets.token_hex(6)}.tmp{path.suffix}")
    try:
        yield temporary
        if fsync:
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_image(path: str | Path, array: np.ndarray, *, gpano: bool = False) -> None:
    """Write an 8-bit image in the format of the suffix; JPEG and WebP at quality 95.

    Args:
        path: .png .jpg .jpeg .webp .tif .tiff or .bmp; missing folders are made.
        array: (H, W), (H, W, 1) or (H, W, 3) uint8; (H, W, 4) except for JPEG and BMP.
        gpano: mark the image as a full-sphere panorama (PNG, JPEG and WebP).

    Raises:
        TypeError: not a uint8 array.
        ValueError: unknown suffix, wrong shape, or a format that cannot hold the request.
        OSError: the disk is full or the folder is not writable; nothing is left behind.
    """
    path = Path(path)
    _save(path, _to_pil(array, path), gpano=gpano)


def write_png16(path: str | Path, array: np.ndarray, *, gpano: bool = False) -> None:
    """Write (H, W) or (H, W, 1) uint16 as a 16-bit grey PNG, values unchanged.

    Raises:
        TypeError: not a uint16 array.
        ValueError: not one channel, or the suffix is not .png.
        OSError: the disk is full or the folder is not writable; nothing is left behind.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"{path}: 16-bit data goes into PNG; use the suffix .png")
    if not isinstance(array, np.ndarray) or array.dtype != np.uint16:
        kind = getattr(array, "dtype", type(array).__name__)
        raise TypeError(f"{path}: the array is {kind}, expected uint16; convert it with .astype")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(
            f"{path}: the array has shape {array.shape}, expected (H, W); "
            "16-bit colour is not written: use .npy"
        )
    _save(path, Image.fromarray(np.ascontiguousarray(array)), gpano=gpano)


def write_json(path: str | Path, value: Any, *, indent: int | None = 2) -> None:
    """Write `value` as UTF-8 JSON with a final newline.

    Raises:
        TypeError: `value` holds something JSON cannot (arrays, tensors, paths).
        ValueError: `value` holds NaN or infinity, which JSON does not know.
    """
    text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def _to_pil(array: np.ndarray, path: Path) -> Image.Image:
    if not isinstance(array, np.ndarray) or array.dtype != np.uint8:
        kind = getattr(array, "dtype", type(array).__name__)
        raise TypeError(
            f"{path}: the array is {kind}, expected uint8; "
            "scale floats to 0..255 and round, or use write_png16 for uint16"
        )
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    has_alpha = array.ndim == 3 and array.shape[2] == 4
    if array.ndim not in (2, 3) or 0 in array.shape or (array.ndim == 3 and array.shape[2] < 3):
        raise ValueError(f"{path}: the array has shape {array.shape}, expected (H, W) or (H, W, 3)")
    if array.ndim == 3 and array.shape[2] > 4:
        raise ValueError(
            f"{path}: the array has shape {array.shape}, expected (H, W, 3); "
            "move the channels of a tensor to the end"
        )
    if has_alpha and path.suffix.lower() in (".jpg", ".jpeg", ".bmp"):
        raise ValueError(f"{path}: {path.suffix} has no alpha; drop it with array[..., :3]")
    return Image.fromarray(np.ascontiguousarray(array))


def _save(path: Path, image: Image.Image, *, gpano: bool) -> None:
    suffix = path.suffix.lower()
    if suffix not in _SAVE_OPTIONS:
        raise ValueError(
            f"{path}: unknown image suffix {path.suffix!r}; use one of {' '.join(IMAGE_SUFFIXES)}"
        )
    options = dict(_SAVE_OPTIONS[suffix])
    if gpano:
        options |= metadata.gpano_save_options(options["format"], image.height, image.width)
    with atomic_path(path) as temporary:
        image.save(temporary, **options)
