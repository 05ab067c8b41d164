"""How visible the border at +-180 degrees is: no network, no weights.

Every score is also measured half a turn away ("rolled"), where a panorama has no border: that is
what the score would be without a seam.
"""

from collections import defaultdict

import torch
from torch import Tensor
from torch.nn import functional

from dit360.metrics.scores import Better, Score, Side
from dit360.metrics.views import BatchViews
from shared_pano_utils.metrics import seam_error

SEAM_METRICS = ("seam_ratio", "discontinuity")
BANDS = ("north", "equator", "south")  # 60 degrees of latitude each
BETTER: dict[str, Better] = {"seam_ratio": "near 1", "discontinuity": "lower"}
# Horizontal Scharr filter, scaled to grey levels per column. The paper leaves the kernel and the
# constant of its denominators open; these are ours.
SCHARR = ((-3, 0, 3), (-10, 0, 10), (-3, 0, 3))
SCHARR_SUM = 32
FLAT = 1.0  # grey levels of 255


class SeamMeter:
    """Collects the seam scores of every image.

    Args:
        metrics: names out of `SEAM_METRICS`.
    """

    def __init__(self, metrics: tuple[str, ...]) -> None:
        self.metrics = metrics
        self.values: dict[Side, dict[str, list[float]]] = {
            "generated": defaultdict(list),
            "reference": defaultdict(list),
        }

    def update(self, side: Side, views: BatchViews) -> None:
        """Measure one batch."""
        for name, values in seam_scores(views.erp, self.metrics).items():
            self.values[side][name] += values.tolist()

    def scores(self) -> list[Score]:
        """Means over the images of each set."""
        means = {
            side: {name: sum(values) / len(values) for name, values in columns.items()}
            for side, columns in self.values.items()
        }
        return [
            Score(
                name=name,
                better=next(BETTER[metric] for metric in SEAM_METRICS if name.startswith(metric)),
                value=value,
                reference=means["reference"].get(name),
            )
            for name, value in means["generated"].items()
        ]

    def columns(self) -> dict[str, list[float]]:
        """Score of every generated image."""
        return dict(self.values["generated"])


def seam_scores(erp: Tensor, metrics: tuple[str, ...] = SEAM_METRICS) -> dict[str, Tensor]:
    """Seam scores of panoramas.

    Args:
        erp: (B, 3, H, W) uint8.
        metrics: names out of `SEAM_METRICS`.

    Returns:
        name -> (B,) float64: ``seam_ratio`` (``wrap_ratio`` of
        `shared_pano_utils.metrics.seam_error`), the same of each band, ``discontinuity``, and
        both rolled by W / 2.
    """
    border, middle = (seam_strip(erp, column) for column in (0, erp.shape[-1] // 2))
    scores = {}
    if "seam_ratio" in metrics:
        scores["seam_ratio"] = _ratio(border)
        rows = border.tensor_split(len(BANDS), dim=-2)
        scores |= {f"seam_ratio_{b}": _ratio(strip) for b, strip in zip(BANDS, rows, strict=True)}
        scores["seam_ratio_rolled"] = _ratio(middle)
    if "discontinuity" in metrics:
        scores["discontinuity"] = discontinuity(border)
        scores["discontinuity_rolled"] = discontinuity(middle)
    return scores


def seam_strip(erp: Tensor, column: int) -> Tensor:
    """The three columns on each side of a border, as float64 (B, 3, H, 6) in that order.

    Args:
        erp: (B, 3, H, W) uint8.
        column: first column to the right of the border; 0 is the border at +-180 degrees.
    """
    columns = torch.arange(column - 3, column + 3, device=erp.device) % erp.shape[-1]
    return erp[..., columns].double()


def _ratio(strip: Tensor) -> Tensor:
    """Step across the middle of a strip over the steps beside it: (B,)."""
    return seam_error(strip.roll(3, -1))["wrap_ratio"]


def discontinuity(strip: Tensor) -> Tensor:
    """Discontinuity score DS: edges across the border over the edges beside it.

    Means over rows of ``(|e2| / (|e1| + c) + |e3| / (|e4| + c)) / 2``, where e1 ... e4 are
    responses of a horizontal edge filter at the four columns around the border, of which e2 and e3
    see both sides. The mean over strips of equal height is the mean over all rows.

    Args:
        strip: (B, 3, H, 6) as of `seam_strip`.

    Returns:
        (B,); about 1 without a seam, less for flat images.

    Source: Christensen et al., "Geometry Fidelity for Spherical Images", 2024 (arXiv 2407.18207).
    """
    grey = functional.pad(strip.mean(1, keepdim=True), (0, 0, 1, 1), mode="replicate")
    kernel = torch.tensor(SCHARR, dtype=grey.dtype, device=grey.device) / SCHARR_SUM
    e1, e2, e3, e4 = functional.conv2d(grey, kernel[None, None]).abs().unbind(-1)
    return ((e2 / (e1 + FLAT) + e3 / (e4 + FLAT)) / 2).mean((1, 2))
