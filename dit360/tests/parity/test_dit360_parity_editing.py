"""Numbers of editing that hold without weights.

Row numbers are those of the check list in the design document.
"""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dit360.editing import EditSettings, edit
from dit360.editing.inject import invert
from dit360.editing.masks import token_keep
from dit360.editing.place import place_photo
from dit360.editing.schedule import noise_levels, plan_steps
from dit360.pipeline import DiT360Pipeline
from dit360.tiny import flux_scheduler
from dit360.vae import set_vae_wrap

FULL_TOKENS = 64 * 128  # 1024 x 2048
WHITE = np.full((512, 512, 3), 255, np.uint8)


def lateral_face(yaw_deg: float) -> np.ndarray:
    """Mask of a cube face at 1024 x 2048, like the shipped ones."""
    return place_photo(WHITE, 1024, fov_deg=90.0, yaw_deg=yaw_deg)[1]


def test_p7_img_dims_of_editing() -> None:
    pipeline: Any = DiT360Pipeline.__new__(DiT360Pipeline)
    pipeline.vae_scale_factor = 8
    grid = pipeline.token_grid(1024, 2048)
    assert (grid[0], grid[1] + 2 * DiT360Pipeline.padding_n) == (64, 130)
    assert grid[0] * (grid[1] + 2) == 8320


def test_p8_editing_takes_the_shift_of_the_unpadded_length() -> None:
    line = np.linspace(1, 1 / 50, 50)
    mu = 1.8433333333333333  # of 8192 tokens, not 1.865 of 8320
    expected = np.exp(mu) / (np.exp(mu) + 1 / line - 1)
    assert noise_levels(flux_scheduler(), 50, FULL_TOKENS) == pytest.approx(
        [*expected, 0.0], abs=1e-6
    )


def test_p17_lateral_face() -> None:
    keep = lateral_face(0.0)
    assert keep.mean() == pytest.approx(0.1163, abs=0.0005)
    tokens = token_keep(keep)
    rows, columns = np.nonzero(tokens)
    assert tokens.sum() == 957
    assert (rows.min(), rows.max()) == (16, 47)
    assert (columns.min(), columns.max()) == (48, 79)
    for turns in (1, 2, 3):
        turned = token_keep(lateral_face(90.0 * turns))
        assert abs(int(turned.sum()) - 957) <= 32
        differs = turned != np.roll(tokens, 32 * turns, axis=1)
        neighbours = np.roll(tokens, 32 * turns + 1, axis=1) | np.roll(
            tokens, 32 * turns - 1, axis=1
        )
        assert not (differs & turned & ~neighbours).any()
        assert differs.sum() <= 64


@pytest.mark.parametrize(("steps", "weight"), [(50, -1.198e-4), (28, 0.016304)])
def test_p19_weight_of_the_source_in_its_inverted_latents(steps: int, weight: float) -> None:
    sigmas = noise_levels(flux_scheduler(), steps, FULL_TOKENS)
    one, zero = torch.ones(1, 1, 1, dtype=torch.float64), torch.zeros(1, 1, 1, dtype=torch.float64)
    assert invert(one, zero, sigmas).item() == pytest.approx(weight, abs=1e-6)
    assert invert(zero, one, sigmas).item() == pytest.approx(1 - weight, abs=1e-6)


@pytest.mark.parametrize(("tau", "injected"), [(20, 49), (50, 44), (80, 31), (98, 6)])
def test_p20_injected_steps(tau: float, injected: int) -> None:
    sigmas = noise_levels(flux_scheduler(), 50, FULL_TOKENS)
    steps = plan_steps(sigmas, EditSettings(prompt="", tau=tau))
    assert [step.injects for step in steps] == [True] * injected + [False] * (50 - injected)
    if tau == 50:
        assert steps[injected - 1].sigma == pytest.approx(0.507, abs=5e-4)
        assert sum(step.blends for step in steps) == 44
        assert steps[-1].sigma == pytest.approx(0.114, abs=5e-4)
        assert [step.eta for step in steps] == [1.0] * 49 + [0.0]


def test_p21_source_branch_in_closed_form(
    micro_flux: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = DiT360Pipeline.from_pretrained(micro_flux)
    set_vae_wrap(pipeline.vae, "circular")
    pipeline.set_progress_bar_config(disable=True)
    states: list[Tensor] = []
    forward = pipeline.transformer.forward

    def record(**kwargs: Any) -> Any:
        states.append(kwargs["hidden_states"][0])
        return forward(**kwargs)

    monkeypatch.setattr(pipeline.transformer, "forward", record)
    source = np.random.default_rng(0).integers(0, 256, (64, 128, 3), np.uint8)
    keep = np.zeros((64, 128), bool)
    keep[16:48, 32:96] = True
    settings = EditSettings(prompt="a", num_inference_steps=12, tau=0.0, max_sequence_length=8)
    edit(pipeline, source, keep, settings)
    sigmas = noise_levels(pipeline.scheduler, 12, 32)
    assert len(states) == 12
    # x = (1 - s) x0 + s Y_T; Y_T is the first state, x0 follows from the second.
    inverted = states[0]
    clean = (states[1] - sigmas[1] * inverted) / (1 - sigmas[1])
    for sigma, state in zip(sigmas, states, strict=False):
        expected = (1 - sigma) * clean + sigma * inverted
        torch.testing.assert_close(state, expected, rtol=0, atol=1e-5)
    for (first, second), (a, b) in zip(pairwise(sigmas), pairwise(states), strict=False):
        straight = (b - clean) * first - (a - clean) * second
        assert straight.abs().max() < 1e-5
