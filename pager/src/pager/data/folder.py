"""Folder: your own panoramas with optional depth and normals.

``<data_path>/`` (or ``<data_path>/<split>/``) holds ``rgb/<id>.<image>``, ``depth/<id>.{png,npy,npz,
dpt}`` and ``normals/<id>.{png,npy,npz}``; without ``rgb/`` the images lie in the folder itself.
``dataset.json`` beside them says what the numbers mean::

    {"metres_per_unit": 0.001, "depth_kind": "euclidean", "normals_frame": "pager"}

"euclidean" depth is measured along the ray, "planar" along the axis of the cube face a pixel falls
on. Normals frames: `FRAMES`. PNG depth is 16-bit grey, PNG normals are 8-bit, n = v / 127.5 - 1.
"""

import json
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pager.data.files import PanoramaFiles, View, decode_normals
from pager.data.matterport3d360 import read_dpt
from pager.geometry import erp_directions, rdf_to_pager, structured3d_to_pager
from shared_pano_utils.imageio import IMAGE_SUFFIXES, read_image, read_png16

JSON_NAME = "dataset.json"
DEPTH_SUFFIXES = (".png", ".npy", ".npz", ".dpt")
NORMALS_SUFFIXES = (".png", ".npy", ".npz")
NORMALS_ZERO = 127.5
DEPTH_KINDS = ("euclidean", "planar")
FRAMES: dict[str, Callable[[Tensor], Tensor]] = {
    "pager": lambda vectors: vectors,  # forward, up, left
    "rdf": rdf_to_pager,  # right, down, forward
    "structured3d": structured3d_to_pager,  # right, up, backward
}


class PanoramaFolder(PanoramaFiles):
    """Images with what else there is."""

    def __init__(self, data_path: Path, split: str) -> None:
        """List the images; ids are their names without suffix."""
        root = data_path / split if (data_path / split).is_dir() else data_path
        if root == data_path and split != "test":
            raise FileNotFoundError(f"{data_path / split}: no such folder; make it, or use test")
        images = root / "rgb" if (root / "rgb").is_dir() else root
        has_depth, has_normals = (root / "depth").is_dir(), (root / "normals").is_dir()
        self.meaning = _read_meaning(root / JSON_NAME, has_depth, has_normals)
        views = [
            View(path.stem, path,
                 root / "depth" / path.stem if has_depth else None,
                 root / "normals" / path.stem if has_normals else None)
            for path in sorted(images.glob("[!.]*"))
            if path.suffix.lower() in IMAGE_SUFFIXES
        ]  # fmt: skip
        super().__init__(views, images / f"*{IMAGE_SUFFIXES[0]}")

    def read_depth(self, path: Path) -> np.ndarray:
        """Metres along the ray; `path` has no suffix yet."""
        path = _existing(path, DEPTH_SUFFIXES)
        unit = float(self.meaning["metres_per_unit"])
        read = {".png": read_png16, ".dpt": read_dpt}.get(path.suffix, _load_array)
        raw = read(path)
        depth = (np.squeeze(raw) * np.float64(unit)).astype(np.float32)
        if depth.ndim != 2:
            raise ValueError(
                f"{path}: depth has shape {raw.shape}, expected (H, W); convert the file"
            )
        if self.meaning["depth_kind"] == "planar":
            height, width = depth.shape
            depth = depth / erp_directions((height, width)).abs().amax(0).numpy()
        return depth

    def read_normals(self, path: Path) -> np.ndarray:
        """Unit vectors in the `pager` frame; `path` has no suffix yet."""
        path = _existing(path, NORMALS_SUFFIXES)
        if path.suffix == ".png":
            normals = decode_normals(read_image(path), NORMALS_ZERO)
        else:
            normals = _load_array(path).astype(np.float32)
            if normals.ndim == 3 and normals.shape[0] == 3:
                normals = np.moveaxis(normals, 0, -1)
        if normals.ndim != 3 or normals.shape[2] != 3:
            raise ValueError(
                f"{path}: normals have shape {normals.shape}, expected (H, W, 3); convert the file"
            )
        convert = FRAMES[self.meaning["normals_frame"]]
        return convert(torch.from_numpy(normals).movedim(-1, 0)).movedim(0, -1).numpy()


def _read_meaning(path: Path, has_depth: bool, has_normals: bool) -> dict[str, Any]:
    """Read and check ``dataset.json``; images alone need none."""
    wanted = {"metres_per_unit", "depth_kind"} if has_depth else set()
    wanted |= {"normals_frame"} if has_normals else set()
    if not wanted:
        return {}
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; it must state {', '.join(sorted(wanted))}")
    try:
        meaning = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}); mend the file") from error
    missing = wanted - set(meaning if isinstance(meaning, dict) else ())
    if missing:
        raise ValueError(f"{path}: {', '.join(sorted(missing))} is missing; add it")
    allowed: dict[str, Any] = {"depth_kind": DEPTH_KINDS, "normals_frame": tuple(FRAMES)}
    for key in wanted & set(allowed):
        if meaning[key] not in allowed[key]:
            raise ValueError(
                f"{path}: {key} is {meaning[key]!r}; use one of {', '.join(allowed[key])}"
            )
    unit = meaning.get("metres_per_unit", 1)
    if not isinstance(unit, (int, float)) or not 0 < unit < float("inf"):
        raise ValueError(f"{path}: metres_per_unit is {unit!r}; use a positive number")
    return meaning


def _existing(path: Path, suffixes: tuple[str, ...]) -> Path:
    for suffix in suffixes:
        if path.with_name(path.name + suffix).is_file():
            return path.with_name(path.name + suffix)
    raise FileNotFoundError(f"{path}{suffixes[0]}: no such file, nor {', '.join(suffixes[1:])}")


def _load_array(path: Path) -> np.ndarray:
    """The array of a .npy file, or the only one of a .npz."""
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return loaded
            (array,) = loaded.values()
            return array
    except (ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path}: not a readable array ({error}); replace the file") from error
