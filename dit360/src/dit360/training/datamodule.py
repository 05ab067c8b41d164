"""Batches of a run: panoramas and photos of an epoch in a reproducible order, with their text."""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import lightning as L
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from dit360.captions import caption, random_world, render_world, split_seed
from dit360.data.dataset import PanoramaDataset
from dit360.data.rows import Row, open_rows
from dit360.training.options import HUB_DATA, PROCEDURAL, TrainOptions
from dit360.training.schedule import epoch_order


class Texts(Protocol):
    """Where the embeddings of prompts are read, memory or `dit360.textcache.TextCache`."""

    def get(self, prompt: str) -> tuple[Tensor, Tensor]:
        """Embeddings (L, D) and pooled embedding (P,) of a prompt."""
        ...


class WorldRow(Row):
    """A made-up world of `dit360.captions`, rendered when it is first read."""

    def __init__(self, number: int, height: int) -> None:
        self.__dict__["world"] = random_world(split_seed("train", number))
        self.__dict__["height"] = height
        super().__init__(
            image=Path(f"{PROCEDURAL}{number}"),
            caption=caption(self.__dict__["world"]),
            where=f"{PROCEDURAL}{number}",
        )

    def read_image(self) -> Image.Image:
        """The panorama in RGB at the height of the run."""
        return _rendered(self.__dict__["world"], self.__dict__["height"])


@functools.lru_cache(maxsize=1024)
def _rendered(world: Any, height: int) -> Image.Image:
    return Image.fromarray(render_world(world, height))
