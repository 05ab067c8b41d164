"""Features of FAED: the encoder of the panorama auto-encoder published with PanFusion.

Only the architecture is here; the weights file (`faed.ckpt`) is the user's. The encoder wraps
around at +-180 degrees and pads the poles with zeros.
"""

import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from dit360.metrics.networks import load_strictly, read_weights, to_size

FLAG = "--faed_weights"
PREFIX = "net.encoder."
STRIDE = 32
CHANNELS = (32, 64, 128, 128, 128, 128)
RESIDUAL_KERNELS = (9, 7, 5, 3, 3)
FIRST_KERNEL, DOWN_KERNEL, LAST_KERNEL = 9, 4, 3


class WrapConv(nn.Module):
    """Convolution that wraps around along the width and sees zeros beyond the poles."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.pad = (kernel - stride) // 2
        self.conv2d = nn.Conv2d(inputs, outputs, kernel, stride, padding=(self.pad, 0))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C', h / stride, w / stride)."""
        return self.conv2d(functional.pad(x, (self.pad, self.pad, 0, 0), mode="circular"))


class Residual(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.conv1 = WrapConv(channels, channels, kernel)
        self.batchnorm1 = nn.BatchNorm2d(channels)
        self.conv2 = WrapConv(channels, channels, kernel)
        self.batchnorm2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        return x + self.batchnorm2(self.conv2(self.batchnorm1(self.conv1(x)).relu()))


class Down(nn.Module):
    """Halves both sides."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = WrapConv(inputs, outputs, DOWN_KERNEL, stride=2)
        self.batchnorm1 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C', h / 2, w / 2)."""
        return self.batchnorm1(self.conv1(x)).relu()


class FaedEncoder(nn.Module):
    """Five halvings with residual blocks before each: (B, 3, H, W) -> (B, 128, H / 32, W / 32)."""

    def __init__(self) -> None:
        super().__init__()
        steps: dict[str, nn.Module] = {"downconv1_rgb": WrapConv(3, CHANNELS[0], FIRST_KERNEL)}
        for level, kernel in enumerate(RESIDUAL_KERNELS, start=1):
            inputs, outputs = CHANNELS[level - 1 : level + 1]
            steps[f"downres{level}_rgb"] = Residual(inputs, kernel)
            steps[f"downconv{level + 1}_rgb"] = Down(inputs, outputs)
        steps["fuse"] = WrapConv(CHANNELS[-1], CHANNELS[-1], LAST_KERNEL)
        for name, module in steps.items():  # the names of the published checkpoint
            self.add_module(name, module)

    def forward(self, erp: Tensor) -> Tensor:
        """Feature map of panoramas in [-1, 1]."""
        for module in self.children():
            erp = module(erp)
        return erp


class FaedNetwork(nn.Module):
    """Features of panoramas, (B, 4 * height): means over longitude, weighted by cos(latitude).

    Args:
        height: at which panoramas are encoded, a multiple of 32.
    """

    def __init__(self, height: int) -> None:
        super().__init__()
        if height < STRIDE or height % STRIDE:
            raise ValueError(f"--faed_height is {height}; use a multiple of {STRIDE}, such as 512")
        self.height = height
        self.encoder = FaedEncoder()

    def forward(self, images: Tensor) -> Tensor:
        """Features of (B, 3, h, w) uint8."""
        erp = to_size(images, (self.height, 2 * self.height)) / 127.5 - 1
        rows = self.encoder(erp).mean(-1)  # [b, 128, height / 32]
        latitude = torch.linspace(math.pi / 2, -math.pi / 2, rows.shape[-1], device=rows.device)
        return (rows * latitude.cos()).flatten(1)


def load_faed(weights: Path, height: int) -> FaedNetwork:
    """The network with weights from a Lightning checkpoint (``net.encoder.*``).

    Raises:
        FileNotFoundError: no such file.
        ValueError: it holds something else.
    """
    network = FaedNetwork(height)
    checkpoint = read_weights(weights, FLAG)
    state = {
        key.removeprefix(PREFIX): value
        for key, value in checkpoint.get("state_dict", checkpoint).items()
        if key.startswith(PREFIX)
    }
    load_strictly(network.encoder, state, weights, FLAG)
    return network.eval()
