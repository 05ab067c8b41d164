"""The two test sets in the wild: photographs alone, and laser scans.

PanoInTheWild: ``<data_path>/PanoInTheWild/*.{jpg,png}``, no ground truth, resized to 2048x1024; the
way to run one's own images as a data set. ZuriPano (Hugging Face hub): ``<data_path>/ZuriPano/data/
test-*.parquet``, columns `id`, `rgb`, `depth` (16-bit, v * 200 / 65535 metres along the ray, 0 =
nothing measured) and `mask` (valid where not 0), resized to 4096x2048.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from pager.data.files import (
    PanoramaFiles,
    View,
    check_panorama,
    check_same_size,
    resize_nearest,
    resize_rgb,
    to_chw,
)
from pager.data.parquet import Row, decode_png16, list_rows, read_row
from pager.data.registry import Sample
from shared_pano_utils.imageio import IMAGE_SUFFIXES, decode_image

METRES_PER_UNIT = 200 / 65535


class PanoInTheWild(PanoramaFiles):
    """Photographs."""

    size = (1024, 2048)

    def __init__(self, data_path: Path, split: str) -> None:
        """List the images; ids are their names up to the first dot."""
        _require_test("PanoInTheWild", split)
        root = data_path / "PanoInTheWild"
        views = [
            View(path.name.split(".")[0], path)
            for path in sorted(root.glob("[!.]*"))
            if path.suffix.lower() in IMAGE_SUFFIXES
        ]
        super().__init__(views, root / "*.jpg")


class ScanView(NamedTuple):
    """One scan: its id and its row."""

    id: str
    row: Row


class ZuriPano(Dataset[Sample]):
    """Outdoor laser scans with depth."""

    size = (2048, 4096)

    def __init__(self, data_path: Path, split: str) -> None:
        """List the scans; ids are the stored ones with underscores for spaces.

        Raises:
            FileNotFoundError: no shard.
        """
        _require_test("ZuriPano", split)
        pattern = data_path / "ZuriPano/data/test-*.parquet"
        rows = list_rows(sorted(pattern.parent.glob(pattern.name)))
        if not rows:
            raise FileNotFoundError(f"no panoramas: expected {pattern}; check --data_path")
        self.views = [ScanView(_scan_id(row), row) for row in rows]

    def __len__(self) -> int:
        return len(self.views)

    def __getitem__(self, index: int) -> Sample:
        view = self.views[index]
        name = str(view.row)
        values = read_row(view.row, ("rgb", "depth", "mask"))
        rgb = decode_image(values["rgb"], f"{name} rgb")
        check_panorama(rgb, f"{name} rgb", is_resized=True)
        units = decode_png16(values["depth"], f"{name} depth")
        mask = decode_image(values["mask"], f"{name} mask").max(axis=-1) > 0
        check_same_size(units, rgb, f"{name} depth")
        check_same_size(mask, rgb, f"{name} mask")
        depth = (np.where(mask, units, 0) * np.float64(METRES_PER_UNIT)).astype(np.float32)
        return {
            "id": view.id,
            "rgb": to_chw(resize_rgb(rgb, self.size)),
            "depth": torch.from_numpy(resize_nearest(depth, self.size))[None],
        }


def _scan_id(row: Row) -> str:
    """The stored id; a file that cannot be read is named by itself and fails on access."""
    try:
        return str(read_row(row, ("id",))["id"]).strip().replace(" ", "_")
    except ValueError:
        return f"{row.path.stem}_{row.number:04d}"


def _require_test(name: str, split: str) -> None:
    if split != "test":
        raise FileNotFoundError(f"{name} has no {split} split, only test; pass --split test")
