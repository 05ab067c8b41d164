"""FID, KID and the Inception score: one pass of Inception-v3 for all of them."""

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from dit360.metrics.frechet import FAMILY, FrechetMeter
from dit360.metrics.networks import read_weights
from dit360.metrics.scores import Score, Side
from dit360.metrics.views import View

FLAG = "--inception_weights"
FID_METRICS = tuple(f"fid{suffix}" for suffix in FAMILY)
INCEPTION_METRICS = (*FID_METRICS, "kid", "inception_score")
KID_SUBSET = 1000
KID_SUBSETS = 100
SCORE_SPLITS = 10
IMAGES_PER_SPLIT = 10


def load_inception(weights: Path | None, *, offline: bool) -> nn.Module:
    """Inception-v3 of the FID papers: uint8 images of any size -> (B, 2048), resized inside.

    Args:
        weights: the file of torch-fidelity; None = its cache, or the network.
        offline: don't try the network.

    Raises:
        ImportError: torchmetrics or torch-fidelity is missing.
        FileNotFoundError: no weights.
        OSError: the download failed.
        ValueError: the file holds something else.
    """
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
        from torchmetrics.image.fid import NoTrainInceptionV3
    except ImportError as error:
        raise ImportError("needs torchmetrics: pip install -e '.[eval]'") from error
    cached = Path(torch.hub.get_dir()) / "checkpoints" / URL_INCEPTION_V3.rpartition("/")[2]
    if weights is None and offline and not cached.is_file():
        raise FileNotFoundError(f"no Inception weights offline; give {FLAG} {cached.name}")
    if weights is not None:
        read_weights(weights, FLAG)  # the library would run code from the file
    try:
        return NoTrainInceptionV3(
            "inception-v3-compat", ["2048"], None if weights is None else str(weights)
        )
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{FLAG} {weights} holds other weights: {reason}") from error
    except OSError as error:
        raise OSError(
            f"the Inception weights cannot be fetched ({error}); give {FLAG} {cached.name}"
        ) from error


class InceptionMeter(FrechetMeter):
    """FID of several views, KID and the Inception score of whole panoramas.

    Args:
        metrics: names out of `INCEPTION_METRICS`.
        network: as of `load_inception`.
        batch_size: images that enter the network at a time.
        seed: of the subsets of KID and the order of the Inception score.
    """

    def __init__(
        self, metrics: tuple[str, ...], network: nn.Module, batch_size: int, seed: int
    ) -> None:
        suffixes = [suffix for suffix in FAMILY if f"fid{suffix}" in metrics]
        super().__init__("fid", suffixes, network, batch_size)
        self.metrics, self.seed = metrics, seed
        self.is_kept = not {"kid", "inception_score"}.isdisjoint(metrics)
        if self.is_kept:
            self.views["whole"] = None
        self.kept: dict[Side, list[Tensor]] = {"generated": [], "reference": []}

    def _keep(self, side: Side, features: dict[View, Tensor]) -> None:
        if self.is_kept:
            self.kept[side].append(features["whole"].cpu())

    def scores(self) -> list[Score]:
        """FID, then KID and the Inception score where asked for."""
        scores = super().scores()
        sets = {side: torch.cat(parts) for side, parts in self.kept.items() if parts}
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            # torchmetrics warns of its buffers and of the deviation of a single split.
            warnings.simplefilter("ignore", UserWarning)
            if "kid" in self.metrics:
                torch.manual_seed(self.seed)
                value, spread = kernel_distance(sets["generated"], sets["reference"])
                scores.append(Score(name="kid", better="lower", value=value, spread=spread))
            if "inception_score" in self.metrics:
                results = {}
                for side, features in sets.items():
                    torch.manual_seed(self.seed)
                    results[side] = inception_score(self._logits(features))
                scores.append(
                    Score(
                        name="inception_score",
                        better="higher",
                        value=results["generated"][0],
                        spread=results["generated"][1],
                        reference=results["reference"][0] if "reference" in results else None,
                    )
                )
        return scores

    def _logits(self, features: Tensor) -> Tensor:
        """Class scores without bias, as in the FID code: (N, 1008)."""
        return features @ self.network.fc.weight.mT.cpu()  # type: ignore[attr-defined]


def kernel_distance(generated: Tensor, reference: Tensor) -> tuple[float, float | None]:
    """KID of features (N, D): mean and deviation over subsets of 1000, or of all if fewer.

    The estimate is unbiased, so it is slightly below 0 for equal sets.
    """
    from torchmetrics.image.kid import KernelInceptionDistance

    size = min(KID_SUBSET, len(generated))
    subsets = KID_SUBSETS if size < len(generated) else 1
    metric = KernelInceptionDistance(nn.Identity(), subsets=subsets, subset_size=size)
    metric.update(generated, real=False)
    metric.update(reference, real=True)
    value, spread = metric.compute()
    return float(value), float(spread) if subsets > 1 else None


def inception_score(logits: Tensor) -> tuple[float, float | None]:
    """Inception score of class scores (N, 1008): mean and deviation over 10 splits.

    Fewer than 100 images are one split. The paper's table uses a Places365 network instead.
    """
    from torchmetrics.image.inception import InceptionScore

    splits = SCORE_SPLITS if len(logits) >= SCORE_SPLITS * IMAGES_PER_SPLIT else 1
    metric = InceptionScore(nn.Identity(), splits=splits)
    metric.update(logits)
    value, spread = metric.compute()
    return float(value), float(spread) if splits > 1 else None
