"""Resampled residuals and mixed batches against closed forms."""

import math

import pytest
import torch
from torch.nn import functional as F

from dit360.losses import FACES, cube_coordinates, cube_residual, flow_losses, yaw_residual


@pytest.fixture
def residual() -> torch.Tensor:
    return torch.randn(3, 4, 16, 32, generator=torch.Generator().manual_seed(0))


def test_half_pixel_turn_by_whole_columns_is_a_roll(residual: torch.Tensor) -> None:
    for columns in (0, 5, 16, 31):
        turned = yaw_residual(residual, torch.full((3,), 360 * columns / 32), "half_pixel")
        assert torch.allclose(turned, residual.roll(-columns, -1), atol=2e-5), columns


def test_half_pixel_turn_wraps_at_the_seam(residual: torch.Tensor) -> None:
    turned = yaw_residual(residual, torch.full((3,), 360 * 0.5 / 32), "half_pixel")
    assert torch.allclose(turned, (residual + residual.roll(-1, -1)) / 2, atol=2e-5)


def test_original_turn_is_a_roll_of_two_tap_means(residual: torch.Tensor) -> None:
    """180 degrees: 15.5 columns of a period of 31, in which the two ends are one meridian."""
    turned = yaw_residual(residual, torch.full((3,), 180.0))
    two_tap = (residual[..., :-1] + residual[..., 1:]) / 2  # [b, c, h, 31]
    expected = torch.cat([two_tap[..., 15:], two_tap[..., :15]], -1)
    inner = slice(1, -1)  # the rows of the poles are turned by 180 degrees more: not at all
    assert torch.allclose(turned[..., inner, :31], expected[..., inner, :], atol=2e-5)
    assert torch.allclose(turned[..., inner, 31], turned[..., inner, 0], atol=2e-5)
    assert torch.allclose(turned[..., 0, :31], residual[..., 0, :31], atol=2e-5)
    assert torch.allclose(turned[..., -1, :31], residual[..., -1, :31], atol=2e-5)


def test_every_sample_turns_by_its_own_angle(residual: torch.Tensor) -> None:
    angles = torch.tensor([60.0, 180.0, 300.0])
    together = yaw_residual(residual, angles)
    for k in range(3):
        alone = yaw_residual(residual[k : k + 1], angles[k : k + 1])
        assert torch.equal(together[k : k + 1], alone)


