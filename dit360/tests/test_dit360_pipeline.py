"""`DiT360Pipeline` against the stock pipeline and against a sampler written out here."""

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline

from dit360 import vae as vae_module
from dit360.pipeline import DiT360Pipeline
from dit360.vae import set_vae_wrap, unpack

PROMPT = "This is a panorama. A room with red walls and a blue floor."
SIZE: dict[str, Any] = {"height": 64, "width": 128}
CALL: dict[str, Any] = {
    "num_inference_steps": 3, "guidance_scale": 2.8, "max_sequence_length": 12, **SIZE,
}  # fmt: skip
GRID = (4, 8)


@pytest.fixture(scope="module")
def stock(micro_flux: Path, micro_lora: Path) -> FluxPipeline:
    pipeline = FluxPipeline.from_pretrained(micro_flux)
    pipeline.load_lora_weights(micro_lora, weight_name="adapter_model.safetensors")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def pipeline(stock: FluxPipeline) -> DiT360Pipeline:
    """Shares all networks with `stock`; its VAE is left as it is."""
    pipeline = DiT360Pipeline(**stock.components)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def latents_of(pipeline: FluxPipeline, **options: Any) -> torch.Tensor:
    merged = {"prompt": PROMPT, "generator": seeded()} | CALL | options
    return pipeline(**merged, output_type="latent").images


# ---- reference ----------------------------------------------------------------------------------


@torch.no_grad()
def reference(
    stock: FluxPipeline,
    columns: list[int],
    ids: list[int] | None = None,
    negative: str | None = None,
    true_cfg_scale: float = 1.0,
) -> torch.Tensor:
    """Euler sampling of the design document on chosen columns of the grid.

    Args:
        stock: its networks.
        columns: of the unpadded grid that the network sees, left to right.
        ids: column numbers in the position ids; those of `columns` if None.
        negative: other prompt of true classifier-free guidance.
        true_cfg_scale: its strength.
    """
    rows, width = GRID
    steps = CALL["num_inference_steps"]
    noise = torch.randn(1, 16, 2 * rows, 2 * width, generator=seeded())
    x = torch.stack(
        [noise[:, :, 2 * r : 2 * r + 2, 2 * c : 2 * c + 2].flatten(1) for r in range(rows)
         for c in columns], 1,
    )  # fmt: skip
    img_ids = torch.tensor([[0.0, r, c] for r in range(rows) for c in ids or columns])
    text = [
        stock.encode_prompt(prompt, max_sequence_length=CALL["max_sequence_length"])
        for prompt in (PROMPT, negative or PROMPT)
    ]
    slope = (1.15 - 0.5) / (4096 - 256)
    shift = math.exp(slope * x.shape[1] + 0.5 - 256 * slope)
    linear = np.linspace(1, 1 / steps, steps)
    sigmas = [*(shift / (shift + 1 / linear - 1)), 0.0]
    for sigma, following in itertools.pairwise(sigmas):
        velocity, other = (
            stock.transformer(
                hidden_states=x,
                timestep=torch.tensor([sigma], dtype=torch.float32),
                guidance=torch.tensor([2.8]),
                pooled_projections=pooled,
                encoder_hidden_states=embeds,
                txt_ids=txt_ids,
                img_ids=img_ids,
            ).sample
            for embeds, pooled, txt_ids in text
        )
        x = x + (following - sigma) * (other + true_cfg_scale * (velocity - other))
    first = next(k for k in range(len(columns)) if columns[k : k + width] == list(range(width)))
    return x.unflatten(1, (rows, len(columns)))[:, :, first : first + width].flatten(1, 2)


def largest(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max())


