"""A pipeline with the architecture of SVD-XT in small, and the training of its VAE.

GroupNorm with 32 groups is fixed in the stock classes. A width of 32 or 64 before the last norm
would take the mean colour out of every image (one or two channels per group are normed to fixed
values): 96 is the least that lets it through.
"""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl_temporal_decoder import (
    AutoencoderKLTemporalDecoder,
)
from diffusers.models.unets.unet_spatio_temporal_condition import (
    UNetSpatioTemporalConditionModel,
)
from diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion import (
    StableVideoDiffusionPipeline,
)
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from torch import Tensor
from tqdm.auto import tqdm
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from genex_explorer.embedded import TINY_FRAMES, TINY_HEIGHT

logger = logging.getLogger(__name__)

CONTEXT_WIDTH, ID_WIDTH = 32, 32
LOG_VARIANCE = -6.0  # of the posterior: deviation 0.05, where latents have one of about 3
PARTNER = 2.0  # constant channels beside a signal, about as large as it
COPY_PARTNER = 4.0  # larger: the norm of the last layer of the UNet should change nothing
LINEAR_AT = 4.0  # where SiLU is nearly a straight line
LATENT_WEIGHT = 1e-4  # keeps the latents from growing
CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
CLIP_STD = [0.26862954, 0.26130258, 0.27577711]


def tiny_unet() -> UNetSpatioTemporalConditionModel:
    """Random UNet: stock class, two levels; as in SVD the deepest one has no attention.

    The way up has none at all, which leaves room in 10 MB for the width of the first level.
    """
    return UNetSpatioTemporalConditionModel(
        sample_size=TINY_HEIGHT // 4,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "UpBlockSpatioTemporal"),
        block_out_channels=(96, 32),
        layers_per_block=1,
        num_attention_heads=(4, 4),
        cross_attention_dim=CONTEXT_WIDTH,
        addition_time_embed_dim=ID_WIDTH,
        projection_class_embeddings_input_dim=3 * ID_WIDTH,
        num_frames=TINY_FRAMES,
    )


def tiny_vae() -> AutoencoderKLTemporalDecoder:
    """VAE of the stock class: three levels (factor 4), four latent channels.

    It starts as a pooling of colours, see `start_as_pooling`. Its posterior has a small constant
    variance; training decodes the mean and leaves it so.
    """
    vae = AutoencoderKLTemporalDecoder(
        sample_size=TINY_HEIGHT,
        block_out_channels=(96, 32, 96),  # pyright: ignore[reportArgumentType]
        layers_per_block=1,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 3,  # pyright: ignore[reportArgumentType]
    )
    start_as_pooling(vae)
    fix_log_variance(vae)
    return vae


@torch.no_grad()
def start_as_pooling(vae: Any) -> None:
    """Set weights so that the latents are mean colours and the decoder shows them.

    Residual branches start at zero and every change of size or width passes the first channels on.
    Before the last norms, channels 3i to 3i + 2 hold a signal and the constants +-`PARTNER`, so
    that the norm of three channels keeps the signal's mean. A random VAE of this width needs
    thousands of steps to find any hue.
    """
    for name, module in vae.named_modules():
        if name.endswith("conv2") or name.endswith("to_out.0"):
            torch.nn.init.zeros_(module.weight)
        elif name.endswith("downsamplers.0.conv"):
            _pass_on(module, torch.tensor([[1.0, 1, 0], [1, 1, 0], [0, 0, 0]]) / 4)
        elif name.endswith("upsamplers.0.conv"):
            ramp = torch.tensor([1.0, 2, 1]) / 4
            _pass_on(module, torch.outer(ramp, ramp))
        elif name.endswith("conv_shortcut"):
            spread = 3 if module.out_channels > module.in_channels else 1
            _pass_on(module, torch.ones(1, 1), spread)
            if spread == 3:
                module.bias[1::3], module.bias[2::3] = PARTNER, -PARTNER
    point = F.pad(torch.ones(1, 1), (1, 1, 1, 1))
    _pass_on(vae.encoder.conv_in, point)
    _pass_on(vae.decoder.conv_in, point)
    for part in (vae.encoder, vae.decoder):
        for color in range(3):
            part.conv_norm_out.weight[3 * color] = PARTNER * (2 / 3) ** 0.5  # undoes the norm
            part.conv_norm_out.bias[3 * color] = LINEAR_AT
            part.conv_out.weight[color] = 0
            part.conv_out.weight[color, 3 * color, 1, 1] = 1
            part.conv_out.bias[color] = -F.silu(torch.tensor(LINEAR_AT))
    torch.nn.init.eye_(vae.quant_conv.weight[:, :, 0, 0])
    vae.quant_conv.bias.zero_()
    torch.nn.init.dirac_(vae.decoder.time_conv_out.weight)
    vae.decoder.time_conv_out.bias.zero_()


