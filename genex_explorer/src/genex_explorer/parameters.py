"""Which parameters are trained, and low-rank adapters (LoRA) for the temporal blocks.

The original trains every parameter whose name holds `temporal_transformer_block`. Adapters are
written in the layout of peft, so that `PeftModel.from_pretrained(unet, folder)` reads them too.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate.utils.other import extract_model_from_parallel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from genex_explorer.cross_attention import idle_parameters
from shared_pano_utils.imageio import atomic_path, write_json

TEMPORAL = "temporal_transformer_block"
ADAPTER_WEIGHTS, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
ADAPTER_PREFIX = "base_model.model."
ADAPTED = re.compile(
    r".*\.temporal_transformer_blocks\.\d+\."
    r"(attn[12]\.to_(q|k|v|out\.0)|ff\.net\.(0\.proj|2))"
)


def _contains(*parts: str) -> Callable[[str], bool]:
    return lambda name: any(part in name for part in parts)


TRAINABLE: dict[str, Callable[[str], bool]] = {
    "temporal_transformer": _contains(TEMPORAL),
    "temporal_all": _contains(TEMPORAL, "temporal_res_block", "time_mixer", "time_pos_embed"),
    "temporal+io+norm": _contains(TEMPORAL, "conv_in", "conv_out", "norm"),  # as EvoWorld
    "all": lambda name: True,  # noqa: ARG005
    "lora": _contains(".lora_"),
}


def select_trainable(unet: nn.Module, name: str) -> list[tuple[str, nn.Parameter]]:
    """Freeze a UNet but for one of the subsets in `TRAINABLE`.

    Args:
        unet: `UNetSpatioTemporalConditionModel`, wrapped or not; with `add_adapter` for "lora".
        name: key of `TRAINABLE`.

    Returns:
        Names and parameters of the subset, without those that the single-token shortcut bypasses.

    Raises:
        ValueError: unknown name, or the UNet has no such parameter.
    """
    if name not in TRAINABLE:
        raise ValueError(f"trainable {name!r} is unknown; use one of {', '.join(TRAINABLE)}")
    network = _unwrap(unet)
    idle = idle_parameters(network)
    chosen = []
    for key, parameter in network.named_parameters():
        parameter.requires_grad_(TRAINABLE[name](key) and key not in idle)
        if parameter.requires_grad:
            chosen.append((key, parameter))
    if not chosen:
        raise ValueError(f"trainable {name!r} matches no parameter; add an adapter for lora")
    return chosen


def add_adapter(unet: nn.Module, rank: int, alpha: float | None = None) -> None:
    """Lay adapters, zero at first, on attention and last MLP of the temporal transformer blocks.

    Args:
        unet: not wrapped, without adapter.
        rank: of the update B A of each weight, at least 1.
        alpha: the update is scaled by alpha / rank; None means alpha = rank.

    Raises:
        ValueError: bad rank or alpha, or there is an adapter already.
        ImportError: peft is not installed.
    """
    if rank < 1 or (alpha is not None and alpha <= 0):
        raise ValueError(f"LoRA has rank {rank} and alpha {alpha}; both must be positive")
    if _adapter_settings(unet) is not None:
        raise ValueError("the UNet has an adapter already; start from the base weights")
    peft = _import_peft()
    config = peft.LoraConfig(
        r=rank, lora_alpha=rank if alpha is None else alpha, target_modules=ADAPTED.pattern
    )
    peft.inject_adapter_in_model(config, unet)


def merged_state(unet: nn.Module) -> dict[str, Tensor]:
    """Weights with the adapters merged in, under the keys of the stock UNet.

    Args:
        unet: wrapped or not, with or without adapters; it is left as it is.
    """
    network = _unwrap(unet)
    state = {
        key.replace(".base_layer.", "."): value
        for key, value in network.state_dict().items()
        if ".lora_" not in key
    }
    if _adapter_settings(network) is not None:
        for name, module in network.named_modules():
            if ADAPTED.fullmatch(name):
                delta: Tensor = module.get_delta_weight("default")  # pyright: ignore
                key = f"{name}.weight"
                state[key] = (state[key] + delta.detach()).to(state[key].dtype)
    return state


def save_adapter(unet: nn.Module, folder: str | Path) -> None:
    """Write the adapter's weights (safetensors) and settings (JSON) into a folder.

    Args:
        unet: wrapped or not, with an adapter.
        folder: made if missing; read by `load_adapter` and by peft.

    Raises:
        ValueError: there is no adapter.
    """
    network = _unwrap(unet)
    settings = _adapter_settings(network)
    if settings is None:
        raise ValueError("the UNet has no adapter to save; train it with lora")
    tensors = {
        ADAPTER_PREFIX + key.replace(".default.", "."): value.detach().contiguous()
        for key, value in network.state_dict().items()
        if ".lora_" in key
    }
    with atomic_path(Path(folder) / ADAPTER_WEIGHTS) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "r": settings.r,
        "lora_alpha": settings.lora_alpha,
        "target_modules": settings.target_modules,
    }
    write_json(Path(folder) / ADAPTER_CONFIG, config)


def load_adapter(unet: nn.Module, folder: str | Path) -> None:
    """Lay a saved adapter on its base.

    Args:
        unet: not wrapped, without adapter, of the shapes which the adapter was trained on.
        folder: written by `save_adapter`.

    Raises:
        FileNotFoundError: the folder holds no adapter.
        ValueError: the adapter belongs to another base; the UNet is left as it was.
    """
    weights, settings = Path(folder) / ADAPTER_WEIGHTS, Path(folder) / ADAPTER_CONFIG
    for path in (weights, settings):
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing; give a folder written by save_adapter")
    config = json.loads(settings.read_text(encoding="utf-8"))
    tensors = {key.removeprefix(ADAPTER_PREFIX): value for key, value in load_file(weights).items()}
    _check_shapes(tensors, _adapter_shapes(unet, config["r"]), Path(folder))
    add_adapter(unet, config["r"], config["lora_alpha"])
    parameters = dict(unet.named_parameters())
    for key, value in tensors.items():
        module, side = key.rsplit(".lora_", 1)
        parameter = parameters[f"{module}.lora_{side.replace('.', '.default.')}"]
        parameter.data.copy_(value)


def _adapter_shapes(unet: nn.Module, rank: int) -> dict[str, tuple[int, int]]:
    """Shapes of A (rank, in) and B (out, rank) of every weight that gets an adapter."""
    shapes = {}
    for name, module in unet.named_modules():
        if isinstance(module, nn.Linear) and ADAPTED.fullmatch(name):
            shapes[f"{name}.lora_A.weight"] = (rank, module.in_features)
            shapes[f"{name}.lora_B.weight"] = (module.out_features, rank)
    return shapes


def _check_shapes(
    tensors: dict[str, Tensor], expected: dict[str, tuple[int, int]], folder: Path
) -> None:
    """Refuse an adapter of another base, naming the first difference."""
    found = {key: tuple(value.shape) for key, value in tensors.items()}
    wrong = sorted(
        key for key in found.keys() | expected.keys() if found.get(key) != expected.get(key)
    )
    if wrong:
        key = wrong[0]
        raise ValueError(
            f"{folder} holds an adapter of another base: {len(wrong)} tensors differ, {key} is "
            f"{found.get(key, 'missing')}, this UNet needs {expected.get(key, 'none')}; "
            "load the base it was trained on"
        )


def _adapter_settings(network: nn.Module) -> Any:
    """Settings of the injected adapter (peft's `LoraConfig`) or None."""
    return getattr(network, "peft_config", {}).get("default")


def _unwrap(unet: nn.Module) -> nn.Module:
    """The UNet inside wrappers of DDP, DeepSpeed or torch.compile."""
    return extract_model_from_parallel(unet, keep_torch_compile=False)


def _import_peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ImportError('LoRA needs peft: pip install -e ".[train]"') from error
    return peft