@pytest.mark.parametrize(
    ("padding_n", "mode", "columns", "ids"),
    [
        (0, "source", [*range(8)], None),
        (1, "source", [7, *range(8), 0], None),
        (3, "source", [5, 6, 7, *range(8), 0, 1, 2], None),
        (2, "extended", [6, 7, *range(8), 0, 1], [*range(-2, 10)]),
    ],
)
def test_against_the_reference(
    stock: FluxPipeline,
    pipeline: DiT360Pipeline,
    padding_n: int,
    mode: Any,
    columns: list[int],
    ids: list[int] | None,
) -> None:
    pipeline.padding_n, pipeline.pad_ids = padding_n, mode
    tokens = latents_of(pipeline)
    assert tokens.shape == (1, 32, 64)
    assert largest(tokens, reference(stock, columns, ids)) < 1e-5  # float32, 3 steps
    if padding_n:
        assert largest(tokens, reference(stock, [*range(8)])) > 1e-3


def test_negative_prompts_pass_through(stock: FluxPipeline, pipeline: DiT360Pipeline) -> None:
    tokens = latents_of(pipeline, negative_prompt="green", true_cfg_scale=2.5)
    expected = reference(stock, [7, *range(8), 0], negative="green", true_cfg_scale=2.5)
    assert largest(tokens, expected) < 1e-5


# ---- the stock pipeline -------------------------------------------------------------------------


@pytest.mark.parametrize("output_type", ["latent", "np", "pt", "pil"])
def test_without_padding_it_is_the_stock_pipeline(
    stock: FluxPipeline, pipeline: DiT360Pipeline, output_type: str
) -> None:
    pipeline.padding_n = 0
    call = {"prompt": [PROMPT, "blue"], "output_type": output_type, **CALL}
    ours = pipeline(**call, generator=seeded(), return_dict=False)
    theirs = stock(**call, generator=seeded(), return_dict=False)
    assert isinstance(ours, tuple)
    assert type(ours[0]) is type(theirs[0])
    for a, b in zip(ours[0], theirs[0], strict=True):
        assert np.array_equal(np.asarray(a), np.asarray(b))


