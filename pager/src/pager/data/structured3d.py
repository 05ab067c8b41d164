"""Structured3D, and its union with ScannetPP.

``<data_path>/Structured3D/scene_%05d/2D_rendering/<room>/panorama/full/`` holds
``rgb_rawlight.png``, ``depth.png`` (16-bit millimetres along the ray) and ``normal.png`` (8-bit,
n = v / 128 - 1, axes right, up, backward; ``normals.png`` in repackaged copies).
"""

from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from pager.data.files import PanoramaFiles, View, base_split, decode_normals, read_depth16, thin
from pager.data.registry import Sample
from pager.data.scannetpp import ScannetPP
from pager.geometry import NormalsFrame, structured3d_to_pager
from shared_pano_utils.imageio import read_image

SCENES = {"train": range(3000), "val": range(3000, 3250), "test": range(3250, 3500)}
METRES_PER_UNIT = 1e-3
NORMALS_ZERO = 128.0
TINY_VAL_STRIDE = 50


class Structured3D(PanoramaFiles):
    """Synthetic rooms with depth and normals."""

    def __init__(
        self, data_path: Path, split: str, *, normals_frame: NormalsFrame = "pager"
    ) -> None:
        """List a split; ids are ``scene_<number>_<room>``.

        Args:
            data_path: folder that holds ``Structured3D/``.
            split: the scenes 0-2999 are "train", 3000-3249 "val", 3250-3499 "test".
            normals_frame: frame of the samples' normals; "structured3d" keeps the stored axes, as
                the network `PaGeR-normals-Structured3D` was trained.
        """
        self.normals_frame = normals_frame
        root = data_path / "Structured3D"
        folders = [
            folder
            for number in SCENES[base_split(split)]
            for folder in sorted(root.glob(f"scene_{number:05d}/2D_rendering/*/panorama/full"))
        ]
        views = [
            View(f"{folder.parents[3].name}_{folder.parents[1].name}", folder / "rgb_rawlight.png",
                 folder / "depth.png", folder / "normal.png")
            for folder in folders
        ]  # fmt: skip
        expected = root / "scene_*/2D_rendering/<room>/panorama/full/rgb_rawlight.png"
        super().__init__(thin(views, split, TINY_VAL_STRIDE), expected)

    def read_depth(self, path: Path) -> np.ndarray:
        """Metres."""
        return read_depth16(path, METRES_PER_UNIT)

    def read_normals(self, path: Path) -> np.ndarray:
        """Unit vectors in the frame asked for."""
        plural = path.with_name("normals.png")
        stored = plural if plural.is_file() and not path.is_file() else path
        normals = decode_normals(read_image(stored), NORMALS_ZERO)
        if self.normals_frame == "structured3d":
            return normals
        return (
            structured3d_to_pager(torch.from_numpy(normals).movedim(-1, 0)).movedim(0, -1).numpy()
        )


class Structured3DScannetPP(Dataset[Sample]):
    """Both data sets, one after the other, at 1024x512: colour and depth."""

    size = (512, 1024)

    def __init__(self, data_path: Path, split: str) -> None:
        """List a split of both; each keeps its own ids."""
        self.parts = (Structured3D(data_path, split), ScannetPP(data_path, split))
        for part in self.parts:
            part.size = self.size
            part.views = [view._replace(normals=None) for view in part.views]
        self.views = [view for part in self.parts for view in part.views]

    def __len__(self) -> int:
        return len(self.views)

    def __getitem__(self, index: int) -> Sample:
        first, second = self.parts
        index = range(len(self))[index]
        part, number = (first, index) if index < len(first) else (second, index - len(first))
        return part[number]
