"""Loading of weights, and a network that needs none."""

import itertools
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

RANDOM_PX = 128
RANDOM_CHANNELS = (3, 16, 32, 64)


class RandomNetwork(nn.Module):
    """A small convolutional network with random weights of a fixed seed: features (B, 64).

    Distances between its features tell sets apart, but compare with nothing outside one run.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            layers = [nn.Conv2d(a, b, 5, stride=2) for a, b in itertools.pairwise(RANDOM_CHANNELS)]
            for layer in layers:
                nn.init.kaiming_normal_(layer.weight)
        self.layers = nn.ModuleList(layers)

    def forward(self, images: Tensor) -> Tensor:
        """Features of images (B, 3, h, w) uint8, reduced or enlarged to 128 x 128."""
        x = to_size(images, (RANDOM_PX, RANDOM_PX)) / 127.5 - 1
        for layer in self.layers:
            x = layer(x).relu()
        return x.mean((-2, -1))


def to_size(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize images (B, 3, h, w) uint8 to (B, 3, *size) float32 in [0, 255], anti-aliased."""
    return functional.interpolate(images.float(), size, mode="bilinear", antialias=True)


def read_weights(path: Path, flag: str) -> dict[str, Any]:
    """Read a torch checkpoint without running code from it.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a checkpoint of tensors.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{flag} {path} does not exist")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{flag} {path} is not a file of weights ({reason})") from error


def load_strictly(network: nn.Module, state: dict[str, Tensor], path: Path, flag: str) -> None:
    """Load all weights of a network.

    Raises:
        ValueError: names or shapes differ.
    """
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{flag} {path} holds other weights: {reason}") from error
