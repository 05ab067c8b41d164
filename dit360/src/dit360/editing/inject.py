"""Training-free editing by inversion and shared attention (paper section 3.5, spec 5.8).

Two branches are denoised side by side. The source branch leads back to the source panorama; the
edit branch starts from fresh noise and takes the attention tokens, and at high noise the latents,
of the kept region from the source branch. RF-Inversion (arXiv 2410.10792) gives the noise of the
source branch and holds the branch on its way.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any, NamedTuple

import torch
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from torch import Tensor

from dit360 import vae, wrap
from dit360.editing.attention import share_kept_tokens
from dit360.editing.schedule import Step, noise_levels, plan_steps
from dit360.editing.settings import EditSettings
from dit360.modulation import announced_levels
from dit360.pipeline import DiT360Pipeline

Field = Callable[[Tensor, float], Tensor]
"""States (B, S, 64) and their time (noise level) to velocities (B, S, 64), towards noise."""


class Texts(NamedTuple):
    """Encoded prompts of a batch of B."""

    embeds: Tensor  # [B, T, joint width]
    pooled: Tensor  # [B, pooled width]
    ids: Tensor  # [T, 3]


@dataclass(kw_only=True)
class VelocityField:
    """The network with everything but states and time fixed.

    Attributes:
        name: of its step caches; batches of different branches must not share theirs.
        image_ids: (S, 3).
        evaluations: panoramas that the network has seen.
    """

    network: FluxTransformer2DModel
    name: str
    texts: Texts
    image_ids: Tensor
    guidance: float
    evaluations: int = 0

    def __call__(self, states: Tensor, time: float) -> Tensor:
        """Velocities in float32; see `Field`."""
        self.evaluations += len(states)
        times = torch.full((len(states),), time, device=states.device)
        is_guided = self.network.config["guidance_embeds"]
        with self.network.cache_context(self.name):
            velocity = self.network(
                hidden_states=states.to(self.texts.embeds.dtype),
                timestep=times,
                guidance=torch.full_like(times, self.guidance) if is_guided else None,
                encoder_hidden_states=self.texts.embeds,
                pooled_projections=self.texts.pooled,
                txt_ids=self.texts.ids,
                img_ids=self.image_ids,
                return_dict=False,
            )[0]
        return velocity.float()


def inject(
    pipeline: DiT360Pipeline, images: Tensor, keep: Tensor, settings: EditSettings
) -> tuple[Tensor, Tensor | None, int]:
    """Edit one panorama.

    Random numbers are drawn in this order: posterior of the VAE, noise of the source branch, noise
    of the edit branch. Noise is wrapped like the latents, so that copied columns stay copies.

    Args:
        pipeline: with stock attention processors; offloading and LoRA may be on.
        images: source (1, 3, H, W) in [-1, 1].
        keep: (Hp, Wp) bool, tokens of the source to preserve.
        settings: of the method "inject".

    Returns:
        Edited latents (1, 16, H/8, W/8), those of the finished source branch if wanted, and the
        number of panoramas that the network has seen.
    """
    network, device = pipeline.transformer, pipeline._execution_device
    grid = pipeline.token_grid(images.shape[-2], images.shape[-1])
    columns = pipeline.padding_n
    texts = _encode_texts(pipeline, settings)
    generator = torch.Generator().manual_seed(settings.seed)  # of the CPU, alike on every device
    latents = vae.encode(pipeline.vae, images, generator=generator)
    source = wrap.pad_tokens(vae.pack(latents).to(device, torch.float32), grid, columns)
    noise, ids = _padded_noise(pipeline, images, generator)
    start, _ = _padded_noise(pipeline, images, generator)
    padded_keep = wrap.pad_tokens(keep.to(device).reshape(1, -1, 1), grid, columns)
    sigmas = noise_levels(pipeline.scheduler, settings.num_inference_steps, keep.numel())

    def field(name: str, prompts: Sequence[str], guidance: float) -> VelocityField:
        embeds, pooled, text_ids = zip(*(texts[prompt] for prompt in prompts), strict=True)
        batch = Texts(torch.cat(embeds), torch.cat(pooled), text_ids[0])
        return VelocityField(
            network=network, name=name, texts=batch, image_ids=ids, guidance=guidance
        )

    prompts = [_source_prompt(settings), settings.prompt]
    pair = field("source and edit", prompts, settings.guidance_scale)
    alone = field("edit", prompts[1:], settings.guidance_scale)
    free = field("inversion", [""], 0.0) if settings.gamma != 1 else None
    with announced_levels(pipeline, [index / len(sigmas) for index in range(len(sigmas) - 1)]):
        inverted = invert(source, noise, sigmas, settings.gamma, free)
    progress: Any = pipeline.progress_bar
    # `groupby` asks once more after the end, which not every progress bar survives.
    steps = (step for step in progress(plan_steps(sigmas, settings)))
    with announced_levels(pipeline, sigmas[:-1]):
        rebuilt, edited = denoise(
            source, inverted, start, padded_keep, steps, network=network, pair=pair, alone=alone
        )
    evaluations = sum(used.evaluations for used in (free, pair, alone) if used is not None)
    edited, rebuilt = (
        vae.unpack(wrap.crop_tokens(tokens, grid, columns), grid) for tokens in (edited, rebuilt)
    )
    return edited, rebuilt if settings.reconstruct else None, evaluations


def invert(
    source: Tensor,
    noise: Tensor,
    sigmas: Sequence[float],
    gamma: float = 1.0,
    velocity: Field | None = None,
) -> Tensor:
    """Controlled forward ODE from a source to noise (RF-Inversion, algorithm 1; spec 5.8).

    Args:
        source: (1, S, 64) latent tokens.
        noise: (1, S, 64), where gamma = 1 leads.
        sigmas: N + 1 descending noise levels; step i has the time i / (N + 1).
        gamma: weight of the straight way to `noise`.
        velocity: of the network, needed for gamma < 1.

    Returns:
        (1, S, 64); for gamma = 1 it is ``a * source + (1 - a) * noise`` with
        ``a = prod(1 - (sigma_i - sigma_{i+1}) / (1 - i / (N + 1)))``.
    """
    state = source
    for index, (sigma, next_sigma) in enumerate(pairwise(sigmas)):
        time = index / len(sigmas)
        drift = (noise - state) / (1 - time)
        if velocity is not None:
            drift = torch.lerp(velocity(state, time), drift, gamma)
        state = state + (sigma - next_sigma) * drift
    return state


def denoise(
    source: Tensor,
    inverted: Tensor,
    start: Tensor,
    keep: Tensor,
    steps: Iterable[Step],
    *,
    network: FluxTransformer2DModel,
    pair: Field,
    alone: Field,
) -> tuple[Tensor, Tensor]:
    """Lead the source branch back to the source and the edit branch to the result (spec 5.8).

    Args:
        source: clean latent tokens (1, S, 64), padded like everything here.
        inverted: (1, S, 64), where the source branch starts.
        start: (1, S, 64) noise, where the edit branch starts.
        keep: (1, S, 1) bool, tokens to preserve.
        steps: of `plan_steps`.
        network: whose attention is shared in the steps that inject.
        pair: velocities of both branches, batch [source, edit].
        alone: velocities of the edit branch.

    Returns:
        Last states of source branch and edit branch, (1, S, 64) each; that of the source branch is
        clean only if the steps were planned to finish it.
    """
    rebuilt, edited = inverted, start
    for injects, run in groupby(steps, key=lambda step: step.injects):
        with share_kept_tokens(network, keep.flatten()) if injects else nullcontext():
            for step in run:
                change = step.next_sigma - step.sigma
                straight = (rebuilt - source) / step.sigma
                if step.runs_source:
                    free, velocity = pair(torch.cat([rebuilt, edited]), step.sigma).split(1)
                    straight = torch.lerp(free, straight, step.eta)
                else:
                    velocity = alone(edited, step.sigma)
                edited = edited + change * velocity
                if step.advances_source:
                    rebuilt = rebuilt + change * straight
                if step.blends:
                    edited = torch.where(keep, rebuilt, edited)
    return rebuilt, edited


def _source_prompt(settings: EditSettings) -> str:
    return settings.prompt if settings.source_prompt is None else settings.source_prompt


def _encode_texts(pipeline: DiT360Pipeline, settings: EditSettings) -> dict[str, Texts]:
    """Encode every different prompt once; the inversion has the empty one."""
    prompts = {_source_prompt(settings), settings.prompt} | ({""} if settings.gamma != 1 else set())
    texts = {}
    for prompt in sorted(prompts):
        encoded: Any = pipeline.encode_prompt(
            prompt,
            None,  # the same for both encoders
            device=pipeline._execution_device,
            max_sequence_length=settings.max_sequence_length,
        )
        texts[prompt] = Texts(*encoded)
    return texts


def _padded_noise(
    pipeline: DiT360Pipeline, images: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Noise (1, S, 64) for the size of `images`, and position ids (S, 3)."""
    height, width = images.shape[-2:]
    return pipeline.prepare_latents(
        1,
        pipeline.transformer.config["in_channels"] // 4,
        height,
        width,
        torch.float32,
        pipeline._execution_device,
        generator,
    )
