"""What the data sets of image files share: the list of panoramas, reading, resizing, splits."""

from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from pager.data.registry import Sample
from shared_pano_utils.imageio import read_image, read_png16

MIN_THINNED = 8
RESIZED_ASPECT_TOLERANCE = 0.01
# Lengths of decoded 8-bit normals: quantisation and JPEG stay inside, black and grey fall outside.
NORMAL_LENGTHS = (0.5, 1.5)


class View(NamedTuple):
    """One panorama: its id and its files; a map without a path is not part of the data set."""

    id: str
    rgb: Path
    depth: Path | None = None
    normals: Path | None = None


class PanoramaFiles(Dataset[Sample]):
    """Base of the loaders: `views` is listed at once, files are read and checked on access.

    A data set sets `size` (H, W) when everything is resized (colour by Lanczos, maps by nearest
    neighbour), and overrides `read_depth` and `read_normals` where its views have those files.
    """

    size: tuple[int, int] | None = None

    def __init__(self, views: list[View], expected: Path) -> None:
        """Keep the list; `expected` is the path or pattern that an empty list did not find.

        Raises:
            FileNotFoundError: no views.
            ValueError: two panoramas would have the same id, hence the same output files.
        """
        if not views:
            raise FileNotFoundError(f"no panoramas: expected {expected}; check --data_path")
        name, count = Counter(view.id for view in views).most_common(1)[0]
        if count > 1:
            twins = [str(view.rgb) for view in views if view.id == name]
            raise ValueError(f"{' and '.join(twins[:2])} have the same id {name}; rename one")
        self.views = views

    def read_depth(self, path: Path) -> np.ndarray:
        """Distances along the ray (H, W) float32 in metres, 0 where nothing was measured."""
        raise NotImplementedError(f"{type(self).__name__} has no reader for {path}")

    def read_normals(self, path: Path) -> np.ndarray:
        """Unit normals (H, W, 3) float32 in the `pager` frame, 0 where there is none."""
        raise NotImplementedError(f"{type(self).__name__} has no reader for {path}")

    def __len__(self) -> int:
        return len(self.views)

    def __getitem__(self, index: int) -> Sample:
        view = self.views[index]
        rgb = read_image(view.rgb)
        check_panorama(rgb, str(view.rgb), is_resized=self.size is not None)
        if self.size is not None:
            rgb = resize_rgb(rgb, self.size)
        sample: Sample = {"id": view.id, "rgb": to_chw(rgb)}
        if view.depth is not None:
            depth = self._fit(self.read_depth(view.depth), rgb, view.depth)
            sample["depth"] = torch.from_numpy(np.ascontiguousarray(depth))[None]
        if view.normals is not None:
            sample["normals"] = to_chw(
                self._fit(self.read_normals(view.normals), rgb, view.normals)
            )
        return sample

    def _fit(self, array: np.ndarray, rgb: np.ndarray, path: Path) -> np.ndarray:
        """Bring a map to the size of the colour image, or insist on it."""
        if self.size is not None:
            check_panorama(array, str(path), is_resized=True)
            return resize_nearest(array, self.size)
        check_same_size(array, rgb, str(path))
        return array


# ---- arrays -------------------------------------------------------------------------------------


def check_panorama(array: np.ndarray, name: str, *, is_resized: bool = False) -> None:
    """Insist on W = 2 H; an image that is resized anyway may be one percent off."""
    height, width = array.shape[:2]
    if abs(width - 2 * height) > (RESIZED_ASPECT_TOLERANCE * width if is_resized else 0):
        raise ValueError(
            f"{name}: panorama is {width}x{height}; width must be 2 x height; replace the file"
        )


def check_same_size(array: np.ndarray, rgb: np.ndarray, name: str) -> None:
    """Insist that a map (H, W) or (H, W, 3) has the pixels of its colour image (H, W, 3)."""
    if array.ndim < 2 or array.shape != rgb.shape[: array.ndim]:
        raise ValueError(
            f"{name}: shape is {array.shape}, but the colour image is {rgb.shape[:2]}; "
            "replace the file"
        )


def to_chw(array: np.ndarray) -> torch.Tensor:
    """(H, W, C) array to a contiguous (C, H, W) tensor."""
    return torch.from_numpy(array).movedim(-1, 0).contiguous()


def resize_rgb(rgb: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize (H, W, 3) uint8 by Lanczos."""
    height, width = size
    if rgb.shape[:2] == size:
        return rgb
    return np.array(Image.fromarray(rgb).resize((width, height), Image.Resampling.LANCZOS))


def resize_nearest(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize (H, W, ...) by nearest neighbour: no value is invented."""
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(np.intp)
        for new, old in zip(size, array.shape[:2], strict=True)
    )
    return array[rows[:, None], columns]


def read_depth16(path: Path, metres_per_unit: float) -> np.ndarray:
    """16-bit grey image to (H, W) float32 metres; 0 stays 0."""
    return (read_png16(path) * np.float64(metres_per_unit)).astype(np.float32)


def decode_normals(rgb: np.ndarray, zero: float) -> np.ndarray:
    """8-bit normals ``n = v / zero - 1`` to (H, W, 3) float32 unit vectors.

    Pixels whose vector is nowhere near unit length (black, grey) carry no normal and become 0.
    """
    vectors = rgb.astype(np.float32) / np.float32(zero) - 1
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    is_normal = (length > NORMAL_LENGTHS[0]) & (length < NORMAL_LENGTHS[1])
    return np.where(is_normal, vectors / np.maximum(length, NORMAL_LENGTHS[0]), 0)


def blank_poles(depth: np.ndarray, fraction: float) -> np.ndarray:
    """Zero that fraction of the rows of (H, W) at the top and at the bottom, where scanners fail."""
    height = depth.shape[0]
    depth[: int(fraction * height)] = 0
    depth[int((1 - fraction) * height) :] = 0
    return depth


# ---- splits -------------------------------------------------------------------------------------


def base_split(split: str) -> str:
    """The split whose files are read: "tiny_val" is a thinned "val"."""
    return "val" if split == "tiny_val" else split


def thin(views: list[View], split: str, stride: int) -> list[View]:
    """Every `stride`-th view for "tiny_val", more often where fewer than eight would be left."""
    if split != "tiny_val":
        return views
    return views[:: max(1, min(stride, len(views) // MIN_THINNED))]


def read_names(path: Path) -> list[str]:
    """Non-empty lines of a split file.

    Raises:
        FileNotFoundError: the file does not exist.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file; it lists the scenes of the split, one a line"
        )
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip()]


def select_listed(views: list[View], root: Path, split: str) -> list[View]:
    """Views of a data set that comes without splits.

    ``<root>/scenes_<split>.txt`` lists scene folders or panorama ids, one a line. Without any such
    file everything is "test".

    Raises:
        FileNotFoundError: no list for this split.
        ValueError: a line of the list matches nothing.
    """
    path = root / f"scenes_{base_split(split)}.txt"
    if split == "test" and not any(root.glob("scenes_*.txt")):
        return views
    if not path.is_file():
        raise FileNotFoundError(
            f"{root.name} comes without a {split} split; list its scene folders or panorama ids in "
            f"{path}, one a line"
        )
    names = set(read_names(path))
    keys = [{view.id, *view.rgb.relative_to(root).parts} for view in views]
    unknown = sorted(names - set().union(*keys))
    if unknown:
        raise ValueError(
            f"{path}: {unknown[0]!r} is no scene folder or panorama id; remove the line"
        )
    return thin([v for v, key in zip(views, keys, strict=True) if key & names], split, MIN_THINNED)
