"""Where a pipeline runs and in how much memory: device, dtype, offload, attention, compilation."""

import importlib.util
import logging
from typing import Any, Literal

import torch
from diffusers.models.attention_processor import (
    Attention,
    AttnProcessor,
    AttnProcessor2_0,
    XFormersAttnProcessor,
)

from genex_explorer.cross_attention import SingleTokenProcessor

logger = logging.getLogger(__name__)

Offload = Literal["none", "model", "sequential", "group"]
AttentionKind = Literal["sdpa", "eager", "xformers"]
OFFLOADS: tuple[Offload, ...] = ("none", "model", "sequential", "group")
ATTENTIONS: tuple[AttentionKind, ...] = ("sdpa", "eager", "xformers")


def choose_device(name: str = "auto") -> torch.device:
    """Resolve "auto" to cuda, mps or cpu; a named device that is absent is an error."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(
            f"device {name!r} is unknown; use auto, cpu, cuda, cuda:1 or mps"
        ) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {name} is not available (no CUDA driver found); use cpu")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError("device mps is not available (it needs macOS on Apple hardware); use cpu")
    return device


def place(
    pipeline: Any,
    device: torch.device,
    dtype: torch.dtype,
    *,
    offload: Offload = "none",
    compile: bool = False,
    attention: AttentionKind = "sdpa",
) -> None:
    """Move a pipeline to a device for inference, or to the CPU with hooks that fetch what runs.

    Args:
        pipeline: `StableVideoDiffusionPipeline`, on the CPU.
        device: where it runs.
        dtype: of all weights; the pipeline itself lifts a float16 VAE to float32 while it encodes.
        offload: "model", one network at a time on the device; "group", one layer at a time, the
            next one on its way; "sequential", one layer at a time, the least memory and slowest.
        compile: compile the UNet; the first call takes minutes.
        attention: of the UNet, see `set_attention`.

    Raises:
        ValueError: an unknown value, or a combination that cannot work; see `check_placement`.
    """
    _check_choice("attention", attention, ATTENTIONS)
    check_placement(device, dtype, offload=offload, compile=compile)
    set_attention(pipeline.unet, attention)
    if pipeline.unet.dtype != dtype or pipeline.vae.dtype != dtype:
        pipeline.to(dtype=dtype)
    move(pipeline, device, offload)
    if compile:
        pipeline.unet.compile()  # in place, so that class and keys stay


def move(pipeline: Any, device: torch.device, offload: Offload) -> None:
    """Put any diffusers pipeline on a device, or on the CPU with hooks that fetch what runs."""
    if offload == "none":
        pipeline.to(device)
    elif offload == "model":
        pipeline.enable_model_cpu_offload(device=device)
    elif offload == "sequential":
        pipeline.enable_sequential_cpu_offload(device=device)
    else:
        pipeline.enable_group_offload(
            device, offload_type="leaf_level", use_stream=device.type == "cuda"
        )


def check_placement(
    device: torch.device, dtype: torch.dtype, *, offload: Offload = "none", compile: bool = False
) -> None:
    """Refuse what `place` could not do, before anything is loaded.

    Raises:
        ValueError: an unknown value, or a combination that cannot work.
    """
    _check_choice("offload", offload, OFFLOADS)
    if offload != "none" and device.type == "cpu":
        raise ValueError(f"offload {offload!r} needs an accelerator, the device is cpu; use none")
    if offload == "sequential" and compile:
        raise ValueError(
            "offload 'sequential' swaps weights which compiled code holds; "
            "use offload model or group, or do not compile"
        )
    if device.type == "cpu" and dtype == torch.float16:
        raise ValueError("dtype float16 is not for the device cpu; use float32 or bfloat16")


def set_attention(unet: Any, attention: AttentionKind) -> None:
    """Choose the attention of a UNet; modules with the single-token shortcut keep it.

    Args:
        unet: any UNet made of diffusers' `Attention`.
        attention: "sdpa", torch's fused attention; "eager", which stores all scores; "xformers",
            which falls back to "sdpa" with a warning where it cannot run.
    """
    _check_choice("attention", attention, ATTENTIONS)
    if attention == "xformers" and not _has_xformers():
        logger.warning("xformers is not installed or there is no CUDA device; using sdpa instead")
        attention = "sdpa"
    processors = {
        "sdpa": AttnProcessor2_0,
        "eager": AttnProcessor,
        "xformers": XFormersAttnProcessor,
    }
    for module in unet.modules():
        if isinstance(module, Attention) and not isinstance(module.processor, SingleTokenProcessor):
            module.set_processor(processors[attention]())


def _has_xformers() -> bool:
    return importlib.util.find_spec("xformers") is not None and torch.cuda.is_available()


def _check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} {value!r} is unknown; use one of {', '.join(allowed)}")
