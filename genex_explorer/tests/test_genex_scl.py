"""Spherical-consistent loss against the published formula, and what the cheaper modes see."""

from typing import Any

import pytest
import torch
from torch import Tensor

from genex_explorer.edm import precondition
from genex_explorer.rotation import legacy_roll
from genex_explorer.scl import combine, draw_columns, scl_loss, scl_weight, seam_differences
from genex_explorer.tiny import tiny_vae
from genex_explorer.vae import decode_clips, encode_moments


@pytest.fixture(scope="module")
def vae() -> Any:
    torch.manual_seed(0)
    return tiny_vae().requires_grad_(False).eval()


@pytest.fixture(scope="module")
def clip(vae: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Estimate and target latents (2, 3, 4, 8, 16), pixels (2, 3, 3, 32, 64), sigma (2,)."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.rand(2, 3, 3, 32, 64, generator=generator) * 2 - 1
    with torch.no_grad():
        moments = encode_moments(vae, pixels.flatten(0, 1)).unflatten(0, (2, 3))
    target = moments[:, :, :4] * vae.config.scaling_factor
    estimate = target + 0.3 * torch.randn(target.shape, generator=generator)
    return estimate, target, pixels, torch.tensor([0.5, 4.0])


def published(
    vae: Any, estimate: Tensor, pixels: Tensor, sigma: Tensor, turns: list[int], seed: int
):
    """Section 5.7, one clip: decoded again for every rotation, all in one graph."""
    scale = vae.config.scaling_factor
    generator = torch.Generator().manual_seed(seed)
    terms = []
    for turn in turns:
        decoded = vae.decode(estimate / scale, num_frames=len(estimate)).sample
        both = [
            scale * vae.encode(x.roll(-turn, -1)).latent_dist.sample(generator)
            for x in (decoded, pixels)
        ]
        terms.append(((1 + sigma**2) / sigma**2 * (both[0] - both[1]) ** 2).mean())
    return torch.stack(terms).mean()


@pytest.mark.parametrize("turns", [[5], [5, 40]])
def test_pixel_mode_is_the_published_loss_and_gradient(
    vae: Any, clip: Any, turns: list[int]
) -> None:
    estimate, target, pixels, sigma = clip
    ours = estimate.clone().requires_grad_()
    values = scl_loss(
        vae, ours, target, pixels, sigma, mode="pixel", columns=[turns, turns],
        generators=[torch.Generator().manual_seed(b) for b in range(2)],
    )  # fmt: skip
    (values * torch.tensor([1.0, 3.0])).sum().backward()  # unequal weights reach their own clip
    theirs = estimate.clone().requires_grad_()
    expected = [published(vae, theirs[b], pixels[b], sigma[b], turns, b) for b in range(2)]
    (expected[0] + 3 * expected[1]).backward()
    torch.testing.assert_close(values, torch.stack(expected), rtol=1e-6, atol=0)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-7)


