"""Predictions on disk, ours and those of other programs, found by the id of the panorama."""

import json
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch
from torch import Tensor

from shared_pano_utils.imageio import read_png16

if TYPE_CHECKING:
    from pager.model import Modality  # which imports diffusers, for seconds

SUFFIXES = (".npz", ".npy", ".exr", ".png")
ARRAY_KEY = "arr_0"
SCALE_KEY = "metres_per_unit"
SCALE_NAME = "scale.json"


class PredictionFolder:
    """Predictions of one modality for one data set, in one of three places.

    * ``<path>/<dataset>/eval/<id>.npz``: `inference.py --dataset ... --generate_eval`;
    * ``<path>/<id>/depth.npz`` or ``normals.npz``: `inference.py --input`;
    * ``<path>/<id>.npz``: other programs.

    Each may be .npz (key ``arr_0``, or the only one), .npy, .exr, or for depth a 16-bit .png with
    ``{"metres_per_unit": ...}`` in a .json of the same stem or in ``scale.json`` beside it.
    """

    def __init__(self, path: Path, dataset: str, modality: "Modality") -> None:
        if not path.is_dir():
            raise FileNotFoundError(
                f"--pred_path {path} is not a folder; pass the folder of one checkpoint's results, "
                "for example results/PaGeR-depth"
            )
        self.path, self.dataset = path, dataset
        self.modality: Modality = modality

    def find(self, panorama: str) -> Path:
        """The file of a panorama; FileNotFoundError if there is none."""
        stems = (
            self.path / self.dataset / "eval" / panorama,
            self.path / panorama / self.modality,
            self.path / panorama,
        )
        for stem in stems:
            for suffix in SUFFIXES:
                # Ids may contain dots, so the suffix is appended, not replaced.
                candidate = stem.with_name(stem.name + suffix)
                if candidate.is_file():
                    return candidate
        raise FileNotFoundError(f"no {stems[0]}.npz (nor {stems[1]}.npz, nor {stems[2]}.npz)")

    def read(self, panorama: str) -> Tensor:
        """Depth (1, H, W) or normals (3, H, W), float32.

        Raises:
            FileNotFoundError: there is no such prediction.
            ValueError: the file cannot be read, or is not one map of the modality.
        """
        return read_map(self.find(panorama), self.modality)


def read_map(path: Path, modality: "Modality") -> Tensor:
    """Read a map of any of the formats of `PredictionFolder`, (1 or 3, H, W) float32."""
    suffix = path.suffix.lower()
    if suffix in (".npz", ".npy"):
        array = _read_numpy(path)
    elif suffix == ".exr":
        array = _read_exr(path)
    elif suffix == ".png" and modality == "depth":
        array = read_png16(path) * _metres_per_unit(path)
    else:
        raise ValueError(f"{path}: {modality} in {suffix} is not read; convert it to .npy")
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{path}: values are of type {array.dtype}; expected numbers")
    return torch.from_numpy(_channels_first(path, array, modality).astype(np.float32))


def _read_numpy(path: Path) -> np.ndarray:
    try:
        with path.open("rb") as file:  # numpy leaves a broken archive open
            content = np.load(file, allow_pickle=False)
            if isinstance(content, np.ndarray):
                return content
            keys = content.files
            if ARRAY_KEY not in keys and len(keys) != 1:
                raise ValueError(f"it holds {keys}, expected {ARRAY_KEY} or one array")
            return content[ARRAY_KEY if ARRAY_KEY in keys else keys[0]]
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path}: not a readable array ({error}); predict it again") from error


def _read_exr(path: Path) -> np.ndarray:
    if not cv2.haveImageReader(str(path)):
        raise ValueError(f"{path}: not an EXR, or OpenCV is built without EXR; convert it to .npy")
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise ValueError(f"{path}: not a readable EXR; write it again")
    return image if image.ndim == 2 else image[..., ::-1]  # OpenCV's order is BGR


def _metres_per_unit(path: Path) -> float:
    for name in (path.with_suffix(".json"), path.with_name(SCALE_NAME)):
        if name.is_file():
            try:
                scale = float(json.loads(name.read_text())[SCALE_KEY])
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f'{name}: expected {{"{SCALE_KEY}": <number>}}') from error
            if not scale > 0:
                raise ValueError(f"{name}: {SCALE_KEY} is {scale}; expected a positive number")
            return scale
    raise ValueError(
        f"{path}: a 16-bit PNG needs its scale; "
        f'write {{"{SCALE_KEY}": <number>}} to {path.with_name(SCALE_NAME)}'
    )


def _channels_first(path: Path, array: np.ndarray, modality: "Modality") -> np.ndarray:
    channels = 1 if modality == "depth" else 3
    if array.ndim == 2 and channels == 1:
        return array[None]
    if array.ndim == 3 and array.shape[0] == channels:
        return array
    if array.ndim == 3 and array.shape[-1] == channels:
        return np.moveaxis(array, -1, 0)
    raise ValueError(f"{path}: shape is {array.shape}; expected ({channels}, H, W) for {modality}")
