"""The images that a Frechet distance looks at, cut from a batch of panoramas.

Several distances share views, so a batch makes each of them once, when it is first asked for.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, cast

import numpy as np
import torch
from torch import Tensor

from shared_pano_utils import Views, erp_to_cubemap, erp_to_perspective
from shared_pano_utils.imageio import read_erp

VIEW_PX = 299  # what Inception sees
HORIZON_VIEWS = 8
CROPS = 20
View = Literal[
    "whole", "rolled", "clipped", "up", "down", "lateral", "horizon", "crops", "seam"
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ViewOptions:
    """How views are cut.

    Attributes:
        clip_fraction: of the height, cut off at each pole in "clipped".
        seed: of the directions of "crops"; all panoramas are seen from the same ones.
    """

    clip_fraction: float = 0.125
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.clip_fraction < 0.5:
            raise ValueError(
                f"clip_fraction is {self.clip_fraction}; use a part of the height between 0 and "
                "0.5, 0.125 cuts an eighth at each pole"
            )

    @cached_property
    def directions(self) -> Views:
        """Where the crops look: uniform on the sphere."""
        generator = torch.Generator().manual_seed(self.seed)
        return Views.random(CROPS, generator)


class BatchViews:
    """Views of panoramas, uint8 (N, 3, h, w), view after view of one panorama after the other.

    Args:
        erp: (B, 3, H, W) uint8, W = 2 H.
        options: how views are cut.
    """

    def __init__(self, erp: Tensor, options: ViewOptions) -> None:
        self.erp, self.options = erp, options
        self._made: dict[View, Tensor] = {}

    def __getitem__(self, name: View) -> Tensor:
        if name not in self._made:
            self._made[name] = self._make(name)
        return self._made[name]

    def _make(self, name: View) -> Tensor:
        height, width = self.erp.shape[-2:]
        if name == "whole":
            return self.erp
        if name == "rolled":
            return self.erp.roll(width // 2, -1)
        if name == "clipped":
            rows = round(self.options.clip_fraction * height)
            return self.erp[..., rows : height - rows, :]
        if name in ("up", "down", "lateral"):
            faces = {"up": slice(4, 5), "down": slice(5, 6), "lateral": slice(0, 4)}[name]
            return self._faces[:, faces].flatten(0, 1)
        if name == "seam":
            views = Views.horizon(1)._replace(yaw=torch.tensor([180.0], dtype=torch.float64))
        else:
            is_horizon = name == "horizon"
            views = Views.horizon(HORIZON_VIEWS) if is_horizon else self.options.directions
        size = (VIEW_PX, VIEW_PX)
        return cast(Tensor, erp_to_perspective(self.erp, size=size, views=views)).flatten(0, 1)

    @cached_property
    def _faces(self) -> Tensor:
        """Cube faces (B, 6, 3, S, S), order F R B L U D, S = W / 4."""
        return cast(Tensor, erp_to_cubemap(self.erp))


def read_batches(paths: Sequence[Path], batch_size: int) -> Iterator[Tensor]:
    """Read panoramas in order as batches (B, 3, H, W) uint8; a new size begins a new batch.

    Raises:
        ValueError: a file is not a 2:1 panorama.
    """
    batch: list[np.ndarray] = []
    for path in paths:
        erp = read_erp(path)
        if batch and (len(batch) == batch_size or erp.shape != batch[0].shape):
            yield torch.from_numpy(np.stack(batch)).movedim(-1, 1)
            batch = []
        batch.append(erp)
    if batch:
        yield torch.from_numpy(np.stack(batch)).movedim(-1, 1)
