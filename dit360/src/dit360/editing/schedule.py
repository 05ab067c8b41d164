"""Which noise levels an edit visits, and what happens at each of them.

The network is left out wherever its output has weight 0: with gamma = eta = 1 the inversion and
the source branch follow in closed form, and the source is in the batch only as long as it lends
its attention. At 50 steps and tau = 50 this makes 94 evaluations of the network instead of 150.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)

from dit360.editing.settings import EditSettings


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of the denoising, from noise level `sigma` down to `next_sigma`.

    Attributes:
        sigma: in (0, 1], also the time that the network is given.
        next_sigma: in [0, sigma).
        eta: pull of the source branch towards the source.
        injects: the edit branch takes its kept attention tokens from the source branch.
        blends: afterwards the kept latents of the edit branch are those of the source branch.
        advances_source: somebody needs the state of the source branch after this step.
        runs_source: the source branch is in the batch of the network.
    """

    sigma: float
    next_sigma: float
    eta: float
    injects: bool
    blends: bool
    advances_source: bool
    runs_source: bool


def noise_levels(
    scheduler: FlowMatchEulerDiscreteScheduler, steps: int, tokens: int
) -> list[float]:
    """Descending noise levels sigma_0 = 1 .. sigma_N = 0 of an inference (spec 5.2).

    Args:
        scheduler: of the pipeline; its timesteps are set, as the stock pipelines do.
        steps: N.
        tokens: image tokens that set the shift; in editing the *unpadded* ones (spec 5.1).
    """
    config = scheduler.config
    shift = calculate_shift(
        tokens,
        config["base_image_seq_len"],
        config["max_image_seq_len"],
        config["base_shift"],
        config["max_shift"],
    )
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps).tolist(), mu=shift)
    sigmas: Any = scheduler.sigmas
    return sigmas.tolist()


def plan_steps(sigmas: Sequence[float], settings: EditSettings) -> list[Step]:
    """Decide for every step of the denoising which branches take part (spec 5.8).

    Args:
        sigmas: N + 1 descending noise levels.
        settings: tau, eta, start_timestep, stop_timestep, blend_t and reconstruct are read.

    Returns:
        N steps; those that inject come first.
    """
    count = len(sigmas) - 1
    first = int(settings.start_timestep * count)
    last = int(settings.stop_timestep * count)
    steps = []
    is_needed = settings.reconstruct  # the state of the source branch, by what comes later
    for index in reversed(range(count)):
        sigma = sigmas[index]
        eta = settings.eta if first <= index < last else 0.0
        injects = sigma > settings.tau / 100
        blends = sigma >= settings.blend_t
        advances = is_needed or blends
        steps.append(
            Step(
                sigma=sigma,
                next_sigma=sigmas[index + 1],
                eta=eta,
                injects=injects,
                blends=blends,
                advances_source=advances,
                runs_source=injects or (advances and eta != 1),
            )
        )
        is_needed = advances or injects
    return steps[::-1]
