"""Panoramas that inference reads: photographs, folders and globs, or the items of a data set."""

import argparse
import collections
import glob
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pager.data.registry import open_dataset

if TYPE_CHECKING:
    import numpy as np

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp"}


@dataclass(frozen=True)
class Item:
    """One panorama to predict: its output name, what to call it in messages, how to read it."""

    id: str
    source: str
    load: "Callable[[], np.ndarray]"


def input_items(patterns: list[str]) -> list[Item]:
    """Expand files, folders and globs; equal stems get their parent folder's name in front."""
    from shared_pano_utils.imageio import read_erp

    paths: list[Path] = []
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            found = sorted(p for p in path.iterdir() if _is_image(p))
        elif path.exists():
            found = [path]
        else:
            matches = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 (absolute patterns)
            found = [path for path in map(Path, matches) if path.is_file()]
        if not found:
            raise FileNotFoundError(
                f"--input {pattern}: no such file, folder with images or glob match; check the path"
            )
        paths += [p for p in found if p not in paths]
    ids = unique_names(paths)
    return [Item(name, str(p), partial(read_erp, p)) for name, p in zip(ids, paths, strict=True)]


def _is_image(path: Path) -> bool:
    """Whether the suffix is an image's; hidden files are what a killed writer left."""
    is_hidden = path.name.startswith(".")
    return path.suffix.lower() in IMAGE_SUFFIXES and not is_hidden and path.is_file()


def unique_names(paths: list[Path]) -> list[str]:
    """Stems, preceded where they are equal by as many folder names as tell the files apart.

    >>> unique_names([Path("a/p/x.png"), Path("b/p/x.png"), Path("b/y.png")])
    ['a_p_x', 'b_p_x', 'y']
    """
    twins = collections.Counter((p.parent, p.stem) for p in paths)  # x.png beside x.jpg
    leaves = [p.stem if twins[p.parent, p.stem] == 1 else f"{p.stem}_{p.suffix[1:]}" for p in paths]
    names = leaves
    parts = [(*p.resolve().parent.parts[1:], leaf) for p, leaf in zip(paths, leaves, strict=True)]
    for depth in range(2, max(map(len, parts), default=1) + 1):
        counts = collections.Counter(names)
        names = [
            "_".join(part[-depth:]) if counts[name] > 1 else name
            for name, part in zip(names, parts, strict=True)
        ]
    return names


def dataset_items(args: argparse.Namespace) -> list[Item]:
    """The panoramas of ``--dataset``, read when they are predicted."""
    if args.data_path is None:
        raise ValueError("--dataset needs --data_path, the folder that holds the data set")
    dataset = open_dataset(args.dataset, args.data_path, args.split, args.scenes)

    def load(index: int) -> "np.ndarray":
        return dataset[index]["rgb"].movedim(0, -1).numpy()

    return [Item(view.id, view.id, partial(load, i)) for i, view in enumerate(dataset.views)]
