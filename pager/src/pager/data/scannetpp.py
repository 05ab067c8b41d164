"""ScannetPP: ``<data_path>/ScannetPP/data/<scene>/panocam/resized_{images,depth}/<stem>.{jpg,png}``.

``splits/nvs_sem_{train,val}.txt`` list the scenes; "test" is "val". Depth is 16-bit millimetres
along the ray, 0 = nothing measured. Everything is resized to 2572x1284.
"""

from pathlib import Path

import numpy as np

from pager.data.files import PanoramaFiles, View, base_split, read_depth16, read_names, thin

METRES_PER_UNIT = 1e-3
TINY_VAL_STRIDE = 50


class ScannetPP(PanoramaFiles):
    """Real indoor scans with depth."""

    size = (1284, 2572)

    def __init__(self, data_path: Path, split: str) -> None:
        """List a split; ids are ``<scene>_<stem>``."""
        root = data_path / "ScannetPP"
        listed = "val" if split == "test" else base_split(split)
        views = [
            View(f"{scene}_{path.stem}", path,
                 path.parents[1] / "resized_depth" / f"{path.stem}.png")
            for scene in read_names(root / "splits" / f"nvs_sem_{listed}.txt")
            for path in sorted((root / "data" / scene / "panocam/resized_images").glob("*.jpg"))
        ]  # fmt: skip
        expected = root / "data/<scene>/panocam/resized_images/*.jpg"
        super().__init__(thin(views, split, TINY_VAL_STRIDE), expected)

    def read_depth(self, path: Path) -> np.ndarray:
        """Metres."""
        return read_depth16(path, METRES_PER_UNIT)
