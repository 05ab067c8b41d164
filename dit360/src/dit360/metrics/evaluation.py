"""One pass over the generated and the reference set, with the metrics that can be computed.

Images go through in batches; only numbers, and the statistics of features, are kept.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from tqdm.auto import tqdm

from dit360.metrics.clip import DEFAULT_MODEL, ClipMeter
from dit360.metrics.faed import load_faed
from dit360.metrics.frechet import FAMILY, FrechetMeter
from dit360.metrics.inception import INCEPTION_METRICS, InceptionMeter, load_inception
from dit360.metrics.networks import RandomNetwork
from dit360.metrics.scores import Score, Side
from dit360.metrics.seam import SEAM_METRICS, SeamMeter
from dit360.metrics.views import BatchViews, ViewOptions, read_batches

RANDOM_METRICS = tuple(f"frechet_random{suffix}" for suffix in FAMILY)
METRICS = (*SEAM_METRICS, *INCEPTION_METRICS, "clip_score", "faed", *RANDOM_METRICS)
WITHOUT_REFERENCE = (*SEAM_METRICS, "inception_score", "clip_score")
WITHOUT_WEIGHTS = (*SEAM_METRICS, *RANDOM_METRICS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How sets are compared.

    Attributes:
        metrics: names out of `METRICS`.
        is_strict: a metric that cannot be computed is an error rather than left out.
        views: how views are cut.
        batch_size: images read, and given to a network, at a time.
        device: of the networks, cpu or cuda:0.
        inception_weights: file of torch-fidelity; None = its cache or the network.
        offline: don't try the network.
        clip_model: folder or hub id.
        faed_weights: file; None = no FAED.
        faed_height: panoramas are encoded at.
    """

    metrics: tuple[str, ...] = METRICS
    is_strict: bool = False
    views: ViewOptions = dataclasses.field(default_factory=ViewOptions)
    batch_size: int = 8
    device: str = "cpu"
    inception_weights: Path | None = None
    offline: bool = False
    clip_model: str = DEFAULT_MODEL
    faed_weights: Path | None = None
    faed_height: int = 512


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Result of `evaluate`.

    Attributes:
        scores: in the order of the metrics.
        skipped: metric -> why it was left out.
        notes: on values that need care.
        images: generated files.
        columns: score -> its value for every generated image.
    """

    scores: list[Score]
    skipped: dict[str, str]
    notes: list[str]
    images: list[Path]
    columns: dict[str, list[float]]


class Meter(Protocol):
    """Collects batches, then gives scores."""

    def update(self, side: Side, views: BatchViews) -> None:
        """Add one batch."""
        ...

    def scores(self) -> list[Score]:
        """Scores of all batches."""
        ...


def evaluate(
    generated: Sequence[Path],
    reference: Sequence[Path] = (),
    captions: Sequence[str] = (),
    settings: Settings | None = None,
) -> Evaluation:
    """Compare panoramas.

    Args:
        generated: image files, at least one.
        reference: as many files of real panoramas; none = metrics without reference only.
        captions: of the generated images; none = no CLIP score.
        settings: default settings if None.

    Raises:
        ValueError: an image is unusable, weights do not fit, or with `is_strict` a metric cannot
            be computed.
    """
    settings = settings or Settings()
    meters, skipped = _open_meters(settings, len(generated), len(reference), captions)
    if settings.is_strict and skipped:
        name, reason = next(iter(skipped.items()))
        raise ValueError(f"--metrics {name} cannot be computed: {reason}")
    sets: dict[Side, Sequence[Path]] = {"generated": generated, "reference": reference}
    with tqdm(total=len(generated) + len(reference), desc="images", disable=None) as bar:
        for side, paths in sets.items():
            for batch in read_batches(paths, settings.batch_size):
                views = BatchViews(batch.to(settings.device), settings.views)
                for meter in meters:
                    meter.update(side, views)
                bar.update(len(batch))
    frechet = [meter for meter in meters if isinstance(meter, FrechetMeter)]
    per_image = [meter for meter in meters if isinstance(meter, SeamMeter | ClipMeter)]
    return Evaluation(
        scores=[score for meter in meters for score in meter.scores()],
        skipped=skipped,
        notes=[note for meter in frechet if (note := meter.note())],
        images=list(generated),
        columns={name: values for m in per_image for name, values in m.columns().items()},
    )


def _open_meters(
    settings: Settings, generated: int, reference: int, captions: Sequence[str]
) -> tuple[list[Meter], dict[str, str]]:
    """Meters of all metrics that can be computed, and why the others cannot."""
    skipped: dict[str, str] = {}
    for name in settings.metrics:
        if name not in WITHOUT_REFERENCE and not reference:
            skipped[name] = "needs --reference"
        elif name not in WITHOUT_REFERENCE and min(generated, reference) < 2:
            skipped[name] = "needs two images or more in each set"
        elif name == "clip_score" and not captions:
            skipped[name] = "needs --captions"
        elif name == "faed" and settings.faed_weights is None:
            skipped[name] = "needs --faed_weights faed.ckpt (published with PanFusion)"
    wanted = tuple(name for name in settings.metrics if name not in skipped)
    groups: dict[tuple[str, ...], Callable[[tuple[str, ...]], Meter]] = {
        SEAM_METRICS: SeamMeter,
        INCEPTION_METRICS: lambda names: _inception_meter(settings, names),
        ("clip_score",): lambda _: ClipMeter(captions, settings.clip_model, settings.device),
        ("faed",): lambda _: _faed_meter(settings),
        RANDOM_METRICS: lambda names: _random_meter(settings, names),
    }
    meters: list[Meter] = []
    for group, make in groups.items():
        names = tuple(name for name in group if name in wanted)
        if not names:
            continue
        try:
            meters.append(make(names))
        except (OSError, ImportError) as error:  # weights or packages that are not here
            skipped |= dict.fromkeys(names, " ".join(str(error).split()))
    return meters, skipped


def _inception_meter(settings: Settings, names: tuple[str, ...]) -> Meter:
    network = load_inception(settings.inception_weights, offline=settings.offline)
    network = network.to(settings.device)
    return InceptionMeter(names, network, settings.batch_size, settings.views.seed)


def _faed_meter(settings: Settings) -> Meter:
    assert settings.faed_weights is not None
    network = load_faed(settings.faed_weights, settings.faed_height).to(settings.device)
    return FrechetMeter("faed", [""], network, settings.batch_size)


def _random_meter(settings: Settings, names: tuple[str, ...]) -> Meter:
    suffixes = [suffix for suffix in FAMILY if f"frechet_random{suffix}" in names]
    network = RandomNetwork().to(settings.device)
    return FrechetMeter("frechet_random", suffixes, network, settings.batch_size)
