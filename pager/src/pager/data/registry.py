"""Names of the data sets, what each holds, and the one function that opens them.

Light to import: a loader, and what it needs (LMDB, Arrow), is imported when its data set is opened.
"""

import difflib
import importlib
import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

logger = logging.getLogger(__name__)

Sample = dict[str, Any]
"""One panorama: `id`; `rgb` (3, H, W) uint8; `depth` (1, H, W) float32, metres along the ray, zero,
inf or NaN where nothing was measured; `normals` (3, H, W) float32 unit vectors in the `pager` frame,
zero where there is none. A data set without depth or normals leaves the key out."""

SPLITS = ("train", "val", "test", "tiny_val")
SCENES = ("indoor", "outdoor", "both")


class HasId(Protocol):
    """An entry of a data set's list; `id` names the output files."""

    @property
    def id(self) -> str:
        """Unique within the data set."""
        ...


class PanoramaDataset(Protocol):
    """What every loader offers. An item is decoded, and its errors raised, on access only."""

    @property
    def views(self) -> Sequence[HasId]:
        """One entry per panorama, in the order of the items."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A data set: where its loader is and what a sample of it holds.

    `loader` is called with (data_path, split), and with scenes where `has_scenes`. `raster` is a
    documented size (H, W) of samples that is not 2:1. `maps_optional`: depth and normals are there
    where the user put them.
    """

    loader: str
    splits: tuple[str, ...] = ("train", "val", "test")
    has_scenes: bool = False
    has_depth: bool = True
    has_normals: bool = False
    raster: tuple[int, int] | None = None
    maps_optional: bool = False


DATASETS: dict[str, Entry] = {
    "PanoInfinigen": Entry(
        loader="panoinfinigen_hub:open_panoinfinigen",
        has_scenes=True,
        has_normals=True,
        raster=(2160, 3840),
    ),
    "PanoInTheWild": Entry(loader="panointhewild:PanoInTheWild", splits=("test",), has_depth=False),
    "ZuriPano": Entry(loader="panointhewild:ZuriPano", splits=("test",)),
    "Matterport3D360": Entry(loader="matterport3d360:Matterport3D360"),
    "Stanford2D3DS": Entry(loader="stanford2d3ds:Stanford2D3DS", splits=("test",)),
    "ScannetPP": Entry(loader="scannetpp:ScannetPP", splits=("train", "val"), raster=(1284, 2572)),
    "Structured3D": Entry(loader="structured3d:Structured3D", has_normals=True),
    "Structured3D_ScannetPP": Entry(loader="structured3d:Structured3DScannetPP"),
    "Replica360_4K": Entry(loader="replica:Replica360", splits=("test",)),
    "Folder": Entry(
        loader="folder:PanoramaFolder", splits=("test",), has_normals=True, maps_optional=True
    ),
}


def dataset_entry(name: str) -> Entry:
    """Look a data set up.

    Raises:
        ValueError: no data set of that name; the message lists them.
    """
    if name not in DATASETS:
        close = difflib.get_close_matches(name, DATASETS, 1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ValueError(f"data set {name!r} is unknown; use one of {', '.join(DATASETS)}{hint}")
    return DATASETS[name]


def require_maps(name: str, modalities: Collection[str]) -> None:
    """Check that a data set has the maps ("depth", "normals") that a task needs.

    Raises:
        ValueError: it has not; the message names data sets that have.
    """
    for modality in sorted(modalities):
        flag = f"has_{modality}"
        if not getattr(dataset_entry(name), flag):
            others = ", ".join(key for key, entry in DATASETS.items() if getattr(entry, flag))
            raise ValueError(f"data set {name} has no {modality}; these have: {others}")


def open_dataset(
    name: str, data_path: str | Path, split: str = "test", scenes: str = "both"
) -> PanoramaDataset:
    """Open a split of a data set.

    Args:
        name: a key of `DATASETS`.
        data_path: the folder that holds the folder ``<name>`` ("Folder": the folder itself).
        split: "train", "val", "test", or "tiny_val", a thinned "val".
        scenes: "indoor", "outdoor" or "both"; only PanoInfinigen tells them apart.

    Raises:
        ValueError: unknown name, split or scenes.
        FileNotFoundError: no such split on disk; the message says what was expected where.
    """
    entry = dataset_entry(name)
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is unknown; use one of {', '.join(SPLITS)}")
    if scenes not in SCENES:
        raise ValueError(f"scenes {scenes!r} is unknown; use one of {', '.join(SCENES)}")
    module, _, attribute = entry.loader.partition(":")
    loader = getattr(importlib.import_module(f"pager.data.{module}"), attribute)
    if entry.has_scenes:
        return loader(Path(data_path), split, scenes)
    if scenes != "both":
        logger.warning(
            "%s does not tell indoor from outdoor; scenes=%s has no effect", name, scenes
        )
    return loader(Path(data_path), split)
