"""Losses and alignments: closed forms, gradients, empty masks, consistency with rendered truth."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from pager import losses
from pager.depth import DepthRange, align, least_squares_scale_shift
from pager.geometry import (
    erp_directions,
    pager_to_rdf,
    rdf_to_pager,
    roll_normals,
    structured3d_to_pager,
)
from shared_pano_utils import erp_to_cubemap
from shared_pano_utils.geometry import PY360_E2X, rotation_matrix
from shared_pano_utils.synthetic import Scene


def sample(channels: int = 1, side: int = 4, panoramas: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Prediction, target and mask of random faces, float64."""
    shape = (panoramas, 6, channels, side, side)
    pred, target = torch.randn(2, *shape, dtype=torch.float64)
    return pred, target, torch.rand(panoramas, 6, 1, side, side) < 0.7


# ---- values -------------------------------------------------------------------------------------


def test_l1_is_a_mean_per_panorama():
    pred, target, mask = sample()
    expected = [float((p - g).abs()[m].mean()) for p, g, m in zip(pred, target, mask, strict=True)]
    assert losses.l1_loss(pred, target, mask).tolist() == pytest.approx(expected)
    outside = [float((p - g).abs()[~m].mean()) for p, g, m in zip(pred, target, mask, strict=True)]
    weighted = [a + 0.25 * b for a, b in zip(expected, outside, strict=True)]
    assert losses.l1_loss(pred, target, mask, 0.25).tolist() == pytest.approx(weighted)


def test_gradient_loss_equals_a_loop_over_blocks():
    pred, target, mask = sample(side=4, panoramas=1)
    total, count = 0.0, 0
    for face in range(6):
        p, g, m = pred[0, face, 0], target[0, face, 0], mask[0, face, 0]
        for i in range(3):
            for j in range(3):
                if m[i : i + 2, j : j + 2].all():
                    dx = (p[i, j + 1] - p[i, j]) - (g[i, j + 1] - g[i, j])
                    dy = (p[i + 1, j] - p[i, j]) - (g[i + 1, j] - g[i, j])
                    total += float(dx.abs() + dy.abs()) / 2
                    count += 1
    assert 0 < count < 54
    assert losses.gradient_loss(pred, target, mask).item() == pytest.approx(total / count)


def test_cosine_loss_by_angles():
    angle = torch.tensor([0.0, 60, 90, 180], dtype=torch.float64).deg2rad()
    pred = torch.stack([angle.cos(), angle.sin(), torch.zeros(4)])[:, None]  # [3, 1, 4]
    target = torch.zeros_like(pred)
    target[0] = 5  # the length does not matter
    mask = torch.ones(1, 1, 4, dtype=torch.bool)
    assert losses.cosine_loss(pred[None], target[None], mask[None]).item() == pytest.approx(
        (0 + 0.5 + 1 + 2) / 4
    )
    mask[..., -1] = False
    assert losses.cosine_loss(pred[None], target[None], mask[None]).item() == pytest.approx(0.5)


def test_relative_alignment_removes_what_depth_leaves_free():
    pred, target, mask = sample()
    offset = torch.tensor([0.3, -2.0]).view(2, 1, 1, 1, 1).double()
    shifted = losses.align_relative(target + offset, target, mask, log_scale=True)
    torch.testing.assert_close(shifted, target)
    fitted = losses.align_relative(3 * target + offset, target, mask, log_scale=False)
    torch.testing.assert_close(fitted, target)
    # In log depth the fit is one number for all six faces: the mean error is zero.
    aligned = losses.align_relative(pred, target, mask, log_scale=True)
    assert losses.masked_mean(aligned - target, mask).abs().max() < 1e-12


# ---- gradients ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "loss",
    [
        losses.l1_loss,
        lambda p, g, m: losses.l1_loss(p, g, m, 0.3),
        losses.gradient_loss,
        lambda p, g, m: losses.align_relative(p, g, m, log_scale=True),
        lambda p, g, m: losses.align_relative(p, g, m, log_scale=False),
    ],
    ids=["l1", "l1 and invalid", "gradient", "log alignment", "linear alignment"],
)
def test_gradients_of_depth_losses(loss):
    pred, target, mask = sample(side=3, panoramas=1)
    assert torch.autograd.gradcheck(lambda p: loss(p, target, mask), pred.requires_grad_())


def test_gradient_of_the_cosine_loss():
    pred, target, mask = sample(channels=3, side=2, panoramas=1)
    assert torch.autograd.gradcheck(
        lambda p: losses.cosine_loss(p, target, mask), pred.requires_grad_()
    )


