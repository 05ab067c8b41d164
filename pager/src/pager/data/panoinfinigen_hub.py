"""PanoInfinigen as published on the Hugging Face hub, and the choice between its two layouts.

``<data_path>/PanoInfinigen/data/{indoor,nature,urban}/{train,val,test}-*.parquet``, columns `image`,
`depth` and `normals`. Depth is a .npy file in radial metres, or 16-bit PNG with
v * M / 65535 metres (M = 75, urban 500; 0 = nothing measured); normals are a .npy file or an 8-bit
image, n = v / 127.5 - 1, in the `pager` frame.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from pager.data.files import (
    MIN_THINNED,
    base_split,
    check_panorama,
    check_same_size,
    decode_normals,
    to_chw,
)
from pager.data.parquet import Row, decode_npy, decode_png16, list_rows, read_row
from pager.data.registry import PanoramaDataset, Sample
from shared_pano_utils.imageio import decode_image

MAX_DEPTH_M = {"indoor": 75.0, "nature": 75.0, "urban": 500.0}
CONFIGURATIONS = {
    "indoor": ("indoor",),
    "outdoor": ("nature", "urban"),
    "both": ("indoor", "nature", "urban"),
}
NORMALS_ZERO = 127.5
TINY_VAL_STRIDE = 50
COLUMNS = ("image", "depth", "normals")
NPY_MAGIC = b"\x93NUMPY"


class HubView(NamedTuple):
    """One panorama: its id, its row, the largest depth of its configuration in metres."""

    id: str
    row: Row
    max_depth_m: float


class PanoInfinigenHub(Dataset[Sample]):
    """Synthetic scenes with depth and normals."""

    def __init__(self, data_path: Path, split: str, scenes: str = "both") -> None:
        """List a split; ids are ``<configuration>_<shard>_<row>``.

        Raises:
            FileNotFoundError: no shard of that split.
        """
        root = data_path / "PanoInfinigen/data"
        pattern = f"{base_split(split)}-*.parquet"
        self.views = [
            HubView(f"{kind}_{row.path.stem}_{row.number:04d}", row, MAX_DEPTH_M[kind])
            for kind in CONFIGURATIONS[scenes]
            for row in list_rows(sorted((root / kind).glob(pattern)))
        ]
        if not self.views:
            raise FileNotFoundError(f"no panoramas: expected {root / '<indoor, nature>' / pattern}")
        if split == "tiny_val":
            self.views = self.views[:: max(1, min(TINY_VAL_STRIDE, len(self.views) // MIN_THINNED))]

    def __len__(self) -> int:
        return len(self.views)

    def __getitem__(self, index: int) -> Sample:
        view = self.views[index]
        values = read_row(view.row, COLUMNS)
        name = str(view.row)
        rgb = decode_image(values["image"], f"{name} image")
        check_panorama(rgb, f"{name} image")
        depth = _decode_depth(values["depth"], view.max_depth_m, f"{name} depth")
        normals = _decode_normals(values["normals"], f"{name} normals")
        check_same_size(depth, rgb, f"{name} depth")
        check_same_size(normals, rgb, f"{name} normals")
        return {
            "id": view.id,
            "rgb": to_chw(rgb),
            "depth": torch.from_numpy(depth)[None],
            "normals": to_chw(normals),
        }


def open_panoinfinigen(data_path: Path, split: str, scenes: str) -> PanoramaDataset:
    """Open PanoInfinigen in the layout that lies on disk."""
    if any((data_path / "PanoInfinigen/data").glob(f"*/{base_split(split)}-*.parquet")):
        return PanoInfinigenHub(data_path, split, scenes)
    from pager.data.panoinfinigen import PanoInfinigen

    return PanoInfinigen(data_path, split, scenes)


def _decode_depth(data: bytes, max_depth_m: float, name: str) -> np.ndarray:
    if data.startswith(NPY_MAGIC):
        return np.squeeze(decode_npy(data, name)).astype(np.float32)
    return (decode_png16(data, name) * np.float64(max_depth_m / 65535)).astype(np.float32)


def _decode_normals(data: bytes, name: str) -> np.ndarray:
    if data.startswith(NPY_MAGIC):
        return decode_npy(data, name).astype(np.float32)
    return decode_normals(decode_image(data, name), NORMALS_ZERO)
