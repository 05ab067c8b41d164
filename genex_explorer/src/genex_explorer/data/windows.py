"""Random windows of clips, as tensors for training."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import Dataset, Sampler

from genex_explorer.data.cache import LatentCache
from genex_explorer.data.clips import Clip, read_clip, stable_hash, to_unit


def window_starts(length: int, num_frames: int, stride: int = 1) -> int:
    """Number of windows of `num_frames` frames, `stride` apart, in a clip of `length` frames."""
    return length - (num_frames - 1) * stride


class ClipWindows(Dataset[dict[str, Any]]):
    """Random windows of clips: sample `i` is the same for everyone who knows the seed.

    The original drew with Python's `random` and ignored its index, so that all processes of a
    multi-GPU run saw the same window. Here index -> (clip, window) is a function: every clip is
    visited once in `len(clips)` consecutive samples, and processes share out the indices.

    Args:
        clips: from `find_clips`.
        num_frames: length F of a window.
        size: (width, height) in pixels; as in the original without regard to the aspect.
        stride: clip frames between two window frames.
        samples: length of the data set; the original's constant is 100 000.
        seed: of order and windows.
        cache: encoded clips, so that only the first frame is read.
        with_pixels: read all frames also with a cache.
        mirror: turn half of the windows left-right.
    """

    def __init__(
        self,
        clips: list[Clip],
        *,
        num_frames: int,
        size: tuple[int, int],
        stride: int = 1,
        samples: int = 100_000,
        seed: int = 0,
        cache: LatentCache | None = None,
        with_pixels: bool = True,
        mirror: bool = False,
    ) -> None:
        if mirror and cache is not None:
            raise ValueError("--mirror needs the images; leave out --latent_cache")
        self.clips = clips
        self.num_frames = num_frames
        self.size = size
        self.stride = stride
        self.samples = samples
        self.seed = seed
        self.cache = cache
        self.with_pixels = with_pixels or cache is None
        self.mirror = mirror

    def __len__(self) -> int:
        return self.samples

    def locate(self, index: int) -> tuple[Clip, int]:
        """Clip and first frame of sample `index`."""
        if not 0 <= index < self.samples:
            raise IndexError(f"sample {index} of {self.samples}")
        round_, place = divmod(index, len(self.clips))
        order = np.random.default_rng(stable_hash(self.seed, "order", round_))
        clip = self.clips[order.permutation(len(self.clips))[place]]
        starts = window_starts(len(clip.frames), self.num_frames, self.stride)
        rng = np.random.default_rng(stable_hash(self.seed, "window", index))
        return clip, int(rng.integers(starts))

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Tensors of a sample, images in [-1, 1].

        Returns:
            ``first_frame`` (3, H, W), ``clip_id``, ``start``, ``index``; ``pixel_values``
            (F, 3, H, W) if they are read; ``moments`` (F, 8, h, w) and ``token`` (D,) of a cache.
        """
        clip, start = self.locate(index)
        stop = start + (self.num_frames - 1) * self.stride + 1 if self.with_pixels else start + 1
        images = to_unit(read_clip(clip.frames[start : stop : self.stride], self.size))
        if self.mirror and stable_hash(self.seed, "mirror", index) % 2:
            images = images.flip(-1)
        sample: dict[str, Any] = {
            "first_frame": images[0],
            "clip_id": clip.id,
            "start": start,
            "index": index,
        }
        if self.with_pixels:
            sample["pixel_values"] = images
        if self.cache is not None:
            moments, token = self.cache.read(clip, start, self.num_frames, self.stride)
            sample |= {"moments": moments, "token": token}
        return sample


class RunSampler(Sampler[int]):
    """Sample numbers of one process, from micro-step `start` to `stop`.

    Numbers run through the whole training; the processes take turns by batches, so that no two of
    them see the same window and any number of them together sees the same ones.
    """

    def __init__(self, start: int, stop: int, batch: int, rank: int, world: int) -> None:
        self.micro_steps, self.batch = range(start, stop), batch
        self.rank, self.world = rank, world

    def __iter__(self) -> Iterator[int]:
        for micro_step in self.micro_steps:
            first = (micro_step * self.world + self.rank) * self.batch
            yield from range(first, first + self.batch)

    def __len__(self) -> int:
        return len(self.micro_steps) * self.batch
