"""Replica360_4K: ``<data_path>/Replica360_4K/<scene>/<NNNN>_{rgb_pano.jpg,depth_pano.dpt,mask_pano.png}``.

Depth is radial metres, valid where the mask is not 0; everything is resized to 4096x2048. The data
set has no splits: see `files.select_listed`.
"""

from pathlib import Path

import numpy as np

from pager.data.files import PanoramaFiles, View, resize_nearest, select_listed
from pager.data.matterport3d360 import read_dpt
from shared_pano_utils.imageio import read_image

RGB_SUFFIX = "_rgb_pano.jpg"
DEPTH_SUFFIX = "_depth_pano.dpt"
MASK_SUFFIX = "_mask_pano.png"


class Replica360(PanoramaFiles):
    """Renderings of scanned rooms with depth."""

    size = (2048, 4096)

    def __init__(self, data_path: Path, split: str) -> None:
        """List a split; ids are ``<scene>_<NNNN>``, everything is "test" without a list of scenes."""
        root = data_path / "Replica360_4K"
        stems = {
            path.with_name(path.name.removesuffix(suffix))
            for suffix in (RGB_SUFFIX, DEPTH_SUFFIX)
            for path in root.glob(f"*/*{suffix}")
        }
        views = [
            View(f"{stem.parent.name}_{stem.name}", stem.with_name(stem.name + RGB_SUFFIX),
                 stem.with_name(stem.name + DEPTH_SUFFIX))
            for stem in sorted(stems)
        ]  # fmt: skip
        super().__init__(select_listed(views, root, split), root / f"<scene>/*{RGB_SUFFIX}")

    def read_depth(self, path: Path) -> np.ndarray:
        """Metres, 0 outside the mask."""
        depth = read_dpt(path)
        mask = read_image(path.with_name(path.name.removesuffix(DEPTH_SUFFIX) + MASK_SUFFIX))
        depth[~resize_nearest(mask.max(axis=-1) > 0, depth.shape)] = 0
        return depth
