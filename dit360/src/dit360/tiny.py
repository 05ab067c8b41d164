"""A pipeline with the architecture of FLUX.1-dev in small, and the training of its parts.

The embedded base stands in for FLUX.1-dev: a text-to-image model that knows the procedural
worlds of `dit360.captions`, but neither wrap padding nor the yaw and cube losses. Those come with
the LoRA that `train.py` trains on top of it.
"""

import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from torch import Tensor
from tqdm.auto import tqdm
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from dit360.embedded import TINY_HEIGHT, TINY_TEXT_LENGTH
from dit360.tokenizers import clip_tokenizer, t5_tokenizer
from shared_pano_utils.imageio import atomic_path

LOG_VARIANCE = -6.0  # of the posterior: deviation 0.05, where latents have one of about 1
LATENT_NOISE = 0.1  # in units of their deviation
LATENT_WEIGHT = 1e-3  # keeps the latents from growing
SAVE_EVERY = 500  # steps of the training of the base


class Sizes(NamedTuple):
    """Widths of a small FLUX; the published ones are in the comments."""

    double_blocks: int  # 19
    single_blocks: int  # 38
    heads: int  # 24
    head_dim: int  # 128
    rope_axes: tuple[int, int, int]  # 16, 56, 56
    text_dim: int  # 4096
    pooled_dim: int  # 768
    text_layers: int  # 24 and 12
    vae_widths: tuple[int, int, int, int]  # 128, 256, 512, 512
    vae_groups: int  # 32


MICRO = Sizes(2, 3, 2, 32, (8, 12, 12), 32, 32, 2, (8, 8, 16, 16), 4)
TINY = Sizes(2, 4, 2, 64, (8, 28, 28), 96, 64, 2, (32, 48, 64, 64), 8)


