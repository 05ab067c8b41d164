"""Files of an evaluation: the original's text file, JSON, CSV, Markdown and error pictures."""

import csv
import dataclasses
import io
import math
from pathlib import Path

import numpy as np

from pager.data.registry import PanoramaDataset
from pager.evaluation.loop import Report
from pager.evaluation.pictures import captioned, panel
from pager.evaluation.predictions import PredictionFolder
from pager.evaluation.tasks import PicturedTask
from shared_pano_utils.imageio import atomic_path, write_image, write_json

STEM = "evaluation_metrics"
WORST_LISTED = 10


def write_report(folder: Path, report: Report) -> list[Path]:
    """Write ``evaluation_metrics.{txt,json,csv,md}``; an infinite ratio is null in JSON."""
    paths = [folder / f"{STEM}.{suffix}" for suffix in ("txt", "csv", "md", "json")]
    texts = (text_lines(report), csv_table(report), markdown(report))
    for path, text in zip(paths[:-1], texts, strict=True):
        with atomic_path(path) as temporary:
            temporary.write_text(text, encoding="utf-8", newline="")
    names = report.names
    write_json(
        paths[-1],
        {
            "settings": report.settings,
            "evaluated": len(report.rows),
            "skipped_count": len(report.skipped),
            "mean": {name: _json_number(report.column(name).mean()) for name in names},
            "median": {name: _json_number(np.median(report.column(name))) for name in names},
            "panoramas": [
                {"id": row.id, **{k: _json_number(v) for k, v in row.values.items()}}
                for row in report.rows
            ],
            "skipped": [dataclasses.asdict(item) for item in report.skipped],
        },
    )
    return paths


def text_lines(report: Report) -> str:
    """``name: value`` lines with four decimals: means over the panoramas, as the original."""
    names = report.names if report.text_metrics is None else report.text_metrics
    if not report.rows:
        return ""
    return "".join(f"{name}: {report.column(name).mean():.4f}\n" for name in names)


def csv_table(report: Report) -> str:
    """One line per evaluated panorama."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["id", *report.names])
    for row in report.rows:
        writer.writerow([row.id, *(f"{row.values[name]:.9g}" for name in report.names)])
    return buffer.getvalue()


def markdown(report: Report) -> str:
    """Means and medians, the worst panoramas, and what was skipped."""
    lines = [f"# {report.settings.get('title', 'Evaluation')}", "", f"{report.summary()}.", ""]
    if report.rows:
        lines += ["| metric | mean | median |", "|---|---|---|"]
        for name in report.names:
            column = report.column(name)
            lines.append(f"| {name} | {column.mean():.4f} | {np.median(column):.4f} |")
        lines += ["", f"| worst panoramas | {report.headline} |", "|---|---|"]
        lines += [
            f"| {_cell(row.id)} | {row.values[report.headline]:.4f} |"
            for row in report.worst(WORST_LISTED)
        ]
        lines.append("")
    if report.skipped:
        lines += ["| skipped | why |", "|---|---|"]
        lines += [f"| {_cell(s.id)} | {s.kind}: {_cell(s.reason)} |" for s in report.skipped]
        lines.append("")
    return "\n".join(lines)


def write_error_maps(
    folder: Path,
    report: Report,
    task: PicturedTask,
    dataset: PanoramaDataset,
    predictions: PredictionFolder,
    *,
    frequency: int = 1,
    worst: int = 8,
) -> None:
    """Write ``error_maps/<id>.png`` for every `frequency`-th panorama, and the worst as panels.

    ``worst/<rank>_<id>.png`` shows input, prediction, truth and error. The panoramas are read a
    second time, so that none needs to be kept in memory.
    """
    for old in (folder / "worst").glob("*.png"):
        old.unlink()  # of an earlier evaluation, with other ranks
    ranks = {row.index: rank for rank, row in enumerate(report.worst(worst), 1)}
    mapped = {row.index for row in report.rows[::frequency]}
    for row in report.rows:
        if row.index not in mapped | ranks.keys():
            continue
        sample, pred = dataset[row.index], predictions.read(row.id)
        pictures = task.pictures(pred, sample, task.mask(sample))
        caption, error = list(pictures.items())[-1]
        caption = f"{caption}; {report.headline} {row.values[report.headline]:.4f}"
        if row.index in mapped:
            write_image(folder / "error_maps" / f"{row.id}.png", captioned(error, caption))
        if row.index in ranks:
            views = {row.id: sample["rgb"].movedim(0, -1).numpy(), **pictures}
            name = f"{ranks[row.index]:02d}_{row.id}.png"
            write_image(folder / "worst" / name, panel(views))


def _json_number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
