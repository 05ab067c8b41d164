"""Panoramas as training examples: resized, flipped, turned about the vertical, with their mask."""

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypedDict

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from dit360.data.rows import SUPERVISED_ABOVE, Row

Roll = Literal["uniform", "original", "none"]
ROLLS = ("uniform", "original", "none")
FLIP_PROBABILITY = 0.5
LATENT_PX = 8  # pixels of a latent cell
TOKEN_PX = 16  # of a token; rolls by whole tokens are exact in token space
_SIDES = re.compile(r"\b(?:left|right)", re.IGNORECASE)


class Example(TypedDict):
    """What the network is trained on."""

    pixel_values: Tensor  # (3, H, 2H) float32 in [-1, 1]
    caption: str
    supervised: Tensor  # (H/8, 2H/8) bool


class Pose(NamedTuple):
    """How an example differs from its image: mirrored first, then turned."""

    is_flipped: bool
    shift_px: int  # by which the content moves to the right


class PanoramaDataset(Dataset[Example]):
    """Examples of `rows`; every random number is a function of (seed, epoch, index).

    Photos on a canvas are neither flipped nor turned (spec 3.3): ``flip=False, roll="none"``.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        height: int,
        *,
        flip: bool | float = True,
        roll: Roll = "uniform",
        roll_step: int = TOKEN_PX,
        seed: int = 0,
    ) -> None:
        """Prepare the examples.

        Args:
            rows: data of `open_rows`.
            height: of the panorama, pixels, a multiple of 16; the width is twice that.
            flip: probability of a mirror image; True is 0.5. Captions that name left or right are
                never mirrored, they would become wrong.
            roll: "uniform" turns over the full circle in steps, "original" by W // 3 to W pixels
                as the released code (angles below 120 degrees never occur), "none" not at all.
            roll_step: pixels, for "uniform"; divides the width.
            seed: of flips and turns.

        Raises:
            ValueError: a size, step, probability or mode is not allowed.
        """
        if height < TOKEN_PX or height % TOKEN_PX:
            raise ValueError(
                f"height is {height} px, expected a multiple of {TOKEN_PX}; use "
                f"{max(TOKEN_PX, round(height / TOKEN_PX) * TOKEN_PX)}"
            )
        if roll not in ROLLS:
            raise ValueError(f"roll is {roll!r}; use one of {', '.join(ROLLS)}")
        if roll_step < 1 or (2 * height) % roll_step:
            raise ValueError(
                f"roll_step is {roll_step} px; it must divide the width {2 * height}, use "
                f"{TOKEN_PX}"
            )
        if not 0 <= flip <= 1:
            raise ValueError(f"flip is {flip}; use a probability from 0 to 1")
        self.rows = rows
        self.height = height
        self.flip = FLIP_PROBABILITY if flip is True else float(flip)
        self.roll = roll
        self.roll_step = roll_step
        self.seed = seed
        # Shared with the workers of a loader, which live longer than an epoch.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Draw other flips and turns from now on, in running workers too."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        pose = self.draw_pose(index)
        pixels = load_pixels(self.rows[index], self.height)
        if pose.is_flipped:
            pixels = pixels.flip(-1)
        return {
            "pixel_values": pixels.roll(pose.shift_px, -1),
            "caption": self.rows[index].caption,
            "supervised": self.read_supervised(index),
        }

    def may_flip(self, index: int) -> bool:
        """Whether the example is mirrored in some epochs."""
        return self.flip > 0 and not _SIDES.search(self.rows[index].caption)

    def draw_pose(self, index: int) -> Pose:
        """Flip and turn of the example in this epoch."""
        rng = np.random.default_rng([self.seed, int(self._epoch), index])
        is_flipped = bool(rng.random() < self.flip) and self.may_flip(index)
        return Pose(is_flipped, self._draw_shift(rng))

    def read_supervised(self, index: int) -> Tensor:
        """Mask (H/8, 2H/8) of the example in this epoch, mirrored and turned as its image."""
        pose = self.draw_pose(index)
        supervised = load_supervised(self.rows[index], self.height)
        if pose.is_flipped:
            supervised = supervised.flip(-1)
        return supervised.roll(round(pose.shift_px / LATENT_PX), -1)

    def _draw_shift(self, rng: np.random.Generator) -> int:
        """Pixels by which the content moves to the right (spec 5.5)."""
        width = 2 * self.height
        if self.roll == "none":
            return 0
        if self.roll == "original":
            return int(rng.integers(width // 3, width, endpoint=True))
        return int(rng.integers(width // self.roll_step)) * self.roll_step


def load_pixels(row: Row, height: int) -> Tensor:
    """The image of a row, bicubic at (3, height, 2 height), float32 in [-1, 1].

    Raises:
        FileNotFoundError: it is missing.
        ValueError: it cannot be decoded, or is not twice as wide as high.
    """
    image = row.read_image()
    if image.width != 2 * image.height:
        raise ValueError(
            f"{row.where}: image is {image.width}x{image.height}, its width must be twice its "
            "height; mend or remove it"
        )
    image = image.resize((2 * height, height), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(image)).movedim(-1, 0).float() / 127.5 - 1


def load_supervised(row: Row, height: int) -> Tensor:
    """Where a row is trained on, on the latent grid: (height / 8, 2 height / 8) bool.

    Nearest neighbour, above 128 (spec 3.3). The released code swaps width and height here (D2).
    """
    grid = (height // LATENT_PX, 2 * height // LATENT_PX)
    mask = row.read_supervised()
    if mask is None:
        return torch.ones(grid, dtype=torch.bool)
    mask = mask.resize((grid[1], grid[0]), Image.Resampling.NEAREST)
    return torch.from_numpy(np.array(mask) > SUPERVISED_ABOVE)