@torch.no_grad()
def start_as_copy(unet: Any, scaling_factor: float) -> None:
    """Set weights so that the UNet predicts the first frame in every frame.

    Residual branches start at zero and the skip connections are passed on, so that the noisy and
    the conditioning latents reach the last norm beside their constant partners, see
    `start_as_pooling`. There the output is the v-prediction of a clip that stands still, exact for
    large noise. Training then learns the motion instead of the pictures.

    Args:
        unet: of two levels, its first of at least 96 channels.
        scaling_factor: of the VAE; conditioning latents come without it.
    """
    for name, module in unet.named_modules():
        if name.endswith(("conv2", "proj_out")):
            torch.nn.init.zeros_(module.weight)
            torch.nn.init.zeros_(module.bias)
    for resnet in unet.up_blocks[-1].resnets:
        shortcut = resnet.spatial_res_block.conv_shortcut
        shortcut.weight.zero_()
        shortcut.bias.zero_()
        torch.nn.init.eye_(shortcut.weight[:, -shortcut.out_channels :, 0, 0])
    latents = unet.config.out_channels
    conv, norm, out = unet.conv_in, unet.conv_norm_out, unet.conv_out
    for i in range(2 * latents):
        conv.weight[3 * i : 3 * i + 3] = 0
        conv.weight[3 * i, i, 1, 1] = 1 if i < latents else scaling_factor
        conv.bias[3 * i : 3 * i + 3] = torch.tensor([0, COPY_PARTNER, -COPY_PARTNER])
        norm.weight[3 * i] = COPY_PARTNER * (2 / 3) ** 0.5  # undoes the norm
        norm.bias[3 * i] = LINEAR_AT
    out.weight.zero_()
    for i in range(latents):
        out.weight[i, 3 * (latents + i), 1, 1] = -1
        out.bias[i] = F.silu(torch.tensor(LINEAR_AT))


def _pass_on(conv: Any, kernel: Tensor, spread: int = 1) -> None:
    """Let output channel `spread` * i be input channel i under a kernel (k, k)."""
    shared = min(conv.in_channels, conv.out_channels // spread)
    conv.bias.zero_()
    if spread > 1:
        conv.weight.zero_()
    for i in range(shared):
        conv.weight[spread * i] = 0
        conv.weight[spread * i, i] = kernel


@torch.no_grad()
def fix_log_variance(vae: Any) -> None:
    """Make the posterior's log-variance a constant."""
    mean_channels = vae.config.latent_channels
    vae.quant_conv.weight[mean_channels:] = 0
    vae.quant_conv.bias[mean_channels:] = LOG_VARIANCE


def tiny_image_encoder() -> CLIPVisionModelWithProjection:
    """Random CLIP vision tower; 224 px are what the pipeline always feeds."""
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=32, intermediate_size=64, projection_dim=CONTEXT_WIDTH,
            num_hidden_layers=1, num_attention_heads=2, image_size=224, patch_size=16,
        )
    )  # fmt: skip


def svd_scheduler() -> EulerDiscreteScheduler:
    """The scheduler of the released SVD: Karras sigmas 700 to 0.002, v-prediction."""
    return EulerDiscreteScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="v_prediction",
        timestep_type="continuous",
        use_karras_sigmas=True,
        sigma_min=0.002,
        sigma_max=700.0,
        timestep_spacing="leading",
        steps_offset=1,
    )


