"""From flags to a pipeline: defaults, order of the steps, errors in one line."""

import argparse
import enum
import json
import logging
import shutil
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from diffusers import FluxPipeline
from huggingface_hub.utils import http_backoff
from torch import Tensor

from dit360 import notices
from dit360.embedded import TINY_LORA, TINY_MODEL
from dit360.loading import LORA, MODEL, LoadOptions, add_load_flags, load_options, open_pipeline
from dit360.lora import load_lora, lora_config, read_lora, save_lora
from dit360.modulation import PlannedModulation
from dit360.pipeline import DiT360Pipeline
from dit360.textcache import TextCache
from dit360.vae import is_circular


def parse(*argv: str) -> LoadOptions:
    parser = argparse.ArgumentParser()
    add_load_flags(parser)
    return load_options(parser.parse_args(argv))


@pytest.fixture(scope="module")
def load(micro_flux: Path, micro_lora: Path) -> Any:
    def load(**options: Any) -> Any:
        chosen = {"model": str(micro_flux), "lora": str(micro_lora), "device": "cpu"} | options
        pipeline = open_pipeline(LoadOptions(**chosen))
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return load


def generate(pipeline: Any) -> Tensor:
    """Packed latents (1, 32, 64)."""
    return pipeline(
        "a room", height=64, num_inference_steps=2, guidance_scale=2.8, output_type="latent",
        max_sequence_length=16, generator=torch.Generator().manual_seed(0),
    ).images  # fmt: skip


@pytest.fixture(scope="module")
def expected(load: Any) -> Tensor:
    return generate(load())


# ---- flags --------------------------------------------------------------------------------------


def test_defaults_are_those_of_the_original() -> None:
    options = parse()
    assert (options.model, options.lora) == (MODEL, LORA)
    assert options == LoadOptions()
    assert (options.padding_n, options.pad_ids, options.dtype) == (1, "source", "auto")


def test_tiny_takes_the_embedded_files_unless_others_are_named() -> None:
    options = parse("--tiny")
    assert (options.model, options.lora) == (str(TINY_MODEL), str(TINY_LORA))
    options = parse("--tiny", "--lora", "lora_output")
    assert (options.model, options.lora) == (str(TINY_MODEL), "lora_output")
    assert parse("--lora", "none").lora is None


def test_every_option_has_a_flag() -> None:
    changed = parse(
        "--pretrained_model_name_or_path", "m", "--lora", "l", "--lora_scale", "0.5",
        "--dtype", "bf16", "--device", "cpu", "--memory", "low", "--precompute_modulation",
        "--vae_wrap", "none", "--padding_n", "2", "--pad_ids", "extended", "--tile_columns", "8",
        "--attention", "native", "--compile", "--cache", "first_block", "--cache_threshold", "0.1",
        "--text_cache", "t", "--token", "x", "--revision", "r", "--variant", "v",
    )  # fmt: skip
    default = LoadOptions()
    for field in fields(LoadOptions):
        assert getattr(changed, field.name) != getattr(default, field.name), field.name


# ---- what is loaded -----------------------------------------------------------------------------


def test_strength_of_the_lora(load: Any, micro_flux: Path, micro_lora: Path) -> None:
    layer = "transformer_blocks.0.attn.to_q"
    base = FluxPipeline.from_pretrained(micro_flux).transformer.get_submodule(layer).weight
    state = read_lora(micro_lora).state
    update = (
        state[f"transformer.{layer}.lora_B.weight"] @ state[f"transformer.{layer}.lora_A.weight"]
    )
    for options, scale in (({}, 0.5), ({"lora_scale": 2}, 1.0), ({"lora": None}, 0.0)):
        module = load(**options).transformer.get_submodule(layer)
        assert type(module) is torch.nn.Linear  # no adapter is left
        torch.testing.assert_close(module.weight, base + scale * update, atol=1e-6, rtol=0)


def test_fused_is_what_an_active_adapter_gives(
    expected: Tensor, micro_flux: Path, micro_lora: Path
) -> None:
    pipeline = DiT360Pipeline.from_pretrained(micro_flux)
    pipeline.set_progress_bar_config(disable=True)
    load_lora(pipeline, micro_lora)
    torch.testing.assert_close(generate(pipeline), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        ({"precompute_modulation": True}, 1e-5),
        ({"attention": "_native_math"}, 1e-5),
        ({"cache": "first_block", "cache_threshold": 1e-9}, 1e-5),
        ({"memory": "low"}, 0.1),  # float8 storage; latents are about 3
        ({"memory": "int8"}, 0.03),  # 8 bits instead of the 4 of float8, of T5 too
        ({"memory": "int8", "precompute_modulation": True}, 0.03),
        ({"memory": "int8", "cache": "first_block", "cache_threshold": 1e-9}, 0.03),
        ({"dtype": "bf16"}, 0.3),
    ],
)
def test_memory_and_speed_options_keep_the_result(
    load: Any, expected: Tensor, options: dict[str, Any], tolerance: float
) -> None:
    result = generate(load(**options)).float()
    torch.testing.assert_close(result, expected, atol=tolerance, rtol=0)


