"""From clean clips to what the UNet sees: noise levels, noisy latents, conditions.

Every sample of a run has its own random numbers, a function of seed and sample number alone. So
processes never share noise, a resumed run repeats an unbroken one, and two processes equal one
with twice the batch.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from genex_explorer.conditioning import keep_conditions, time_ids
from genex_explorer.data.clips import stable_hash
from genex_explorer.edm import expand_to, precondition, sample_log_normal
from genex_explorer.training.options import TrainOptions
from genex_explorer.vae import add_posterior_noise, encode_moments, sample_moments


class Draws(NamedTuple):
    """Random numbers of one sample, in the order in which the original draws them."""

    latents: Tensor  # (F, 4, h, w) the scaled sample of the clip's posterior
    noise: Tensor  # (F, 4, h, w)
    noise_aug: Tensor  # () deviation of the noise on the first frame
    pixel_noise: Tensor  # (3, H, W)
    condition_noise: Tensor  # (4, h, w) of the condition's posterior
    sigma: Tensor  # ()
    dropout: Tensor  # () uniform


class NoisyBatch(NamedTuple):
    """What a training step needs, float32 on the device."""

    latents: Tensor  # (B, F, 4, h, w) clean and scaled
    noisy: Tensor  # (B, F, 4, h, w)
    sigma: Tensor  # (B,)
    network_input: Tensor  # (B, F, 8, h, w)
    context: Tensor  # (B, 1, D)
    ids: Tensor  # (B, 3)


def sample_generator(seed: int, sample: int, purpose: str = "noise") -> torch.Generator:
    """The source of randomness of one sample of a run."""
    return torch.Generator().manual_seed(stable_hash(seed, purpose, sample))


def draw(
    moments: Tensor,
    scale: float,
    pixels: tuple[int, int],
    options: TrainOptions,
    generator: torch.Generator | None,
) -> Draws:
    """Draw the numbers of one sample.

    Args:
        moments: (F, 8, h, w) of the clip.
        scale: scaling factor of the VAE.
        pixels: (H, W) of its frames.
        options: distributions of the noise.
        generator: source; the global one if None.
    """
    latents = scale * sample_moments(moments, generator)
    noise = torch.randn(latents.shape, generator=generator)
    noise_aug = sample_log_normal(1, options.noise_aug_mean, options.noise_aug_std, generator)
    pixel_noise = torch.randn(3, *pixels, generator=generator)
    condition_noise = torch.randn(latents.shape[1:], generator=generator)
    sigma = sample_log_normal(1, options.p_mean, options.p_std, generator)
    dropout = torch.rand(1, generator=generator)
    return Draws(latents, noise, noise_aug[0], pixel_noise, condition_noise, sigma[0], dropout[0])


def make_batch(
    vae: Any,
    moments: Tensor,
    first_frames: Tensor,
    tokens: Tensor,
    options: TrainOptions,
    generators: list[torch.Generator | None],
) -> NoisyBatch:
    """Add noise to clips and build the conditions.

    Args:
        vae: encodes the noisy first frames; not scaled, as SVD has it.
        moments: (B, F, 8, h, w) of the clips, see `encode_moments`.
        first_frames: (B, 3, H, W) clean, in [-1, 1].
        tokens: (B, D) CLIP token of the first frames.
        options: distributions and ids.
        generators: one for each clip.
    """
    device = moments.device
    size = (first_frames.shape[-2], first_frames.shape[-1])
    rows = [
        draw(clip, vae.config.scaling_factor, size, options, generator)
        for clip, generator in zip(moments.float(), generators, strict=True)
    ]
    draws = Draws(*(torch.stack(values).to(device) for values in zip(*rows, strict=True)))
    noisy_frames = first_frames + expand_to(draws.noise_aug, first_frames) * draws.pixel_noise
    of_condition = encode_moments(vae, noisy_frames.to(vae.dtype), wrap=options.vae_wrap)
    condition = add_posterior_noise(of_condition.float(), draws.condition_noise)
    keep = keep_conditions(draws.dropout, options.conditioning_dropout_prob)
    noisy = draws.latents + expand_to(draws.sigma, draws.latents) * draws.noise
    condition = expand_to(keep.image, condition) * condition
    c_in = expand_to(precondition(draws.sigma).c_in, noisy)
    repeated = condition[:, None].expand(-1, noisy.shape[1], -1, -1, -1)
    return NoisyBatch(
        latents=draws.latents,
        noisy=noisy,
        sigma=draws.sigma,
        network_input=torch.cat([c_in * noisy, repeated], 2),
        context=(expand_to(keep.clip, tokens) * tokens.float())[:, None],
        ids=time_ids(options.fps_id, options.motion_bucket_id, draws.noise_aug),
    )
