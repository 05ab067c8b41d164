"""Checking a data set before the first training step, and a sheet to look at it."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from tqdm.auto import tqdm

from dit360.data.rows import (
    SUPERVISED_ABOVE,
    Problem,
    Row,
    summarize,
    write_report,
)

_DIMMED = 0.25  # brightness of what is not supervised, in the preview
_GAP_PX = 6
_TEXT_PX = 12


def check_rows(rows: Sequence[Row], *, workers: int = 2, report: Path | None = None) -> None:
    """Read every image and mask of a data set, before anything is trained on it.

    Args:
        rows: data of `open_rows`, which has checked captions and that the files exist.
        workers: threads that decode.
        report: text file that lists all problems, a line each; not made if there are none.

    Raises:
        ValueError: rows are unusable: the first five are named, `report` has all.
    """
    problems = find_problems(rows, workers=workers)
    if problems:
        if report is not None:
            write_report(report, problems)
        raise ValueError(summarize(problems, report))


def find_problems(rows: Sequence[Row], *, workers: int = 2) -> list[Problem]:
    """Decode every image and mask: 2:1, of the same shape, and something is supervised."""
    with ThreadPoolExecutor(workers) as pool:
        reasons = tqdm(pool.map(find_problem, rows), "checking", len(rows), leave=False)
        return [
            Problem(row.where, reason)
            for row, reason in zip(rows, reasons, strict=True)
            if reason is not None
        ]


def find_problem(row: Row) -> str | None:
    """What is wrong with the pixels of a row, None if nothing."""
    try:
        image, mask = row.read_image(), row.read_supervised()
    except (OSError, ValueError) as error:
        return str(error).removeprefix(f"{row.where}: ")
    if image.width != 2 * image.height:
        return f"image is {image.width}x{image.height}, its width must be twice its height"
    if mask is None:
        return None
    if mask.width != 2 * mask.height:
        return f"mask is {mask.width}x{mask.height}, its width must be twice its height"
    if np.asarray(mask).max() <= SUPERVISED_ABOVE:
        return (
            "mask is nowhere white (> 128), so nothing is supervised; white is what is trained on"
        )
    return None


# ---- preview ------------------------------------------------------------------------------------


def preview_sheet(
    rows: Sequence[Row], *, columns: int = 4, height: int = 128, limit: int = 24
) -> np.ndarray:
    """Pictures of some rows with their captions; what is not supervised is dark.

    Args:
        rows: data; `limit` of them, evenly spaced, are shown.
        columns: tiles beside each other.
        height: of a tile, pixels; twice as wide.
        limit: tiles at most.

    Returns:
        (H, W, 3) uint8.
    """
    count = min(limit, len(rows))
    chosen = [rows[k * len(rows) // count] for k in range(count)]
    columns = min(columns, count)
    cell = (2 * height + _GAP_PX, height + 2 * _TEXT_PX + 2 * _GAP_PX)
    sheet = Image.new("RGB", (columns * cell[0], -(-count // columns) * cell[1]), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(_TEXT_PX)
    for k, row in enumerate(chosen):
        x, y = k % columns * cell[0], k // columns * cell[1]
        sheet.paste(_tile(row, height), (x, y))
        for number, line in enumerate(
            _two_lines(row.caption, partial(draw.textlength, font=font), 2 * height)
        ):
            draw.text((x, y + height + 2 + number * (_TEXT_PX + 2)), line, "black", font)
    return np.asarray(sheet)


def _tile(row: Row, height: int) -> Image.Image:
    size = (2 * height, height)
    image, mask = row.read_image().resize(size), row.read_supervised()
    if mask is None:
        return image
    dark = image.point([round(value * _DIMMED) for value in range(256)] * 3)
    white = mask.resize(size, Image.Resampling.NEAREST).point(
        [255 * (value > SUPERVISED_ABOVE) for value in range(256)]
    )
    return Image.composite(image, dark, white)


def _two_lines(text: str, measure, width: int) -> Iterator[str]:
    """The beginning of `text`, as much as fits into two lines of `width` pixels."""
    words = text.split()
    for _ in range(2):
        line = ""
        while words and measure(f"{line} {words[0]}") <= width:
            line = f"{line} {words.pop(0)}".strip()
        yield line
