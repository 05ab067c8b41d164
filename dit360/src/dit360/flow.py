"""Rectified flow as FLUX.1-dev is trained: noise levels, noisy latents, target, loss weights.

``x_sigma = (1 - sigma) x0 + sigma epsilon``, and the network predicts ``epsilon - x0``.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from diffusers.training_utils import (
    compute_density_for_timestep_sampling,
    compute_loss_weighting_for_sd3,
)
from torch import Tensor

WeightingScheme = Literal["sigma_sqrt", "logit_normal", "mode", "cosmap", "none"]
TimestepShift = Literal["none", "inference"]
TRAIN_STEPS = 1000
# Schedule of FLUX.1-dev: its shift grows linearly with the tokens of the image.
_BASE_TOKENS, _MAX_TOKENS, _BASE_SHIFT, _MAX_SHIFT = 256, 4096, 0.5, 1.15


def draw_sigmas(
    generators: Sequence[torch.Generator],
    *,
    scheme: WeightingScheme = "none",
    logit_mean: float = 0.0,
    logit_std: float = 1.0,
    mode_scale: float = 1.29,
    shift_mu: float | None = None,
) -> Tensor:
    """Draw noise levels, each one of 1, 0.999, .., 0.001 before the shift.

    Args:
        generators: sources on the CPU, one for each sample.
        scheme: density of the draw: uniform for "none", "sigma_sqrt" and "cosmap".
        logit_mean: of "logit_normal".
        logit_std: of "logit_normal".
        mode_scale: of "mode".
        shift_mu: moves the levels as the sampler does, see `schedule_mu`; None = as published.

    Returns:
        (B,) float32 on the CPU.

    Source: ``sigma = 1 - floor(1000 u) / 1000`` of the released training code.
    """
    uniform = torch.cat(
        [
            compute_density_for_timestep_sampling(
                scheme, 1, logit_mean, logit_std, mode_scale, generator=generator
            )
            for generator in generators
        ]
    )
    step = (TRAIN_STEPS * uniform.double()).floor().clamp(max=TRAIN_STEPS - 1)
    sigma = 1 - step / TRAIN_STEPS
    if shift_mu is not None:
        sigma = math.exp(shift_mu) / (math.exp(shift_mu) + 1 / sigma - 1)
    return sigma.float()


def schedule_mu(tokens: int) -> float:
    """Shift of the sampler's schedule for an image of so many tokens (spec 5.2).

    >>> round(schedule_mu(8320), 6)
    1.865
    """
    slope = (_MAX_SHIFT - _BASE_SHIFT) / (_MAX_TOKENS - _BASE_TOKENS)
    return slope * (tokens - _BASE_TOKENS) + _BASE_SHIFT


def interpolate(clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """Noisy latents ``(1 - sigma) x0 + sigma epsilon``: (B, C, h, w), `sigma` (B,)."""
    level = sigma.view(-1, 1, 1, 1)
    return (1 - level) * clean + level * noise


def target(clean: Tensor, noise: Tensor) -> Tensor:
    """What the network predicts, ``epsilon - x0``; the paper's yaw and cube equations negate it."""
    return noise - clean


def loss_weights(sigma: Tensor, scheme: WeightingScheme) -> Tensor:
    """Weights w (B,) of squared errors: 1 / sigma^2, 2 / (pi (1 - 2 sigma + 2 sigma^2)), or 1."""
    return compute_loss_weighting_for_sd3(scheme, sigma)
