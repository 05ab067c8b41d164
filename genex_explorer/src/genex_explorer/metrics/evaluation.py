"""Scores of a folder of cases in the original's JSON shape, beside a walk that stands still.

Cases go through one at a time; only numbers and features are kept.
"""

from collections import defaultdict
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from genex_explorer.metrics.frames import (
    FRAME_METRICS,
    Case,
    curve,
    read_case,
    regime_of,
    seam_ratio,
    to_resolution,
)
from genex_explorer.metrics.fvd import (
    FIRST_LENGTH,
    VIEWS,
    clip_features,
    frechet_distance,
    prefix_lengths,
    view_frames,
)
from genex_explorer.metrics.perceptual import NOT_COMPARABLE, lpips_distance

WALK, COPY, TRUTH = "navigated", "copy_first_frame", "original"
PANORAMA = "panorama"
BETTER = {"fvd": "lower", "lpips": "lower", "seam_ratio": "1"}


class Evaluation:
    """Collects metrics of two predictions: the navigated walk, and the first true frame repeated.

    Args:
        metrics: names in the order of the report: fvd, ssim, psnr, lpips, ws_psnr, ws_ssim,
            seam_ratio.
        size: (width, height) at which frames are compared; seams are measured at the files' size.
        device: of the arithmetic.
        views: take FVD also of four perspective views.
        networks: "lpips" and "fvd" where these are among the metrics.
        is_random: the networks have random weights; the report says so.
    """

    def __init__(
        self,
        metrics: list[str],
        *,
        size: tuple[int, int],
        device: torch.device,
        views: bool,
        networks: dict[str, Any],
        is_random: bool,
    ) -> None:
        self.metrics, self.size, self.device = metrics, size, device
        self.views = VIEWS if views else {}
        self.networks, self.is_random = networks, is_random
        functions: dict[str, Any] = dict(FRAME_METRICS)
        functions["lpips"] = lambda a, b: lpips_distance(networks["lpips"], a, b)
        self.functions = {name: functions[name] for name in metrics if name in functions}
        self.values: dict[tuple[str, str], list[np.ndarray]] = defaultdict(list)
        self.features: dict[tuple[str, str, int], list[Tensor]] = defaultdict(list)

    def run(self, cases: list[Case]) -> dict[str, Any]:
        """Score cases (at least one).

        Returns:
            For every metric the curve over time; the same below ``baseline_copy_first_frame``;
            ``original`` (its seams), ``settings`` and ``notes``.

        Raises:
            ValueError: a case is unreadable or of another length than the others.
        """
        num_frames = None
        for case in tqdm(cases, desc="cases", disable=None):
            navigated, original = read_case(case, num_frames)
            num_frames = len(navigated)
            if "seam_ratio" in self.metrics:
                self.values["seam_ratio", WALK].append(seam_ratio(navigated))
                self.values["seam_ratio", TRUTH].append(seam_ratio(original))
            walk, truth = (
                to_resolution(frames, self.size).to(self.device) for frames in (navigated, original)
            )
            copy = truth[:1].expand_as(truth)
            for name, frames in ((WALK, walk), (COPY, copy)):
                self._add_frames(name, frames, truth)
            if "fvd" in self.metrics:
                for name, frames in ((WALK, walk), (COPY, copy), (TRUTH, truth)):
                    self._add_features(name, frames)
        assert num_frames is not None
        return self._report(len(cases), num_frames)

    def _add_frames(self, name: str, frames: Tensor, truth: Tensor) -> None:
        for metric, function in self.functions.items():  # frame by frame: float64 maps are large
            pairs = zip(frames.split(1), truth.split(1), strict=True)
            values = torch.cat([function(a, b) for a, b in pairs])
            self.values[metric, name].append(values.double().cpu().numpy())

    def _add_features(self, name: str, frames: Tensor) -> None:
        lengths = prefix_lengths(len(frames))
        clips = {PANORAMA: (frames, lengths)}
        for view, yaw_deg in self.views.items():
            clips[view] = (view_frames(frames, yaw_deg), lengths[-1:])
        for view, (clip, wanted) in clips.items():
            for length, feature in clip_features(self.networks["fvd"], clip, wanted).items():
                self.features[name, view, length].append(feature)

    def _report(self, clips: int, num_frames: int) -> dict[str, Any]:
        width, height = self.size
        tables: dict[str, dict[str, Any]] = {WALK: {}, COPY: {}, TRUTH: {}}
        for (metric, name), values in self.values.items():
            tables[name][metric] = curve(values, [num_frames, 3, height, width])
        if "fvd" in self.metrics:
            for name in (WALK, COPY):
                tables[name]["fvd"] = {
                    **self._fvd(name, num_frames),
                    "video_setting": [clips, 3, num_frames, height, width],
                    "video_setting_name": "batch_size, channel, time, height, width",
                }
        if self.is_random:
            for table in tables.values():
                for metric in self.networks.keys() & table.keys():
                    table[metric]["backbone"] = NOT_COMPARABLE
        return {
            **{metric: tables[WALK][metric] for metric in self.metrics},
            f"baseline_{COPY}": tables[COPY],
            TRUTH: tables[TRUTH],
            "settings": {
                "regime": regime_of(self.size),
                "resolution": [width, height],
                "clips": clips,
                "frames": num_frames,
            },
            "notes": self._notes(clips, num_frames),
        }

    def _fvd(self, name: str, num_frames: int) -> dict[str, Any]:
        def distance(view: str, length: int) -> float:
            pair = (torch.stack(self.features[n, view, length]) for n in (name, TRUTH))
            return frechet_distance(*pair)

        lengths = prefix_lengths(num_frames)
        result: dict[str, Any] = {"value": {str(t): distance(PANORAMA, t) for t in lengths}}
        if self.views:
            result["views"] = {view: distance(view, num_frames) for view in self.views}
        return result

    def _notes(self, clips: int, num_frames: int) -> list[str]:
        notes = []
        if num_frames == 1:
            notes.append(f"clips of one frame: {COPY} is the truth itself")
        if "fvd" not in self.metrics:
            return notes
        if num_frames < FIRST_LENGTH:
            notes.append(
                f"fvd is taken at {num_frames} frames only: the original begins at {FIRST_LENGTH}"
            )
        if clips < 2:
            notes.append("fvd of a single clip compares means only, without covariances")
        return notes


