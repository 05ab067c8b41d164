"""Finding images and the captions that belong to them, as users keep them."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dit360.data.rows import longest_caption, read_jsonl
from shared_pano_utils.imageio import IMAGE_SUFFIXES

_METADATA = ("metadata.jsonl", "metadata.csv")


def find_images(sources: Sequence[Path]) -> list[Path]:
    """Image files as given, and those directly in the given folders, sorted by name.

    Raises:
        FileNotFoundError: a path does not exist, or a folder holds no image.
    """
    images: list[Path] = []
    for source in sources:
        if not source.exists():
            raise FileNotFoundError(f"{source} does not exist; pass images or folders of images")
        if source.is_file():
            images.append(source)
            continue
        found = [
            path
            for path in sorted(source.iterdir())
            if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
        ]
        if not found:
            raise FileNotFoundError(f"{source} holds no image; pass another folder")
        images += found
    return images


def find_captions(
    images: Sequence[Path], source: Path | None = None, caption: str | None = None
) -> list[str]:
    """The caption of every image.

    Args:
        images: files.
        source: .jsonl or .csv file with image (or file_name) and caption, or a folder of
            ``<image>.txt``; None looks beside each image, for metadata.jsonl, metadata.csv and
            ``<image>.txt``.
        caption: the same for all instead.

    Raises:
        FileNotFoundError: `source` does not exist.
        ValueError: images have no caption, or a caption is not a text.
    """
    if caption is not None:
        return [longest_caption(caption)] * len(images)
    if source is not None and not source.exists():
        raise FileNotFoundError(f"captions {source} do not exist; pass a .jsonl, .csv or folder")
    tables: dict[Path, dict[str, str]] = {}
    captions: list[str] = []
    missing: list[str] = []
    for image in images:
        place = source or image.parent
        if place not in tables:
            tables[place] = _read_captions(place)
        text = tables[place].get(image.name) or tables[place].get(image.stem)
        captions.append(text or "")
        if text is None:
            missing.append(image.name)
    if missing:
        shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise ValueError(
            f"{len(missing)} of {len(images)} images have no caption ({shown}); write <image>.txt "
            "beside them, or pass --captions FILE.jsonl|FILE.csv|FOLDER or --caption TEXT"
        )
    return captions


def _read_captions(place: Path) -> dict[str, str]:
    """Captions by file name, and by file name without suffix for text files."""
    if place.is_file():
        return _read_table(place)
    table = {path.stem: path.read_text(encoding="utf-8") for path in place.glob("*.txt")}
    table = {stem: text.strip() for stem, text in table.items() if text.strip()}
    for name in _METADATA:
        if (place / name).is_file():
            table |= _read_table(place / name)
    return table


def _read_table(path: Path) -> dict[str, str]:
    table = {}
    for where, record in _read_records(path):
        image = record.get("image") or record.get("file_name")
        if not image:
            raise ValueError(
                f"{where} has the keys {', '.join(record)}; it needs image (or file_name) and "
                "caption"
            )
        try:
            table[Path(image).name] = longest_caption(record.get("caption"))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
    return table


def _read_records(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if path.suffix == ".jsonl":
        for where, values, _ in read_jsonl(path):
            if isinstance(values, str):
                raise ValueError(f"{where}: {values}")
            yield where, values
    elif path.suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as file:
            for number, values in enumerate(csv.DictReader(file), start=1):
                yield f"{path.name} entry {number}", values
    else:
        raise ValueError(f"captions {path}: expected .jsonl, .csv or a folder of .txt files")
