"""Arrays from and to image files, NPY and NPZ."""

import zipfile
from pathlib import Path

import numpy as np

from shared_pano_utils.imageio import (
    IMAGE_SUFFIXES,
    atomic_path,
    is_png16,
    read_image,
    read_png16,
    write_image,
    write_png16,
)

_GPANO_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def load_array(path: Path) -> np.ndarray:
    """Read (H, W, 3) uint8, (H, W) uint16 for 16-bit grey, or what an NPY/NPZ file holds.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file cannot be read, or an NPZ file holds more than one array.
    """
    suffix = path.suffix.lower()
    if suffix not in (".npy", ".npz"):
        return read_png16(path) if is_png16(path) else read_image(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            if len(loaded.files) == 1:
                return loaded[loaded.files[0]]
            names = ", ".join(loaded.files) or "none"
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: not a readable {suffix} file ({error})") from error
    raise ValueError(f"{path}: holds the arrays {names}; expected one, save it as .npy")


def save_array(path: Path, array: np.ndarray, *, is_erp: bool = False) -> None:
    """Write to the format of the suffix; panoramas get GPano metadata where viewers read it.

    Raises:
        ValueError: unknown suffix, or the array does not fit into the format.
    """
    suffix = path.suffix.lower()
    if suffix in (".npy", ".npz"):
        with atomic_path(path) as temporary:
            np.save(temporary, array) if suffix == ".npy" else np.savez(temporary, array)
        return
    gpano = is_erp and suffix in _GPANO_SUFFIXES
    if array.dtype == np.uint16:
        write_png16(path, array, gpano=gpano)
    elif array.dtype == np.uint8 or suffix not in IMAGE_SUFFIXES:
        write_image(path, array, gpano=gpano)
    else:
        raise ValueError(f"{path}: the data are {array.dtype}; write them to .npy or .npz")
