"""The evaluation loop: every panorama is scored or, with the reason, skipped."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from pager.data.registry import PanoramaDataset
from pager.evaluation.predictions import PredictionFolder
from pager.evaluation.tasks import Task


@dataclass(frozen=True, kw_only=True)
class Row:
    """Metrics of one panorama; `index` is its place in the data set."""

    index: int
    id: str
    values: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A panorama that has no metrics: the kind of trouble, and what exactly."""

    id: str
    kind: str
    reason: str


@dataclass(kw_only=True)
class Report:
    """Result of an evaluation; `headline` ranks the rows, larger is worse."""

    headline: str
    text_metrics: tuple[str, ...] | None
    settings: dict[str, Any] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """Metrics that every row has, in the order of the first one."""
        if not self.rows:
            return []
        return [n for n in self.rows[0].values if all(n in row.values for row in self.rows)]

    def column(self, name: str) -> np.ndarray:
        """One metric of all rows, float64."""
        return np.array([row.values[name] for row in self.rows])

    def worst(self, count: int) -> list[Row]:
        """The `count` rows with the largest headline metric, worst first."""
        return sorted(self.rows, key=lambda row: -row.values[self.headline])[:count]

    def summary(self) -> str:
        """How many panoramas were evaluated, and why the others were not."""
        total = len(self.rows) + len(self.skipped)
        line = f"{len(self.rows)} of {total} panoramas evaluated"
        if not self.skipped:
            return line
        kinds = Counter(item.kind for item in self.skipped)
        parts = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        return f"{line}; {len(self.skipped)} skipped ({parts})"


class _Skip(Exception):
    """Raised to skip a panorama."""

    def __init__(self, kind: str, reason: object) -> None:
        self.kind, self.reason = kind, " ".join(str(reason).split())


def evaluate(
    task: Task,
    dataset: PanoramaDataset,
    predictions: PredictionFolder,
    settings: dict[str, Any] | None = None,
) -> Report:
    """Score the predictions of all panoramas of a data set.

    Returns:
        A report with one row, or one reason, per panorama; `settings` are kept in it.
    """
    report = Report(headline=task.headline, text_metrics=task.text_metrics, settings=settings or {})
    uses = Counter(view.id for view in dataset.views)
    for index, view in enumerate(tqdm(dataset.views, desc="panoramas")):
        try:
            if uses[view.id] > 1:
                raise _Skip("duplicate id", f"{uses[view.id]} panoramas have the same id")
            values = _score(task, dataset, predictions, index)
        except _Skip as skip:
            report.skipped.append(Skipped(id=view.id, kind=skip.kind, reason=skip.reason))
        else:
            report.rows.append(Row(index=index, id=view.id, values=values))
    return report


def _score(
    task: Task, dataset: PanoramaDataset, predictions: PredictionFolder, index: int
) -> dict[str, float]:
    try:
        pred = predictions.read(dataset.views[index].id)
    except FileNotFoundError as error:
        raise _Skip("missing prediction", error) from error
    except (ValueError, OSError) as error:
        raise _Skip("unreadable prediction", error) from error
    try:
        sample = dataset[index]
    except (ValueError, OSError) as error:
        raise _Skip("unreadable sample", error) from error
    missing = sorted(task.needs - sample.keys())
    if missing:
        raise _Skip("no ground truth", f"the data set has no {' and no '.join(missing)} here")
    mask = task.mask(sample)
    if pred.shape[-2:] != mask.shape[-2:]:
        (height, width), (true_height, true_width) = pred.shape[-2:], mask.shape[-2:]
        raise _Skip(
            "wrong shape",
            f"the prediction is {width}x{height}, the truth {true_width}x{true_height}",
        )
    if not mask.any():
        raise _Skip("no valid pixel", "the ground truth holds nothing inside the depth range")
    try:
        return task.score(pred, sample, mask)
    except ValueError as error:
        raise _Skip("invalid prediction", error) from error
