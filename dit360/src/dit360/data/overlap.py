"""Which Matterport3D viewpoints two sets share: is a test set really held out?

1,077 of the 1,092 test viewpoints of an often used split occur in the polished training set
(spec 3.2), so a score on them says nothing about unseen places.
"""

import os
from pathlib import Path
from typing import NamedTuple

from dit360.data.rows import find_uuid, scan_rows
from shared_pano_utils.imageio import IMAGE_SUFFIXES


class Names(NamedTuple):
    """Viewpoints of one set."""

    uuids: frozenset[str]
    total: int  # images, those without viewpoint included


class Overlap(NamedTuple):
    """Two sets side by side."""

    first: Names
    second: Names

    @property
    def shared(self) -> list[str]:
        """Viewpoints that both sets have, sorted."""
        return sorted(self.first.uuids & self.second.uuids)


def find_overlap(first: str | Path, second: str | Path) -> Overlap:
    """Compare two sets by the viewpoints in the file names of their images.

    Args:
        first: data as of `open_rows`, a folder of images at any depth, or a .txt file with an id
            or a file name in each line.
        second: the same.

    Raises:
        FileNotFoundError: no such data.
        ValueError: no image of one of the sets names a viewpoint, so nothing can be compared.
    """
    names = Overlap(read_names(first), read_names(second))
    for source, found in zip((first, second), names, strict=True):
        if not found.uuids:
            raise ValueError(
                f"none of the {found.total} images of {source} has a name that begins with 32 hex "
                "digits, which name the viewpoint; pass the set with its original file names"
            )
    return names


def read_names(source: str | Path) -> Names:
    """Viewpoints of one set, by the rules of `find_overlap`."""
    path = Path(source)
    if path.suffix == ".txt":
        lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
        uuids = [find_uuid(line) for line in lines if line]
    elif path.is_dir() and (names := _image_names(path)):
        uuids = [find_uuid(name) for name in names]
    else:
        uuids = [row.uuid for row in scan_rows(source)[0]]
    return Names(frozenset(uuid for uuid in uuids if uuid), len(uuids))


def _image_names(folder: Path) -> list[str]:
    return [
        name
        for _, _, names in os.walk(folder)
        for name in names
        if name.lower().endswith(IMAGE_SUFFIXES)
    ]
