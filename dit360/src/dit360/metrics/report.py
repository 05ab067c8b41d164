"""Files of an evaluation: JSON, Markdown, a contact sheet and a page to look around in."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dit360.metrics.evaluation import Evaluation
from dit360.metrics.images import HeldOut
from dit360.metrics.scores import Score, Side
from shared_pano_utils.imageio import atomic_path, read_erp, write_image, write_json
from shared_pano_utils.viewer import write_viewer

REPORT_NAME = "report.json"
COLUMNS = 4
THUMBNAIL = (320, 160)
CAPTION_PX = 22
RANKING = "seam_ratio"
WORST_LISTED = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """An evaluation and what it was made of.

    Attributes:
        evaluation: the scores.
        sets: side -> number of images.
        settings: options worth keeping beside the numbers.
        train_source: training data that sets were looked up in.
        held_out: side -> result of that.
    """

    evaluation: Evaluation
    sets: dict[Side, int]
    settings: dict[str, Any]
    train_source: str | None = None
    held_out: dict[Side, HeldOut] = dataclasses.field(default_factory=dict)

    @property
    def notes(self) -> list[str]:
        """What a reader of the numbers must know."""
        checks = [
            held_out.describe(side, str(self.train_source))
            for side, held_out in self.held_out.items()
        ]
        return [*self.evaluation.notes, *checks]

    def worst_first(self) -> list[int]:
        """Indices of the generated images, the most visible seam first."""
        values = self.evaluation.columns.get(RANKING)
        order = range(len(self.evaluation.images))
        return sorted(order, key=lambda i: -values[i]) if values else list(order)


def write_report(folder: Path, report: Report, *, gallery: int, html: bool) -> list[Path]:
    """Write ``report.json``, ``report.md`` and the gallery.

    Args:
        folder: of the files.
        report: what they say.
        gallery: number of generated images on the contact sheet, the worst seams first; 0 = none.
        html: also a page to look around in these images.

    Returns:
        The written files.
    """
    shown = report.worst_first()[:gallery]
    paths = []
    if shown:
        paths.append(folder / "gallery.png")
        write_image(paths[-1], contact_sheet(report, shown))
    if shown and html:
        paths.append(folder / "gallery.html")
        pages = {_title(report, i): report.evaluation.images[i] for i in shown}
        write_viewer(paths[-1], pages, title="Generated panoramas", yaw=180)
    paths.append(folder / "report.md")
    with atomic_path(paths[-1]) as temporary:
        temporary.write_text(markdown(report), encoding="utf-8")
    paths.append(folder / REPORT_NAME)  # last: its presence says that all is there
    write_json(paths[-1], as_json(report))
    return paths


def as_json(report: Report) -> dict[str, Any]:
    """Everything as plain values; infinite ones are null."""
    evaluation = report.evaluation
    rows = [
        {"file": path.name, **{k: _finite(v[i]) for k, v in evaluation.columns.items()}}
        for i, path in enumerate(evaluation.images)
    ]
    return {
        "sets": report.sets,
        "settings": report.settings,
        "scores": [
            {k: _finite(v) for k, v in dataclasses.asdict(score).items()}
            for score in evaluation.scores
        ],
        "skipped": evaluation.skipped,
        "notes": report.notes,
        "held_out": {
            side: {"train_source": report.train_source, **dataclasses.asdict(found)}
            for side, found in report.held_out.items()
        },
        "images": rows,
    }


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def table(scores: list[Score]) -> str:
    """Scores as a Markdown table."""
    lines = ["| metric | better | generated | reference |", "|---|---|---|---|"]
    for score in scores:
        value = f"{score.value:.4g}"
        if score.spread is not None:
            value += f" ± {score.spread:.2g}"
        reference = "" if score.reference is None else f"{score.reference:.4g}"
        lines.append(f"| {score.name} | {score.better} | {value} | {reference} |")
    return "\n".join(lines)


def markdown(report: Report) -> str:
    """The report to read: scores, the worst seams, what was left out and why."""
    counts = ", ".join(f"{count} {side}" for side, count in report.sets.items())
    lines = ["# Evaluation", "", f"{counts}.", "", table(report.evaluation.scores), ""]
    lines += [f"Note: {note}\n" for note in report.notes]
    if RANKING in report.evaluation.columns:
        values = report.evaluation.columns[RANKING]
        lines += [f"| most visible seams | {RANKING} |", "|---|---|"]
        lines += [
            f"| {report.evaluation.images[i].name} | {values[i]:.2f} |"
            for i in report.worst_first()[:WORST_LISTED]
        ]
        lines.append("")
    if report.evaluation.skipped:
        lines += ["| left out | why |", "|---|---|"]
        lines += [f"| {name} | {why} |" for name, why in report.evaluation.skipped.items()]
        lines.append("")
    return "\n".join(lines)


def contact_sheet(report: Report, shown: list[int]) -> np.ndarray:
    """Thumbnails of generated images with their names and seam ratios, (H, W, 3) uint8."""
    width, height = THUMBNAIL
    rows = math.ceil(len(shown) / COLUMNS)
    columns = min(COLUMNS, len(shown))
    sheet = Image.new("RGB", (columns * width, rows * (height + CAPTION_PX)))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(CAPTION_PX * 0.6)
    for place, index in enumerate(shown):
        left, top = place % COLUMNS * width, place // COLUMNS * (height + CAPTION_PX)
        erp = Image.fromarray(read_erp(report.evaluation.images[index]))
        sheet.paste(erp.resize(THUMBNAIL, Image.Resampling.BOX), (left, top))
        text = _title(report, index)
        while font.getlength(text) > width - 8:
            text = text[1:]
        draw.text((left + 4, top + height + 2), text, font=font)
    return np.asarray(sheet)


def _title(report: Report, index: int) -> str:
    name = report.evaluation.images[index].stem
    values = report.evaluation.columns.get(RANKING)
    return f"{name} (seam {values[index]:.2f})" if values else name