def test_cache_skips_steps(load: Any, expected: Tensor) -> None:
    result = generate(load(cache="first_block", cache_threshold=10.0))
    assert (result - expected).abs().max() > 1e-3


def test_low_memory_stores_8_bits_and_plans_the_modulation(load: Any) -> None:
    block = load(memory="low").transformer.transformer_blocks[0]
    assert block.attn.to_q.weight.dtype == torch.float8_e4m3fn
    assert isinstance(block.norm1.linear, PlannedModulation)
    block = load(memory="low", precompute_modulation=False).transformer.transformer_blocks[0]
    assert type(block.norm1.linear) is torch.nn.Linear


def test_int8_rounds_base_and_lora_together(load: Any, micro_flux: Path, micro_lora: Path) -> None:
    layer = "transformer_blocks.0.attn.to_q"
    base = FluxPipeline.from_pretrained(micro_flux).transformer.get_submodule(layer).weight
    state = read_lora(micro_lora).state
    update = (
        state[f"transformer.{layer}.lora_B.weight"] @ state[f"transformer.{layer}.lora_A.weight"]
    )
    whole = (base + 0.5 * update).detach()  # alpha / rank = 0.5
    found = load(memory="int8").transformer.get_submodule(layer)
    assert type(found) is torch.nn.Linear  # no adapter is left
    steps = whole.abs().amax(1, keepdim=True) / 127.5
    torch.testing.assert_close(found.weight.scale, steps, rtol=1e-5, atol=0)
    # The nearest step; up to a whole one if both had been rounded before they were added.
    assert (found.weight.qdata - whole / steps).abs().max() < 0.501
    block = load(memory="int8", precompute_modulation=True).transformer.transformer_blocks[0]
    assert isinstance(block.norm1.linear, PlannedModulation)
    assert type(block.norm1.linear.layer.weight) is torch.nn.Parameter  # not rounded


def test_int8_layers_can_be_compiled(load: Any) -> None:
    """Traced whole, which a quantised tensor could prevent."""
    layers = load(memory="int8").transformer.transformer_blocks[0].ff
    x = torch.randn(1, 3, 64)
    compiled = torch.compile(layers, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), layers(x), atol=1e-6, rtol=0)


def test_panorama_options_arrive(load: Any) -> None:
    pipeline = load(padding_n=2, pad_ids="extended", vae_wrap="none", tile_columns=8)
    assert (pipeline.padding_n, pipeline.pad_ids, pipeline.tile_columns) == (2, "extended", 8)
    assert not is_circular(pipeline.vae)
    assert is_circular(load().vae)


def test_other_pipeline_classes(micro_flux: Path) -> None:
    options = LoadOptions(model=str(micro_flux), lora=None, device="cpu")
    pipeline = open_pipeline(options, pipeline_class=FluxPipeline)
    assert type(pipeline) is FluxPipeline
    assert is_circular(pipeline.vae)


def test_compile_marks_the_repeated_blocks(load: Any) -> None:
    transformer = load(compile=True).transformer
    assert transformer.transformer_blocks[0]._compiled_call_impl is not None
    assert transformer._compiled_call_impl is None


def test_text_cache_replaces_the_encoders(
    tmp_path: Path, load: Any, expected: Tensor, micro_flux: Path
) -> None:
    cache = TextCache(tmp_path, str(micro_flux), max_length=16, dtype=torch.float32)
    cache.encode_all(load(), ["a room"])
    pipeline = load(text_cache=tmp_path)
    assert pipeline.text_encoder_2 is None
    torch.testing.assert_close(generate(pipeline), expected, atol=1e-5, rtol=0)
    embeds, pooled, ids = pipeline.encode_prompt(
        ["a room"], None, num_images_per_prompt=3, max_sequence_length=16
    )
    assert (embeds.shape, pooled.shape, ids.shape) == ((3, 16, 32), (3, 32), (16, 3))
    with pytest.raises(ValueError, match=r"'a hill' is not in .*; run cache_embeddings.py"):
        pipeline.encode_prompt("a hill", None, max_sequence_length=16)


def test_what_comes_before_the_weights_are_loaded(
    micro_flux: Path, micro_lora: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: Any) -> None:
        raise EOFError("the base is loaded now")

    monkeypatch.setattr("dit360.loading._load", load)
    lines: list[str] = []
    options = LoadOptions(model=str(micro_flux), lora=str(micro_lora), device="cpu")
    with pytest.raises(EOFError):
        open_pipeline(options, report=lines.append)
    (line,) = lines
    assert line.startswith("memory full: weights 2.")
    assert "MB in main memory" in line
    with pytest.raises(FileNotFoundError, match="missing"):
        open_pipeline(replace(options, lora="./missing"))