def test_frames_in_chunks_give_the_sum_of_their_parts(vae: Any, clip: Any) -> None:
    estimate, target, pixels, sigma = clip
    leaf = estimate[:1].clone().requires_grad_()
    generator = torch.Generator().manual_seed(0)
    value = scl_loss(
        vae, leaf, target[:1], pixels[:1], sigma[:1], mode="pixel", columns=[[7]],
        generators=[generator], chunk=2,
    )  # fmt: skip
    value.sum().backward()
    generator = torch.Generator().manual_seed(0)
    twin = estimate[:1].clone().requires_grad_()
    expected = torch.zeros(())
    for part, share in ((slice(0, 2), 2 / 3), (slice(2, 3), 1 / 3)):
        expected = expected + share * _one(vae, twin[0, part], pixels[0, part], sigma[0], generator)
    expected.backward()
    torch.testing.assert_close(value[0], expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(leaf.grad, twin.grad, rtol=1e-5, atol=1e-7)


def _one(vae: Any, latents: Tensor, pixels: Tensor, sigma: Tensor, generator: Any) -> Tensor:
    scale = vae.config.scaling_factor
    decoded = decode_clips(vae, latents[None])[0]
    a = scale * vae.encode(decoded.roll(-7, -1)).latent_dist.sample(generator)
    b = scale * vae.encode(pixels.roll(-7, -1)).latent_dist.sample(generator)
    return (1 + sigma**2) / sigma**2 * (a - b).square().mean()


@pytest.mark.parametrize("mode", ["pixel", "pixel_strip", "latent"])
def test_gradient_by_finite_differences(vae: Any, clip: Any, mode: Any) -> None:
    estimate, target, pixels, sigma = (x[:1].double() for x in clip)
    double = vae.double()

    def value(x: Tensor) -> Tensor:
        return scl_loss(
            double, x, target, pixels, sigma, mode=mode, columns=[[9]],
            generators=[torch.Generator().manual_seed(0)],
        )  # fmt: skip

    leaf = estimate.clone().requires_grad_()
    value(leaf).sum().backward()
    direction = torch.randn(leaf.shape, generator=torch.Generator().manual_seed(5)).double()
    slope = (value(estimate + 1e-3 * direction) - value(estimate - 1e-3 * direction)) / 2e-3
    vae.float()
    assert leaf.grad is not None
    # Posterior noise and latents are rounded to float32 on their way.
    assert (leaf.grad * direction).sum().item() == pytest.approx(slope.item(), rel=2e-3)


def test_strip_and_latent_modes_see_only_the_seam(vae: Any, clip: Any) -> None:
    _, target, pixels, sigma = clip
    wide = target.repeat(1, 1, 1, 1, 4)  # 64 latent columns
    images = pixels.repeat(1, 1, 1, 1, 4)
    for mode in ("pixel_strip", "latent"):
        leaf = (wide + 0.1).requires_grad_()
        scl_loss(
            vae, leaf, wide + 0.2 * torch.linspace(0, 1, 64), images, sigma, mode=mode,  # pyright: ignore
            columns=[[0], [0]], generators=[torch.Generator().manual_seed(b) for b in range(2)],
        ).sum().backward()  # fmt: skip
        assert leaf.grad is not None
        touched = leaf.grad.abs().sum((0, 1, 2, 3)).nonzero().flatten().tolist()
        assert touched
        assert all(column < 24 or column >= 40 for column in touched)
        assert 0 in touched
        assert 63 in touched


def test_seam_differences_are_those_across_the_border() -> None:
    x = torch.arange(40.0).reshape(1, 40)
    assert seam_differences(x).tolist() == [[1.0] * 7 + [-39.0] + [1.0] * 7]


def test_latent_mode_by_hand() -> None:
    target = torch.zeros(1, 2, 4, 3, 20)
    estimate = target.clone()
    estimate[..., 0] = 2.0  # a step of 2 at the seam and one of -2 behind it, among 15 differences
    value = scl_loss(
        None, estimate, target, None, torch.tensor([1.0]), mode="latent", columns=[[0]],
        generators=[torch.Generator()],
    )  # fmt: skip
    assert value.item() == pytest.approx(2 * (4 + 4) / 15)  # lambda(1) = 2


def test_guard_of_the_published_code() -> None:
    video, scl = torch.tensor(1.0, requires_grad=True), torch.tensor(9.0, requires_grad=True)
    assert combine(video, scl, 0.25).item() == pytest.approx(0.75 + 2.25)
    assert combine(video, scl * 1.2, 0.25).item() == pytest.approx(1.0)
    assert combine(video, scl * float("inf"), 0.25).item() == pytest.approx(1.0)


def test_turns_cover_the_full_circle() -> None:
    generator = torch.Generator().manual_seed(0)
    turns = draw_columns(64, 2000, generator)
    assert set(turns) == set(range(64))


def test_exact_roll_equals_the_published_one_where_its_columns_are_whole() -> None:
    image = torch.rand(1, 3, 8, 1024, generator=torch.Generator().manual_seed(0))
    assert torch.equal(legacy_roll(image, 90.1), image.roll(-256, -1))


def test_weight_follows_the_updates_of_the_whole_training() -> None:
    ramp = [scl_weight("released", step, 8, 1.0) for step in range(9)]
    assert ramp[:5] == pytest.approx([0.05, 0.2875, 0.525, 0.7625, 1.0])
    assert ramp[4:] == [1.0] * 5
    assert precondition(torch.tensor([1.0])).weight.item() == 2
