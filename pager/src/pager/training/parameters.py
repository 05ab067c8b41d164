"""Which parameters are trained, and low-rank adapters (LoRA, arXiv 2106.09685) as one choice."""

from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor

from pager.model import PagerModel
from shared_pano_utils.imageio import atomic_path

LORA_WEIGHTS = "pytorch_lora_weights.safetensors"
TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
ADAPTER = "default"


def trainable_names(unet: torch.nn.Module, *, only_attention: bool, with_uv: bool) -> set[str]:
    """Names of the parameters that are trained.

    All of the UNet, or its transformer blocks (and `conv_in` for "uv"); of a UNet with LoRA, the
    adapters (and `conv_in` for "uv").
    """
    names = {name for name, _ in unet.named_parameters()}
    if has_lora(unet):
        chosen = {name for name in names if ".lora_" in name}
    elif only_attention:
        chosen = {name for name in names if "transformer_blocks" in name}
    else:
        return names
    return chosen | {name for name in names if with_uv and name.startswith("conv_in")}


def trainable_parameters(model: PagerModel, only_attention: bool) -> list[torch.nn.Parameter]:
    """Freeze all but `trainable_names` and return these parameters."""
    with_uv = model.config.unet_positional_encoding == "uv"
    names = trainable_names(model.unet, only_attention=only_attention, with_uv=with_uv)
    for name, parameter in model.unet.named_parameters():
        parameter.requires_grad_(name in names)
    return [p for p in model.unet.parameters() if p.requires_grad]


def add_lora(unet: UNet2DConditionModel, rank: int) -> None:
    """Add adapters of `rank` (scale 1) to every attention of `unet`, in place.

    The second factor starts at zero, so the network's output does not change.

    Raises:
        ImportError: peft is not installed.
    """
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise ImportError("--lora_rank needs peft: pip install 'pager[train]'") from error
    unet.add_adapter(
        LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=TARGETS)
    )


def has_lora(unet: torch.nn.Module) -> bool:
    """Whether adapters were added."""
    return any(".lora_A." in name for name, _ in unet.named_parameters())


def merged_state(unet: torch.nn.Module) -> dict[str, Tensor]:
    """State dict with the keys of the stock network and the adapters added to its weights."""
    modules: dict[str, Any] = dict(unet.named_modules())
    state = {}
    for key, value in unet.state_dict().items():
        if ".lora_" in key:
            continue
        owner, _, leaf = key.rpartition(".")
        if owner.endswith(".base_layer"):
            owner = owner.removesuffix(".base_layer")
            if leaf == "weight":
                value = value + modules[owner].get_delta_weight(ADAPTER)
        state[f"{owner}.{leaf}"] = value
    return state


def save_adapter(unet: torch.nn.Module, folder: Path) -> None:
    """Write the adapters alone, in diffusers' file layout (``load_lora_adapter`` reads it)."""
    state = {
        f"unet.{key.replace(f'.{ADAPTER}', '')}": value.detach().cpu().contiguous()
        for key, value in unet.state_dict().items()
        if ".lora_" in key
    }
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder / LORA_WEIGHTS) as path:
        save_file(state, path, metadata={"format": "pt"})
