"""The numbers that hold for the released network whatever its weights.

Row numbers are those of the check list in the design document; a few rows are also compared with
`pytorch360convert`, the resampler of the original.
"""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import Tensor

from pager import losses
from pager.checkpoint import load_base_model
from pager.cli import inference
from pager.depth import DepthRange, least_squares_scale_shift
from pager.geometry import erp_directions, roll_normals
from pager.layers import ROPE_BASE, cubify, erp_coordinates, pad_faces, rope_table
from pager.metrics.depth import depth_metrics
from pager.schedule import exponential_decay_factor
from pager.tiny import tiny_scheduler
from shared_pano_utils import cubemap_to_erp, depth_to_points, erp_to_cubemap, rays
from shared_pano_utils.geometry import PY360_C2E, PY360_E2X, xyz_to_face

F_, R_, B_, L_, U_, D_ = range(6)


def released_unet(in_channels: int = 8) -> UNet2DConditionModel:
    """Stable Diffusion 2.1 with PaGeR's input, without memory for weights."""
    with torch.device("meta"):
        return UNet2DConditionModel(
            sample_size=96, in_channels=in_channels, out_channels=4,
            block_out_channels=(320, 640, 1280, 1280), layers_per_block=2,
            attention_head_dim=(5, 10, 20, 20), cross_attention_dim=1024,
            use_linear_projection=True,
        )  # fmt: skip


def released_vae() -> AutoencoderKL:
    with torch.device("meta"):
        return AutoencoderKL(
            block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
            sample_size=768,
        )  # fmt: skip


def close(actual, expected, atol: float = 6e-7) -> None:
    """Equal to the last printed digit."""
    actual = torch.as_tensor(actual, dtype=torch.float64)
    torch.testing.assert_close(actual, torch.tensor(expected).double(), atol=atol, rtol=0)


# ---- rows 1-3, 22: architecture -----------------------------------------------------------------


def test_row_1_parameters_and_keys():
    unet, vae = released_unet(), released_vae()
    blocks = [p for n, p in unet.named_parameters() if "transformer_blocks" in n]
    assert sum(p.numel() for p in unet.parameters()) == 865_922_244
    assert sum(p.numel() for p in released_unet(10).parameters()) == 865_928_004
    assert len(unet.state_dict()) == 686
    assert (sum(p.numel() for p in blocks), len(blocks)) == (248_798_400, 320)
    assert (sum(p.numel() for p in vae.parameters()), len(vae.state_dict())) == (83_653_863, 248)


def test_row_2_adaptation_of_the_released_networks():
    unet, vae = released_unet(), released_vae()
    keys = list(unet.state_dict()), list(vae.state_dict())
    unet_count, vae_count = cubify(unet, use_rope=True), cubify(vae)
    assert (unet_count["conv"], unet_count["one_sided"]) == (52, 0)
    assert (vae_count["conv"], vae_count["one_sided"]) == (58, 3)
    assert unet_count["attention"] == 32  # self and cross attention of 16 transformer blocks
    assert vae_count["attention"] == 2
    assert (list(unet.state_dict()), list(vae.state_dict())) == keys


def test_row_3_last_step_carries_no_signal(make_model):
    plain = tiny_scheduler()
    rescaled = DDPMScheduler.from_config(plain.config, rescale_betas_zero_snr=True)
    assert rescaled.alphas_cumprod[999] == 0
    close(plain.alphas_cumprod[999], 0.00466, atol=5e-6)
    model = make_model()
    assert (model.last_alpha_bar, model.last_timestep) == (0.0, 999)


