"""Panorama metrics against closed forms, a slow float64 twin and cut-open panoramas."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shared_pano_utils.geometry import FACE_NAMES, rays, sphere_weights
from shared_pano_utils.metrics import (
    CUBE_EDGES,
    cube_edge_jumps,
    psnr,
    seam_error,
    ws_psnr,
    ws_ssim,
)


def smooth_erp(height: int, width: int) -> torch.Tensor:
    """Three waves (3, H, W) float64 over the directions, without any seam."""
    directions = rays("erp", (height, width), dtype=torch.float64)
    waves = torch.tensor([[3.0, 1, 2], [-2, 4, 1], [1, -3, 5]], dtype=torch.float64)
    return (directions @ waves.T).sin().movedim(-1, 0)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---- PSNR ----------------------------------------------------------------------------------------


@given(
    height=st.integers(8, 96),
    width=st.integers(8, 96),
    error=st.floats(0.001, 0.9),
    seed=st.integers(0, 99),
)
@settings(max_examples=20, deadline=None)
def test_constant_error_gives_psnr_for_any_weights(
    height: int, width: int, error: float, seed: int
) -> None:
    image = noise(3, height, width, seed=seed)
    expected = -20 * math.log10(error)
    assert psnr(image, image + error).item() == pytest.approx(expected, abs=1e-9)
    assert ws_psnr(image, image + error).item() == pytest.approx(expected, abs=1e-9)


@given(height=st.integers(8, 96), width=st.integers(8, 96), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_error_in_the_top_row_counts_with_the_weight_of_the_row(
    height: int, width: int, seed: int
) -> None:
    image = noise(3, height, width, seed=seed)
    changed = image.clone()
    changed[:, 0] += 0.1
    share = sphere_weights("erp", (height, width))[0].sum().item() / (4 * math.pi)
    assert ws_psnr(image, changed).item() == pytest.approx(20 - 10 * math.log10(share), abs=1e-8)
    assert psnr(image, changed).item() == pytest.approx(20 + 10 * math.log10(height), abs=1e-8)


def test_cosine_weights_are_the_same_number() -> None:
    a, b = noise(3, 20, 40), noise(3, 20, 40, seed=1)
    cosine = np.cos((0.5 - (np.arange(20) + 0.5) / 20) * np.pi)[:, None]
    mse = np.average(((a - b) ** 2).numpy().mean(0), weights=np.broadcast_to(cosine, (20, 40)))
    assert ws_psnr(a, b).item() == pytest.approx(-10 * math.log10(mse), abs=1e-12)


def test_data_range_follows_the_dtype() -> None:
    a = np.zeros((8, 16, 3), np.uint8)
    assert psnr(a, a + np.uint8(51)) == pytest.approx(20 * math.log10(255 / 51), abs=1e-12)
    deep = np.zeros((8, 16), np.uint16)
    assert psnr(deep, deep + np.uint16(655)) == pytest.approx(
        20 * math.log10(65535 / 655), abs=1e-12
    )
    assert psnr(a, a + np.uint8(51), data_range=51) == pytest.approx(0, abs=1e-12)
    assert ws_psnr(a, a) == math.inf
    half = torch.zeros(3, 8, 16, dtype=torch.bfloat16)
    assert psnr(half, half + 0.5).item() == pytest.approx(20 * math.log10(2), abs=1e-5)


def test_batches_and_kinds() -> None:
    a, b = noise(2, 5, 3, 8, 16), noise(2, 5, 3, 8, 16, seed=1)
    for metric in (psnr, ws_psnr, ws_ssim):
        values = metric(a, b)
        assert isinstance(values, torch.Tensor)
        assert values.shape == (2, 5)
        from_numpy = metric(a.movedim(-3, -1).numpy(), b.movedim(-3, -1).numpy())
        assert isinstance(from_numpy, np.ndarray)
        np.testing.assert_allclose(from_numpy, values, rtol=1e-12)
        single = metric(a[1, 2].numpy(), b[1, 2].numpy(), layout="chw")
        assert isinstance(single, np.ndarray)
        assert single.shape == ()
        assert single == pytest.approx(values[1, 2].item(), rel=1e-12)


# ---- SSIM ----------------------------------------------------------------------------------------


def ssim_twin(a: np.ndarray, b: np.ndarray) -> float:
    """Slow loop over the windows of (H, W) panoramas, with explicit wrap and pole crossing."""
    height, width = a.shape
    g = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window = np.outer(g, g) / g.sum() ** 2
    total = weight_sum = 0.0
    for i in range(height):
        weight = np.cos((0.5 - (i + 0.5) / height) * np.pi)
        for j in range(width):
            rows, columns = np.meshgrid(
                np.arange(i - 5, i + 6), np.arange(j - 5, j + 6), indexing="ij"
            )
            over = (rows < 0) | (rows >= height)
            rows = np.where(
                rows < 0, -1 - rows, np.where(rows >= height, 2 * height - 1 - rows, rows)
            )
            columns = (columns + np.where(over, width // 2, 0)) % width
            x, y = a[rows, columns], b[rows, columns]
            mx, my = (window * x).sum(), (window * y).sum()
            vx, vy = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum()
            cov = (window * (x - mx) * (y - my)).sum()
            value = (2 * mx * my + 1e-4) * (2 * cov + 9e-4)
            total += weight * value / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))
            weight_sum += weight
    return total / weight_sum


def test_ssim_equals_its_slow_twin() -> None:
    a = smooth_erp(12, 24)[0].numpy() / 2 + 0.5
    b = 0.7 * a + 0.3 * noise(12, 24).numpy()
    assert ws_ssim(a, b) == pytest.approx(ssim_twin(a, b), abs=1e-12)


def test_ssim_of_equal_images_and_of_a_turned_pair() -> None:
    a, b = noise(3, 24, 48), noise(3, 24, 48, seed=1)
    assert ws_ssim(a, a).item() == pytest.approx(1, abs=1e-12)
    turned = ws_ssim(a.roll(17, -1), b.roll(17, -1))
    assert turned.item() == pytest.approx(ws_ssim(a, b).item(), abs=1e-12)
    levels = (a * 255).round().to(torch.uint8), (b * 255).round().to(torch.uint8)
    assert ws_ssim(*levels).item() == pytest.approx(ws_ssim(a, b).item(), abs=1e-3)


def test_quality_metrics_differentiate() -> None:
    a = noise(1, 4, 8).requires_grad_()
    b = noise(1, 4, 8, seed=1)
    for metric in (psnr, ws_psnr, ws_ssim):
        assert torch.autograd.gradcheck(lambda x, m=metric: m(x, b), a)


# ---- seams ---------------------------------------------------------------------------------------


def test_panorama_without_seam_has_ratios_of_one() -> None:
    found = seam_error(smooth_erp(256, 512))
    assert found["wrap_ratio"].item() == pytest.approx(1, abs=0.02)
    assert found["edge_ratio"].shape == (12,)
    # Pixels of a face are about 3 / S wider beside its border than at it.
    torch.testing.assert_close(found["edge_ratio"], torch.ones(12).double(), rtol=0, atol=0.05)
    step = 2 * math.pi / 512
    # The second difference of waves with |k| <= 6 is at most k^2 step^2.
    assert found["wrap_curv"].item() < 36 * step**2
    assert (found["pole_std"] < 6 * math.pi / 512).all()


def test_seam_numbers_by_hand() -> None:
    erp = torch.zeros(1, 4, 8, dtype=torch.float64)
    #                     -3    -2    -1 |   0    1    2
    erp[0, :, [5, 6, 7, 0, 1, 2]] = torch.tensor([0.0, 1, 3, 7, 8, 10], dtype=torch.float64)
    erp[0, 0, 3] = erp[0, 0, 4] = 4.0
    found = seam_error(erp)
    assert found["wrap_jump"].item() == pytest.approx(4)
    assert found["wrap_ratio"].item() == pytest.approx(4 / ((1 + 2 + 1 + 2) / 4))
    assert found["wrap_curv"].item() == pytest.approx(4 - (2 + 1) / 2)
    rows = np.array([[7, 8, 10, 4, 4, 0, 1, 3], [7, 8, 10, 0, 0, 0, 1, 3]], float)
    np.testing.assert_allclose(found["pole_std"], rows.std(axis=1), atol=1e-12)


def test_cut_open_panorama_has_a_seam_at_the_cut_only() -> None:
    erp = smooth_erp(64, 128)
    ramp = torch.linspace(0, 1, 128, dtype=torch.float64)  # breaks at +-180 degrees
    found = seam_error(erp + ramp)
    # A jump of 1 against usual steps of about 0.1.
    assert found["wrap_jump"].item() > 0.9
    assert found["wrap_ratio"].item() > 5
    assert found["edge_ratio"].max().item() < 1.2  # the cut runs through the middle of B


@pytest.mark.parametrize("face", range(6))
def test_brighter_face_shows_on_its_four_edges(face: int) -> None:
    directions = rays("cube", 96, dtype=torch.float64)
    cube = directions.movedim(-1, -3).clone()
    cube[face] += 0.5
    found = cube_edge_jumps(cube)
    is_edge = torch.tensor([FACE_NAMES[face] in name for name in CUBE_EDGES])
    assert is_edge.sum() == 4
    assert (found["ratio"][is_edge] > 4).all()
    torch.testing.assert_close(found["ratio"][~is_edge], torch.ones(8).double(), rtol=0, atol=0.05)
    assert found["density"].item() == pytest.approx(4 / 12)
    assert found["prevalence"].item() == pytest.approx(4 / 12)
    assert found["severity"].item() == pytest.approx(4 / 12)


def test_every_edge_pairs_the_pixels_that_touch() -> None:
    """The step between paired rays is one pixel, so strips are matched in place and direction."""
    side = 32
    cube = rays("cube", side, dtype=torch.float64).movedim(-1, -3)
    found = cube_edge_jumps(cube)
    assert (found["jump"] < 1.1 / side).all()
    assert len(set(CUBE_EDGES)) == 12


def test_relative_jumps_do_not_depend_on_the_unit() -> None:
    depth = noise(2, 6, 1, 8, 8) + 1
    metres, feet = (
        cube_edge_jumps(depth, relative=True),
        cube_edge_jumps(depth * 3.28, relative=True),
    )
    for name, value in metres.items():
        assert value.shape[0] == 2
        torch.testing.assert_close(value, feet[name])
    faces = torch.full((6, 1, 4, 4), 2.0)
    faces[4] = 2.0 * math.e
    jump = cube_edge_jumps(faces, relative=True)["jump"]
    expected = torch.tensor([float("U" in name) for name in CUBE_EDGES])
    torch.testing.assert_close(jump, expected)


def test_constant_images_have_no_seam() -> None:
    found = seam_error(np.full((16, 32, 3), 9, np.uint8))
    assert found["wrap_ratio"] == 1.0
    assert isinstance(found["edge_ratio"], np.ndarray)
    np.testing.assert_array_equal(found["edge_ratio"], np.ones(12))


def test_seam_batches_follow_the_leading_axes() -> None:
    batch = torch.stack([smooth_erp(16, 32), noise(3, 16, 32)])
    both, second = seam_error(batch), seam_error(batch[1])
    shapes = {name: tuple(value.shape) for name, value in both.items()}
    assert shapes == {
        "wrap_jump": (2,),
        "wrap_ratio": (2,),
        "wrap_curv": (2,),
        "pole_std": (2, 2),
        "edge_ratio": (2, 12),
    }
    for name, value in both.items():
        torch.testing.assert_close(value[1], second[name])


def test_errors_name_the_problem_and_the_remedy() -> None:
    image = torch.zeros(3, 8, 16)
    with pytest.raises(ValueError, match="differ in shape or dtype"):
        psnr(image, image[:, :4])
    with pytest.raises(ValueError, match="differ in shape or dtype"):
        psnr(image, image.double())
    with pytest.raises(ValueError, match="data_range is 0"):
        ws_psnr(image, image, data_range=0)
    with pytest.raises(ValueError, match="even width"):
        ws_ssim(image[..., :15], image[..., :15])
    with pytest.raises(ValueError, match="at least 6 columns"):
        seam_error(torch.zeros(3, 4, 5))
    with pytest.raises(ValueError, match="at least 3"):
        cube_edge_jumps(torch.zeros(6, 1, 2, 2))
    with pytest.raises(ValueError, match="6 square faces"):
        cube_edge_jumps(torch.zeros(6, 1, 4, 5))
