"""The sets that are compared: their files, captions, and whether they were trained on."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dit360.data.overlap import read_names
from dit360.data.rows import longest_caption, read_jsonl
from dit360.metrics.scores import Side
from shared_pano_utils.imageio import IMAGE_SUFFIXES


def find_images(folder: Path, flag: str, limit: int | None = None) -> list[Path]:
    """Images of a folder, numbers in their names in counting order.

    Args:
        folder: of panoramas; folders inside are not entered, hidden files (of writers that were
            stopped, of file managers) are left out.
        flag: that named it, for messages.
        limit: keep the first ones only.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no image in it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{flag} {folder} is not a folder; give a folder of panoramas")
    images = [
        path
        for path in folder.iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    ]
    if not images:
        raise ValueError(
            f"{flag} {folder} holds no image ({', '.join(IMAGE_SUFFIXES)}); give a folder of "
            "panoramas"
        )
    return sorted(images, key=_natural)[:limit]


def _natural(path: Path) -> list[tuple[int, str]]:
    parts = re.findall(r"\d+|\D+", path.name)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def check_counts(generated: Sequence[Path], reference: Sequence[Path]) -> None:
    """Distances depend on the numbers of images, so these must agree.

    Raises:
        ValueError: they don't.
    """
    if len(generated) != len(reference):
        smaller = min(len(generated), len(reference))
        raise ValueError(
            f"--generated has {len(generated)} images and --reference {len(reference)}; distances "
            f"need as many of both: give equal sets, or --limit {smaller}"
        )


def read_captions(path: Path, images: Sequence[Path]) -> list[str]:
    """One caption per image.

    Args:
        path: .txt with one line per image in their order, or .jsonl with the keys image (or
            file_name, or name) and caption (or prompt), matched by file name without suffix.
        images: the images.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another kind of file, captions that are missing, too few or too many lines.
    """
    if not path.is_file():
        raise FileNotFoundError(f"--captions {path} does not exist")
    if path.suffix == ".txt":
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        lines = [line for line in lines if line]
        if len(lines) != len(images):
            raise ValueError(
                f"--captions {path} has {len(lines)} lines for {len(images)} images; write one "
                "line per image, or a .jsonl with image and caption"
            )
        return lines
    if path.suffix != ".jsonl":
        raise ValueError(f"--captions {path} is not a .txt or .jsonl file; give one of these")
    captions = {}
    for where, row, folder in read_jsonl(path):
        try:
            name, caption = _read_row(row)
        except ValueError as error:
            raise ValueError(f"--captions {folder / where}: {error}") from error
        captions[name] = caption
    missing = [image.name for image in images if image.stem not in captions]
    if missing:
        raise ValueError(
            f"--captions {path} has no row for {len(missing)} images ({missing[0]} first); add "
            "their image and caption"
        )
    return [captions[image.stem] for image in images]


def _read_row(row: Mapping[str, Any] | str) -> tuple[str, str]:
    """Name of the image without suffix, and its caption."""
    if isinstance(row, str):
        raise ValueError(row)
    name = next((row[key] for key in ("image", "file_name", "name") if key in row), None)
    if not isinstance(name, str):
        raise ValueError(f"image (or file_name, or name) is {name!r}, expected a file name")
    return Path(name).stem, longest_caption(row.get("caption", row.get("prompt")))


def stored_captions(images: Sequence[Path]) -> list[str]:
    """Prompts that `inference.py` stored in its images, without trigger; none if one has none."""
    from dit360.captions import TRIGGER
    from dit360.generate import read_made_with

    captions = []
    for image in images:
        prompt = (read_made_with(image) or {}).get("prompt")
        if not prompt:
            return []
        captions.append(str(prompt).removeprefix(TRIGGER).strip())
    return captions


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Whether images of a set show viewpoints of the training set.

    Attributes:
        total: images of the set.
        named: viewpoints that their file names give.
        trained: those that are also in the training set, sorted.
    """

    total: int
    named: int
    trained: list[str]

    def describe(self, side: Side, source: str) -> str:
        """One line for the report."""
        if not self.named:
            return (
                f"--{side}: not checked against {source}, no file name begins with the 32 hex "
                "digits of a viewpoint"
            )
        if not self.trained:
            return f"--{side}: none of {self.named} viewpoints is in {source}"
        return (
            f"--{side}: {len(self.trained)} of {self.named} viewpoints are in {source} "
            f"({', '.join(self.trained[:3])}{', ...' if len(self.trained) > 3 else ''}): "
            "this is no held-out set"
        )


def check_held_out(source: str, folders: dict[Side, Path]) -> dict[Side, HeldOut]:
    """Look up the viewpoints of sets in the training set.

    Args:
        source: training data, as of `dit360.data.overlap.find_overlap`.
        folders: of the sets.

    Raises:
        ValueError: the training set names no viewpoints.
    """
    trained = read_names(source)
    if not trained.uuids:
        raise ValueError(
            f"--train_source {source}: none of its {trained.total} images has a name that begins "
            "with 32 hex digits, which name the viewpoint; give the set with its file names"
        )
    result: dict[Side, HeldOut] = {}
    for side, folder in folders.items():
        names = read_names(folder)
        result[side] = HeldOut(
            total=names.total,
            named=len(names.uuids),
            trained=sorted(names.uuids & trained.uuids),
        )
    return result
