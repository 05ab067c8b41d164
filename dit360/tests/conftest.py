"""A small random FLUX and a LoRA for it, shared by the tests."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import json
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def micro_flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a complete random FLUX pipeline: 2 double and 3 single blocks, 2 heads of 32."""
    from dit360.tiny import micro_pipeline

    folder = tmp_path_factory.mktemp("flux")
    micro_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def micro_lora(tmp_path_factory: pytest.TempPathFactory, micro_flux: Path) -> Path:
    """A LoRA of rank 4 and alpha 2 with random A and B, in the layout of the official files."""
    import safetensors.torch
    from diffusers import FluxTransformer2DModel
    from peft import LoraConfig, get_peft_model_state_dict

    folder = tmp_path_factory.mktemp("lora")
    transformer = FluxTransformer2DModel.from_pretrained(micro_flux, subfolder="transformer")
    targets = ["attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"]
    config = LoraConfig(r=4, lora_alpha=2, target_modules=targets)
    transformer.add_adapter(config)
    generator = torch.Generator().manual_seed(0)
    state = {
        f"transformer.{key}": 0.2 * torch.randn(value.shape, generator=generator)
        for key, value in get_peft_model_state_dict(transformer).items()
    }
    safetensors.torch.save_file(state, folder / "adapter_model.safetensors")
    shown = {"r": 4, "lora_alpha": 2, "target_modules": targets, "peft_type": "LORA"}
    (folder / "adapter_config.json").write_text(json.dumps(shown))
    return folder
