"""Stanford2D3DS: ``<data_path>/Stanford2D3DS/**/pano/{rgb,depth}/<name>_{rgb,depth}.png``.

Depth is 16-bit, 128 / 65535 metres a unit along the ray, 65535 = nothing measured. 15 % of the rows
at either pole carry no depth. The data set has no splits: see `files.select_listed`.
"""

from pathlib import Path

import numpy as np

from pager.data.files import PanoramaFiles, View, blank_poles, read_depth16, select_listed

METRES_PER_UNIT = 128 / 65535
NO_DEPTH_M = np.float32(128)
POLE_FRACTION = 0.15
RGB_SUFFIX = "_rgb.png"
ID_SUFFIX = "_frame_equirectangular_domain_rgb.png"


class Stanford2D3DS(PanoramaFiles):
    """Real indoor scans with depth."""

    def __init__(self, data_path: Path, split: str) -> None:
        """List a split; with no list of scenes in the folder everything is "test"."""
        root = data_path / "Stanford2D3DS"
        views = [
            View(_panorama_id(path.name), path,
                 path.parents[1] / "depth" / f"{path.name.removesuffix(RGB_SUFFIX)}_depth.png")
            for path in sorted(root.glob(f"**/pano/rgb/*{RGB_SUFFIX}"))
        ]  # fmt: skip
        views = select_listed(views, root, split)
        super().__init__(views, root / f"<area>/pano/rgb/*{RGB_SUFFIX}")

    def read_depth(self, path: Path) -> np.ndarray:
        """Metres, without the poles."""
        depth = read_depth16(path, METRES_PER_UNIT)
        depth[depth == NO_DEPTH_M] = 0
        return blank_poles(depth, POLE_FRACTION)


def _panorama_id(name: str) -> str:
    return name.removesuffix(ID_SUFFIX).removesuffix(RGB_SUFFIX)