def test_positional_and_default_arguments(pipeline: DiT360Pipeline) -> None:
    seen = []

    def stop(pipe: Any, _step: int, _time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append(tensors["latents"].shape[1])
        pipe._interrupt = True
        return tensors

    pipeline.default_sample_size = 8  # of the tiny model: 64 pixels high
    result = pipeline(
        PROMPT, None, None, None, 1.0, generator=seeded(), output_type="latent",
        max_sequence_length=12, callback_on_step_end=stop,
    )  # fmt: skip
    assert seen == [4 * 10]  # twice as wide as high, and padded
    assert result.images.shape == (1, 4 * 8, 64)
    with pytest.raises(TypeError, match="steps"):
        pipeline(PROMPT, steps=3)


# ---- outputs ------------------------------------------------------------------------------------


def test_output_types_are_one_image(pipeline: DiT360Pipeline) -> None:
    def images(output_type: str) -> Any:
        return pipeline(PROMPT, generator=seeded(), output_type=output_type, **CALL).images

    tokens = images("latent")
    decoded = vae_module.decode(pipeline.vae, unpack(tokens, GRID)).detach()
    expected = (decoded / 2 + 0.5).clamp(0, 1)
    assert expected.std() > 0.01
    assert largest(images("pt"), expected) < 1e-6
    array = images("np")
    assert array.shape == (1, 64, 128, 3)
    assert np.allclose(array, expected.movedim(1, -1).numpy(), atol=1e-6)
    assert np.array_equal(np.asarray(images("pil")[0]), (array[0] * 255).round().astype(np.uint8))


def test_batches_and_generators(pipeline: DiT360Pipeline) -> None:
    prompts = [PROMPT, "blue"]
    together = latents_of(pipeline, prompt=prompts, generator=[seeded(1), seeded(2)])
    for index, prompt in enumerate(prompts):
        alone = latents_of(pipeline, prompt=prompt, generator=seeded(1 + index))
        assert largest(together[index], alone[0]) < 1e-5
    several = latents_of(pipeline, num_images_per_prompt=2, generator=[seeded(1), seeded(2)])
    assert largest(several[0], together[0]) < 1e-5
    assert largest(several[0], several[1]) > 0.1


def test_given_latents_are_unpadded(pipeline: DiT360Pipeline) -> None:
    noise = torch.randn(1, 16, 8, 16, generator=seeded())
    given = latents_of(pipeline, latents=vae_module.pack(noise), generator=None)
    assert torch.equal(given, latents_of(pipeline))


def test_sizes_are_rounded_down(pipeline: DiT360Pipeline) -> None:
    assert torch.equal(latents_of(pipeline, height=79, width=136), latents_of(pipeline))
    image = pipeline(PROMPT, generator=seeded(), output_type="np", **(CALL | {"width": 136})).images
    assert image.shape == (1, 64, 128, 3)


def test_callbacks_see_and_return_padded_tokens(pipeline: DiT360Pipeline) -> None:
    shapes = []

    def zero(_pipe: Any, step: int, _time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        shapes.append(tuple(tensors["latents"].shape))
        return {"latents": torch.zeros_like(tensors["latents"])} if step == 2 else {}

    tokens = latents_of(pipeline, callback_on_step_end=zero)
    assert shapes == [(1, 40, 64)] * 3
    assert torch.equal(tokens, torch.zeros(1, 32, 64))


def test_seam_of_a_circular_vae(pipeline: DiT360Pipeline) -> None:
    """Only the VAE differs: decoding turned latents gives the turned image, with tiles too."""
    tokens = latents_of(pipeline)
    latents = unpack(tokens, GRID)
    plain = pipeline(PROMPT, generator=seeded(), output_type="pt", **CALL).images
    try:
        set_vae_wrap(pipeline.vae, "circular")
        image = pipeline(PROMPT, generator=seeded(), output_type="pt", **CALL).images
        turned = vae_module.decode(pipeline.vae, latents.roll(8, -1)).detach()
        pipeline.tile_columns = 8
        tiled = pipeline(PROMPT, generator=seeded(), output_type="pt", **CALL).images
        tiles = vae_module.decode(pipeline.vae, latents, tile_columns=8).detach()
    finally:
        set_vae_wrap(pipeline.vae, "none")
    assert largest(image.roll(64, -1), (turned / 2 + 0.5).clamp(0, 1)) < 1e-5
    assert largest(image, plain) > 1e-3
    assert largest(tiled, (tiles / 2 + 0.5).clamp(0, 1)) < 1e-6
    assert largest(tiled, image) > 1e-4


# ---- offloading, mistakes -----------------------------------------------------------------------


def test_hooks_are_freed_after_decoding(
    pipeline: DiT360Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = []

    def spy(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            events.append(name)
            return function(*args, **kwargs)

        return call

    monkeypatch.setattr(vae_module, "decode", spy("decode", vae_module.decode))
    monkeypatch.setattr(
        pipeline, "maybe_free_model_hooks", spy("free", pipeline.maybe_free_model_hooks)
    )
    pipeline(PROMPT, generator=seeded(), output_type="np", **CALL)
    assert events == ["free", "decode", "free"]


def test_sequential_offload_gives_the_same(micro_flux: Path) -> None:
    from accelerate import cpu_offload

    pipeline = DiT360Pipeline.from_pretrained(micro_flux)
    pipeline.set_progress_bar_config(disable=True)
    set_vae_wrap(pipeline.vae, "circular")
    expected = pipeline(PROMPT, generator=seeded(), output_type="np", **CALL).images
    for part in (pipeline.transformer, pipeline.vae, pipeline.text_encoder):
        cpu_offload(part, torch.device("cpu"), offload_buffers=True)
    assert pipeline.vae.device.type == "meta"
    again = pipeline(PROMPT, generator=seeded(), output_type="np", **CALL).images
    assert np.array_equal(again, expected)


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        ("padding_n", 9, "cannot wrap 9 columns around a grid of 8"),
        ("pad_ids", "mirror", "pad_ids is 'mirror'"),
        ("tile_columns", 2, "tile_columns is 2; use 4 or more"),
    ],
)
def test_mistakes(pipeline: DiT360Pipeline, attribute: str, value: Any, message: str) -> None:
    setattr(pipeline, attribute, value)
    with pytest.raises(ValueError, match=message):
        pipeline(PROMPT, output_type="np", **CALL)
