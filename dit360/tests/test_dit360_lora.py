"""LoRA files: strength, choice of the file, key schemes, fit to the base model, round trip."""

import json
import logging
from pathlib import Path

import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from peft import get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from dit360.lora import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    load_lora,
    lora_config,
    plain_state,
    read_lora,
    save_lora,
)

MODULE = "transformer_blocks.0.attn.to_q"


@pytest.fixture(scope="module")
def state(micro_lora: Path) -> dict[str, Tensor]:
    return load_file(micro_lora / WEIGHTS_NAME)


@pytest.fixture
def pipeline(micro_flux: Path) -> FluxPipeline:
    return FluxPipeline.from_pretrained(micro_flux)


def write(folder: Path, state: dict[str, Tensor], header: dict[str, str] | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(state, folder / WEIGHTS_NAME, metadata=header)
    return folder


def header(r: int, alpha: float) -> dict[str, str]:
    return {
        "lora_adapter_metadata": json.dumps({"transformer.r": r, "transformer.lora_alpha": alpha})
    }


# ---- strength -----------------------------------------------------------------------------------


def test_alpha_of_header_beats_config(tmp_path: Path, state: dict[str, Tensor]) -> None:
    folder = write(tmp_path, state, header(4, 3))
    (folder / CONFIG_NAME).write_text('{"r": 4, "lora_alpha": 2}')
    assert read_lora(folder).alpha == 3


def test_alpha_of_config_also_for_a_file(micro_lora: Path) -> None:
    assert read_lora(micro_lora).alpha == 2
    assert read_lora(micro_lora / WEIGHTS_NAME).alpha == 2


def test_alpha_unknown_is_rank_with_a_note(
    tmp_path: Path, state: dict[str, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "dit360"):
        weights = read_lora(write(tmp_path, state))
    assert (weights.rank, weights.alpha) == (4, 4)
    assert "using alpha = rank = 4" in caplog.text


def test_config_of_other_tensors_is_ignored_with_a_warning(
    tmp_path: Path, state: dict[str, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    """The original extractor falls back to r = alpha = 4 whatever the tensors are."""
    cut = {k: (v[:2] if "lora_A" in k else v[:, :2]).contiguous() for k, v in state.items()}
    folder = write(tmp_path, cut)
    (folder / CONFIG_NAME).write_text('{"r": 4, "lora_alpha": 4}')
    assert read_lora(folder).alpha == 2
    assert "states rank 4, the tensors have 2" in caplog.text


@pytest.mark.parametrize("scale", [1.0, 0.5, -2.0])
def test_weights_move_by_alpha_over_rank_times_scale(
    pipeline: FluxPipeline, micro_lora: Path, state: dict[str, Tensor], scale: float
) -> None:
    before = pipeline.transformer.get_submodule(MODULE).weight.detach().clone()
    load_lora(pipeline, micro_lora, scale)
    pipeline.transformer.fuse_lora()
    pipeline.transformer.unload_lora()
    a, b = (state[f"transformer.{MODULE}.lora_{side}.weight"].double() for side in "AB")
    expected = before.double() + scale * (2 / 4) * (b @ a)
    after = pipeline.transformer.get_submodule(MODULE).weight.double()
    torch.testing.assert_close(after, expected, atol=1e-6, rtol=0)  # float32 products of rank 4


def test_text_projections_of_double_blocks_stay(pipeline: FluxPipeline, micro_lora: Path) -> None:
    load_lora(pipeline, micro_lora)
    adapted = {n for n, m in pipeline.transformer.named_modules() if hasattr(m, "lora_A")}
    assert len(adapted) == 17
    assert not any("add_" in name for name in adapted)


@pytest.mark.parametrize("option", ["use_rslora", "use_dora", "rank_pattern"])
def test_other_scalings_are_refused(tmp_path: Path, state: dict[str, Tensor], option: str) -> None:
    folder = write(tmp_path, state)
    (folder / CONFIG_NAME).write_text(json.dumps({"r": 4, "lora_alpha": 2, option: {"x": 1}}))
    with pytest.raises(ValueError, match=f"asks for {option}"):
        read_lora(folder)


# ---- choice of the file -------------------------------------------------------------------------


def test_adapter_model_is_taken_among_several(tmp_path: Path, state: dict[str, Tensor]) -> None:
    folder = write(tmp_path, state)
    save_file({"a": torch.zeros(1)}, folder / "aaa.safetensors")
    assert len(read_lora(folder).state) == 34


def test_other_names_are_taken_when_alone(tmp_path: Path, state: dict[str, Tensor]) -> None:
    save_file(state, tmp_path / "mine.safetensors")
    assert read_lora(tmp_path).rank == 4
    save_file(state, tmp_path / "other.safetensors")
    with pytest.raises(FileNotFoundError, match=r"mine.safetensors, other.safetensors; expected"):
        read_lora(tmp_path)


def test_missing_sources_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no safetensors file; expected adapter_model"):
        read_lora(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"\./nowhere does not exist"):
        read_lora("./nowhere")
    with pytest.raises(FileNotFoundError, match="hf download nobody/nothing"):
        read_lora("nobody/nothing")
    with pytest.raises(FileNotFoundError, match="neither a folder nor a hub id"):
        read_lora("a/b/c")


def test_damaged_file(tmp_path: Path, micro_lora: Path) -> None:
    data = (micro_lora / WEIGHTS_NAME).read_bytes()
    (tmp_path / WEIGHTS_NAME).write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        read_lora(tmp_path)


# ---- key schemes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key",
    [
        "base_model.model.transformer_blocks.0.attn.to_q.lora_A.weight",  # peft
        "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight",  # kohya
        "double_blocks.0.processor.qkv_lora1.down.weight",  # x-labs
        "transformer.transformer_blocks.0.attn.to_q.alpha",
        "transformer.transformer_blocks.0.attn.to_q.lora_magnitude_vector",  # DoRA
    ],
)
def test_schemes_that_diffusers_would_guess_are_refused(
    tmp_path: Path, state: dict[str, Tensor], key: str
) -> None:
    with pytest.raises(ValueError, match=r"has the key '.*'; expected transformer\.<module>"):
        read_lora(write(tmp_path, state | {key: torch.zeros(4, 64)}))


def test_half_a_pair_and_mixed_ranks_are_refused(tmp_path: Path, state: dict[str, Tensor]) -> None:
    key = f"transformer.{MODULE}.lora_A.weight"
    with pytest.raises(ValueError, match=f"damaged: {MODULE} lacks"):
        read_lora(write(tmp_path, {k: v for k, v in state.items() if k != key}))
    with pytest.raises(ValueError, match=r"mixes the ranks \[2, 4\]"):
        read_lora(write(tmp_path, state | {key: torch.zeros(2, 64)}))
    with pytest.raises(ValueError, match="damaged: no key"):
        read_lora(write(tmp_path, {}))


# ---- another base model -------------------------------------------------------------------------


def test_first_missing_module_is_named(
    tmp_path: Path, pipeline: FluxPipeline, state: dict[str, Tensor]
) -> None:
    moved = {k.replace("_blocks.1.", "_blocks.7."): v for k, v in state.items()}
    with pytest.raises(ValueError, match=r"has no single_transformer_blocks\.7\.attn\.to_k"):
        load_lora(pipeline, write(tmp_path, moved))
    assert not hasattr(pipeline.transformer, "peft_config")


def test_first_other_size_is_named(
    tmp_path: Path, pipeline: FluxPipeline, state: dict[str, Tensor]
) -> None:
    wide = state | {
        f"transformer.{MODULE}.lora_A.weight": torch.zeros(4, 3072),
        f"transformer.{MODULE}.lora_B.weight": torch.zeros(3072, 4),
    }
    message = r"transformer_blocks\.0\.attn\.to_q maps 64 -> 64 numbers there, 3072 -> 3072 in"
    with pytest.raises(ValueError, match=message):
        load_lora(pipeline, write(tmp_path, wide))


# ---- saving -------------------------------------------------------------------------------------


def test_round_trip_from_an_adapter(tmp_path: Path, micro_flux: Path) -> None:
    transformer = FluxTransformer2DModel.from_pretrained(micro_flux, subfolder="transformer")
    config = lora_config(3, 6, 0.05, True)
    transformer.add_adapter(config)
    save_lora(tmp_path, transformer.state_dict(), config, {"padding_n": 2})
    weights = read_lora(tmp_path)
    assert (weights.rank, weights.alpha, weights.padding_n) == (3, 6, 2)
    for key, tensor in get_peft_model_state_dict(transformer).items():
        assert torch.equal(weights.state[f"transformer.{key}"], tensor)
    assert json.loads((tmp_path / CONFIG_NAME).read_text())["lora_alpha"] == 6
    assert {p.name for p in tmp_path.iterdir()} == {WEIGHTS_NAME, CONFIG_NAME}


def test_files_without_extra_do_not_know_the_padding(micro_lora: Path) -> None:
    assert read_lora(micro_lora).padding_n is None


def test_plain_state_takes_all_spellings() -> None:
    names = [
        "flux_transformer.blocks.0.attn.to_q.lora_A.default.weight",
        "flux_transformer.blocks.0.attn.to_q.lora_B.default.weight",
        "flux_transformer.blocks.0.attn.to_q.base_layer.weight",
        "vae.decoder.lora_A.weight",
    ]
    found = plain_state({name: torch.zeros(1) for name in names}, "flux_transformer.")
    prefix = "transformer.blocks.0.attn.to_q"
    assert list(found) == [f"{prefix}.lora_A.weight", f"{prefix}.lora_B.weight"]
    assert plain_state(found).keys() == found.keys()


def test_saving_refuses_what_does_not_fit(tmp_path: Path, state: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match="have rank 4, the configuration says 8"):
        save_lora(tmp_path, state, lora_config(8, 8, 0, False), {})
    with pytest.raises(ValueError, match="no key"):
        save_lora(tmp_path, {"x.weight": torch.zeros(1)}, lora_config(8, 8, 0, False), {})
    assert not list(tmp_path.iterdir())


def test_configuration_refuses_what_a_file_cannot_hold() -> None:
    with pytest.raises(ValueError, match="LoRA bias is 'all'"):
        lora_config(4, 4, 0, False, bias="all")
    with pytest.raises(ValueError, match="rank is 0"):
        lora_config(0, 4, 0, False)


def test_header_is_that_of_diffusers(tmp_path: Path, state: dict[str, Tensor]) -> None:
    save_lora(tmp_path, state, lora_config(4, 2, 0.0, False), {})
    with safe_open(tmp_path / WEIGHTS_NAME, "pt") as file:
        metadata = json.loads(file.metadata()["lora_adapter_metadata"])
    assert metadata["transformer.r"] == 4
    assert metadata["transformer.lora_alpha"] == 2