@pytest.mark.parametrize("grid", ["original", "half_pixel"])
def test_faces_look_where_their_name_says(grid) -> None:
    """Faces of the direction field of the panorama itself; RDF axes, y down."""
    height, width = 64, 128
    if grid == "original":
        rows, columns = torch.arange(height) / (height - 1), torch.arange(width) / (width - 1)
    else:
        rows, columns = (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width
    lat, lon = torch.meshgrid((rows - 0.5) * math.pi, (columns - 0.5) * 2 * math.pi, indexing="ij")
    field = torch.stack([lat.cos() * lon.sin(), lat.sin(), lat.cos() * lon.cos()])
    faces = cube_residual(field[None], grid)[0]  # [6, 3, 32, 32]
    axis = {"X": 0, "Y": 1, "Z": 2}
    for face, name in zip(faces, FACES, strict=True):
        centre = face[:, 15:17, 15:17].mean((1, 2))
        expected = torch.zeros(3)
        expected[axis[name[1]]] = 1 if name[0] == "+" else -1
        assert torch.allclose(centre, expected, atol=5e-3), name
        if "Y" not in name:  # lateral faces are upright
            assert face[1, 0].mean() < -0.5 < 0.5 < face[1, -1].mean()
    # Seen from inside, the right edge of the front face is the left edge of the right face.
    right, front = faces[0], faces[4]
    assert torch.allclose(
        front[:, :, -1], right[:, :, 0], atol=0.06 if grid == "half_pixel" else 5e-3
    )


def test_weights_multiply_all_terms(residual: torch.Tensor) -> None:
    options = {"lambda_yaw": 0.3, "lambda_cube": 0.7, "angles_deg": torch.full((3,), 60.0)}
    one = flow_losses(residual, torch.ones(3), **options)
    weights = torch.tensor([0.5, 1.0, 4.0])
    scaled = flow_losses(residual, weights, **options)
    for a, b in zip(one, scaled, strict=True):
        assert torch.allclose(weights * a, b)
    total = one.velocity + 0.3 * one.yaw + 0.7 * one.cube
    assert torch.allclose(one.total, total)
    assert torch.allclose(one.velocity, residual.square().mean((1, 2, 3)))


def test_losses_that_are_off_cost_nothing(residual: torch.Tensor) -> None:
    result = flow_losses(residual, torch.ones(3))
    assert torch.equal(result.total, result.velocity)
    assert not result.yaw.any()
    assert not result.cube.any()


def mask(height: int, width: int) -> torch.Tensor:
    supervised = torch.zeros(height, width, dtype=torch.bool)
    supervised[4:12, 10:20] = True
    return supervised


@pytest.mark.parametrize(("reduction", "cells"), [("cells", 80), ("grid", 16 * 32)])
def test_photo_counts_its_supervised_cells(residual: torch.Tensor, reduction, cells: int) -> None:
    supervised = mask(16, 32).expand(3, -1, -1)
    result = flow_losses(
        residual, torch.ones(3), lambda_yaw=1.0, lambda_cube=1.0,
        angles_deg=torch.full((3,), 60.0), supervised=supervised, reduction=reduction,
        perspective_weight=0.25,
    )  # fmt: skip
    total = torch.stack([r[:, m].square().sum() for r, m in zip(residual, supervised, strict=True)])
    assert torch.allclose(result.total, 0.25 * total / (4 * cells), rtol=1e-5)
    assert not result.yaw.any()


def test_panorama_in_a_mixed_batch_keeps_its_loss(residual: torch.Tensor) -> None:  # D22
    options = {"lambda_yaw": 0.5, "lambda_cube": 0.5, "angles_deg": torch.full((3,), 180.0)}
    everywhere = torch.ones(16, 32, dtype=torch.bool)
    mixed = torch.stack([mask(16, 32), everywhere, mask(16, 32)])
    result = flow_losses(residual, torch.ones(3), supervised=mixed, **options)
    alone = flow_losses(residual[1:2], torch.ones(1), angles_deg=torch.full((1,), 180.0),
                        lambda_yaw=0.5, lambda_cube=0.5)  # fmt: skip
    assert result.total[1].item() == pytest.approx(alone.total.item(), rel=1e-6)
    assert result.yaw[1] > 0


def test_empty_mask_is_a_differentiable_zero(residual: torch.Tensor) -> None:  # D22
    residual = residual.clone().requires_grad_()
    supervised = torch.zeros(3, 16, 32, dtype=torch.bool)
    loss = flow_losses(residual, torch.ones(3), supervised=supervised).total.mean()
    loss.backward()
    assert loss.item() == 0
    assert residual.grad is not None
    assert not residual.grad.any()


def test_half_precision_grids_would_fail() -> None:
    """Why grids are float32 (D12): bfloat16 coordinates miss rows by more than one."""
    _, rows = cube_coordinates(128, 256, "original")
    rounded = (2 * rows / 127 - 1).bfloat16().double()
    assert ((rounded + 1) * 127 / 2 - rows).abs().max() > 0.1
    rows_float = (2 * rows / 127 - 1).float().double()
    assert ((rows_float + 1) * 127 / 2 - rows).abs().max() < 1e-5


def test_gradient_flows_through_the_resampling(residual: torch.Tensor) -> None:
    """L_yaw is quadratic: the gradient of half of it, dotted with r, is L_yaw itself."""
    residual = residual.double().requires_grad_()
    turned = F.mse_loss(
        yaw_residual(residual.float(), torch.full((3,), 60.0)), torch.zeros(()).expand(3, 4, 16, 32)
    )
    (gradient,) = torch.autograd.grad(turned, residual)
    assert (gradient * residual).sum().item() == pytest.approx(2 * turned.item(), rel=1e-5)
