"""What every metric reports."""

from dataclasses import dataclass
from typing import Literal

Side = Literal["generated", "reference"]
Better = Literal["lower", "higher", "near 1"]


@dataclass(frozen=True, kw_only=True)
class Score:
    """One row of the report.

    Attributes:
        name: of the metric.
        better: which values are good.
        value: of the generated set; of both sets together for a distance.
        reference: the same measured on the reference set, where that means something.
        spread: standard deviation over splits or subsets, where the metric has them.
    """

    name: str
    better: Better
    value: float
    reference: float | None = None
    spread: float | None = None
