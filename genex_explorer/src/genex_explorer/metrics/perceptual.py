"""Distances of network features: LPIPS (AlexNet) and the latent MSE of Inception-v4.

Weights come from local files only; nothing is downloaded. Random weights, drawn from a seed, let
a command be tried offline: such numbers compare with nothing.
"""

import importlib
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

NOT_COMPARABLE = "random weights: not comparable with any other number"
LATENT_RESOLUTIONS = {299: "code", 500: "paper"}
# The released Inception-v4 was trained with mean and deviation 0.5; the original normalises with
# these, and published numbers rest on it.
LATENT_MEAN, LATENT_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def load_weights(path: Path, flag: str) -> dict[str, Tensor]:
    """Read a state dict from .safetensors, or from .pth without running any code in it.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a state dict.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{flag} {path} does not exist; give a state dict of your own")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{flag} {path} is not a readable state dict ({reason})") from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"{flag} {path} holds no state dict (names and tensors); export one")
    return state


def load_lpips(weights: Path | None, device: torch.device, *, seed: int = 0) -> Any:
    """LPIPS with the spatial map of the original, over an AlexNet trunk.

    Args:
        weights: torchvision's AlexNet state dict; None draws the trunk from `seed`. The linear
            heads come with the `lpips` package.
        device: where it runs.
        seed: of the random trunk.
    """
    lpips = _optional("lpips")
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        torch.manual_seed(seed)
        warnings.simplefilter("ignore")  # lpips calls torchvision by old names
        network = lpips.LPIPS(net="alex", spatial=True, pnet_rand=True, verbose=False)
    if weights is not None:
        trunk = {
            name.removeprefix("features."): value
            for name, value in load_weights(weights, "--lpips_weights").items()
            if name.startswith("features.")
        }
        # lpips cuts the layers into slices and keeps their numbers: slice2.3 is features.3.
        names = {name.split(".", 1)[1]: name for name in network.net.state_dict()}
        if set(trunk) != set(names):
            raise ValueError(
                f"--lpips_weights {weights} is not torchvision's AlexNet: expected features."
                f"{{{', '.join(sorted(names))}}}, got {len(trunk)} features.* tensors"
            )
        _load(network.net, {names[n]: v for n, v in trunk.items()}, "--lpips_weights", weights)
    return network.to(device).eval()


@torch.inference_mode()
def lpips_distance(network: Any, a: Tensor, b: Tensor) -> Tensor:
    """LPIPS of images (N, 3, H, W) in [0, 1]: (N,), the mean of the spatial map.

    Raises:
        ValueError: images too small for AlexNet.
    """
    if min(a.shape[-2:]) < 32:
        raise ValueError(
            f"LPIPS needs images of 32x32 pixels or more, these are {a.shape[-1]}x{a.shape[-2]}; "
            "use a larger --resolution"
        )
    return network(2 * a - 1, 2 * b - 1).mean((-3, -2, -1))


def load_inception(weights: Path | None, device: torch.device, *, seed: int = 0) -> nn.Module:
    """Inception-v4 of timm without its classifier: 1536 features.

    Args:
        weights: timm's state dict (.safetensors or .pth); None draws weights from `seed`.
        device: where it runs.
        seed: of the random weights.
    """
    timm = _optional("timm")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = timm.create_model("inception_v4", pretrained=False, num_classes=0)
        if weights is None:
            for module in network.modules():
                if isinstance(module, nn.Conv2d):  # timm's own draw fades to 1e-11 in the depth
                    nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    if weights is not None:
        state = load_weights(weights, "--weights")
        kept = {k: v for k, v in state.items() if not k.startswith("last_linear.")}
        _load(network, kept, "--weights", weights)
    return network.to(device).eval()


@torch.inference_mode()
def latent_features(network: nn.Module, image: np.ndarray, size: int) -> Tensor:
    """Features of an image, squashed to a square as in the original.

    Args:
        network: from `load_inception`.
        image: (H, W, 3) uint8.
        size: side of the square in pixels: 299 in the code, 500 in the paper.

    Returns:
        (1536,) float64 on the CPU.
    """
    square = Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR)
    pixels = (np.asarray(square, np.float32) / 255 - LATENT_MEAN) / LATENT_STD
    x = torch.from_numpy(pixels).float().movedim(-1, 0)[None]
    return network(x.to(next(network.parameters()).device))[0].double().cpu()


def latent_mse(network: nn.Module, a: np.ndarray, b: np.ndarray, size: int) -> float:
    """Mean squared difference of the `latent_features` of two images."""
    difference = latent_features(network, a, size) - latent_features(network, b, size)
    return float(difference.square().mean())


def _load(network: nn.Module, state: dict[str, Tensor], flag: str, path: Path) -> None:
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{flag} {path} does not fit the network ({error})") from error


def _optional(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"{name} is missing: pip install -e '.[eval]'") from error
