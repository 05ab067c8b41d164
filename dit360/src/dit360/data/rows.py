"""Rows of training data: an image, its caption and where it is supervised.

`open_rows` reads every form in which captioned panoramas are kept: a data set of the hub, a folder
or parquet file for `datasets`, a folder of images with metadata.jsonl, or the jsonl files of mix
training. Images stay encoded until a row is asked for its pixels.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from shared_pano_utils.imageio import atomic_path, decode_image, read_image

SHOWN_PROBLEMS = 5
SUPERVISED_ABOVE = 128  # of 255; white is supervised
_METADATA_NAME = "metadata.jsonl"
# Matterport3D viewpoints: `<32 hex digits>_clean_big_dc.png` in the polished set, or just the id.
_UUID = re.compile(r"([0-9a-f]{32})(?:[_.]|$)")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


class Problem(NamedTuple):
    """A row that cannot be used."""

    where: str  # "rows.jsonl line 3"
    reason: str

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


@dataclass(frozen=True)
class StoredImage:
    """An encoded image inside a table of `datasets`."""

    table: Any
    index: int
    column: str

    def read(self, name: str) -> np.ndarray:
        """Decode it: (H, W, 3) uint8; errors begin with `name`."""
        value = self.table[self.index][self.column]
        if value["bytes"] is not None:
            return decode_image(value["bytes"], name)
        return read_image(value["path"])


@dataclass(frozen=True, kw_only=True)
class Row:
    """One training example; nothing is decoded before it is asked for.

    Attributes:
        image: panorama, or canvas with a re-projected photo, 2:1.
        caption: what it shows.
        supervised: image whose white part (> 128) is trained on; None = everywhere.
        uuid: 32 hex digits of the Matterport3D viewpoint, when the file name begins with them.
        where: names the row in messages, "rows.jsonl line 3".
    """

    image: Path | StoredImage
    caption: str
    supervised: Path | StoredImage | None = None
    uuid: str | None = None
    where: str

    def read_image(self) -> Image.Image:
        """The image in RGB.

        Raises:
            FileNotFoundError: it is missing.
            ValueError: it cannot be decoded.
        """
        return Image.fromarray(self._read(self.image))

    def read_supervised(self) -> Image.Image | None:
        """The mask in grey, None = everywhere; errors as in `read_image`."""
        if self.supervised is None:
            return None
        return Image.fromarray(self._read(self.supervised)).convert("L")

    def _read(self, source: Path | StoredImage) -> np.ndarray:
        try:
            if isinstance(source, StoredImage):
                return source.read(source.column)
            return read_image(source)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{self.where}: {error}") from error
        except ValueError as error:
            raise ValueError(f"{self.where}: {error}") from error


def open_rows(source: str | Path, *, need_mask: bool = False) -> list[Row]:
    """Open training data.

    Args:
        source: hub data set ("owner/name"), folder or parquet file that `datasets` can load (the
            split "train"), folder with metadata.jsonl, or a jsonl file with the keys image (or
            file_name), caption and mask.
        need_mask: rows without mask are an error (photos on a canvas).

    Raises:
        FileNotFoundError: no such data.
        ValueError: rows are unusable; the first five are named.
    """
    rows, problems = scan_rows(source, need_mask=need_mask)
    if problems:
        raise ValueError(summarize(problems))
    if not rows:
        raise ValueError(f"{source} holds no row; pass another data set")
    return rows


def scan_rows(source: str | Path, *, need_mask: bool = False) -> tuple[list[Row], list[Problem]]:
    """Read all rows as `open_rows`, and say which are unusable instead of raising."""
    rows, problems = [], []
    for where, values, folder in _read_records(source):
        try:
            rows.append(_make_row(where, values, folder, need_mask))
        except ValueError as error:
            problems.append(Problem(where, str(error)))
    return rows, problems


def summarize(problems: list[Problem], report: Path | None = None) -> str:
    """One line with the first five problems and where all are listed."""
    shown = "; ".join(map(str, problems[:SHOWN_PROBLEMS]))
    rest = len(problems) - SHOWN_PROBLEMS
    more = f"; and {rest} more" if rest > 0 else ""
    listed = f" (all in {report})" if report is not None else ""
    return f"{len(problems)} unusable rows: {shown}{more}{listed}; mend or remove them"


def write_report(path: Path, problems: list[Problem]) -> None:
    """List all problems in a text file, a line each."""
    with atomic_path(path) as temporary:
        temporary.write_text("".join(f"{problem}\n" for problem in problems), encoding="utf-8")


def longest_caption(value: Any) -> str:
    """The caption of a row: a text, or the longest of several (spec 3.3).

    Raises:
        ValueError: neither of them, or empty.
    """
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"caption is {value!r}, expected a text or a list of texts")
    caption = max(texts, key=len, default="").strip()
    if not caption:
        raise ValueError("caption is empty; write what the image shows")
    return caption


def find_uuid(name: str) -> str | None:
    """Matterport3D viewpoint of an image, by its file name."""
    found = _UUID.match(Path(name).name)
    return found and found[1]


# ---- sources ------------------------------------------------------------------------------------

Record = tuple[str, Mapping[str, Any] | str, Path]  # name, values or the reason why none, folder


def _read_records(source: str | Path) -> Iterator[Record]:
    path = Path(source)
    if path.is_dir() and (path / _METADATA_NAME).is_file():
        return read_jsonl(path / _METADATA_NAME)
    if path.is_file() and path.suffix != ".parquet":
        if path.suffix not in (".jsonl", ".json"):
            raise ValueError(
                f"{path} is a {path.suffix or 'file without suffix'}, expected .jsonl, .parquet or "
                "a folder; make a jsonl with prepare_data.py"
            )
        return read_jsonl(path)
    return _read_table(str(source))


def read_jsonl(path: Path) -> Iterator[Record]:
    """Objects of a jsonl file with the name of their line; a text where a line is no object."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"{path.name} line {number}"
            try:
                text = line.decode("utf-8-sig")  # editors of Windows write a mark before line 1
                values = json.loads(text)
            except UnicodeDecodeError as error:
                yield where, f"not UTF-8 text ({error.reason})", path.parent
                continue
            except json.JSONDecodeError as error:
                yield where, f"not JSON ({error})", path.parent
                continue
            is_object = isinstance(values, dict)
            yield where, values if is_object else f"not a JSON object: {text[:40]!r}", path.parent


