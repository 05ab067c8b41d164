"""Numbers of the spec's section 11.1 that concern training and sampling (rows 6-14, 19, 25)."""

import pytest
import torch
from diffusers.pipelines.stable_video_diffusion import pipeline_stable_video_diffusion as svd
from diffusers.training_utils import EMAModel

from genex_explorer.conditioning import clip_pixels, keep_conditions, time_ids
from genex_explorer.edm import denoise, precondition, sample_log_normal, weighted_error
from genex_explorer.scl import scl_weight
from genex_explorer.tiny import svd_scheduler, tiny_pipeline


def test_row_6_karras_grid_of_25_steps() -> None:
    scheduler = svd_scheduler()
    scheduler.set_timesteps(25)
    sigmas = scheduler.sigmas.tolist()
    assert sigmas[:4] == pytest.approx([700, 545.729, 421.569, 322.454], rel=1e-5)
    assert sigmas[-4:] == pytest.approx([0.0248, 0.00788, 0.002, 0], rel=3e-3)
    times = scheduler.timesteps.tolist()
    assert [*times[:3], times[-1]] == pytest.approx([1.63777, 1.57553, 1.51100, -1.55365], abs=1e-5)
    assert scheduler.init_noise_sigma == pytest.approx(700.0007, abs=1e-4)


def test_row_7_karras_grid_of_5_steps() -> None:
    scheduler = svd_scheduler()
    scheduler.set_timesteps(5)
    expected = [700, 134.854, 15.590, 0.6781, 0.002, 0]
    assert scheduler.sigmas.tolist() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("sigma", "expected"),
    [
        (1.0, (0.5, -0.70711, 0.70711, 0.0, 2.0)),
        (10.0, (0.00990, -0.99504, 0.09950, 0.57565, 1.01)),
    ],
)
def test_rows_8_and_9_preconditioning(sigma: float, expected: tuple[float, ...]) -> None:
    values = [value.item() for value in precondition(torch.tensor(sigma, dtype=torch.float64))]
    assert values == pytest.approx(expected, abs=5e-6)


def test_row_10_loss_is_the_plain_error_of_v() -> None:
    sigma = torch.logspace(-3, 3, 50, dtype=torch.float64)
    c = precondition(sigma)
    torch.testing.assert_close(c.weight * c.c_out**2, torch.ones_like(sigma))
    generator = torch.Generator().manual_seed(0)
    z, noise, v = torch.randn(3, 5, 2, 4, 3, 6, generator=generator).double()
    levels = torch.tensor([0.01, 0.3, 1.0, 20.0, 400.0]).double()
    noisy = z + levels[:, None, None, None, None] * noise
    true_v = (z - precondition(levels).c_skip[:, None, None, None, None] * noisy) / precondition(
        levels
    ).c_out[:, None, None, None, None]
    error = weighted_error(denoise(v, noisy, levels), z, levels)
    expected = (v - true_v).square().flatten(1).mean(1)
    torch.testing.assert_close(error.double(), expected, rtol=2e-3, atol=0)  # float32 at sigma 400


def test_denoising_agrees_with_the_scheduler_of_the_pipeline() -> None:
    scheduler = svd_scheduler()
    scheduler.set_timesteps(25)
    generator = torch.Generator().manual_seed(0)
    noisy, v = torch.randn(2, 1, 2, 4, 3, 6, generator=generator)
    step = scheduler.step(v, scheduler.timesteps[0], noisy)
    estimate = denoise(v, noisy, scheduler.sigmas[:1])
    torch.testing.assert_close(step.pred_original_sample, estimate, rtol=1e-5, atol=1e-4)


def test_row_11_log_normal_helper() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        values = sample_log_normal(4, 0.7, 1.6)
    assert values.tolist() == pytest.approx([1.98374, 6.50652, 0.23217, 0.33724], abs=5e-6)


def test_row_12_weight_of_the_consistency_loss() -> None:
    weights = [scl_weight("released", step, 1000, 1.0) for step in (0, 100, 250, 500, 1000)]
    assert weights == pytest.approx([0.05, 0.24, 0.525, 1, 1])
    assert scl_weight("paper", 900, 1000, 0.1) == 0.1
    assert scl_weight("released", 900, 1000, 0.3) == 0.3


def test_row_13_decay_of_the_average() -> None:
    average = EMAModel([torch.nn.Parameter(torch.zeros(1))], decay=0.9999)
    decays = [average.get_decay(n) for n in (1, 2, 3, 10, 100, 1000)]
    assert decays == pytest.approx([0, 0.18182, 0.25, 0.52632, 0.91743, 0.99108], abs=5e-6)


def test_row_14_clip_input_is_that_of_the_pipeline() -> None:
    assert svd._compute_padding((3, 7)) == [3, 3, 1, 1]
    pipeline = tiny_pipeline()
    from PIL import Image

    image = Image.effect_noise((1024, 576), 60).convert("RGB")
    array = pipeline.video_processor.pil_to_numpy(image)
    pixels = pipeline.video_processor.numpy_to_pt(array) * 2 - 1
    seen = []
    pipeline.image_encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    pipeline._encode_image(image, "cpu", 1, False)
    ours = clip_pixels(pixels, pipeline.feature_extractor)
    assert ours.shape == (1, 3, 224, 224)
    torch.testing.assert_close(ours, seen[0], rtol=0, atol=1e-6)


def test_row_19_dropout_regions() -> None:
    kept = keep_conditions(torch.tensor([0.05, 0.15, 0.25, 0.5]), 0.1)
    assert kept.clip.tolist() == [0, 0, 1, 1]
    assert kept.image.tolist() == [1, 0, 0, 1]


def test_row_25_timestep_has_one_value_a_clip() -> None:
    sigma = torch.tensor([0.5, 2.0, 80.0])
    assert precondition(sigma).c_noise.shape == (3,)
    original = torch.Tensor([0.25 * s.log() for s in sigma.reshape(3, 1, 1, 1, 1)])
    torch.testing.assert_close(precondition(sigma).c_noise, original)


def test_noise_id_belongs_to_its_own_clip() -> None:
    ids = time_ids(7, 127, torch.tensor([0.02, 0.1]))
    torch.testing.assert_close(ids, torch.tensor([[7, 127, 0.02], [7, 127, 0.1]]))
