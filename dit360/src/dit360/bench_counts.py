"""What the released model takes, counted from its configuration and not measured."""

from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from dit360.editing.schedule import noise_levels, plan_steps
from dit360.editing.settings import EditSettings
from dit360.lora import lora_config
from dit360.memory import MemoryMode, estimate
from dit360.tiny import flux_scheduler

GB = 1e9
RANK = 64  # of the training script
EDIT_TOKENS = 64 * 128  # of 1024 x 2048, without padding
MODES: tuple[tuple[str, MemoryMode, bool], ...] = (  # name, mode, precomputed modulation
    ("full", "full", False),
    ("full --precompute_modulation", "full", True),
    ("balanced", "balanced", True),
    ("low", "low", True),
    ("int8", "int8", False),
    ("int8 --precompute_modulation", "int8", True),
    ("4bit", "4bit", False),
)


def released_parts() -> dict[str, nn.Module]:
    """The parts of FLUX.1-dev by their published configurations, on the meta device."""
    clip = CLIPTextConfig(
        hidden_size=768, intermediate_size=3072, num_attention_heads=12, num_hidden_layers=12,
        projection_dim=768,
    )  # fmt: skip
    t5 = T5Config(
        d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    levels: Any = {  # diffusers annotates tuples of length one
        "block_out_channels": (128, 256, 512, 512),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
    }
    with torch.device("meta"):
        return {
            "transformer": FluxTransformer2DModel(guidance_embeds=True),
            "vae": AutoencoderKL(
                layers_per_block=2, latent_channels=16, use_quant_conv=False,
                use_post_quant_conv=False, **levels,
            ),
            "text_encoder": CLIPTextModel(clip),
            "text_encoder_2": T5EncoderModel(t5),
        }  # fmt: skip


def count_tables() -> list[dict[str, Any]]:
    """Parameters, memory by mode, and network evaluations of an edit, as tables of a report."""
    parts = released_parts()
    title = "Counted, not measured, for FLUX.1-dev: "
    return [
        {"title": f"{title}memory at 1024x2048, bfloat16, by --memory", "rows": count_modes(parts)},
        {"title": f"{title}edits of 50 steps by --tau", "rows": count_edits()},
        {"title": f"{title}parameters", "rows": count_parameters(parts)},
    ]


def count_modes(parts: dict[str, nn.Module]) -> list[dict[str, Any]]:
    """Weights and the estimated peak on a GPU; `parts` as of `released_parts`."""
    rows = []
    for name, mode, planned in MODES:
        found = estimate(parts, mode, torch.bfloat16, planned=planned, cpu=False)
        sizes = {"device_gb": found.device, "host_gb": found.host, "peak_gb": found.peak}
        rows.append({"name": name} | {key: size / GB for key, size in sizes.items()})
    return rows


def count_edits() -> list[dict[str, Any]]:
    """Panoramas that the network sees; the original has 50 of the inversion and 50 times 2."""
    rows = []
    for tau in (20.0, 50.0, 80.0, 98.0):
        settings = EditSettings(prompt="", tau=tau)
        count = settings.num_inference_steps
        steps = plan_steps(noise_levels(flux_scheduler(), count, EDIT_TOKENS), settings)
        rows.append(
            {
                "name": f"{tau:g}" + (" (default)" if tau == EditSettings.tau else ""),
                "injected": sum(step.injects for step in steps),
                "fast": sum(1 + step.runs_source for step in steps),
                "original": 3 * count,
            }
        )
    return rows


def count_parameters(parts: dict[str, nn.Module]) -> list[dict[str, Any]]:
    """Every part, and the LoRA of the training script; gives `parts` that adapter."""
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    transformer: Any = parts["transformer"]
    transformer.add_adapter(lora_config(RANK, RANK, 0.0, False))
    name = f"LoRA of rank {RANK}"
    counts[name] = sum(p.numel() for key, p in transformer.named_parameters() if ".lora_" in key)
    return [
        {"name": name, "parameters": count, "bytes_gb": 2 * count / GB}
        for name, count in counts.items()
    ]
