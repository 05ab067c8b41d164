"""What is compared: one object per evaluation script, scoring one panorama at a time."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from pager.data.registry import Sample
from pager.depth import Alignment, DepthRange, align
from pager.evaluation import pictures
from pager.geometry import NormalsFrame, structured3d_to_pager
from pager.metrics.depth import ORIGINAL_METRICS, Weighting, depth_metrics
from pager.metrics.edges import CAP_PX, EdgeConvention, edge_maps, edge_metrics
from pager.metrics.normals import angles_deg, normals_metrics
from pager.metrics.seams import seam_metrics

if TYPE_CHECKING:
    from pager.model import Modality  # which imports diffusers, for seconds


class Task(Protocol):
    """An evaluation, of one panorama at a time."""

    @property
    def modality(self) -> "Modality":
        """What is predicted."""
        ...

    @property
    def folder(self) -> str:
        """Where the results go, below ``<pred_path>/<dataset>``."""
        ...

    @property
    def headline(self) -> str:
        """The metric that ranks panoramas; larger is worse."""
        ...

    @property
    def text_metrics(self) -> tuple[str, ...] | None:
        """The metrics of ``evaluation_metrics.txt``; None for all."""
        ...

    @property
    def needs(self) -> frozenset[str]:
        """Keys of the sample that are compared with."""
        ...

    def mask(self, sample: Sample) -> Tensor:
        """Pixels that count, bool (1, H, W)."""
        ...

    def score(self, pred: Tensor, sample: Sample, mask: Tensor) -> dict[str, float]:
        """Metrics of one panorama; ValueError for a prediction that cannot be scored."""
        ...


class PicturedTask(Task, Protocol):
    """An evaluation whose errors can be shown."""

    def pictures(self, pred: Tensor, sample: Sample, mask: Tensor) -> dict[str, np.ndarray]:
        """Prediction, truth and, last, the error, by caption; each (H, W, 3) uint8."""
        ...


@dataclass(frozen=True, kw_only=True)
class _AgainstDepth:
    """What the evaluations of depth maps share."""

    depth_range: DepthRange
    modality: "Modality" = "depth"
    needs: frozenset[str] = frozenset({"depth"})

    def mask(self, sample: Sample) -> Tensor:
        """Pixels with a true depth."""
        return self.depth_range.valid(sample["depth"])


@dataclass(frozen=True, kw_only=True)
class DepthTask(_AgainstDepth):
    """Errors of aligned depth."""

    alignment: Alignment = "scale"
    weighting: Weighting = "uniform"
    headline: str = "abs_relative_difference"
    text_metrics: tuple[str, ...] | None = ORIGINAL_METRICS

    @property
    def folder(self) -> str:
        """One folder per alignment, as the original."""
        return f"depth_evaluation/{self.alignment}{_suffix(self.weighting, 'uniform')}"

    def score(self, pred: Tensor, sample: Sample, mask: Tensor) -> dict[str, float]:
        """See `depth_metrics`."""
        return depth_metrics(
            pred, sample["depth"], mask, alignment=self.alignment, weighting=self.weighting
        )

    def pictures(self, pred: Tensor, sample: Sample, mask: Tensor) -> dict[str, np.ndarray]:
        """The aligned prediction, the truth and their signed difference."""
        target = sample["depth"]
        aligned = _aligned(pred, target, mask, self.alignment)
        caption, error = pictures.signed_error_picture(aligned - target, mask)
        return {**pictures.depth_pictures(aligned, target, mask), caption: error}


@dataclass(frozen=True, kw_only=True)
class EdgesTask(_AgainstDepth):
    """Position and completeness of depth edges."""

    convention: EdgeConvention = "original"
    cap_px: float = CAP_PX
    headline: str = "edge_dbe_completeness"
    text_metrics: tuple[str, ...] | None = None

    @property
    def folder(self) -> str:
        """One folder per convention."""
        return f"edge_evaluation{_suffix(self.convention, 'original')}"

    def score(self, pred: Tensor, sample: Sample, mask: Tensor) -> dict[str, float]:
        """See `edge_metrics`."""
        return edge_metrics(
            pred, sample["depth"], mask, convention=self.convention, cap_px=self.cap_px
        )

    def pictures(self, pred: Tensor, sample: Sample, mask: Tensor) -> dict[str, np.ndarray]:
        """The prediction at the median depth of the truth, the truth, and both edge maps."""
        target = sample["depth"]
        found, true = edge_maps(pred, target, mask, convention=self.convention)
        caption, edges = pictures.edge_picture(found, true)
        aligned = _aligned(pred, target, mask, "median")
        return {**pictures.depth_pictures(aligned, target, mask), caption: edges}


@dataclass(frozen=True, kw_only=True)
class NormalsTask:
    """Angular errors; predictions in `frame`, truth in the `pager` frame."""

    depth_range: DepthRange
    frame: NormalsFrame = "pager"
    weighting: Weighting = "uniform"
    modality: "Modality" = "normals"
    needs: frozenset[str] = frozenset({"normals"})
    headline: str = "mean"
    text_metrics: tuple[str, ...] | None = None

    @property
    def folder(self) -> str:
        """One folder per weighting."""
        return f"normals_evaluation{_suffix(self.weighting, 'uniform')}"

    def mask(self, sample: Sample) -> Tensor:
        """Pixels with a true normal and, where the data set has depth, a true depth."""
        has_normal = (sample["normals"] != 0).any(0, keepdim=True)
        if "depth" in sample:
            return has_normal & self.depth_range.valid(sample["depth"])
        return has_normal

    def score(self, pred: Tensor, sample: Sample, mask: Tensor) -> dict[str, float]:
        """See `normals_metrics`."""
        pred = self._in_pager_frame(pred)
        return normals_metrics(pred, sample["normals"], mask, weighting=self.weighting)

    def pictures(self, pred: Tensor, sample: Sample, mask: Tensor) -> dict[str, np.ndarray]:
        """Prediction, truth and the angle between them."""
        pred, target = self._in_pager_frame(pred), sample["normals"]
        caption, error = pictures.angle_picture(angles_deg(pred, target).nan_to_num(0), mask)
        return {
            "prediction": pictures.normals_picture(pred),
            "truth": pictures.normals_picture(target),
            caption: error,
        }

    def _in_pager_frame(self, normals: Tensor) -> Tensor:
        return structured3d_to_pager(normals) if self.frame == "structured3d" else normals


@dataclass(frozen=True, kw_only=True)
class SeamsTask:
    """Seams of predictions and, under ``truth_*``, of the ground truth where there is one."""

    depth_range: DepthRange
    modality: "Modality" = "depth"
    needs: frozenset[str] = frozenset()
    headline: str = "seam_density"
    text_metrics: tuple[str, ...] | None = None

    @property
    def folder(self) -> str:
        """One folder per modality."""
        return f"seam_evaluation/{self.modality}"

    def mask(self, sample: Sample) -> Tensor:
        """Whole panoramas: seams need no ground truth."""
        return torch.ones_like(sample["rgb"][:1], dtype=torch.bool)

    def score(self, pred: Tensor, sample: Sample, mask: Tensor) -> dict[str, float]:
        """See `seam_metrics`; `mask` is that of all pixels."""
        usable = pred.isfinite() & ((pred > 0) | (self.modality == "normals"))
        if not usable[mask.expand_as(usable)].all():
            raise ValueError(
                f"{int((~usable).sum())} values are predicted as NaN, infinity or, for depth, "
                "zero or less; seams are measured on whole panoramas"
            )
        values = seam_metrics(pred.log() if self.modality == "depth" else pred)
        if self.modality not in sample:
            return values
        target = sample[self.modality].nan_to_num(0)
        if self.modality == "depth":
            target = target.clamp(self.depth_range.min_m, self.depth_range.max_m).log()
        return values | {f"truth_{name}": value for name, value in seam_metrics(target).items()}


def _aligned(pred: Tensor, target: Tensor, mask: Tensor, alignment: Alignment) -> Tensor:
    """Depth (1, H, W) float64, finite everywhere."""
    pred = pred.double().nan_to_num(0, 0, 0)
    target = torch.where(mask, target.double(), 1.0)
    return align(pred[None], target[None], mask[None], alignment)[0]


def _suffix(value: str, default: str) -> str:
    return "" if value == default else f"_{value}"
