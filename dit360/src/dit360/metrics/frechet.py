"""Frechet distances between the features of two sets, for several views of a panorama."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from dit360.metrics.scores import Score, Side
from dit360.metrics.views import BatchViews, View

Pool = tuple[View, ...]
FeatureNetwork = Callable[[Tensor], Tensor]
"""(B, 3, h, w) uint8 -> features (B, D)."""

# Suffix of the metric -> pools of views; the score is the mean of the distances of the pools.
FAMILY: dict[str, tuple[Pool, ...]] = {
    "": (("whole",),),
    "_roll": (("rolled",),),
    "_clip": (("clipped",),),
    "_pole": (("up", "down"),),
    "_equ": (("lateral",),),
    "_omni": (("up",), ("down",), ("lateral",)),
    "_horizon": (("horizon",),),
    "_crops": (("crops",),),
    "_seam": (("seam",),),
}


class FeatureStatistics:
    """Mean and covariance of features that arrive in batches, in float64.

    The covariance is kept as a triangular root, at most D x D: it needs no more memory for many
    images than for D of them, and keeps the digits that a sum of squares loses.
    """

    def __init__(self) -> None:
        self._count = 0
        self._mean = torch.zeros(0)
        self._root = torch.zeros(0)  # R with R^T R the sum of outer products around the mean
        self._pending: list[Tensor] = []

    def update(self, features: Tensor) -> None:
        """Add features (N, D)."""
        self._pending.append(features.double().cpu())
        if sum(map(len, self._pending)) >= features.shape[1]:
            self._fold()

    def _fold(self) -> None:
        if not self._pending:
            return
        features = torch.cat(self._pending)
        self._pending = []
        new, old = len(features), self._count
        mean = features.mean(0)
        rows = features - mean
        if old:
            between = math.sqrt(new * old / (new + old)) * (mean - self._mean)
            rows = torch.cat([self._root, rows, between[None]])
            mean = (old * self._mean + new * mean) / (old + new)
        self._count, self._mean = old + new, mean
        self._root = torch.linalg.qr(rows, mode="r").R

    @property
    def count(self) -> int:
        """Number of features so far."""
        return self._count + sum(map(len, self._pending))

    @property
    def dimension(self) -> int:
        """Length D of a feature."""
        return (self._pending[0] if self._pending else self._root).shape[1]

    @property
    def mean(self) -> Tensor:
        """(D,)."""
        self._fold()
        return self._mean

    @property
    def root(self) -> Tensor:
        """R (min(N, D), D) with ``R^T R`` the unbiased covariance."""
        self._fold()
        return self._root / math.sqrt(self._count - 1)


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """Frechet distance between Gaussians with these means and covariances.

    ``|mu_a - mu_b|^2 + Tr(S_a + S_b - 2 (S_a S_b)^(1/2))``. With ``S = R^T R`` the trace of the
    root is the sum of the singular values of ``R_a R_b^T``: exact for few images, where the
    eigenvalues of the D x D product of covariances lose half of the digits, and faster.

    Returns:
        The squared distance, >= 0.

    Raises:
        ValueError: fewer than two features on a side.
    """
    if min(a.count, b.count) < 2:
        raise ValueError(
            f"a Frechet distance of {a.count} and {b.count} features has no covariance; use at "
            "least two of each"
        )
    overlap = torch.linalg.svdvals(a.root @ b.root.mT).sum()
    spread = a.root.square().sum() + b.root.square().sum() - 2 * overlap
    return float((a.mean - b.mean).square().sum() + spread.clamp(min=0))


class FrechetMeter:
    """Frechet distances with one network, for some of the views of `FAMILY`.

    Args:
        prefix: of the names of its metrics.
        suffixes: which of `FAMILY`.
        network: makes the features.
        batch_size: images that enter the network at a time.
    """

    def __init__(
        self, prefix: str, suffixes: list[str], network: FeatureNetwork, batch_size: int
    ) -> None:
        self.prefix, self.suffixes = prefix, suffixes
        self.network, self.batch_size = network, batch_size
        # Dictionaries without values: sets in the order of FAMILY.
        self.pools = dict.fromkeys(pool for suffix in suffixes for pool in FAMILY[suffix])
        self.views: dict[View, None] = dict.fromkeys(view for pool in self.pools for view in pool)
        sides: tuple[Side, Side] = ("generated", "reference")
        self.statistics = {
            side: {pool: FeatureStatistics() for pool in self.pools} for side in sides
        }

    @torch.inference_mode()
    def update(self, side: Side, views: BatchViews) -> None:
        """Add one batch."""
        features: dict[View, Tensor] = {v: self._features(views[v]) for v in self.views}
        for pool in self.pools:
            self.statistics[side][pool].update(torch.cat([features[view] for view in pool]))
        self._keep(side, features)

    def _features(self, images: Tensor) -> Tensor:
        return torch.cat([self.network(part) for part in images.split(self.batch_size)])

    def _keep(self, side: Side, features: dict[View, Tensor]) -> None:
        """For metrics that need the features themselves."""

    def scores(self) -> list[Score]:
        """One distance per suffix."""
        generated, reference = self.statistics["generated"], self.statistics["reference"]
        distances = {
            pool: frechet_distance(generated[pool], reference[pool]) for pool in self.pools
        }
        return [
            Score(
                name=self.prefix + suffix,
                better="lower",
                value=sum(distances[pool] for pool in FAMILY[suffix]) / len(FAMILY[suffix]),
            )
            for suffix in self.suffixes
        ]

    def note(self) -> str | None:
        """Warns of covariances of fewer images than features."""
        for pool, statistics in self.statistics["generated"].items():
            if statistics.count <= statistics.dimension:
                return (
                    f"{self.prefix}: {statistics.count} images of {' and '.join(pool)} for "
                    f"{statistics.dimension} features; distances of so few are too large, compare "
                    "them only with those of as many"
                )
        return None
