"""Batches of a run: panoramas and photos of an epoch in a reproducible order, with their text."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from dit360.data.dataset import LATENT_PX, PanoramaDataset
from dit360.data.rows import Row, open_rows
from dit360.latentcache import LatentCache
from dit360.training.options import HUB_DATA, TrainOptions
from dit360.training.schedule import count_photos, epoch_order


class Texts(Protocol):
    """Where embeddings of prompts are read: memory, or `dit360.textcache.TextCache`."""

    def get(self, prompt: str, /) -> tuple[Tensor, Tensor]:
        """Embeddings (L, D) and pooled embedding (P,) of a prompt."""
        ...


def read_rows(options: TrainOptions) -> tuple[Sequence[Row], Sequence[Row]]:
    """Panoramas and photos of a run.

    Raises:
        FileNotFoundError, ValueError: the data is missing or unusable.
    """
    panoramas: Sequence[Row] = open_rows(options.panorama_data or HUB_DATA)
    photos: Sequence[Row] = []
    if options.perspective_data is not None:
        photos = open_rows(options.perspective_data, need_mask=True)
    return panoramas[: options.data_size], photos[: options.data_size]


class Examples(Dataset[dict[str, Any]]):
    """Panoramas, then photos, with text embeddings instead of captions.

    Examples are dicts with ``pixel_values`` (3, H, 2H) in [-1, 1], ``supervised`` (H/8, 2H/8)
    bool, ``prompt_embeds`` (L, D), ``pooled_prompt_embeds`` (P,) and the number ``index``. With
    `latents` they have ``moments`` (32, H/8, 2H/8) of the same view instead of pixels.
    """

    latents: LatentCache | None = None

    def __init__(
        self, options: TrainOptions, panoramas: Sequence[Row], photos: Sequence[Row], texts: Texts
    ) -> None:
        self.panoramas = PanoramaDataset(
            panoramas, options.resolution, flip=options.flip, roll=options.roll, seed=options.seed
        )
        self.photos = PanoramaDataset(photos, options.resolution, flip=False, roll="none")
        self.texts = texts

    def __len__(self) -> int:
        return len(self.panoramas) + len(self.photos)

    def __getitem__(self, index: int) -> dict[str, Any]:
        data, number = self._locate(index)
        embeds, pooled = self.texts.get(data.rows[number].caption)
        shared = {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled, "index": index}
        if self.latents is None:
            example = data[number]
            pixels, supervised = example["pixel_values"], example["supervised"]
            return {"pixel_values": pixels, "supervised": supervised, **shared}
        pose = data.draw_pose(number)
        moments = self.latents.get(index, mirrored=pose.is_flipped)
        # A circular VAE commutes with turns by whole latent columns; options allow no others.
        moments = moments.roll(pose.shift_px // LATENT_PX, -1)
        return {"moments": moments, "supervised": data.read_supervised(number), **shared}

    @property
    def rows(self) -> list[Row]:
        """The row of each example."""
        return [*self.panoramas.rows, *self.photos.rows]

    def may_flip(self, index: int) -> bool:
        """Whether an example is mirrored in some epochs."""
        data, number = self._locate(index)
        return data.may_flip(number)

    def _locate(self, index: int) -> tuple[PanoramaDataset, int]:
        count = len(self.panoramas)
        return (self.panoramas, index) if index < count else (self.photos, index - count)


class EpochOrder(Sampler[int]):
    """The samples of one rank in one epoch, possibly from the middle on."""

    def __init__(self, samples: list[int]) -> None:
        self.samples = samples
        self.first = 0

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[int]:
        return iter(self.samples[self.first :])


def batches_done(trainer: L.Trainer) -> int:
    """Batches of the epoch that the optimizer has seen; the loader reads ahead."""
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress.current
    return progress.processed


class ResumableLoader(DataLoader[dict[str, Any]]):
    """A loader of one epoch that Lightning can stop and go on with in its middle."""

    def __init__(self, data: "TrainData", epoch: int, order: EpochOrder, **kwargs: Any) -> None:
        super().__init__(data.examples, sampler=order, drop_last=True, **kwargs)
        self.data, self.epoch, self.order = data, epoch, order

    def state_dict(self) -> dict[str, int]:
        """Epoch, and how many of its samples are done, on all ranks together."""
        assert self.data.trainer is not None
        return {"epoch": self.epoch, "samples": batches_done(self.data.trainer) * self.data.step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Leave out what is done, if it was done in this epoch; another number of ranks may go on."""
        if state["epoch"] != self.epoch:
            return
        trainer: Any = self.data.trainer
        batches = state["samples"] // self.data.step
        self.order.first = batches * self.data.options.train_batch_size
        # Lightning ends an epoch by its own count, which is in batches of the run before.
        progress = trainer.fit_loop.epoch_loop.batch_progress.current
        progress.increment_by(batches - progress.processed)


class TrainData(L.LightningDataModule):
    """Makes a new loader for every epoch, since its samples change (spec 5.4).

    Args:
        options: of the run.
        panoramas: rows supervised everywhere, as a rule.
        photos: rows on a canvas with masks; may be empty.
        texts: embeddings of all their captions.
    """

    def __init__(
        self, options: TrainOptions, panoramas: Sequence[Row], photos: Sequence[Row], texts: Texts
    ) -> None:
        super().__init__()
        self.options = options
        self.examples = Examples(options, panoramas, photos, texts)

    @property
    def step(self) -> int:
        """Samples of a batch of all ranks together."""
        assert self.trainer is not None
        return self.options.train_batch_size * self.trainer.world_size

    def updates(self) -> int:
        """Updates of the whole run, over all ranks at once (D17).

        Lightning's estimate takes all epochs for as long as the first, and loads the data before
        a checkpoint can say where in it to go on.
        """
        options, step = self.options, self.step
        photos = len(self.examples.photos)
        samples = [
            len(self.examples.panoramas) + count_photos(options, photos, epoch)
            for epoch in range(options.max_epochs)
        ]
        steps = [math.ceil(count // step / options.accumulate_grad_batches) for count in samples]
        return sum(steps) if options.max_steps < 0 else min(sum(steps), options.max_steps)

    def train_dataloader(self) -> ResumableLoader:
        """The loader of the epoch that the trainer is in.

        Raises:
            ValueError: there are fewer samples than one step of all devices takes.
        """
        assert self.trainer is not None
        options, trainer = self.options, self.trainer
        epoch, examples = trainer.current_epoch, self.examples
        examples.panoramas.set_epoch(epoch)
        order = epoch_order(options, len(examples.panoramas), len(examples.photos), epoch)
        step = self.step
        if len(order) < step:
            raise ValueError(
                f"epoch {epoch} has {len(order)} samples, fewer than the {step} of one step "
                f"(--train_batch_size {options.train_batch_size} on {trainer.world_size} devices); "
                "use a smaller batch or more data"
            )
        order = order[: len(order) // step * step]
        return ResumableLoader(
            self,
            epoch,
            EpochOrder(order[trainer.global_rank :: trainer.world_size]),
            batch_size=options.train_batch_size,
            num_workers=options.dataloader_num_workers,
            pin_memory=torch.cuda.is_available(),
        )