def tiny_pipeline(seed: int = 0) -> StableVideoDiffusionPipeline:
    """The whole pipeline with random weights; the global generator is left as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return StableVideoDiffusionPipeline(
            vae=tiny_vae(),
            image_encoder=tiny_image_encoder(),
            unet=tiny_unet(),
            scheduler=svd_scheduler(),
            feature_extractor=CLIPImageProcessor(image_mean=CLIP_MEAN, image_std=CLIP_STD),
        )


def train_tiny_base(
    clips: np.ndarray,
    output: Path,
    *,
    steps: int,
    frames: int,
    learning_rate: float,
    seed: int,
    latent_noise: float = 0.1,
    init: Path | None = None,
) -> None:
    """Train the tiny VAE on windows of clips and write the base pipeline (see `start_as_copy`).

    The decoder mixes frames, so it is trained on several at once; single frames would leave its
    temporal layers untrained.

    Args:
        clips: (N, F, H, W, 3) uint8.
        output: receives the pipeline, loadable with `from_pretrained`.
        steps: optimiser steps of one window each.
        frames: length of the windows.
        learning_rate: peak of a one-cycle schedule.
        seed: of weights and of the order of the windows.
        latent_noise: deviation of the noise that the decoder learns to bear, in that of the
            latents. Less of it lets the latents hold finer things.
        init: a pipeline whose VAE is trained on; its other parts and its scale stay.
    """
    pipeline = (
        tiny_pipeline(seed) if init is None else StableVideoDiffusionPipeline.from_pretrained(init)
    )
    vae: Any = pipeline.vae
    rng = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=steps, pct_start=0.1
    )
    bar = tqdm(range(steps), desc="vae")
    for step in bar:
        clip = clips[rng.integers(len(clips))]
        start = int(rng.integers(len(clip) - frames + 1))
        images = torch.from_numpy(clip[start : start + frames]).movedim(-1, 1) / 127.5 - 1
        if rng.random() < 0.5:
            images = images.flip(-1)
        images = images.roll(int(rng.integers(images.shape[-1])), -1)
        loss, psnr = _vae_loss(vae, images, latent_noise, generator)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 20 == 0:
            bar.set_postfix_str(f"{psnr:.2f} dB")
    if init is None:
        scale = _latent_scale(vae, clips[:64])
        vae.register_to_config(scaling_factor=scale)
        start_as_copy(pipeline.unet, scale)
    pipeline.save_pretrained(output)


def _vae_loss(
    vae: Any, images: Tensor, latent_noise: float, generator: torch.Generator
) -> tuple[Tensor, float]:
    """Errors of one window (F, 3, H, W) in [-1, 1], pixels and latent cells; PSNR in dB.

    The mean error of a cell (what the latents can hold best) makes hues come early. Noise on the
    latents makes their neighbours decode to similar images, which the UNet will rely on.
    """
    with torch.autocast("cpu", torch.bfloat16):
        mean = vae.encode(images).latent_dist.mean.float()
        noise = torch.randn(mean.shape, generator=generator)
        decoded = vae.decode(
            mean + latent_noise * mean.detach().std() * noise, num_frames=len(images)
        ).sample
    error = decoded.float() - images
    mse = error.square().mean()
    cells = F.avg_pool2d(error, 2 ** (len(vae.config.block_out_channels) - 1)).square().mean()
    loss = mse + 0.1 * error.abs().mean() + 2 * cells + LATENT_WEIGHT * mean.square().mean()
    return loss, -10 * float(torch.log10(mse.detach() / 4))


@torch.no_grad()
def _latent_scale(vae: Any, clips: np.ndarray) -> float:
    """The factor that gives latents unit variance, as the UNet expects."""
    images = torch.from_numpy(clips[:, 0]).movedim(-1, 1) / 127.5 - 1
    return round(1 / vae.encode(images).latent_dist.mean.std().item(), 5)
