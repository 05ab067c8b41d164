"""Videos of a scene: files in its folder, or rows of Parquet, Arrow or CSV files.

GenEx-DB has been published in both forms. A scene is looked for in the root of the data set and
in ``data/`` below it, where the hub puts its shards; names are compared by letters and digits
only, so that ``real_world`` finds ``Real-World/`` and ``real_world-00000-of-00004.parquet``.
"""

import ast
import csv
import itertools
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from genex_explorer.data.clips import natural_key
from genex_explorer.data.extract import Source, repair_hint

VIDEO_SUFFIXES = {".mp4", ".mov", ".mkv", ".avi"}
ROW_SUFFIXES = (".parquet", ".arrow", ".csv")  # in order of preference
COLUMN = "video"


class Video(NamedTuple):
    """A video file, or a row of a file that holds videos; its name begins at the root."""

    name: str
    path: Path
    row: int | None = None


class Scene(NamedTuple):
    """A scene type as the user wrote it, where it was found, and its videos in natural order."""

    name: str
    origin: Path
    videos: list[Video]


# ---- finding ------------------------------------------------------------------------------------


def scene_key(name: str) -> str:
    """Lower-case letters and digits of a name.

    >>> scene_key("Real-World")
    'realworld'
    """
    return re.sub(r"[^a-z0-9]", "", name.lower())


