"""Make the tiny base model that the embedded checkpoints stand on: same classes, few channels."""

import logging
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor
from tqdm.auto import tqdm

from pager.data.panoinfinigen import PanoInfinigen, stack_samples
from pager.embedded import TINY_FACE_SIZE, TINY_MIN_DEPTH_M
from pager.layers import cubify
from pager.model import ModelConfig
from pager.training.batches import erp_to_faces, rgb_to_unit, stable_hash, yaw_augment
from shared_pano_utils.imageio import write_json

logger = logging.getLogger(__name__)

TEXT_WIDTH = 32
TEXT_TOKENS = 77
KL_WEIGHT = 1e-6
# What counts in the VAE's error: colours only have to inform the UNet, log depth has a small range.
COLOR_WEIGHT, DEPTH_WEIGHT, NORMALS_WEIGHT = 0.5, 4.0, 1.5

# diffusers annotates several of the options below as tuples of length one.


def tiny_unet() -> UNet2DConditionModel:
    """Random UNet: stock class, three levels, attention at the two coarser ones."""
    return UNet2DConditionModel(
        sample_size=TINY_FACE_SIZE // 2,
        in_channels=8,
        out_channels=4,
        block_out_channels=(32, 56, 80),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 2, 4),  # pyright: ignore[reportArgumentType]
        cross_attention_dim=TEXT_WIDTH,
        norm_num_groups=8,
        use_linear_projection=True,
    )


def tiny_vae() -> AutoencoderKL:
    """Random VAE: stock class, two levels (factor 2), four latent channels.

    At 48-pixel faces the factor 8 of the released VAE would leave 6x6 latents, which cannot hold
    the edges of a depth map; the attention of its middle block would cost more than all the rest.
    """
    return AutoencoderKL(
        sample_size=TINY_FACE_SIZE,
        block_out_channels=(16, 32),  # pyright: ignore[reportArgumentType]
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * 2,  # pyright: ignore[reportArgumentType]
        up_block_types=("UpDecoderBlock2D",) * 2,  # pyright: ignore[reportArgumentType]
        mid_block_add_attention=False,
    )


def tiny_scheduler() -> DDPMScheduler:
    """The schedule of Stable Diffusion 2 (v-prediction)."""
    return DDPMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="v_prediction",
    )


def write_tiny_text_encoder(folder: Path) -> None:
    """Write a one-layer CLIP text encoder and a byte-level tokenizer into the base layout."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    characters = "abcdefghijklmnopqrstuvwxyz0123456789.,-"
    pieces = [*characters, *(f"{c}</w>" for c in characters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=TEXT_TOKENS)
    tokenizer.save_pretrained(folder / "tokenizer")
    start, end = len(pieces) - 2, len(pieces) - 1
    config = CLIPTextConfig(
        vocab_size=len(pieces), hidden_size=TEXT_WIDTH, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=TEXT_TOKENS, projection_dim=TEXT_WIDTH,
        bos_token_id=start, eos_token_id=end, pad_token_id=end,
    )  # fmt: skip
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")


def vae_images(batch: dict[str, Tensor], config: ModelConfig) -> Tensor:
    """Faces (3b*6, 3, S, S) in [-1, 1] of colour, normalised depth and normals of a batch."""
    depth = config.depth_range.normalize(batch["depth"]).expand(-1, 3, -1, -1)
    erps = torch.cat([rgb_to_unit(batch["rgb"]), depth, batch["normals"]])
    return erp_to_faces(erps, config.face_size).flatten(0, 1)


def train_tiny_base(
    data_path: Path, output: Path, *, steps: int, batch_size: int, learning_rate: float, seed: int
) -> None:
    """Train the tiny VAE on colour, depth and normals faces; write the base-model layout.

    The frozen decoder must be able to express depth and normals, or the UNet learns nothing.

    Args:
        data_path: procedural PanoInfinigen data.
        output: receives ``scheduler tokenizer text_encoder vae unet``.
        steps: optimiser steps.
        batch_size: panoramas per step (three images of six faces each).
        learning_rate: peak of a one-cycle schedule.
        seed: of weights and data order.
    """
    torch.manual_seed(seed)
    write_tiny_text_encoder(output)
    tiny_scheduler().save_pretrained(output / "scheduler")
    tiny_unet().save_pretrained(output / "unet")
    vae = tiny_vae()
    cubify(vae)
    config = ModelConfig(face_size=TINY_FACE_SIZE, min_depth=TINY_MIN_DEPTH_M)
    dataset = PanoInfinigen(data_path, "train")
    generator = torch.Generator().manual_seed(stable_hash(seed, "vae"))
    optimizer = torch.optim.AdamW(vae.parameters(), lr=learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=steps, pct_start=0.1
    )
    images = torch.empty(0)
    bar = tqdm(range(steps), desc="vae")
    for step in bar:
        chosen = torch.randint(len(dataset), (batch_size,), generator=generator)
        batch = yaw_augment(stack_samples([dataset[i] for i in chosen.tolist()]), seed, step)
        images = vae_images(batch, config)
        loss, error = _vae_loss(vae, images)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 20 == 0:
            bar.set_postfix_str(
                "l1 colour {:.3f} depth {:.3f} normals {:.3f}".format(*tuple(error.tolist()))
            )
    _finish_vae(vae, images, output)


def _vae_loss(vae: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """Loss, and the mean absolute error of colour, depth and normals (3,)."""
    mean = vae.encode(images).latent_dist.mean
    error = vae.decode(mean).sample - images
    slopes = error.diff(dim=-1).abs().mean((1, 2, 3)) + error.diff(dim=-2).abs().mean((1, 2, 3))
    per_kind = (error.abs().mean((1, 2, 3)) + 0.5 * slopes).unflatten(0, (3, -1)).mean(1)
    weights = per_kind.new_tensor([COLOR_WEIGHT, DEPTH_WEIGHT, NORMALS_WEIGHT])
    loss = (weights * per_kind).sum() + KL_WEIGHT * mean.square().mean()
    return loss, error.detach().abs().unflatten(0, (3, -1)).mean((1, 2, 3, 4))


def _finish_vae(vae: Any, images: Tensor, output: Path) -> None:
    """Store the latent scale (unit variance for the UNet) and the weights."""
    with torch.no_grad():
        latents = vae.encode(images).latent_dist.mean
        error = (vae.decode(latents).sample - images).abs().unflatten(0, (3, -1)).mean((1, 2, 3, 4))
    vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 5))
    vae.save_pretrained(output / "vae")
    names = ("colour", "depth", "normals")
    values = {name: round(value, 5) for name, value in zip(names, error.tolist(), strict=True)}
    write_json(output / "base.json", {"last_reconstruction_l1": values})