def test_gradient_of_the_normals_consistency_loss():
    """Against a central difference; the step is coarse because metres are float32."""
    directions = erp_directions((16, 32))[None]
    pred = torch.full((1, 6, 1, 8, 8), 0.3) + 0.02 * torch.randn(1, 6, 1, 8, 8)
    pred.requires_grad_()
    mask = torch.ones(1, 1, 16, 32, dtype=torch.bool)

    def loss(values: Tensor) -> Tensor:
        return losses.normals_consistency_loss(values, -directions, mask, DepthRange()).sum()

    (gradient,) = torch.autograd.grad(loss(pred), pred)
    step = 1e-3 * torch.randn_like(pred)
    with torch.no_grad():
        difference = loss(pred + step) - loss(pred - step)
    assert (gradient * 2 * step).sum().item() == pytest.approx(difference.item(), rel=0.02)
    unread = (gradient == 0).flatten(2).sum(-1)  # corners between coarse panorama pixels
    assert unread.max() <= 4


# ---- empty masks --------------------------------------------------------------------------------


def test_empty_masks_give_zero_and_zero_gradients():
    pred, target, mask = sample(side=4)
    mask[0] = False  # the second panorama stays valid
    for loss in (
        lambda p: losses.l1_loss(p, target, mask),
        lambda p: losses.gradient_loss(p, target, mask),
        lambda p: losses.l1_loss(
            losses.align_relative(p, target, mask, log_scale=True), target, mask
        ),
        lambda p: losses.l1_loss(
            losses.align_relative(p, target, mask, log_scale=False), target, mask
        ),
    ):
        leaf = pred.clone().requires_grad_()
        values = loss(leaf)
        (gradient,) = torch.autograd.grad(values.sum(), leaf)
        assert values[0] == 0
        assert values[1] > 0
        assert not gradient[0].any()
        assert gradient.isfinite().all()
    pred, target, _ = sample(channels=3)
    assert losses.cosine_loss(pred, target, torch.zeros_like(mask)).tolist() == [0, 0]
    full = losses.l1_loss(pred[:, :, :1], target[:, :, :1], torch.ones_like(mask), 0.5)
    assert full.isfinite().all()  # no invalid pixel


def test_zero_vectors_have_a_finite_cosine_loss():
    pred = torch.zeros(1, 6, 3, 2, 2, requires_grad=True)
    target = torch.nn.functional.normalize(torch.randn(1, 6, 3, 2, 2), dim=2)
    loss = losses.cosine_loss(pred, target, torch.ones(1, 6, 1, 2, 2, dtype=torch.bool))
    (gradient,) = torch.autograd.grad(loss.sum(), pred)
    assert loss.item() == pytest.approx(1)
    assert gradient.isfinite().all()


# ---- alignments of metrics ----------------------------------------------------------------------


def test_alignments_recover_known_transformations():
    target = torch.rand(2, 1, 8, 16, dtype=torch.float64) * 5 + 0.5
    mask = torch.rand(2, 1, 8, 16) < 0.6
    factor = torch.tensor([0.2, 7.0]).view(2, 1, 1, 1).double()
    broken = torch.where(mask, target, torch.inf)  # invalid truth must not be read
    for alignment in ("scale", "log_scale", "scale_and_shift"):
        torch.testing.assert_close(align(target * factor, broken, mask, alignment), target)
    shifted = align(target * factor + 3, broken, mask, "scale_and_shift")
    torch.testing.assert_close(shifted, target)
    assert align(target * factor, broken, mask, "metric") is not target
    assert torch.equal(align(target * factor, broken, mask, "metric"), target * factor)


def test_alignments_equal_library_least_squares():
    pred, target = torch.rand(2, 1, 1, 6, 12, dtype=torch.float64) + 0.1
    mask = torch.rand(1, 1, 6, 12) < 0.5
    p, g = pred[mask].numpy(), target[mask].numpy()
    scale = np.linalg.lstsq(p[:, None], g, rcond=None)[0].item()
    torch.testing.assert_close(align(pred, target, mask, "scale"), pred * scale)
    design = np.stack([p, np.ones_like(p)], 1)
    scale, shift = np.linalg.lstsq(design, g, rcond=None)[0]
    torch.testing.assert_close(align(pred, target, mask, "scale_and_shift"), pred * scale + shift)
    geometric = math.exp(np.log(g / p).mean())
    torch.testing.assert_close(align(pred, target, mask, "log_scale"), pred * geometric)


