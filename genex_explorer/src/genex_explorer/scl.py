"""Spherical-consistent learning: the clip must look the same after any turn (paper, equation 2).

All modes compare the denoised estimate with the truth where the left and right border of the
panorama have become interior, in latent units, weighted by lambda(sigma) like the video loss:

* ``pixel``: as published: decode, turn by a random yaw, encode again. Decodes once (the original:
  once per rotation) and lets one chunk of frames live at a time.
* ``pixel_strip``: the same for a strip around the seam only; everything far from the seam is a
  second, dearer reconstruction loss.
* ``latent``: without the VAE: differences of neighbouring latent columns across the seam.
"""

from typing import Any

import torch
from torch import Tensor

from genex_explorer.edm import precondition
from genex_explorer.training.options import SclMode, SclSchedule
from genex_explorer.vae import encode_moments, sample_moments, vae_factor

GUARD = 10.0  # above this multiple of the video loss the published code leaves the term out
STRIP_COLUMNS, STRIP_MARGIN = 8, 8  # latent columns compared and decoded on each side of the seam


def scl_weight(schedule: SclSchedule, step: int, total_steps: int, limit: float) -> float:
    """Share beta of the term in ``(1 - beta) * video + beta * scl``.

    Args:
        schedule: "released": 0.05 rising to 1 at half of the training, as in the published code
            (which counted micro-batches of an epoch; here optimiser steps count); "paper": constant.
        step: optimiser steps done.
        total_steps: of the whole training.
        limit: largest value; with "paper" the value (the paper's is not given).
    """
    if schedule == "paper":
        return limit
    return min(0.05 + 0.95 * min(2 * step / total_steps, 1.0), limit)


def combine(video: Tensor, scl: Tensor, beta: float) -> Tensor:
    """``(1 - beta) * video + beta * scl`` of two scalars; only `video` if `scl` is ten times it."""
    both = (1 - beta) * video + beta * scl
    return torch.where(scl.detach() > GUARD * video.detach(), video, both)


def draw_columns(width: int, count: int, generator: torch.Generator) -> list[int]:
    """Whole columns to turn by, from the full circle (the original: half of it)."""
    return torch.randint(width, (count,), generator=generator).tolist()


class _Attached(torch.autograd.Function):
    """Per-clip values whose gradient with respect to the estimate is already known."""

    @staticmethod
    def forward(ctx: Any, estimate: Tensor, values: Tensor, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(gradient)
        ctx.dtype = estimate.dtype
        return values.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (gradient,) = ctx.saved_tensors
        return (gradient * grad.reshape(-1, 1, 1, 1, 1)).to(ctx.dtype), None, None


def scl_loss(
    vae: Any,
    estimate: Tensor,
    target: Tensor,
    pixels: Tensor | None,
    sigma: Tensor,
    *,
    mode: SclMode,
    columns: list[list[int]],
    generators: list[torch.Generator],
    chunk: int | None = None,
) -> Tensor:
    """Loss of each clip, differentiable in `estimate`.

    Args:
        vae: frozen; unused by "latent".
        estimate: denoised latents (B, F, 4, h, w), scaled.
        target: true latents, alike.
        pixels: true frames (B, F, 3, H, W) in [-1, 1]; None with "latent".
        sigma: noise levels (B,).
        mode: see the module.
        columns: for each clip the pixel columns of its turns, see `draw_columns`.
        generators: for each clip the source of the posterior noise.
        chunk: frames decoded and encoded at a time; all if None.

    Returns:
        (B,) float32, the mean over the turns.
    """
    weight = precondition(sigma).weight
    if mode == "latent":
        error = seam_differences(estimate.float()) - seam_differences(target.float())
        return weight * error.square().flatten(1).mean(1)
    assert pixels is not None
    leaf = estimate.detach().requires_grad_()
    values = []
    for b, turns in enumerate(columns):
        value = weight.new_zeros(())
        frames = range(0, leaf.shape[1], chunk or leaf.shape[1])
        for part in (slice(start, start + (chunk or leaf.shape[1])) for start in frames):
            share = leaf[b, part].shape[0] / leaf.shape[1] / len(turns)
            clip = (leaf[b, part], pixels[b, part])
            compare = _turned_errors if mode == "pixel" else _strip_errors
            loss = weight[b] * share * compare(vae, *clip, turns, generators[b])
            if estimate.requires_grad:
                loss.backward()
            value = value + loss.detach()
        values.append(value)
    if leaf.grad is None:
        return torch.stack(values)
    return _Attached.apply(estimate, torch.stack(values), leaf.grad)  # pyright: ignore[reportReturnType]


def _decode(vae: Any, latents: Tensor) -> Tensor:
    scaled = latents.to(vae.dtype) / vae.config.scaling_factor
    return vae.decode(scaled, num_frames=len(latents)).sample


def _latents(vae: Any, images: Tensor, generator: torch.Generator) -> Tensor:
    moments = encode_moments(vae, images.to(vae.dtype))
    return vae.config.scaling_factor * sample_moments(moments.float(), generator)


def _turned_errors(
    vae: Any, latents: Tensor, pixels: Tensor, turns: list[int], generator: torch.Generator
) -> Tensor:
    """Sum over turns of the mean squared error of re-encoded frames."""
    decoded = _decode(vae, latents)
    total = latents.new_zeros(())
    for turn in turns:
        estimate = _latents(vae, decoded.roll(-turn, -1), generator)
        with torch.no_grad():
            truth = _latents(vae, pixels.roll(-turn, -1), generator)
        total = total + (estimate - truth).square().mean()
    return total


def _strip_errors(
    vae: Any, latents: Tensor, pixels: Tensor, turns: list[int], generator: torch.Generator
) -> Tensor:
    """As `_turned_errors`, for a strip in which the seam lies off the middle by the turn."""
    factor, width = vae_factor(vae), latents.shape[-1]
    compared = min(STRIP_COLUMNS, width // 4)
    margin = min(STRIP_MARGIN, width // 2 - compared)
    total = latents.new_zeros(())
    for turn in turns:
        off = turn % compared - compared // 2
        # The seam, between the last and the first column, comes to width // 2 + off.
        shift, start = width // 2 + off, width // 2 - compared - margin
        stop = width // 2 + compared + margin
        decoded = _decode(vae, latents.roll(shift, -1)[..., start:stop])
        inner = slice(margin * factor, decoded.shape[-1] - margin * factor)
        truth = pixels.roll(shift * factor, -1)[..., start * factor : stop * factor][..., inner]
        estimate = _latents(vae, decoded[..., inner], generator)
        with torch.no_grad():
            reference = _latents(vae, truth, generator)
        total = total + (estimate - reference).square().mean()
    return total


def seam_differences(latents: Tensor) -> Tensor:
    """Differences of neighbouring columns (..., h, n) around +-180 degrees, of (..., h, w)."""
    side = min(STRIP_COLUMNS, latents.shape[-1] // 2)
    around = torch.cat([latents[..., -side:], latents[..., :side]], -1)
    return around.diff(dim=-1)