def find_scenes(root: Path, names: Iterable[str]) -> list[Scene]:
    """Find the videos of scene types.

    Raises:
        FileNotFoundError: no such folder, or a scene is not there.
        ValueError: a name is no folder name, given twice, found twice, or its rows are unreadable.
        ImportError: rows of Parquet or Arrow files need pyarrow.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"--dataset_path {root} is not a folder; check the path")
    names = list(names)
    keys = [scene_key(name) for name in names]
    for name, key in zip(names, keys, strict=True):
        if not key or Path(name).name != name or keys.count(key) > 1:
            raise ValueError(
                f"--scene_types {' '.join(names)}: {name!r} is given twice or is no folder name; "
                "use names such as realistic or real_world"
            )
    found = _origins(root)
    missing = [name for name, key in zip(names, keys, strict=True) if key not in found]
    if missing:
        known = sorted(_scene_name(origins[0][0]) for origins in found.values())
        raise FileNotFoundError(
            f"--dataset_path {root} has no scene {', '.join(missing)}; "
            + (f"found: {', '.join(known)}; choose by --scene_types" if known else
               "it needs <scene>/*.mp4, <scene>.parquet or <scene>.csv")
        )  # fmt: skip
    scenes = []
    for name, key in zip(names, keys, strict=True):
        (origin, files), *others = found[key]
        if others:
            raise ValueError(
                f"scene {name} is both {origin} and {others[0][0]}; move one of them away"
            )
        scenes.append(Scene(name, origin, [v for file in files for v in _videos(root, file)]))
    return scenes


def _origins(root: Path) -> dict[str, list[tuple[Path, list[Path]]]]:
    """Scene key -> places (folder or first shard) with their files, in natural order."""
    found: dict[str, list[tuple[Path, list[Path]]]] = defaultdict(list)
    for folder in (root, root / "data"):
        shards: dict[tuple[str, str], list[Path]] = defaultdict(list)
        for entry in _listed(folder):
            suffix = entry.suffix.lower()
            if entry.is_dir() and entry != root / "data":
                if files := _scene_files(entry):
                    found[scene_key(_scene_name(entry))].append((entry, files))
            elif suffix in ROW_SUFFIXES:
                shards[scene_key(_scene_name(entry)), suffix].append(entry)
        for (key, _), files in shards.items():
            found[key].append((files[0], files))
    return found


def _scene_name(origin: Path) -> str:
    """Name of a folder, or of a file without suffix and number of the shard."""
    return origin.name if origin.is_dir() else re.sub(r"-\d+-of-\d+$", "", origin.stem)


def _scene_files(folder: Path) -> list[Path]:
    """Its videos; without any, its files of rows (of one format)."""
    entries = _listed(folder)
    videos = [path for path in entries if path.suffix.lower() in VIDEO_SUFFIXES]
    rows = ([path for path in entries if path.suffix.lower() == s] for s in ROW_SUFFIXES)
    return videos or next(filter(None, rows), [])


def _listed(folder: Path) -> list[Path]:
    """What is in a folder, hidden files left out, in natural order; nothing if there is none."""
    paths = folder.iterdir() if folder.is_dir() else ()
    return sorted(
        (path for path in paths if not path.name.startswith(".")),
        key=lambda path: (natural_key(path.name), path.name),
    )


def _videos(root: Path, file: Path) -> list[Video]:
    name = file.relative_to(root).as_posix()
    if file.suffix.lower() in VIDEO_SUFFIXES:
        return [Video(name, file)]
    return [Video(f"{name} row {row}", file, row) for row in range(_count_rows(file))]


# ---- reading ------------------------------------------------------------------------------------


def read_sources(videos: Iterable[Video]) -> Iterator[Source]:
    """Give the path or the bytes of each video, in order; of rows, one group is in memory.

    What cannot be read is given as the error that says why; the videos after it go on.

    Args:
        videos: in the order of `find_scenes`; some may be left out.
    """
    for path, group in itertools.groupby(videos, key=lambda video: video.path):
        rows = [video.row for video in group if video.row is not None]
        if not rows:
            yield path
            continue
        given = 0
        try:
            for value in _read_rows(path, set(rows)):
                yield _to_source(value, path.parent)
                given += 1
        except (ValueError, OSError, csv.Error) as error:
            for _ in rows[given:]:
                yield ValueError(f"the row is not readable ({error}); {repair_hint(path)}")


def _to_source(value: Any, folder: Path) -> Source:
    """Video of a row: bytes, a path, or ``{"bytes", "path"}`` as `datasets` stores them."""
    if isinstance(value, str) and value.startswith(("b'", 'b"', "{")):  # what pandas puts into CSV
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError) as error:
            return ValueError(f"column {COLUMN!r} is not readable ({error}); mend the row")
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, str) and value:
        return folder / value
    if isinstance(value, bytes) and value:
        return value
    kind = type(value).__name__ if value else "nothing"
    return ValueError(f"column {COLUMN!r} holds {kind}, expected bytes or a path; mend the row")


def _count_rows(path: Path) -> int:
    try:
        return sum(count for count, _ in _row_groups(path))
    except (ValueError, OSError, csv.Error) as error:
        raise ValueError(f"{path} is not readable ({error}); {repair_hint(path)}") from error


def _read_rows(path: Path, wanted: set[int]) -> Iterator[Any]:
    first = 0
    for count, values in _row_groups(path):
        if not wanted.isdisjoint(range(first, first + count)):
            yield from (value for row, value in enumerate(values, first) if row in wanted)
        first += count


def _row_groups(path: Path) -> Iterator[tuple[int, Iterable[Any]]]:
    """Number of rows and their videos, group by group; a group that is not iterated is not read."""
    if path.suffix.lower() == ".csv":
        csv.field_size_limit(sys.maxsize)
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            _check_column(reader.fieldnames or [])
            for line in reader:
                yield 1, [line[COLUMN]]
        return
    pyarrow = _import_pyarrow(path)
    if path.suffix.lower() == ".arrow":
        with pyarrow.memory_map(str(path)) as file, pyarrow.ipc.open_stream(file) as stream:
            _check_column(stream.schema.names)
            for batch in stream:
                yield len(batch), (value.as_py() for value in batch.column(COLUMN))
        return
    # Without these options a group of videos is held in memory three times.
    with pyarrow.parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
        _check_column(file.schema_arrow.names)
        for group in range(file.num_row_groups):
            batches = file.iter_batches(batch_size=1, row_groups=[group], columns=[COLUMN])
            yield (
                file.metadata.row_group(group).num_rows,
                (batch.column(0)[0].as_py() for batch in batches),
            )


def _import_pyarrow(path: Path) -> Any:
    try:
        import pyarrow  # pyright: ignore[reportMissingImports]
        import pyarrow.parquet  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(f'{path} needs pyarrow: pip install -e ".[data]"') from error
    return pyarrow


def _check_column(names: Iterable[str]) -> None:
    if COLUMN not in names:
        raise ValueError(f"it has no column {COLUMN!r}, only {', '.join(names)}")
