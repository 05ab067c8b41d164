"""PanoInfinigen in its LMDB layout: reader, writer.

``<data_path>/PanoInfinigen/{indoor,outdoor}/{train,val,test}/`` holds ``index.npy`` (rows shard,
scene id, number of views) and ``shard_00000.lmdb/`` with the keys ``<scene>/<view>#rgb`` (an
encoded image), ``#depth`` (.npy, H x W, radial metres) and ``#normal`` (.npy, H x W x 3, unit, in
the `pager` frame).
"""

import io
import os
import pickle
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import lmdb
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from shared_pano_utils.imageio import atomic_path, decode_image

INDEX_NAME = "index.npy"
MAX_READERS = 4096
TINY_VAL_STRIDE = 50


class View(NamedTuple):
    """One panorama of the data set."""

    shard: Path
    key: str
    id: str


class Frame(NamedTuple):
    """One panorama to be written: rgb (H, W, 3) uint8, depth (H, W) m, normals (H, W, 3)."""

    rgb: np.ndarray
    depth: np.ndarray
    normals: np.ndarray


class PanoInfinigen(Dataset[dict[str, Any]]):
    """Panoramas with radial depth and normals.

    Items: `id`; `rgb` (3, H, W) uint8; `depth` (1, H, W) float32 metres, sky inf or beyond the
    range; `normals` (3, H, W) float32 in the `pager` frame.
    """

    def __init__(self, data_path: str | Path, split: str, scenes: str = "both") -> None:
        """Read the indices of a split ("train", "val", "test" or the thinned "tiny_val").

        Raises:
            FileNotFoundError: no index of that split under `data_path`.
        """
        root = Path(data_path) / "PanoInfinigen"
        kinds = ("indoor", "outdoor") if scenes == "both" else (scenes,)
        folder = "val" if split == "tiny_val" else split
        indices = [root / kind / folder / INDEX_NAME for kind in kinds]
        found = [path for path in indices if path.is_file()]
        if not found:
            raise FileNotFoundError(
                f"no PanoInfinigen {split} data: expected {indices[0]}; make procedural data with "
                "`python prepare_procedural.py --data_path <folder>` or download the data set"
            )
        self.views = [view for path in found for view in _read_index(path, folder)]
        if split == "tiny_val":
            self.views = self.views[:: max(1, min(TINY_VAL_STRIDE, len(self.views) // 8))]

    def __len__(self) -> int:
        return len(self.views)

    def __getitem__(self, index: int) -> dict[str, Any]:
        view = self.views[index]
        with _environment(view.shard).begin() as transaction:
            parts = {}
            for name in ("rgb", "depth", "normal"):
                value = transaction.get(f"{view.key}#{name}".encode())
                if value is None:
                    raise ValueError(f"{view.shard}: no entry {view.key}#{name}; rebuild the shard")
                parts[name] = bytes(value)
        rgb = decode_image(parts["rgb"], f"{view.key}#rgb")
        depth = np.load(io.BytesIO(parts["depth"])).astype(np.float32)
        normals = np.load(io.BytesIO(parts["normal"])).astype(np.float32)
        return {
            "id": view.id,
            "rgb": torch.from_numpy(rgb).movedim(-1, 0).contiguous(),
            "depth": torch.from_numpy(depth)[None],
            "normals": torch.from_numpy(normals).movedim(-1, 0).contiguous(),
        }


@lru_cache(maxsize=256)
def _environment(shard: Path) -> lmdb.Environment:
    """Open a shard; LMDB allows one handle per process, shared by all data sets."""
    try:
        return lmdb.open(
            str(shard), readonly=True, lock=False, readahead=False, max_readers=MAX_READERS
        )
    except lmdb.Error as error:
        raise ValueError(
            f"{shard} cannot be read ({error}); copy or make this shard again"
        ) from error


if hasattr(os, "register_at_fork"):  # a forked worker must open its own handles
    os.register_at_fork(before=_environment.cache_clear)


class _IndexUnpickler(pickle.Unpickler):
    """Object arrays are pickles; this one can only rebuild arrays of strings and integers."""

    _ALLOWED = frozenset({"_reconstruct", "ndarray", "dtype", "scalar"})

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "numpy" and name in self._ALLOWED:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} has no place in a PanoInfinigen index")


def _read_index(path: Path, split: str) -> list[View]:
    with path.open("rb") as file:
        try:
            version = np.lib.format.read_magic(file)
            read_header = (
                np.lib.format.read_array_header_1_0
                if version == (1, 0)
                else np.lib.format.read_array_header_2_0
            )
            _, _, dtype = read_header(file)
            rows = _IndexUnpickler(file).load() if dtype.hasobject else None
        except (ValueError, EOFError, pickle.UnpicklingError) as error:
            raise ValueError(f"{path} is not a PanoInfinigen index ({error})") from error
    rows = np.load(path) if rows is None else rows
    views = []
    for shard, scene, count in rows:
        for view in range(int(count)):
            key = f"{scene}/{view:04d}"
            name = f"{split}_shard{int(shard):05d}_{scene}_view{view:04d}"
            views.append(View(path.parent / f"shard_{int(shard):05d}.lmdb", key, name))
    return views


def write_split(folder: Path, scenes: Iterable[tuple[str, list[Frame]]]) -> int:
    """Write one shard and its index; the index comes last, so a killed run leaves no split.

    Args:
        folder: ``.../PanoInfinigen/<indoor|outdoor>/<split>``.
        scenes: (scene id, frames) pairs.

    Returns:
        The number of panoramas written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _environment.cache_clear()  # the shard may be open for reading
    rows: list[list[Any]] = []
    environment = lmdb.open(str(folder / "shard_00000.lmdb"), map_size=1 << 40)
    with environment, environment.begin(write=True) as transaction:
        for scene, frames in scenes:
            for view, frame in enumerate(frames):
                for name, value in _encode(frame).items():
                    transaction.put(f"{scene}/{view:04d}#{name}".encode(), value)
            rows.append([0, scene, len(frames)])
    index = np.empty((len(rows), 3), dtype=object)
    index[:] = rows
    with atomic_path(folder / INDEX_NAME) as path, path.open("wb") as file:
        np.save(file, index, allow_pickle=True)
    return sum(row[2] for row in rows)


def _encode(frame: Frame) -> dict[str, bytes]:
    encoded = {}
    for name, value in (("depth", frame.depth), ("normal", frame.normals.astype(np.float16))):
        buffer = io.BytesIO()
        np.save(buffer, value)
        encoded[name] = buffer.getvalue()
    buffer = io.BytesIO()
    Image.fromarray(frame.rgb).save(buffer, "PNG", compress_level=1)
    return {"rgb": buffer.getvalue(), **encoded}


def stack_samples(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Collate: tensors are stacked, ids become a list."""
    batch: dict[str, Any] = {"id": [sample["id"] for sample in samples]}
    for key in samples[0].keys() - {"id"}:
        tensors: list[Tensor] = [sample[key] for sample in samples]
        if len({t.shape for t in tensors}) > 1:
            shapes = sorted({tuple(t.shape) for t in tensors})
            raise ValueError(
                f"panoramas of different sizes {shapes} in one batch; use --batch_size 1"
            )
        batch[key] = torch.stack(tensors)
    return batch
