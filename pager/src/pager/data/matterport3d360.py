"""Matterport3D360, and the reader of its ``.dpt`` depth files.

``<data_path>/Matterport3D360/scenes_{train,val,test}.txt`` list scenes;
``<any part>/data/<scene>/`` holds ``<key>_rgb.png`` and ``<key>_depth.dpt`` (radial metres, 0 =
nothing measured). The scanner saw neither pole: 14 % of the rows at either end carry no depth.
"""

import struct
from pathlib import Path

import numpy as np

from pager.data.files import PanoramaFiles, View, base_split, blank_poles, read_names, thin

POLE_FRACTION = 0.14
TINY_VAL_STRIDE = 10
DPT_HEADER = struct.Struct("<fii")  # tag, width, height
DPT_TAG = 202021.25


class Matterport3D360(PanoramaFiles):
    """Real indoor scans with depth."""

    def __init__(self, data_path: Path, split: str) -> None:
        """List a split; a key of which either file exists is a panorama."""
        root = data_path / "Matterport3D360"
        scenes = set(read_names(root / f"scenes_{base_split(split)}.txt"))
        folders = [path for path in root.glob("*/data/*") if path.name in scenes]
        stems = {
            path.with_name(path.name.removesuffix(suffix))
            for folder in folders
            for suffix in ("_rgb.png", "_depth.dpt")
            for path in folder.glob(f"*{suffix}")
        }
        views = [
            View(stem.name, stem.with_name(f"{stem.name}_rgb.png"),
                 stem.with_name(f"{stem.name}_depth.dpt"))
            for stem in sorted(stems)
        ]  # fmt: skip
        super().__init__(thin(views, split, TINY_VAL_STRIDE), root / "*/data/<scene>/*_rgb.png")

    def read_depth(self, path: Path) -> np.ndarray:
        """Metres, without the poles."""
        return blank_poles(read_dpt(path), POLE_FRACTION)


def read_dpt(path: Path) -> np.ndarray:
    """Read a ``.dpt`` file: tag, width, height, then H x W little-endian float32.

    Returns:
        (H, W) float32, values unchanged.

    Raises:
        FileNotFoundError: `path` does not exist.
        ValueError: not a .dpt file, or cut short.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    data = path.read_bytes()
    if len(data) < DPT_HEADER.size:
        raise ValueError(f"{path}: {len(data)} bytes are too few for a .dpt file; replace the file")
    tag, width, height = DPT_HEADER.unpack_from(data)
    if tag != DPT_TAG or min(width, height) < 1:
        raise ValueError(
            f"{path}: not a .dpt file (tag {tag:g}, size {width}x{height}), expected the tag "
            f"{DPT_TAG}; replace the file"
        )
    expected = DPT_HEADER.size + 4 * width * height
    if len(data) != expected:
        raise ValueError(
            f"{path}: {len(data)} bytes, expected {expected} for {width}x{height}; replace the file"
        )
    values = np.frombuffer(data, "<f4", offset=DPT_HEADER.size).reshape(height, width)
    return values.astype(np.float32)
