"""Numbers of the specification for losses, schedules and targets, and slow float64 twins."""

import math

import pytest
import torch

from dit360 import flow
from dit360.losses import YAW_ANGLES_DEG, cube_coordinates, cube_residual, flow_losses, yaw_residual
from dit360.training.schedule import epoch_lr_factor, perspective_count

HEIGHT, WIDTH = 128, 256


def yaw_twin(image: torch.Tensor, angle_deg: float) -> torch.Tensor:
    """The published rotation written out: directions, rotation matrix, bilinear lookup.

    float64 but for the latitudes, whose ends have a negative cosine in float32.
    """
    height, width = image.shape[-2:]
    lat = torch.linspace(-math.pi / 2, math.pi / 2, height).double()
    lon = torch.linspace(-math.pi, math.pi, width, dtype=torch.float64)
    lat, lon = torch.meshgrid(lat, lon, indexing="ij")
    x, z = lat.cos() * lon.sin(), lat.cos() * lon.cos()
    a = math.radians(angle_deg)
    x, z = math.cos(a) * x + math.sin(a) * z, -math.sin(a) * x + math.cos(a) * z
    column = (torch.atan2(x, z) / (2 * math.pi) + 0.5) * (width - 1)
    low = column.floor().long().clamp(max=width - 2)
    part = column - low
    rows = torch.arange(height)[:, None].expand(-1, width)
    return image[..., rows, low] * (1 - part) + image[..., rows, low + 1] * part


def cube_twin(image: torch.Tensor) -> torch.Tensor:
    """Faces by bilinear lookup in float64, (6, C, S, S)."""
    column, row = cube_coordinates(*image.shape[-2:], "original")
    x, y = column.floor().long().clamp(max=WIDTH - 2), row.floor().long().clamp(max=HEIGHT - 2)
    u, v = column - x, row - y
    top = image[:, y, x] * (1 - u) + image[:, y, x + 1] * u
    bottom = image[:, y + 1, x] * (1 - u) + image[:, y + 1, x + 1] * u
    return (top * (1 - v) + bottom * v).movedim(0, 1)


def test_p13_yaw_of_column_numbers() -> None:
    columns = torch.arange(WIDTH).float().expand(3, 1, HEIGHT, WIDTH)
    turned = yaw_residual(columns, torch.tensor(YAW_ANGLES_DEG))
    for row in (1, 64, HEIGHT - 2):
        assert turned[:, 0, row, 0].tolist() == pytest.approx([42.5, 127.5, 212.5], abs=1e-3)
        assert turned[:, 0, row, 128].tolist() == pytest.approx([170.5, 0.5, 85.5], abs=1e-3)


def test_p14_constant_residual() -> None:
    residual = torch.full((1, 16, HEIGHT, WIDTH), 0.7)
    result = flow_losses(
        residual, torch.ones(1), lambda_yaw=1, lambda_cube=1, angles_deg=torch.tensor([60.0])
    )
    for loss in (result.velocity, result.yaw, result.cube):
        assert loss.item() == pytest.approx(0.49, rel=1e-6)


def test_p14_residual_form_equals_three_samples() -> None:
    generator = torch.Generator().manual_seed(1)
    v, noise, clean = torch.randn(3, 2, 16, HEIGHT, WIDTH, generator=generator).unbind()
    angles = torch.tensor([60.0, 300.0])
    result = flow_losses(
        v - flow.target(clean, noise), torch.ones(2), lambda_yaw=0.5, lambda_cube=0.5,
        angles_deg=angles,
    )  # fmt: skip
    yaw = [yaw_residual(part, angles) for part in (v, noise, clean)]
    cube = [cube_residual(part) for part in (v, noise, clean)]
    for loss, (rv, rn, rc) in ((result.yaw, yaw), (result.cube, cube)):
        expected = (rv - (rn - rc)).square().flatten(1).mean(1)
        assert torch.allclose(loss, expected, rtol=1e-6)