def markdown(report: dict[str, Any]) -> str:
    """Means of a report, without the given first frame, beside those of the copied first frame."""
    settings, baseline = report["settings"], report[f"baseline_{COPY}"]
    width, height = settings["resolution"]
    title = (
        f"{settings['clips']} clips of {settings['frames']} frames at {width}x{height} "
        f"({settings['regime']} regime)"
    )
    lines = [
        title,
        "",
        "| metric | better | navigated | copy of the first frame |",
        "|---" * 4 + "|",
    ]
    for metric, entry in report.items():
        if not isinstance(entry, dict) or "value" not in entry:
            continue
        label = metric + (" (random weights)" if "backbone" in entry else "")
        cells = f"{_cell(entry)} | {_cell(baseline.get(metric))}"
        lines.append(f"| {label} | {BETTER.get(metric, 'higher')} | {cells} |")
        for view, value in entry.get("views", {}).items():
            other = baseline[metric]["views"][view]
            lines.append(f"| {label}, {view} view | lower | {value:.4g} | {other:.4g} |")
    return "\n".join([*lines, *(f"\nNote: {note}" for note in report["notes"])])


def _cell(entry: dict[str, Any] | None) -> str:
    """Mean of a frame metric, or the FVD of the whole clips."""
    if entry is None:
        return ""
    value = entry["mean"] if "mean" in entry else list(entry["value"].values())[-1]
    return "infinite" if value is None else f"{value:.4g}"
