"""Metrics and loops beside the original's formulas, written out a second time with SciPy."""

import math

import numpy as np
import pytest
import torch
from scipy import linalg, ndimage

from genex_explorer.loops import construct_path, sample_headings, sample_lengths
from genex_explorer.metrics.frames import psnr, ssim, to_resolution
from genex_explorer.metrics.fvd import clip_features, frechet_distance

torch.set_num_threads(1)


def slow_psnr(a: np.ndarray, b: np.ndarray) -> float:
    mse = np.mean((a - b) ** 2)
    return 100.0 if mse < 1e-10 else 20 * math.log10(1 / math.sqrt(mse))


def slow_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Per channel with a 2D window; filtered with reflection, borders of 5 cut off."""
    line = np.exp(-((np.arange(11) - 5.0) ** 2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2

    def mean(x: np.ndarray) -> np.ndarray:
        return ndimage.correlate(x, window, mode="mirror")[5:-5, 5:-5]

    values = []
    for x, y in zip(a, b, strict=True):
        mu_x, mu_y = mean(x), mean(y)
        var_x, var_y, cov = mean(x * x) - mu_x**2, mean(y * y) - mu_y**2, mean(x * y) - mu_x * mu_y
        numerator = (2 * mu_x * mu_y + 1e-4) * (2 * cov + 9e-4)
        values.append((numerator / ((mu_x**2 + mu_y**2 + 1e-4) * (var_x + var_y + 9e-4))).mean())
    return float(np.mean(values))


def test_psnr_and_ssim_of_random_videos():
    rng = np.random.default_rng(0)
    videos = rng.integers(0, 256, (2, 3, 72, 128, 3), dtype=np.uint8)
    videos[1, 2] = videos[0, 2]
    a, b = (to_resolution(video, (64, 64)) for video in videos)
    x, y = a.double().numpy(), b.double().numpy()
    for i in range(3):
        assert psnr(a, b)[i].item() == pytest.approx(slow_psnr(x[i], y[i]), abs=1e-6)
        assert ssim(a, b)[i].item() == pytest.approx(slow_ssim(x[i], y[i]), abs=1e-6)
    assert psnr(a, b)[2].item() == 100  # row 23


def test_fvd_of_a_stub_beside_the_formula_with_sqrtm():
    generator = torch.Generator().manual_seed(0)
    projection = torch.randn(3 * 11 * 16, 6, generator=generator)

    def network(x, *, rescale, resize, return_features):
        assert (rescale, resize, return_features) == (False, False, True)
        return x[..., ::56, ::56].flatten(1) @ projection

    clips = torch.rand(2, 9, 11, 3, 32, 64, generator=generator)
    clips[1] = clips[1] ** 2
    features = [torch.stack([clip_features(network, c, [11])[11] for c in side]) for side in clips]
    a, b = (side.numpy() for side in features)
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    trace = np.trace(cov_a + cov_b - 2 * np.real(linalg.sqrtm(cov_a @ cov_b)))
    expected = np.square(a.mean(0) - b.mean(0)).sum() + trace
    assert frechet_distance(*features) == pytest.approx(expected, rel=1e-4)
    assert frechet_distance(features[0], features[0]) < 1e-6  # row 23


@pytest.mark.parametrize(
    ("n", "k"),
    [(n, k) for n in (2, 4, 6, 10, 20, 50) for k in (2, 3, 4, 5, 10) if k <= n] + [(5, 3), (25, 7)],
)
def test_loops_close(n, k):
    for seed in range(5):
        path = construct_path(n, k, np.random.default_rng(seed))
        assert len(path) == k + 1
        distances = [step["move_distance"] for step in path]
        assert sum(distances) == n
        assert max(distances) <= n // 2
        assert min(distances[:-1]) >= 1
        heading, place = 0.0, 0j
        for step in path:
            assert 0 <= step["turn_angle"] < 360
            heading += step["turn_angle"]
            place += step["move_distance"] * np.exp(1j * math.radians(heading))
            assert step["new_position"] == pytest.approx([place.real, place.imag], abs=1e-6)
            assert math.cos(math.radians(heading - step["new_angle"])) == pytest.approx(1)
        assert abs(place) <= 1e-5 * n
        assert path[-1]["move_distance"] == 0
        assert math.cos(math.radians(heading)) == pytest.approx(1, abs=1e-12)


def test_there_and_back():
    path = construct_path(8, 2, np.random.default_rng(3))
    assert [step["move_distance"] for step in path] == [4, 4, 0]
    assert path[1]["turn_angle"] == pytest.approx(180, abs=1e-6)


@pytest.mark.parametrize("lengths", [[2, 1, 1], [3, 1, 1, 1], [5, 1, 1, 1, 1, 1]])
def test_degenerate_loops_fold_flat(lengths):
    headings = sample_headings(np.array(lengths), np.random.default_rng(0))
    # the one long segment goes out, all others come back
    assert np.cos(headings[1:] - headings[0]) == pytest.approx([-1] * (len(lengths) - 1), abs=1e-6)


def test_lengths_that_cannot_close_and_what_is_refused():
    with pytest.raises(ValueError, match="form no closed loop"):
        sample_headings(np.array([5, 1, 1]), np.random.default_rng(0))
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match=r"1 straight segment\(s\) never return to the start"):
        sample_lengths(10, 1, rng)  # the original never ends
    with pytest.raises(ValueError, match="the number of frames must be even"):
        sample_lengths(5, 2, rng)
    with pytest.raises(ValueError, match="at most 3 segments of one frame, not 4"):
        sample_lengths(3, 4, rng)


def test_lengths_and_headings_are_drawn_evenly():
    rng = np.random.default_rng(0)
    lengths = np.stack([sample_lengths(20, 4, rng) for _ in range(400)])
    assert lengths.mean(0) == pytest.approx([5] * 4, abs=0.3)
    first = np.array([sample_headings(np.array([5, 5, 5, 5]), rng)[0] for _ in range(400)])
    assert abs(np.exp(1j * first).mean()) < 0.15
