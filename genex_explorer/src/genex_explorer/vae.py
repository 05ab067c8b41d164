"""Encoding and decoding of panorama clips with the stock temporal VAE.

The stock class cannot tile or slice, and convolutions pad its images with zeros, which leaves a
seam at +-180 degrees. Here frames go through in chunks, and `wrap` latent columns from the other
end are laid on both sides and cut off again.
"""

from typing import Any

import torch
from torch import Tensor


def vae_factor(vae: Any) -> int:
    """Pixels per latent, along each axis."""
    return 2 ** (len(vae.config.block_out_channels) - 1)


def pad_columns(x: Tensor, columns: int) -> Tensor:
    """Lay `columns` columns of the other end on both sides of (..., H, W).

    Raises:
        ValueError: there are not so many columns.
    """
    if not 0 <= columns <= x.shape[-1]:
        raise ValueError(f"cannot wrap {columns} columns around an image of {x.shape[-1]}")
    if columns == 0:
        return x  # keeps the memory format, and with it the rounding of the stock pipeline
    return torch.cat([x[..., x.shape[-1] - columns :], x, x[..., :columns]], -1)


def encode_moments(vae: Any, images: Tensor, *, chunk: int | None = None, wrap: int = 0) -> Tensor:
    """Mean and log-variance of the latents of frames.

    Args:
        vae: `AutoencoderKLTemporalDecoder`; its encoder works frame by frame, so chunks are exact.
        images: (N, 3, H, W) in [-1, 1], H and W multiples of `vae_factor`.
        chunk: frames at a time; all if None.
        wrap: latent columns of the other end that the encoder sees on each side.

    Returns:
        (N, 8, h, w), not scaled.
    """
    padded = pad_columns(images, wrap * vae_factor(vae))
    moments = torch.cat(
        [vae.encode(part).latent_dist.parameters for part in padded.split(chunk or len(padded))]
    )
    return moments[..., wrap : moments.shape[-1] - wrap]


def add_posterior_noise(moments: Tensor, noise: Tensor) -> Tensor:
    """Latents (N, 4, h, w), not scaled: mean plus deviation times unit `noise`."""
    mean, log_variance = moments.chunk(2, dim=1)
    return mean + torch.exp(0.5 * log_variance.clamp(-30.0, 20.0)) * noise


def sample_moments(moments: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draw latents (N, 4, h, w) from moments (N, 8, h, w), not scaled.

    The noise comes from the CPU, the same on every device.
    """
    shape = (len(moments), moments.shape[1] // 2, *moments.shape[2:])
    return add_posterior_noise(moments, torch.randn(shape, generator=generator).to(moments))


def decode_clips(vae: Any, latents: Tensor, *, chunk: int | None = None, wrap: int = 0) -> Tensor:
    """Decode latents of clips.

    Args:
        vae: `AutoencoderKLTemporalDecoder`.
        latents: (B, F, 4, h, w), scaled as the UNet sees them.
        chunk: frames at a time, never of two clips; the decoder mixes the frames of a chunk, so
            that smaller chunks change the result at their borders.
        wrap: latent columns of the other end that the decoder sees on each side.

    Returns:
        (B, F, 3, H, W), about [-1, 1].
    """
    padded = 1 / vae.config.scaling_factor * pad_columns(latents, wrap)
    clips = []
    for clip in padded:
        parts = clip.split(chunk or len(clip))
        clips.append(torch.cat([vae.decode(part, num_frames=len(part)).sample for part in parts]))
    images = torch.stack(clips)
    margin = wrap * vae_factor(vae)
    return images[..., margin : images.shape[-1] - margin]
