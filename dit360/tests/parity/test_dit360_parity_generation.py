"""Numbers of generation that hold without weights.

Row numbers are those of the check list in the design document.
"""

import functools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, FluxPipeline, FluxTransformer2DModel
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

from dit360.pipeline import DiT360Pipeline
from dit360.tiny import flux_scheduler
from dit360.vae import decode, encode, pack, set_vae_wrap
from dit360.wrap import crop_tokens, pad_ids, pad_tokens

FULL_GRID = (64, 128)  # 1024 x 2048


def grid_ids(height: int, width: int) -> torch.Tensor:
    return FluxPipeline._prepare_latent_image_ids(1, height, width, "cpu", torch.float32)


def test_p1_parameters_of_flux_dev() -> None:
    with torch.device("meta"):
        transformer = FluxTransformer2DModel(guidance_embeds=True)
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            latent_channels=16,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )
        set_vae_wrap(vae, "circular")
    assert sum(p.numel() for p in transformer.parameters()) == 11_901_408_320
    assert sum(p.numel() for p in vae.parameters()) == 83_819_683


def test_p6_wrap_ids() -> None:
    ids = grid_ids(3, 4)
    padded = pad_ids(ids, (3, 4), 1).view(3, 6, 3)
    for row in range(3):
        assert padded[row, :, 2].tolist() == [3, 0, 1, 2, 3, 0]
        assert padded[row, :, 1].tolist() == [row] * 6
    assert torch.equal(pad_ids(ids, (3, 4), 0), ids)
    tokens = torch.rand(1, 12, 64)
    assert torch.equal(pad_tokens(tokens, (3, 4), 0), tokens)


def test_p7_padded_lengths() -> None:
    assert pad_tokens(torch.zeros(1, 8192, 64), FULL_GRID, 1).shape == (1, 8320, 64)
    assert pad_ids(grid_ids(*FULL_GRID), FULL_GRID, 1).shape == (64 * 130, 3)


def shift_of(length: int) -> float:
    config = flux_scheduler().config
    return calculate_shift(
        length,
        config.base_image_seq_len,
        config.max_image_seq_len,
        config.base_shift,
        config.max_shift,
    )


def test_p8_shift_of_the_schedule() -> None:
    assert shift_of(8320) == pytest.approx(1.865, abs=1e-6)
    assert shift_of(8192) == pytest.approx(1.8433333, abs=1e-6)
    assert shift_of(4096) == pytest.approx(1.15, abs=1e-6)


def test_p8_the_pipeline_takes_the_padded_length(
    micro_flux: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = open_micro(micro_flux)
    seen = []
    stock = pipeline.scheduler.set_timesteps

    @functools.wraps(stock)  # its signature says that sigmas are accepted
    def spy(*args: Any, mu: float, **kwargs: Any) -> None:
        seen.append(mu)
        stock(*args, mu=mu, **kwargs)

    monkeypatch.setattr(pipeline.scheduler, "set_timesteps", spy)
    sample(pipeline)
    assert seen == [shift_of(4 * 10)]


def test_p9_noise_levels() -> None:
    scheduler = flux_scheduler()
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 28, 28).tolist(), mu=1.865)
    sigmas = scheduler.sigmas.tolist()
    assert len(sigmas) == 29
    assert sigmas[:4] == pytest.approx([1, 0.994296, 0.988225, 0.981752], abs=1e-6)
    assert sigmas[-4:] == pytest.approx([0.436528, 0.331823, 0.192968, 0], abs=1e-6)
    linear = np.linspace(1, 1 / 28, 28)
    closed = math.exp(1.865) / (math.exp(1.865) + 1 / linear - 1)
    assert sigmas[:-1] == pytest.approx(closed.tolist(), abs=1e-6)


def test_p10_packing() -> None:
    tokens = pack(torch.arange(16 * 4 * 8.0).view(1, 16, 4, 8))
    assert tokens.shape == (1, 8, 64)
    assert tokens[0, 0, :6].tolist() == [0, 1, 8, 9, 32, 33]
    assert tokens[0, 1, :4].tolist() == [2, 3, 10, 11]
    assert tokens[0, 4, :4].tolist() == [16, 17, 24, 25]


