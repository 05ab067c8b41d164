"""Noise levels, interpolation and weights against closed forms."""

import math

import pytest
import torch

from dit360 import flow


def draws(count: int, **options) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return flow.draw_sigmas([generator] * count, **options)


def test_levels_are_uniform_thousandths() -> None:
    sigma = draws(4000)
    thousandths = sigma.double() * 1000
    assert torch.allclose(thousandths, thousandths.round(), atol=1e-4)
    assert sigma.min() >= 0.001
    assert sigma.max() <= 1
    # Mean and variance of a uniform variable, three standard errors of 4000 draws.
    assert sigma.mean().item() == pytest.approx(0.5005, abs=3 * math.sqrt(1 / 12 / 4000))
    assert sigma.var().item() == pytest.approx(1 / 12, abs=0.005)


@pytest.mark.parametrize(
    ("uniform", "sigma"), [(0.0, 1.0), (0.0009, 1.0), (0.5, 0.5), (0.9995, 0.001), (1.0, 0.001)]
)
def test_level_of_a_uniform_number(
    uniform: float, sigma: float, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setattr(
        flow, "compute_density_for_timestep_sampling", lambda *_, **__: torch.tensor([uniform])
    )
    assert flow.draw_sigmas([torch.Generator()]).item() == pytest.approx(sigma, abs=1e-7)


def test_logit_normal_density() -> None:
    sigma = draws(4000, scheme="logit_normal", logit_mean=0.5, logit_std=0.7)
    logit = torch.logit(1 - sigma.double())  # u counts from the noisy end
    assert logit.mean().item() == pytest.approx(0.5, abs=0.04)
    assert logit.std().item() == pytest.approx(0.7, abs=0.03)


def test_shift_moves_levels_as_the_sampler_does() -> None:
    mu = flow.schedule_mu(8320)
    plain, shifted = draws(50), draws(50, shift_mu=mu)
    expected = math.exp(mu) / (math.exp(mu) + 1 / plain.double() - 1)
    assert torch.allclose(shifted.double(), expected, atol=1e-6)


def test_schedule_mu_of_the_spec() -> None:  # P8
    values = [flow.schedule_mu(tokens) for tokens in (8320, 8192, 4096)]
    assert values == pytest.approx([1.865, 1.8433333, 1.15], abs=1e-6)


def test_weights() -> None:
    sigma = torch.tensor([0.25, 0.5, 1.0])
    assert flow.loss_weights(sigma, "none").tolist() == [1, 1, 1]
    assert flow.loss_weights(sigma, "logit_normal").tolist() == [1, 1, 1]
    assert flow.loss_weights(sigma, "sigma_sqrt").tolist() == pytest.approx([16, 4, 1])
    expected = [2 / (math.pi * (1 - 2 * s + 2 * s * s)) for s in sigma.tolist()]
    assert flow.loss_weights(sigma, "cosmap").tolist() == pytest.approx(expected)


def test_interpolation_runs_from_data_to_noise() -> None:
    clean, noise = torch.randn(2, 3, 16, 4, 8).unbind()
    at = [flow.interpolate(clean, noise, torch.full((3,), s)) for s in (0.0, 0.25, 1.0)]
    assert torch.equal(at[0], clean)
    assert torch.equal(at[2], noise)
    slope = (at[1] - at[0]) / 0.25
    assert torch.allclose(slope, flow.target(clean, noise), atol=1e-5)
    each = flow.interpolate(clean, noise, torch.tensor([0.0, 0.25, 1.0]))
    assert torch.equal(each, torch.stack([at[k][k] for k in range(3)]))