def _read_table(source: str) -> Iterator[Record]:
    """Rows of a table of `datasets`; only captions and names are read, not the image bytes."""
    table = _load_table(source)
    from datasets import Image as ImageFeature

    missing = {"image", "caption"} - set(table.column_names)
    if missing:
        raise ValueError(
            f"{source} has the columns {', '.join(table.column_names)}; it needs image and caption"
        )
    columns: dict[str, list[Any]] = {"caption": table["caption"][:]}
    for name in {"image", "mask"} & set(table.column_names):
        if isinstance(table.features[name], ImageFeature):
            table = table.cast_column(name, ImageFeature(decode=False))
            columns[name] = _stored_images(table, name)
        else:
            columns[name] = table[name][:]
    folder = Path(source) if Path(source).is_dir() else Path(source).parent
    for index, values in enumerate(zip(*columns.values(), strict=True)):
        yield f"{source} row {index}", dict(zip(columns, values, strict=True)), folder


def _load_table(source: str) -> Any:
    path = Path(source)
    if not path.exists() and not _HUB_ID.fullmatch(source):
        raise FileNotFoundError(
            f"{source} does not exist; pass a folder, a .jsonl or .parquet file, or a hub data set"
        )
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            f"reading {source} needs the package datasets: pip install -e '.[train]'; a .jsonl "
            "file does not"
        ) from error
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        stored = datasets.load_from_disk(source)
        if isinstance(stored, datasets.DatasetDict):
            if "train" not in stored:
                raise ValueError(f"{source} has the splits {list(stored)}; it needs 'train'")
            return stored["train"]
        return stored
    try:
        if path.is_file():
            return datasets.load_dataset("parquet", data_files=source, split="train")
        return datasets.load_dataset(source, split="train")
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{source} cannot be loaded as a data set ({' '.join(str(error).split())}); pass "
            "another, or a folder with metadata.jsonl"
        ) from error


def _stored_images(table: Any, column: str) -> list[tuple[str | None, StoredImage] | None]:
    """File name and handle of every image; the bytes themselves stay on the disk."""
    encoded = table.with_format("arrow")[column]
    chunks = encoded[:].chunks
    paths = [path for chunk in chunks for path in chunk.field("path").to_pylist()]
    is_given = [valid for chunk in chunks for valid in chunk.is_valid().to_pylist()]
    return [
        (path, StoredImage(table, index, column)) if given else None
        for index, (path, given) in enumerate(zip(paths, is_given, strict=True))
    ]


# ---- rows ---------------------------------------------------------------------------------------


def _make_row(where: str, values: Mapping[str, Any] | str, folder: Path, need_mask: bool) -> Row:
    if isinstance(values, str):
        raise ValueError(values)
    image = values.get("image", values.get("file_name"))
    if image is None:
        raise ValueError(f"has the keys {', '.join(values)}; it needs image and caption")
    name, source = _resolve("image", image, folder)
    mask = values.get("mask")
    if mask is None and need_mask:
        raise ValueError("has no mask; make it with prepare_data.py perspective")
    return Row(
        image=source,
        caption=longest_caption(values.get("caption")),
        supervised=None if mask is None else _resolve("mask", mask, folder)[1],
        uuid=find_uuid(name),
        where=where,
    )


def _resolve(key: str, value: Any, folder: Path) -> tuple[str, Path | StoredImage]:
    """Name and source of an image: a path as given, else relative to `folder`."""
    if isinstance(value, tuple):
        return value[0] or "", value[1]
    if not isinstance(value, str) or not value:
        raise ValueError(f"{key} is {value!r}, expected the path of a file")
    for path in (Path(value), folder / value):
        if path.is_file():
            return value, path
    raise ValueError(f"{key} {value} does not exist, neither as given nor below {folder}")
