"""Rows of Parquet files, the form in which the authors' data sets lie on the Hugging Face hub."""

import io
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image


class Row(NamedTuple):
    """One row of a file."""

    path: Path
    number: int

    def __str__(self) -> str:
        return f"{self.path} row {self.number}"


def list_rows(paths: Iterable[Path]) -> list[Row]:
    """All rows, in order. An unreadable file is listed as one row, which fails when it is read."""
    rows: list[Row] = []
    for path in paths:
        try:
            count = _open(path).metadata.num_rows
        except ValueError:
            count = 1
        rows += [Row(path, number) for number in range(count)]
    return rows


def read_row(row: Row, columns: tuple[str, ...]) -> dict[str, Any]:
    """Values of a row; an image column comes as the bytes of its file.

    Raises:
        ValueError: the file is damaged or lacks a column.
    """
    file = _open(row.path)
    missing = set(columns) - set(file.schema_arrow.names)
    if missing:
        raise ValueError(f"{row.path}: no column {', '.join(sorted(missing))}; download it again")
    group, first = 0, 0
    while row.number >= first + file.metadata.row_group(group).num_rows:
        first += file.metadata.row_group(group).num_rows
        group += 1
    table = _read_group(row.path, row.path.stat().st_mtime_ns, group, columns)
    values = {name: table[name][row.number - first].as_py() for name in columns}
    values = {k: v["bytes"] if isinstance(v, dict) else v for k, v in values.items()}
    empty = [name for name, value in values.items() if value is None]
    if empty:
        raise ValueError(f"{row}: {empty[0]} is empty; download the file again")
    return values


def decode_png16(data: bytes, name: str) -> np.ndarray:
    """Decode a 16-bit grey PNG to (H, W) uint16; errors begin with `name`."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            array = np.array(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{name}: not a readable image ({error}); download it again") from error
    if array.dtype != np.uint16 or array.ndim != 2:
        raise ValueError(f"{name}: pixels are {array.dtype} {array.shape}, expected 16-bit grey")
    return array


def decode_npy(data: bytes, name: str) -> np.ndarray:
    """Decode a .npy file; errors begin with `name`."""
    try:
        return np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{name}: not a readable array ({error}); download it again") from error


def _open(path: Path) -> Any:
    try:
        import pyarrow as pa  # pyright: ignore[reportMissingImports]
        import pyarrow.parquet as pq  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(f'{path} needs pyarrow: pip install -e ".[data]"') from error
    try:
        return pq.ParquetFile(path, memory_map=True)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(
            f"{path}: not a readable Parquet file ({error}); download it again"
        ) from error


@lru_cache(maxsize=1)  # neighbouring rows share a group of tens of megabytes
def _read_group(path: Path, mtime_ns: int, group: int, columns: tuple[str, ...]) -> Any:  # noqa: ARG001 (a rewritten file is another key)
    try:
        return _open(path).read_row_group(group, columns=list(columns))
    except (ValueError, OSError) as error:
        raise ValueError(
            f"{path}: not a readable Parquet file ({error}); download it again"
        ) from error