def test_singular_fits_are_zero():
    flat = torch.full((1, 1, 4, 4), 2.0)
    scale, shift = least_squares_scale_shift(flat, torch.rand(1, 1, 4, 4), flat > 0)
    assert (scale.item(), shift.item()) == (0, 0)
    with pytest.raises(ValueError, match="use metric, scale"):
        align(flat, flat, flat > 0, "affine")  # type: ignore[arg-type]


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (2.0, 1.0)])
def test_impossible_depth_ranges_are_refused(low, high):
    with pytest.raises(ValueError, match="0 < min < max"):
        DepthRange(min_m=low, max_m=high)


def test_depth_range_valid_and_linear():
    limits = DepthRange(min_m=1.0, max_m=11.0, log_scale=False)
    metres = torch.tensor([0.5, 1.0, 1.005, 6.0, 10.8, 10.95, math.inf, math.nan])
    assert limits.valid(metres).tolist() == [False, False, False, True, True, False, False, False]
    assert limits.normalize(metres[3]).item() == pytest.approx(0)
    assert limits.denormalize(torch.tensor([-3.0, 0, 0.5, 3])).tolist() == [1, 6, 8.5, 11]


# ---- frames and normals of rendered scenes ------------------------------------------------------


def test_frames_by_hand():
    right_down_forward = torch.tensor([1.0, 2, 3]).view(3, 1, 1)
    assert rdf_to_pager(right_down_forward).flatten().tolist() == [3, -2, -1]
    torch.testing.assert_close(pager_to_rdf(rdf_to_pager(right_down_forward)), right_down_forward)
    # Structured3D (right, up, backward) of the same vector is (1, -2, -3).
    raw = torch.tensor([1.0, -2, -3]).view(3, 1, 1)
    torch.testing.assert_close(structured3d_to_pager(raw), rdf_to_pager(right_down_forward))
    directions = erp_directions((4, 8), dtype=torch.float64)
    theta, phi = -math.pi + math.pi / 8, math.pi / 8 * 3
    expected = [math.cos(phi) * math.cos(theta), math.sin(phi), -math.cos(phi) * math.sin(theta)]
    assert directions[:, 0, 0].tolist() == pytest.approx(expected)


def test_normals_of_a_rendered_room_follow_from_its_depth():
    scene = Scene.random(5, "room", n_objects=(0, 0))
    render = scene.render(size=(128, 256), outputs=("depth", "normals_cam"))
    normals = losses.normals_from_radial(render.depth[None].double())[0]
    cosine = (normals * rdf_to_pager(render.normals_cam)).sum(0)
    # Only the pixels whose central differences reach over an edge of the room may differ.
    assert (cosine > 0.999).double().mean() > 0.9
    assert cosine.median() > 0.999999


def test_normals_consistency_of_the_truth_is_small():
    scene = Scene.random(5, "room", n_objects=(0, 0))
    render = scene.render(size=(64, 128), outputs=("depth", "normals_cam"))
    limits = DepthRange()
    faces = erp_to_cubemap(limits.normalize(render.depth[None]), 64, reg=PY360_E2X)
    mask = torch.ones(1, 1, 64, 128, dtype=torch.bool)
    true = rdf_to_pager(render.normals_cam)[None]
    assert losses.normals_consistency_loss(faces, true, mask, limits).item() < 0.05
    assert losses.normals_consistency_loss(faces, -true, mask, limits).item() > 1.9


@pytest.mark.parametrize("shift", [1, 16, 37])
def test_rolled_normals_are_those_of_the_turned_camera(shift):
    scene, size = Scene.random(9, "room"), (32, 64)
    pose = scene.random_pose(1)
    outputs = ("depth", "normals_cam")
    before = scene.render(pose, size=size, aa=1, outputs=outputs)
    turn = rotation_matrix(yaw=-360 * shift / size[1]).float()
    after = scene.render(pose, size=size, R=turn, aa=1, outputs=outputs)
    rolled = roll_normals(rdf_to_pager(before.normals_cam), shift)
    # Pixel centres fall on pixel centres; only rays that graze an edge may hit another surface.
    same = (before.depth.roll(shift, -1) - after.depth).abs()[0] < 1e-3
    assert same.double().mean() > 0.99
    assert (rolled - rdf_to_pager(after.normals_cam)).abs().amax(0)[same].quantile(0.99) < 1e-3