def test_forward_is_minus_the_velocity_at_step_999(make_model, model_config):
    """Section 4.5, composed by hand from the two stock networks."""
    model = make_model(unet_positional_encoding="none")
    faces = torch.rand(1, 6, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        latents = model.vae.encode(faces[0]).latent_dist.mean * 0.18215
        text = model.empty_prompt.repeat(6, 1, 1)
        inputs = torch.cat([latents, torch.zeros_like(latents)], 1)
        velocity = model.unet(inputs, torch.full((6,), 999), text).sample
        decoded = model.vae.decode(-velocity / 0.18215).sample
        torch.testing.assert_close(model(faces), decoded.mean(1, keepdim=True)[None])
        normals = load_base_model(
            model_config(modality="normals", unet_positional_encoding="none")
        ).eval()
        torch.testing.assert_close(normals(faces), decoded[None])


def test_row_22_rope_frequencies():
    side, head_dim = 3, 64
    cos, sin = rope_table(side, head_dim, torch.device("cpu"))
    assert cos.shape == (6 * side * side, head_dim // 2)
    u, v = erp_coordinates(side).transpose(0, 1).flatten(1)
    for index, frequency in ((0, 1.0), (1, 0.316228), (2, 0.1), (3, 0.0316228), (4, 0.01)):
        for start, angle in ((0, math.pi * u), (16, math.pi / 2 * v)):
            torch.testing.assert_close(
                cos[:, start + index].double(), (angle * frequency).cos(), atol=2e-6, rtol=0
            )
            torch.testing.assert_close(
                sin[:, start + index].double(), (angle * frequency).sin(), atol=2e-6, rtol=0
            )
    assert ROPE_BASE == 10_000


# ---- rows 4-8: coordinates and padding ----------------------------------------------------------


def uv_image(height: int, width: int) -> Tensor:
    """U right and V down at pixel centres, (2, H, W) float64 in (-1, 1)."""
    u = (torch.arange(width).double() + 0.5) / width * 2 - 1
    v = (torch.arange(height).double() + 0.5) / height * 2 - 1
    return torch.stack([u.expand(height, width), v[:, None].expand(height, width)])


def test_row_4_uv_map_of_the_released_size():
    # The original warps an image of U and V and so ends half a pixel before the back meridian.
    warped = erp_to_cubemap(uv_image(1024, 2048), 96, reg=PY360_E2X)
    ours = erp_coordinates(96)
    for maps in (warped, ours):
        close([maps[:, 0].min(), maps[:, 0].max()], [-0.99665, 0.99665], atol=5e-6)
        close(maps[F_, 0, 47, 47:49], [-0.003350, 0.003350])
        close(maps[F_, 1, 47:49, 47], [-0.006701, 0.006701])
        close(maps[B_, 0, 47, 47:49], [0.996650, -0.996650])
    torch.testing.assert_close(warped, ours, atol=2e-6, rtol=0)


def test_row_5_uv_map_by_hand():
    u, v = erp_coordinates(4).unbind(1)
    close(u[F_, 0], [-0.25, -0.102416, 0.102416, 0.25])
    close(v[F_, 0], [-0.391827, -0.483239, -0.483239, -0.391827])
    close(v[F_, 1, :2], [-0.147363, -0.194982])
    close(u[R_, 0], [0.25, 0.397584, 0.602416, 0.75])
    close(u[B_, 0], [0.75, 0.897584, -0.897584, -0.75])
    close(u[L_, 0], [-0.75, -0.602416, -0.397584, -0.25])
    close(u[U_, 0], [-0.75, -0.897584, 0.897584, 0.75])
    close(u[U_, 1], [-0.602416, -0.75, 0.75, 0.602416])
    close(v[U_, 1, :2], [-0.483239, -0.719562])
    close(u[D_, 0], [-0.25, -0.102416, 0.102416, 0.25])
    close(v[D_, 0, :2], [0.391827, 0.483239])


def test_row_6_ramps():
    columns = torch.arange(128.0).double().expand(1, 64, 128)
    rows = torch.arange(64.0).double()[:, None].expand(1, 64, 128)
    faces = erp_to_cubemap(columns, 4, reg=PY360_E2X)[:, 0]
    close(faces[F_, 1], [47.5, 56.945351, 70.054649, 79.5], atol=2e-5)
    close(faces[R_, 1, [0, 3]], [79.5, 111.5], atol=2e-5)
    close(faces[B_, 1], [111.5, 120.945343, 6.054651, 15.5], atol=2e-5)
    close(faces[L_, 1, [0, 3]], [15.5, 47.5], atol=2e-5)
    front = erp_to_cubemap(rows, 4, reg=PY360_E2X)[F_, 0]
    close(front[:, 0], [18.961552, 26.784382, 36.215622, 44.038452], atol=2e-5)
    close(front[:, 1], [16.036350, 25.260569, 37.739429, 46.963650], atol=2e-5)


def numbered_faces() -> Tensor:
    """x[f, r, c] = 100 f + 10 r + c, (6, 1, 4, 4)."""
    f, r, c = (torch.arange(float(n)) for n in (6, 4, 4))
    return (100 * f[:, None, None] + 10 * r[:, None] + c)[:, None]


def test_row_7_cube_padding():
    padded = pad_faces(numbered_faces())[:, 0]
    first = [
        (366.5, 430, 431, 432, 433, 266.5),
        (218, 433, 423, 413, 403, 301.5),
        (253, 403, 402, 401, 400, 350),
        (301.5, 400, 410, 420, 430, 215),
        (251.5, 203, 202, 201, 200, 151.5),
        (181.5, 30, 31, 32, 33, 81.5),
    ]
    last = [
        (416.5, 500, 501, 502, 503, 316.5),
        (268, 503, 513, 523, 533, 381.5),
        (333, 533, 532, 531, 530, 430),
        (381.5, 530, 520, 510, 500, 265),
        (151.5, 0, 1, 2, 3, 51.5),
        (281.5, 233, 232, 231, 230, 181.5),
    ]
    assert padded[:, 0].tolist() == [list(map(float, row)) for row in first]
    assert padded[:, -1].tolist() == [list(map(float, row)) for row in last]
    assert padded[U_, 1:-1, 0].tolist() == [300, 301, 302, 303]
    assert padded[U_, 1:-1, -1].tolist() == [103, 102, 101, 100]
    assert padded[D_, 1:-1, 0].tolist() == [333, 332, 331, 330]
    assert padded[D_, 1:-1, -1].tolist() == [130, 131, 132, 133]


def test_row_8_one_sided_padding_through_a_convolution_that_copies():
    vae = AutoencoderKL(
        block_out_channels=(4, 4), norm_num_groups=4, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    assert cubify(vae)["one_sided"] == 1
    down = vae.encoder.down_blocks[0].downsamplers[0]
    expected = numbered_faces()[F_, 0]
    right = torch.tensor([100.0, 110, 120, 130, 316.5])
    bottom = torch.tensor([500.0, 501, 502, 503])
    padded = torch.cat([torch.cat([expected, bottom[None]]), right[:, None]], 1)
    for row in range(3):
        for column in range(3):
            with torch.no_grad():
                down.conv.weight.zero_()
                down.conv.bias.zero_()
                down.conv.weight[0, 0, row, column] = 1
                copied = down(numbered_faces().expand(-1, 4, -1, -1))[F_, 0]
            assert torch.equal(copied, padded[row : row + 3 : 2, column : column + 3 : 2])


# ---- rows 9-11: resampling ----------------------------------------------------------------------


def test_row_9_ones_come_back_as_ones():
    ones = torch.ones(6, 1, 768, 768)
    for reg in (PY360_E2X, PY360_C2E):
        back = cubemap_to_erp(ones, (1024, 2048), reg=reg)
        torch.testing.assert_close(back, torch.ones_like(back), atol=2e-7, rtol=0)
    library = pytest.importorskip("pytorch360convert")
    theirs = library.c2e(ones, 1024, 2048, mode="bilinear", cube_format="stack")[0]
    assert (theirs < 0.9999).nonzero().tolist() == [[712, 1279], [712, 1791]]
    close(theirs[712, [1279, 1791]], [0.911, 0.295], atol=6e-4)


def test_compat_resampling_equals_the_original_library_on_noise():
    library = pytest.importorskip("pytorch360convert")
    erp, faces = torch.rand(3, 512, 1024), torch.rand(6, 3, 256, 256)
    theirs = library.e2c(erp, face_w=256, mode="bilinear", cube_format="stack")
    gap = (theirs - erp_to_cubemap(erp, 256, reg=PY360_E2X)).abs().amax(1)
    # float32 angles of the library: at most 1e-3 of a pixel; B's middle columns do not wrap there.
    wraps = gap[B_, :, 127:129]
    assert gap.sum() - wraps.sum() < 1e-5 * gap.numel()
    assert gap[[F_, R_, L_, U_, D_]].max() < 1e-3
    theirs = library.c2e(faces, 512, 1024, mode="bilinear", cube_format="stack")
    gap = (theirs - cubemap_to_erp(faces, (512, 1024), reg=PY360_C2E)).abs().amax(0)
    # Elsewhere only pixels on a cube edge differ, where either face is right.
    assert (gap > 1e-3).float().mean() < 0.004


def position_error(size: tuple[int, int], there_and_back) -> Tensor:
    """Angle in degrees by which a warp to faces and back moves the viewing directions, (H, W)."""
    xyz = rays("erp", size, dtype=torch.float64).movedim(-1, 0)
    moved = F.normalize(there_and_back(xyz), dim=0)
    cross = torch.linalg.cross(moved, xyz, dim=0).norm(dim=0)
    return torch.atan2(cross, (moved * xyz).sum(0)).rad2deg()


@pytest.mark.parametrize(
    ("size", "face_size", "mean", "largest"),
    [((1024, 2048), 768, 6.2e-5, 1e-3), ((512, 1024), 256, 2e-4, 4.1e-4)],
)
def test_row_10_round_trip_keeps_positions(size, face_size, mean, largest):
    def there_and_back(xyz: Tensor) -> Tensor:
        faces = erp_to_cubemap(xyz, face_size, reg=PY360_E2X)
        return cubemap_to_erp(faces, size, reg=PY360_E2X)

    error = position_error(size, there_and_back)
    assert error.mean() <= mean
    assert error.max() <= largest  # the columns at +-180 degrees included


def test_row_10_original_round_trip_moves_positions():
    library = pytest.importorskip("pytorch360convert")

    def there_and_back(xyz: Tensor) -> Tensor:
        faces = library.e2c(xyz, face_w=768, mode="bilinear", cube_format="stack")
        return library.c2e(faces, 1024, 2048, mode="bilinear", cube_format="stack")

    error = position_error((1024, 2048), there_and_back)
    close(error.mean(), 0.096, atol=1e-3)
    close(error.max(), 0.234, atol=1e-3)


def test_row_11_face_of_every_pixel():
    face = xyz_to_face(rays("erp", (1024, 2048), dtype=torch.float64))[0]
    order, runs = face[512].unique_consecutive(return_counts=True)
    assert order.tolist() == [B_, L_, F_, R_, B_]
    assert runs.tolist() == [256, 512, 512, 512, 256]
    counts = face.flatten().bincount()
    assert counts.tolist() == [243_940] * 4 + [560_696] * 2  # true pixel centres
    # The original's coarser rule differs in under 200 pixels a face.
    assert (counts - torch.tensor([243_860] * 4 + [560_856] * 2)).abs().max() < 200


# ---- rows 12-15, 17-19: numbers by hand ---------------------------------------------------------


def test_row_12_depth_range():
    full, indoor = DepthRange(), DepthRange(max_m=15.0)
    close([math.log(full.min_m), math.log(full.max_m)], [-4.605170, 4.317488])
    close(math.log(full.max_m / full.min_m), 8.922658)
    close(math.log(indoor.max_m / indoor.min_m), 7.313220)
    metres = torch.tensor([1.0, 5, 20], dtype=torch.float64)
    close(full.normalize(metres), [0.032242, 0.392995, 0.703730])
    close(full.denormalize(torch.zeros(())), 0.866025)
    torch.testing.assert_close(
        full.denormalize(full.normalize(metres)).double(), metres, atol=0, rtol=2e-6
    )
    close(full.normalize(torch.tensor([0.0, math.inf])), [-1.0, 1.0])


def test_row_13_schedule():
    expected = {0: 0, 15: 0.5, 29: 0.966667, 30: 1, 500: 0.107381, 515: 0.1, 999: 0.010048, 1000: 0.01}  # fmt: skip
    close([exponential_decay_factor(n, 1000, 0.03) for n in expected], list(expected.values()))


def on_faces(*rows: list[float]) -> Tensor:
    """One channel of 2x2 values, the same on all six faces: (1, 6, 1, 2, 2)."""
    return torch.tensor(rows).expand(1, 6, 1, 2, 2)


def test_row_14_losses():
    pred, target = on_faces([0, 0.5], [1, 0]), on_faces([0.2, 0.5], [0.5, 1])
    mask = on_faces([1, 1], [1, 0]).bool()
    close(losses.l1_loss(pred, target, mask), [0.233333])
    close(losses.l1_loss(pred, target, mask, 0.5), [0.733333])
    close(losses.gradient_loss(pred, target, torch.ones_like(mask)), [0.45])
    shifted = losses.align_relative(pred, target, mask, log_scale=True)
    close(shifted - pred, (-0.1 * torch.ones(1, 6, 1, 2, 2)).tolist())
    scale, shift = least_squares_scale_shift(pred, target, mask)
    close([scale, shift], [0.3, 0.25])
    fitted = losses.align_relative(pred, target, mask, log_scale=False)
    close(fitted, (0.3 * pred + 0.25).tolist())
    ones = torch.ones(1, 6, 3, 2, 2)
    first, second = (
        ones * torch.tensor(v).view(3, 1, 1) for v in ([1.0, 0.0, 0.0], [1.0, 1.0, 0.0])
    )
    close(losses.cosine_loss(first, second, torch.ones_like(mask)), [0.292893])


def test_row_15_yaw_of_normals():
    forward = torch.zeros(3, 2, 8)
    forward[0] = 1
    turned = roll_normals(forward, 2)
    close(turned[:, 1, 3], [0, 0, -1])


def test_row_17_first_point_of_a_constant_depth():
    # In RDF; the original's cloud has its axes forward, up, right: (-1, 1.414214, -1).
    close(depth_to_points(torch.full((1, 2, 4), 2.0))[:, 0, 0], [-1, -1.414214, -1])


def test_row_18_normals_of_a_sphere():
    normals = losses.normals_from_radial(torch.full((1, 1, 64, 128), 2.0, dtype=torch.float64))
    directions = erp_directions((64, 128), dtype=torch.float64)
    cosine = (normals[0] * directions).sum(0)
    assert cosine.min() >= -1 - 1e-12
    assert cosine.max() < -0.99965  # printed with four digits


def test_row_19_depth_metrics():
    target = torch.tensor([[1.0, 2, 4, 8]] * 2)[None]
    pred = torch.tensor([[1.1, 2, 5.2, 6]] * 2)[None]
    mask = torch.ones(1, 2, 4, dtype=torch.bool)
    mask[0, 1, 3] = False
    expected = {
        "metric": (0.15, 0.9928, 0.5714),
        "scale": (0.14796, 0.99248, None),
        "scale_and_shift": (0.16431, 0.98510, None),
    }
    for alignment, (abs_rel, rmse, delta1) in expected.items():
        values = depth_metrics(pred, target, mask, alignment=alignment)
        close(values["abs_relative_difference"], abs_rel, atol=6e-6)
        close(values["rmse_linear"], rmse, atol=6e-5)
        if delta1 is not None:
            close(values["delta1_acc"], delta1, atol=6e-5)


# ---- row 23: files ------------------------------------------------------------------------------


@pytest.mark.parametrize(("modality", "channels"), [("depth", 1), ("normals", 3)])
def test_row_23_evaluation_files(modality, channels, checkpoints, data_path, tmp_path):
    flags = ["--dataset", "PanoInfinigen", "--data_path", str(data_path), "--generate_eval"]
    flags += ["--checkpoint_path", str(checkpoints[modality]), "--results_path", str(tmp_path)]
    assert inference.main(flags) == 0
    files = sorted((tmp_path / modality / "PanoInfinigen" / "eval").iterdir())
    assert [f.name for f in files] == [
        "test_shard00000_outdoor22000000_view0000.npz",
        "test_shard00000_room20000000_view0000.npz",
    ]
    for file in files:
        with np.load(file) as archive:
            assert archive.files == ["arr_0"]
            assert archive["arr_0"].shape == (channels, 32, 64)
            assert archive["arr_0"].dtype == np.float32
    previews = {f.stem for f in (tmp_path / modality / "PanoInfinigen/example_images").iterdir()}
    assert previews == {f.stem for f in files}
