"""Shared attention against the stock processor fed with replaced inputs."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from diffusers.models.transformers.transformer_flux import FluxAttention, FluxAttnProcessor
from torch import Tensor

from dit360.editing.attention import SharingProcessor, share_kept_tokens

GRID = (4, 8)
KEEP = torch.zeros(GRID, dtype=torch.bool)
KEEP[1:3, 2:7] = True
KEEP = KEEP.flatten()


@pytest.fixture(scope="module")
def transformer(micro_flux: Path, micro_lora: Path) -> FluxTransformer2DModel:
    """With a LoRA whose A and B are not zero."""
    pipeline = FluxPipeline.from_pretrained(micro_flux)
    pipeline.load_lora_weights(micro_lora, weight_name="adapter_model.safetensors")
    return pipeline.transformer


def inputs(text_length: int, batch: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(text_length)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    return {
        "hidden_states": noise(batch, len(KEEP), 64),
        "encoder_hidden_states": noise(batch, text_length, 32),
        "pooled_projections": noise(batch, 32),
        "timestep": torch.full((batch,), 0.7),
        "guidance": torch.full((batch,), 3.5),
        "img_ids": FluxPipeline._prepare_latent_image_ids(1, *GRID, "cpu", torch.float32),
        "txt_ids": torch.zeros(text_length, 3),
    }


@torch.no_grad()
def run(transformer: FluxTransformer2DModel, values: dict[str, Tensor]) -> Tensor:
    return transformer(**values, return_dict=False)[0]


@contextmanager
def replaced_inputs(transformer: FluxTransformer2DModel, keep: Tensor) -> Iterator[None]:
    """What the original does: kept rows of the input of to_q, to_k and to_v are the source's."""

    def replace(_module: torch.nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        tokens = args[0].clone()
        text = tokens.shape[1] - len(keep)  # single blocks join text and image
        rows = text + keep.nonzero().flatten()
        tokens[1, rows] = args[0][0, rows]
        return (tokens, *args[1:])

    hooks = [
        getattr(module, name).register_forward_pre_hook(replace)
        for module in transformer.modules()
        if isinstance(module, FluxAttention)
        for name in ("to_q", "to_k", "to_v")
    ]
    assert len(hooks) == 15
    yield
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("text_length", [1, 12, 40])
def test_equal_to_replacing_the_inputs_of_the_projections(transformer, text_length: int) -> None:
    values = inputs(text_length)
    with replaced_inputs(transformer, KEEP):
        expected = run(transformer, values)
    with share_kept_tokens(transformer, KEEP):
        shared = run(transformer, values)
    torch.testing.assert_close(shared, expected, rtol=0, atol=2e-6)
    plain = run(transformer, values)
    assert (plain[1] - shared[1]).abs().max() > 0.01
    assert torch.equal(plain[0], shared[0])  # the source does not notice


def test_nothing_kept_is_the_stock_processor(transformer) -> None:
    values = inputs(12)
    with share_kept_tokens(transformer, torch.zeros_like(KEEP)):
        shared = run(transformer, values)
    assert torch.equal(shared, run(transformer, values))


def test_text_and_residuals_are_the_edits_own(transformer) -> None:
    # With everything kept the attention maps are equal, the residual streams are not.
    values = inputs(12)
    with share_kept_tokens(transformer, torch.ones_like(KEEP)):
        source, edited = run(transformer, values)
    assert (source - edited).abs().max() > 0.01
    values = {name: v[:1].repeat(2, *[1] * (v.ndim - 1)) if len(v) == 2 else v
              for name, v in values.items()}  # fmt: skip
    with share_kept_tokens(transformer, torch.ones_like(KEEP)):
        source, edited = run(transformer, values)
    torch.testing.assert_close(source, edited, rtol=0, atol=1e-6)


@pytest.mark.parametrize("text_length", [12, 0])
def test_one_block_leaves_its_input_alone(transformer, text_length: int) -> None:
    blocks = (
        transformer.transformer_blocks if text_length else transformer.single_transformer_blocks
    )
    attn = blocks[0].attn
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(2, len(KEEP), 64, generator=generator)
    text = torch.randn(2, text_length, 64, generator=generator) if text_length else None
    before = image.clone()
    processor = SharingProcessor(KEEP, FluxAttnProcessor())
    with torch.no_grad():
        processor(attn, image, text)
    assert torch.equal(image, before)


def test_fused_projections_share_too(micro_flux: Path) -> None:
    transformer = FluxTransformer2DModel.from_pretrained(micro_flux, subfolder="transformer")
    values = inputs(12)
    with share_kept_tokens(transformer, KEEP):
        expected = run(transformer, values)
    for module in transformer.modules():
        if isinstance(module, FluxAttention):
            module.fuse_projections()
    with share_kept_tokens(transformer, KEEP):
        torch.testing.assert_close(run(transformer, values), expected, rtol=0, atol=2e-6)


def test_processors_come_back_even_after_an_error(transformer) -> None:
    before = transformer.attn_processors
    before["single_transformer_blocks.1.attn.processor"]._attention_backend = "native"
    inside = {}

    def fail() -> None:
        with share_kept_tokens(transformer, KEEP):
            inside.update(transformer.attn_processors)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    after = transformer.attn_processors
    assert all(after[name] is before[name] for name in before)
    assert all(isinstance(processor, SharingProcessor) for processor in inside.values())
    backends = [processor._attention_backend for processor in inside.values()]
    assert backends == [None, None, None, "native", None]
    before["single_transformer_blocks.1.attn.processor"]._attention_backend = None


def test_the_batch_is_source_and_edit(transformer) -> None:
    with (
        share_kept_tokens(transformer, KEEP),
        pytest.raises(ValueError, match="batch has 1 panoramas"),
    ):
        run(transformer, inputs(12, batch=1))


def test_other_processors_are_refused(transformer) -> None:
    with share_kept_tokens(transformer, KEEP):
        with (
            pytest.raises(TypeError, match="SharingProcessor; attention can be shared"),
            share_kept_tokens(transformer, KEEP),
        ):
            pass
        assert all(isinstance(p, SharingProcessor) for p in transformer.attn_processors.values())