def random_pipeline(sizes: Sizes, seed: int = 0) -> FluxPipeline:
    """The whole pipeline with random weights; the global generator is left as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        pipeline = FluxPipeline(
            scheduler=flux_scheduler(),
            vae=_vae(sizes),
            text_encoder=_clip(sizes),
            tokenizer=clip_tokenizer(),
            text_encoder_2=_t5(sizes),
            tokenizer_2=t5_tokenizer(),
            transformer=_transformer(sizes),
        )
    for part in (pipeline.vae, pipeline.text_encoder, pipeline.text_encoder_2):
        part.eval()
    pipeline.transformer.eval()
    return pipeline


def micro_pipeline(seed: int = 0) -> FluxPipeline:
    """Random pipeline of the parity tests: 2 double and 3 single blocks."""
    return random_pipeline(MICRO, seed)


def flux_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """The scheduler of the released FLUX.1-dev."""
    return FlowMatchEulerDiscreteScheduler(
        num_train_timesteps=1000,
        shift=3.0,
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=1.15,
        base_image_seq_len=256,
        max_image_seq_len=4096,
    )


def _transformer(sizes: Sizes) -> FluxTransformer2DModel:
    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=64,
        num_layers=sizes.double_blocks,
        num_single_layers=sizes.single_blocks,
        attention_head_dim=sizes.head_dim,
        num_attention_heads=sizes.heads,
        joint_attention_dim=sizes.text_dim,
        pooled_projection_dim=sizes.pooled_dim,
        guidance_embeds=True,
        axes_dims_rope=sizes.rope_axes,
    )


def _vae(sizes: Sizes) -> AutoencoderKL:
    vae: Any = AutoencoderKL(
        block_out_channels=sizes.vae_widths,  # pyright: ignore[reportArgumentType]
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=sizes.vae_groups,
        down_block_types=("DownEncoderBlock2D",) * 4,  # pyright: ignore[reportArgumentType]
        up_block_types=("UpDecoderBlock2D",) * 4,  # pyright: ignore[reportArgumentType]
        sample_size=2 * TINY_HEIGHT,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    with torch.no_grad():  # a constant posterior variance; training decodes the mean
        vae.encoder.conv_out.weight[16:] = 0
        vae.encoder.conv_out.bias[16:] = LOG_VARIANCE
    return vae


def _clip(sizes: Sizes) -> CLIPTextModel:
    tokenizer: Any = clip_tokenizer()
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=sizes.pooled_dim,
            intermediate_size=4 * sizes.pooled_dim,
            projection_dim=sizes.pooled_dim,
            num_hidden_layers=sizes.text_layers,
            num_attention_heads=2,
            max_position_embeddings=77,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def _t5(sizes: Sizes) -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(
            vocab_size=len(t5_tokenizer()),
            d_model=sizes.text_dim,
            d_kv=sizes.text_dim // 4,
            d_ff=2 * sizes.text_dim,
            num_layers=sizes.text_layers,
            num_heads=4,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
            pad_token_id=0,
            eos_token_id=1,
        )
    )


def train_vae(vae: Any, images: np.ndarray, *, steps: int, batch: int, seed: int) -> None:
    """Train a VAE on panoramas and set its scaling and shift factor.

    Args:
        vae: trained in place.
        images: (N, H, 2H, 3) uint8; every use turns them by a random angle.
        steps: optimiser steps, learning rate 1e-3 in one cycle.
        batch: images of a step.
        seed: of order, angles and noise.
    """
    rng = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=1e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps)
    vae.train()
    bar = tqdm(range(steps), desc="vae")
    for step in bar:
        chosen = images[rng.integers(len(images), size=batch)]
        pixels = torch.from_numpy(chosen).movedim(-1, 1) / 127.5 - 1
        pixels = pixels.roll(int(rng.integers(pixels.shape[-1])), -1)
        loss, psnr = _vae_loss(vae, pixels, generator)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 20 == 0:
            bar.set_postfix_str(f"{psnr:.2f} dB")
    vae.eval()
    latents = encode_means(vae, images[:256])
    vae.register_to_config(
        scaling_factor=round(1 / latents.std().item(), 4),
        shift_factor=round(latents.mean().item(), 4),
    )


def _vae_loss(vae: Any, pixels: Tensor, generator: torch.Generator) -> tuple[Tensor, float]:
    """Absolute and squared errors of images (B, 3, H, W) in [-1, 1]; PSNR in dB.

    Noise on the latents makes their neighbours decode to similar images.
    """
    with torch.autocast("cpu", torch.bfloat16):
        mean = vae.encode(pixels).latent_dist.mean.float()
        noise = torch.randn(mean.shape, generator=generator)
        decoded = vae.decode(mean + LATENT_NOISE * mean.detach().std() * noise).sample
    error = decoded.float() - pixels
    mse = error.square().mean()
    loss = mse + 0.2 * error.abs().mean() + LATENT_WEIGHT * mean.square().mean()
    return loss, -10 * float(torch.log10(mse.detach() / 4))


@torch.no_grad()
def encode_means(vae: Any, images: np.ndarray, batch: int = 4) -> Tensor:
    """Posterior means (N, 16, H/8, W/8), not scaled, of (N, H, W, 3) uint8."""
    parts = []
    for start in range(0, len(images), batch):
        pixels = torch.from_numpy(images[start : start + batch]).movedim(-1, 1) / 127.5 - 1
        with torch.autocast("cpu", torch.bfloat16):
            parts.append(vae.encode(pixels).latent_dist.mean.float())
    return torch.cat(parts)


def train_base(
    pipeline: FluxPipeline,
    latents: Tensor,
    captions: list[str],
    *,
    steps: int,
    batch: int,
    seed: int,
    learning_rate: float = 1e-3,
    shift: float = 1.0,
    state_file: Path | None = None,
) -> None:
    """Train transformer and both text encoders together on flow matching, as plain FLUX.

    The guidance value is drawn at random and so means nothing to the network; every twentieth
    caption is left out.

    Args:
        pipeline: trained in place; ends with the average of the last weights.
        latents: (N, 16, h, w) posterior means, not scaled.
        captions: of the latents.
        steps: optimiser steps.
        batch: samples of a step.
        seed: of order and noise.
        learning_rate: peak of a cosine cycle.
        shift: of the noise levels, see `_flow_loss`.
        state_file: where to save every 500 steps, and to go on from.
    """
    parts = torch.nn.ModuleList(
        [pipeline.transformer, pipeline.text_encoder, pipeline.text_encoder_2]
    )
    average = torch.optim.swa_utils.AveragedModel(
        parts, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.999)
    )
    optimizer = torch.optim.AdamW(parts.parameters(), lr=learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=steps, pct_start=0.03
    )
    trained = {"parts": parts, "average": average, "optimizer": optimizer, "schedule": schedule}
    first = 0
    if state_file is not None and state_file.is_file():
        saved = torch.load(state_file, weights_only=True)
        first = saved.pop("step")
        for name, state in saved.items():
            trained[name].load_state_dict(state)
    tokens = _tokenize(pipeline, captions), _tokenize(pipeline, [""])
    scaled = (latents - pipeline.vae.config.shift_factor) * pipeline.vae.config.scaling_factor
    deviation = np.exp(LOG_VARIANCE / 2) * pipeline.vae.config.scaling_factor
    parts.train()
    bar = tqdm(range(first, steps), desc="base", initial=first, total=steps)
    for step in bar:
        generator = torch.Generator().manual_seed(1_000_003 * seed + step)
        chosen = torch.randint(len(latents), (batch,), generator=generator)
        clean = scaled[chosen]
        clean = clean + deviation * torch.randn(clean.shape, generator=generator)
        loss = _flow_loss(pipeline, clean, chosen, tokens, shift, generator)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parts.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        average.update_parameters(parts)
        if step % 20 == 0:
            bar.set_postfix_str(f"loss {loss.item():.3f}")
        if state_file is not None and (step + 1) % SAVE_EVERY == 0:
            with atomic_path(state_file) as path:
                torch.save(
                    {"step": step + 1} | {k: v.state_dict() for k, v in trained.items()}, path
                )
    parts.load_state_dict(average.module.state_dict())
    parts.eval()


class Tokens(NamedTuple):
    """Captions as both encoders read them."""

    clip: Tensor  # (N, 77)
    t5: Tensor  # (N, TINY_TEXT_LENGTH)


def _tokenize(pipeline: Any, captions: list[str]) -> Tokens:
    common = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
    clip = pipeline.tokenizer(captions, max_length=77, **common).input_ids
    t5 = pipeline.tokenizer_2(captions, max_length=TINY_TEXT_LENGTH, **common).input_ids
    return Tokens(clip, t5)


def _flow_loss(
    pipeline: Any,
    clean: Tensor,
    chosen: Tensor,
    tokens: tuple[Tokens, Tokens],
    shift: float,
    generator: torch.Generator,
) -> Tensor:
    """Mean squared error of the velocity at noise levels s u / (1 + (s - 1) u), u uniform.

    A shift s above 1 draws more of the high levels, at which colours and places are decided.
    """
    count, _, height, width = clean.shape
    captioned, empty = tokens
    dropped = (torch.rand(count, generator=generator) < 0.05)[:, None]
    clip = torch.where(dropped, empty.clip, captioned.clip[chosen])
    t5 = torch.where(dropped, empty.t5, captioned.t5[chosen])
    uniform = torch.rand(count, generator=generator)
    sigma = shift * uniform / (1 + (shift - 1) * uniform)
    noise = torch.randn(clean.shape, generator=generator)
    noisy = torch.lerp(clean, noise, sigma[:, None, None, None])
    grid = (height // 2, width // 2)
    ids = FluxPipeline._prepare_latent_image_ids(count, *grid, clean.device, clean.dtype)
    guidance = 1 + 3 * torch.rand(count, generator=generator)
    with torch.autocast("cpu", torch.bfloat16), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Mismatch dtype")  # of norms: fp32 weights
        velocity = pipeline.transformer(
            hidden_states=FluxPipeline._pack_latents(noisy, count, 16, height, width),
            timestep=sigma,
            guidance=guidance,
            pooled_projections=pipeline.text_encoder(clip).pooler_output,
            encoder_hidden_states=pipeline.text_encoder_2(t5).last_hidden_state,
            txt_ids=torch.zeros(t5.shape[1], 3),
            img_ids=ids,
        ).sample
    target = FluxPipeline._pack_latents(noise - clean, count, 16, height, width)
    return (velocity.float() - target).square().mean()
