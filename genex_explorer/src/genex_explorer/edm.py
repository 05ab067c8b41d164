"""EDM preconditioning of Stable Video Diffusion (Karras et al. 2022, table 1, sigma_data = 1)."""

from typing import NamedTuple

import torch
from torch import Tensor

U_MARGIN = 1e-7  # keeps the quantile function finite


class Preconditioning(NamedTuple):
    """Coefficients for noise levels `sigma`, each of its shape.

    ``denoised = c_out * network(c_in * noisy, c_noise) + c_skip * noisy``; the sign of `c_out` is
    that of v-prediction. `weight` (lambda) times `c_out` squared is 1 for every sigma, so that the
    loss is the plain squared error of v.
    """

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor
    c_noise: Tensor
    weight: Tensor


def precondition(sigma: Tensor) -> Preconditioning:
    """Coefficients of noise levels sigma > 0."""
    variance = sigma**2 + 1
    return Preconditioning(
        c_skip=1 / variance,
        c_out=-sigma / variance.sqrt(),
        c_in=1 / variance.sqrt(),
        c_noise=0.25 * sigma.log(),
        weight=variance / sigma**2,
    )


def sample_log_normal(
    count: int, mean: float, std: float, generator: torch.Generator | None = None
) -> Tensor:
    """Draw (count,) values with normal logarithm, through the quantile function on the CPU."""
    u = torch.rand(count, generator=generator) * (1 - 2 * U_MARGIN) + U_MARGIN
    return torch.distributions.Normal(mean, std).icdf(u).exp()


def expand_to(values: Tensor, like: Tensor) -> Tensor:
    """Give (B,) values trailing axes of length 1, so that they multiply (B, ...)."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def denoise(v: Tensor, noisy: Tensor, sigma: Tensor) -> Tensor:
    """Estimate the clean latents (B, ...) in float32 from the output `v` at levels sigma (B,)."""
    c = precondition(sigma)
    return expand_to(c.c_out, noisy) * v.float() + expand_to(c.c_skip, noisy) * noisy.float()


def weighted_error(estimate: Tensor, target: Tensor, sigma: Tensor) -> Tensor:
    """Mean of lambda(sigma) * squared error over all but the first axis, (B,) float32."""
    error = (estimate.float() - target.float()).square().flatten(1).mean(1)
    return precondition(sigma).weight * error
