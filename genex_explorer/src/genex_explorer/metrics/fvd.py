"""Frechet video distance with an I3D network given as a TorchScript file.

Unterthiner et al., "Towards Accurate Generative Models of Video", 2018; the call and the
preprocessing are those of the original code (its `styleganv` variant).
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from shared_pano_utils import erp_to_perspective

INPUT_PX = 224
FEATURES = 400
FIRST_LENGTH = 10
VIEWS = {"front": 0.0, "right": 90.0, "back": 180.0, "left": -90.0}


def prefix_lengths(num_frames: int) -> list[int]:
    """Lengths T at which the distance is taken: 10 ... F as in the original, F if it is shorter."""
    return list(range(FIRST_LENGTH, num_frames + 1)) or [num_frames]


def load_i3d(path: Path, device: torch.device) -> Any:
    """Load the Kinetics-400 I3D (TorchScript).

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a TorchScript file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"--i3d_weights {path} does not exist; give i3d_torchscript.pt")
    try:
        return torch.jit.load(str(path), map_location=device).eval()
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"--i3d_weights {path} is not a TorchScript file ({reason})") from error


class RandomVideoNetwork(nn.Module):
    """A small seeded 3D network with the calling convention of the I3D, for trials offline."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.space = nn.Conv3d(3, 32, (1, 16, 16), stride=(1, 16, 16))
            self.time = nn.Conv3d(32, 64, (3, 3, 3), padding=1)
            self.head = nn.Linear(64, FEATURES)

    def forward(self, x: Tensor, *, rescale: bool, resize: bool, return_features: bool) -> Tensor:
        """Features (B, 400) of videos (B, 3, T, 224, 224) in [-1, 1]; the I3D's flags are fixed."""
        if rescale or resize or not return_features:
            raise ValueError("only rescale=False, resize=False, return_features=True is offered")
        return self.head(self.time(self.space(x).relu()).relu().mean((2, 3, 4)))


def to_network_input(frames: Tensor) -> Tensor:
    """Scale the shorter side to 224 (bilinear), crop the centre, map to [-1, 1].

    Args:
        frames: (F, 3, H, W) in [0, 1].

    Returns:
        (3, F, 224, 224).
    """
    height, width = frames.shape[-2:]
    scale = INPUT_PX / min(height, width)
    # The longer side is rounded up, so that the crop always fits.
    size = [INPUT_PX if side == min(height, width) else math.ceil(side * scale)
            for side in (height, width)]  # fmt: skip
    scaled = functional.interpolate(frames, size, mode="bilinear")
    top, left = ((side - INPUT_PX) // 2 for side in size)
    crop = scaled[..., top : top + INPUT_PX, left : left + INPUT_PX]
    return (crop * 2 - 1).movedim(0, 1)


def view_frames(frames: Tensor, yaw_deg: float) -> Tensor:
    """Look with 90 degrees from panoramas (F, 3, H, W): (F, 3, 224, 224)."""
    size = (INPUT_PX, INPUT_PX)
    return cast(Tensor, erp_to_perspective(frames, size=size, fov=90.0, yaw=yaw_deg))


@torch.inference_mode()
def clip_features(network: Any, frames: Tensor, lengths: Sequence[int]) -> dict[int, Tensor]:
    """Features of the beginnings of one clip.

    Args:
        network: I3D or `RandomVideoNetwork`.
        frames: (F, 3, H, W) in [0, 1].
        lengths: numbers of frames T of the beginnings.

    Returns:
        T -> (400,) float64 on the CPU.

    Raises:
        ValueError: the network does not take clips of this length.
    """
    video = to_network_input(frames)[None]
    features = {}
    for length in lengths:
        try:
            out = network(video[:, :, :length], rescale=False, resize=False, return_features=True)
        except torch.jit.Error as error:
            reason = str(error).strip().splitlines()[-1]
            raise ValueError(
                f"the I3D does not take clips of {length} frames ({reason}); evaluate longer "
                "clips, or leave fvd out with --metrics"
            ) from error
        features[length] = out[0].double().cpu()
    return features


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Frechet distance between Gaussians fitted to features.

    ``|mu_a - mu_b|^2 + Tr(S_a + S_b - 2 (S_a S_b)^(1/2))`` with unbiased covariances ``S = X^T X``
    of centred, scaled features ``X``. The trace of the root is the sum of the square roots of the
    eigenvalues of ``M M^T`` with ``M = X_a X_b^T``, that is of the singular values of ``M``: exact
    for few clips, where a root of the 400x400 product loses half of the digits.

    Args:
        a: (N, D), any floating dtype; worked on in float64.
        b: (M, D). With a single clip on either side only the means are compared.

    Returns:
        The squared distance, >= 0.
    """
    a, b = a.double(), b.double()
    shift = (a.mean(0) - b.mean(0)).square().sum()
    if min(len(a), len(b)) < 2:
        return float(shift)
    x, y = (_root_of_covariance(features) for features in (a, b))
    overlap = torch.linalg.svdvals(x @ y.mT).sum()
    spread = x.square().sum() + y.square().sum() - 2 * overlap
    return float(shift + spread.clamp(min=0))


def _root_of_covariance(features: Tensor) -> Tensor:
    """R (min(N, D), D) with ``R^T R`` the unbiased covariance of features (N, D)."""
    centred = (features - features.mean(0)) / math.sqrt(len(features) - 1)
    return torch.linalg.qr(centred, mode="r").R