# ---- the network --------------------------------------------------------------------------------


def open_micro(folder: Path) -> DiT360Pipeline:
    pipeline = DiT360Pipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def sample(pipeline: DiT360Pipeline, **options: Any) -> torch.Tensor:
    return pipeline(
        "This is a panorama. A blue room.", height=64, width=128, num_inference_steps=4,
        guidance_scale=2.8, max_sequence_length=12, generator=torch.Generator().manual_seed(0),
        output_type="latent", **options,
    ).images  # fmt: skip


@pytest.mark.parametrize("columns", [1, 3])
def test_p11_copies_stay_equal_to_their_sources(micro_flux: Path, columns: int) -> None:
    pipeline = open_micro(micro_flux)
    pipeline.padding_n = columns
    drifts, moves = [], []
    before = None

    def measure(_pipe: Any, _step: int, _time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        nonlocal before
        rows = tensors["latents"].view(1, 4, 8 + 2 * columns, 64)
        inner = rows[:, :, columns:-columns]
        drifts.append((rows[:, :, :columns] - inner[:, :, -columns:]).abs().max().item())
        drifts.append((rows[:, :, -columns:] - inner[:, :, :columns]).abs().max().item())
        moves.append(0 if before is None else (inner - before).abs().max().item())
        before = inner.clone()
        return {}

    sample(pipeline, callback_on_step_end=measure)
    assert len(moves) == 4
    assert min(moves[1:]) > 1e-3
    assert max(drifts) <= 1e-6


@pytest.mark.parametrize("columns", [1, 2])
@torch.no_grad()
def test_p12_padding_counts_the_edges_twice(micro_flux: Path, columns: int) -> None:
    """ln 2 on the logits of the keys that have a copy, in place of the copies."""
    transformer = open_micro(micro_flux).transformer
    generator = torch.Generator().manual_seed(0)
    grid, text = (4, 8), 5
    tokens = torch.randn(1, 32, 64, generator=generator)
    ids = grid_ids(*grid)
    common = {
        "timestep": torch.tensor([0.7]),
        "guidance": torch.tensor([2.8]),
        "pooled_projections": torch.randn(1, 32, generator=generator),
        "encoder_hidden_states": torch.randn(1, text, 32, generator=generator),
        "txt_ids": torch.zeros(text, 3),
    }
    padded = transformer(
        hidden_states=pad_tokens(tokens, grid, columns),
        img_ids=pad_ids(ids, grid, columns),
        **common,
    ).sample
    copies = pad_tokens(torch.arange(32).view(1, 32, 1), grid, columns).flatten().bincount()
    bias = torch.cat([torch.zeros(text), copies.log()])[None, None, None]
    assert bias.unique().tolist() == pytest.approx([0, math.log(2)])
    biased = transformer(
        hidden_states=tokens,
        img_ids=ids,
        joint_attention_kwargs={"attention_mask": bias},
        **common,
    ).sample
    plain = transformer(hidden_states=tokens, img_ids=ids, **common).sample
    assert (crop_tokens(padded, grid, columns) - biased).abs().max() <= 1e-6
    assert (biased - plain).abs().max() > 1e-4


@torch.no_grad()
def test_p25_circular_vae(micro_flux: Path) -> None:
    vae = open_micro(micro_flux).vae
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 16, 8, 16, generator=generator)
    images = torch.rand(1, 3, 64, 128, generator=generator) * 2 - 1

    def errors(k: int) -> tuple[float, float]:
        decoded = decode(vae, latents.roll(k, -1)) - decode(vae, latents).roll(8 * k, -1)
        encoded = encode(vae, images.roll(8 * k, -1), sample=False) - encode(
            vae, images, sample=False
        ).roll(k, -1)
        return decoded.abs().max().item(), encoded.abs().max().item()

    assert min(errors(5)) > 1e-3
    set_vae_wrap(vae, "circular")
    for k in (1, 5, 8):
        assert max(errors(k)) <= 1e-4
