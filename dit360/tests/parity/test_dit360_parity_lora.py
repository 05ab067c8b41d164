"""LoRA numbers of the original: sizes, modules, keys, and the strength that it loses."""

from pathlib import Path

import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from peft import get_peft_model_state_dict
from safetensors import safe_open

from dit360.lora import load_lora, lora_config, save_lora
from dit360.training.extract import extract_lora


def adapt(transformer: FluxTransformer2DModel, rank: int) -> dict[str, torch.Tensor]:
    transformer.add_adapter(lora_config(rank, rank, 0.05, False))
    return get_peft_model_state_dict(transformer)


@pytest.mark.parametrize(("rank", "parameters"), [(64, 74_711_040), (256, 298_844_160)])
def test_p2_p3_released_sizes_and_modules(rank: int, parameters: int) -> None:
    with torch.device("meta"):
        state = adapt(FluxTransformer2DModel(guidance_embeds=True), rank)
    assert len(state) == 380
    assert sum(t.numel() for t in state.values()) == parameters
    modules = {key.split(".lora_")[0] for key in state}
    assert sum(m.startswith("transformer_blocks.") for m in modules) == 76
    assert sum(m.startswith("single_transformer_blocks.") for m in modules) == 114


def test_p4_small_model(micro_flux: Path) -> None:
    model = FluxTransformer2DModel.from_pretrained(micro_flux, subfolder="transformer")
    assert len(adapt(model, 4)) == 34 == 2 * (2 * 4 + 3 * 3)


def test_p5_keys_after_extraction(tmp_path: Path, micro_flux: Path) -> None:
    model = FluxTransformer2DModel.from_pretrained(micro_flux, subfolder="transformer")
    model.add_adapter(lora_config(4, 2, 0.0, False))
    module = {f"flux_transformer.{k}": v.half() for k, v in model.state_dict().items()}
    torch.save({"module": module}, tmp_path / "mp_rank_00_model_states.pt")
    done = extract_lora(tmp_path / "mp_rank_00_model_states.pt", tmp_path / "out", alpha=2)
    with safe_open(done.path, "pt") as file:
        keys = sorted(file.keys())
        assert file.get_tensor(keys[0]).dtype == torch.float16
    assert keys[:2] == [
        "transformer.single_transformer_blocks.0.attn.to_k.lora_A.weight",
        "transformer.single_transformer_blocks.0.attn.to_k.lora_B.weight",
    ]
    assert len(keys) == 34


def test_p24_strength_survives_ours_and_not_the_original(
    tmp_path: Path, micro_flux: Path, micro_lora: Path
) -> None:
    def scaling(pipeline: FluxPipeline) -> float:
        layer = pipeline.transformer.get_submodule("transformer_blocks.0.attn.to_q")
        (scale,) = layer.scaling.values()
        return scale

    pipelines = [FluxPipeline.from_pretrained(micro_flux) for _ in range(3)]
    name = {"weight_name": "adapter_model.safetensors"}
    pipelines[0].load_lora_weights(str(micro_lora), **name)  # as the original does
    assert scaling(pipelines[0]) == 1.0
    state = load_lora(pipelines[1], micro_lora).state
    assert scaling(pipelines[1]) == 0.5
    save_lora(tmp_path, state, lora_config(4, 2, 0.0, False), {"padding_n": 1})
    pipelines[2].load_lora_weights(str(tmp_path), **name)  # stock diffusers reads our header
    assert scaling(pipelines[2]) == 0.5