@pytest.mark.parametrize("size", [(16, 32), (HEIGHT, WIDTH)])
@pytest.mark.parametrize("angle", YAW_ANGLES_DEG)
def test_yaw_equals_a_float64_twin(size: tuple[int, int], angle: float) -> None:
    image = torch.randn(2, 4, *size, generator=torch.Generator().manual_seed(2))
    turned = yaw_residual(image, torch.full((2,), angle))
    differs = (turned - yaw_twin(image.double(), angle)).abs() > 1e-4  # spec 11.2 item 4
    assert not differs[..., 1:-1, :].any()
    # At the poles whole columns are hit; the two ends are one meridian, either may be taken.
    assert differs.any(0).any(0).sum(-1)[[0, -1]].max() <= 2


def test_cube_equals_a_float64_twin() -> None:
    image = torch.randn(1, 4, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(3))
    assert (cube_residual(image)[0] - cube_twin(image[0].double())).abs().max() < 1e-4


def test_p15_cube_shape_and_corners() -> None:
    assert cube_residual(torch.zeros(2, 3, HEIGHT, WIDTH)).shape == (2, 6, 3, 64, 64)
    columns, rows = cube_coordinates(HEIGHT, WIDTH, "original")
    corners = [(columns[4, i, j].item(), rows[4, i, j].item()) for i in (0, -1) for j in (0, -1)]
    expected = [(95.625, 38.619), (159.375, 38.619), (95.625, 88.381), (159.375, 88.381)]
    for corner, wanted in zip(corners, expected, strict=True):
        assert corner == pytest.approx(wanted, abs=1e-3)


def test_p16_white_residual_ratios() -> None:
    residual = torch.randn(12, 16, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(4))
    angles = torch.tensor(YAW_ANGLES_DEG).repeat(4)
    result = flow_losses(residual, torch.ones(12), lambda_yaw=1, lambda_cube=1, angles_deg=angles)
    assert (result.yaw.mean() / result.velocity.mean()).item() == pytest.approx(0.508, abs=0.005)
    assert (result.cube.mean() / result.velocity.mean()).item() == pytest.approx(0.447, abs=0.01)


def test_cube_weight_of_rows() -> None:
    """How much a latent row counts relative to plain MSE (spec 5.3)."""
    for row, weight in ((0, 0.002), (1, 0.019), (4, 0.077), (16, 0.39), (32, 1.96), (64, 1.26)):
        residual = torch.zeros(1, 1, HEIGHT, WIDTH)
        residual[..., row, :] = 1
        cube = cube_residual(residual).mean().item()  # first order: the operator is a mean
        assert cube * HEIGHT == pytest.approx(weight, abs=0.006, rel=0.02), row


def test_p22_photos_by_epoch() -> None:
    assert [perspective_count(1000, epoch) for epoch in range(7)] == [0, 0, 500, 250, 125, 62, 31]
    assert [perspective_count(1000, epoch) for epoch in (12, 20, 60)] == [1, 1, 1]
    assert perspective_count(0, 5) == 0


def test_p23_learning_rate_factors() -> None:
    factors = [epoch_lr_factor(epoch, 25) for epoch in range(25)]
    assert factors == pytest.approx([0.2, 0.6] + [1.0] * 23)
    assert epoch_lr_factor(0, 5) == pytest.approx(0.2)  # at least one epoch of warm-up
    assert epoch_lr_factor(1, 5) == 1


def test_p26_sign_of_the_target() -> None:
    clean, noise = torch.randn(2, 1, 16, 8, 16, generator=torch.Generator().manual_seed(5)).unbind()
    v = noise - clean
    loss = flow_losses(v - flow.target(clean, noise), torch.ones(1), lambda_yaw=1, lambda_cube=1,
                       angles_deg=torch.tensor([60.0])).total  # fmt: skip
    assert loss.item() == 0
    start = flow.interpolate(clean, noise, torch.ones(1))
    assert torch.allclose(start + (0 - 1) * v, clean, atol=1e-6)