def test_other_padding_than_the_training_is_warned_of(
    tmp_path: Path, load: Any, micro_lora: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = lora_config(4, 2, 0.0, False)
    save_lora(tmp_path, read_lora(micro_lora).state, config, {"padding_n": 1})
    with caplog.at_level(logging.WARNING, "dit360"):
        load(lora=str(tmp_path))
        assert not caplog.text
        load(lora=str(tmp_path), padding_n=0)
    assert "was trained with --padding_n 1, this is 0" in caplog.text
    save_lora(tmp_path, read_lora(micro_lora).state, config, {"pad_ids": "extended"})
    with caplog.at_level(logging.WARNING, "dit360"):
        load(lora=str(tmp_path))
    assert "was trained with --pad_ids extended, this is source" in caplog.text


# ---- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory": "4bit"}, "--memory 4bit needs a CUDA device"),
        ({"attention": "fast"}, r"--attention fast is unknown; use one of .*native"),
        ({"attention": "sage"}, "--attention sage needs a CUDA device"),
        ({"padding_n": -1}, "--padding_n is -1"),
        ({"tile_columns": 2}, "--tile_columns is 2; use 4 or more"),
        ({"cache_threshold": 0.0}, "--cache_threshold is 0.0"),
        ({"dtype": "fp16"}, "fp16 is not for the CPU"),
    ],
)
def test_options_that_cannot_run(load: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(**options)


def test_models_that_are_not_here(load: Any, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"hf auth login.*hf download nobody/nothing"):
        load(model="nobody/nothing")
    with pytest.raises(FileNotFoundError, match=r"model folder \./nowhere does not exist"):
        load(model="./nowhere")
    with pytest.raises(FileNotFoundError, match=r"has no transformer/config\.json"):
        load(model=str(tmp_path))


def test_incomplete_model(load: Any, tmp_path: Path, micro_flux: Path) -> None:
    folder = shutil.copytree(micro_flux, tmp_path / "model")
    next((folder / "transformer").glob("*.safetensors")).unlink()
    with pytest.raises(
        FileNotFoundError, match=r"model folder .* is incomplete: .*diffusion_pytorch_model"
    ):
        load(model=str(folder))


def test_other_architectures(load: Any, tmp_path: Path, micro_flux: Path) -> None:
    folder = shutil.copytree(micro_flux, tmp_path / "model")
    path = folder / "transformer" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"_class_name": "SD3Transformer2DModel"}))
    with pytest.raises(
        ValueError, match=r"is a SD3Transformer2DModel, DiT360 needs a FLUX\.1 model"
    ):
        load(model=str(folder))
    path.write_text(json.dumps(config | {"in_channels": 384}))
    with pytest.raises(ValueError, match=r"takes 384 channels, DiT360Pipeline needs 64"):
        load(model=str(folder))


def test_weights_of_other_sizes(load: Any, tmp_path: Path, micro_flux: Path) -> None:
    folder = shutil.copytree(micro_flux, tmp_path / "model")
    path = folder / "transformer" / "config.json"
    config = json.loads(path.read_text()) | {"joint_attention_dim": 48}
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="cannot be loaded as DiT360Pipeline"):
        load(model=str(folder))


# ---- notices ------------------------------------------------------------------------------------


@pytest.fixture
def said() -> Any:
    """Lines that a named logger passes on to its handlers."""
    added: list[tuple[logging.Logger, logging.Handler]] = []

    def listen(name: str) -> list[str]:
        lines: list[str] = []
        handler = logging.Handler()
        handler.emit = lambda record: lines.append(record.getMessage())
        logging.getLogger(name).addHandler(handler)
        added.append((logging.getLogger(name), handler))
        return lines

    yield listen
    for logger, handler in added:
        logger.removeHandler(handler)


def test_notices_at_import_are_held_back_and_nothing_else(said: Any) -> None:
    from diffusers.quantizers.torchao import torchao_quantizer
    from torch.utils import _pytree

    class Color(enum.StrEnum):
        RED = "red"

    lines = {name: said(name) for name in notices.AT_IMPORT}
    _pytree.register_constant(Color)
    torchao_quantizer._update_torch_safe_globals()
    logging.getLogger("bitsandbytes.backends.cpu.ops").warning(
        "Failed to load CPU gemm_4bit_forward from kernels-community: No module named 'kernels'"
    )
    assert not any(lines.values())
    for name in notices.AT_IMPORT:
        logging.getLogger(name).warning("something else")
    assert all(found == ["something else"] for found in lines.values())


def test_retries_of_the_hub_are_held_back(said: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    lines = said(notices.HUB_CLIENT)

    def ask() -> None:
        with pytest.raises(Exception, match="refused"):  # nobody listens on this port
            http_backoff("HEAD", "http://127.0.0.1:9/", max_retries=1, base_wait_time=0.01)

    with notices.quiet_hub():
        ask()
        assert lines == []
        logging.getLogger(notices.HUB_CLIENT).warning("Rate limited. Waiting 9s before retry")
    assert len(lines) == 1
    ask()
    assert len(lines) == 4  # two attempts, one wait
