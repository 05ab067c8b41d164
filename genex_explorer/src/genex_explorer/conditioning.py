"""What steers SVD beside the noisy latents: CLIP token, image latents, three numbers, dropout."""

from typing import Any, NamedTuple

import torch
from diffusers.pipelines.stable_video_diffusion import pipeline_stable_video_diffusion as svd
from torch import Tensor

CLIP_SIZE = (224, 224)


def clip_pixels(images: Tensor, processor: Any) -> Tensor:
    """Prepare frames for CLIP: blur, bicubic squeeze to 224 x 224, CLIP's mean and deviation.

    Args:
        images: (N, 3, H, W) in [-1, 1].
        processor: `CLIPImageProcessor`, for its mean and deviation.

    Returns:
        (N, 3, 224, 224) float32. The resize is the very function of the pipeline.
    """
    small = svd._resize_with_antialiasing(images.float(), CLIP_SIZE)
    mean = small.new_tensor(processor.image_mean)[:, None, None]
    std = small.new_tensor(processor.image_std)[:, None, None]
    return ((small + 1) / 2 - mean) / std


def clip_tokens(encoder: Any, processor: Any, images: Tensor) -> Tensor:
    """One CLIP token (N, D) for each frame (N, 3, H, W) in [-1, 1]."""
    pixels = clip_pixels(images, processor).to(encoder.dtype)
    return encoder(pixels).image_embeds


def time_ids(fps_id: float, motion_bucket_id: float, noise_aug: Tensor) -> Tensor:
    """Added numbers (B, 3): frames per second, motion, noise on the condition (B,) of each clip.

    The original gave every clip the noise of the first of its batch.
    """
    constants = noise_aug.new_tensor([fps_id, motion_bucket_id]).expand(len(noise_aug), 2)
    return torch.cat([constants, noise_aug[:, None]], 1)


class Kept(NamedTuple):
    """Which conditions survive dropout: factors 0 or 1, (B,)."""

    clip: Tensor
    image: Tensor


def keep_conditions(r: Tensor, probability: float) -> Kept:
    """Regions of one uniform number a clip: [0,p) no CLIP, [p,2p) neither, [2p,3p) no image."""
    clip = r >= 2 * probability
    image = (r < probability) | (r >= 3 * probability)
    return Kept(clip.to(r.dtype), image.to(r.dtype))
