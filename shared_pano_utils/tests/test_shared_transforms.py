"""Transforms between panoramas, cubemaps and views: directions, guarantees, gradients, types."""

import functools
import math
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shared_pano_utils import resample
from shared_pano_utils.geometry import (
    CENTER,
    CORNER,
    EDGE,
    PY360_E2X,
    SE360_P2E,
    Registration,
    rays,
    rotation_matrix,
    xyz_to_lonlat,
)
from shared_pano_utils.resample import cache_info, clear_cache, set_cache_limit
from shared_pano_utils.transforms import (
    cubemap_to_erp,
    erp_to_cubemap,
    erp_to_perspective,
    perspective_to_erp,
    rotate_erp,
    sample_erp,
)
from shared_pano_utils.views import Views

BACKENDS = [
    "torch",
    pytest.param(
        "cv2",
        marks=pytest.mark.skipif(resample._OPENCV_MAJOR < 5, reason="OpenCV 5 is not installed"),
    ),
]
ANGLES = {"yaw": 25.0, "pitch": 35.0, "roll": 15.0}


def ray_erp(size: tuple[int, int], reg: Registration = CENTER, **options) -> Tensor:
    """Panorama (3, H, W) whose channels are its rays."""
    return rays("erp", size, reg=reg, **options).movedim(-1, 0).contiguous()


def pixel_error(directions: Tensor, reference: Tensor, width: int) -> Tensor:
    """Angle between (..., 3, h, w) directions and (..., h, w, 3) rays, in ERP pixels."""
    found = torch.nn.functional.normalize(directions.movedim(-3, -1), dim=-1)
    return (found - reference).norm(dim=-1) * width / (2 * math.pi)


def waves(directions: Tensor, count: int = 48, top: float = 8.0, power: float = 0.0) -> Tensor:
    """Plane waves of the rays (..., 3) with |k| up to `top`, as (3, ...) float64 near [0, 1]."""
    generator = torch.Generator().manual_seed(0)
    k = torch.randn(count, 3, generator=generator)
    length = torch.rand(count, 1, generator=generator) * top
    k = k / k.norm(dim=1, keepdim=True) * length
    phase = torch.rand(count, 3, generator=generator) * 2 * math.pi
    amplitude = length.clamp_min(1) ** -power
    angle = directions.float() @ k.T
    out = angle.cos() @ (phase.cos() * amplitude) - angle.sin() @ (phase.sin() * amplitude)
    return out.movedim(-1, 0).double() / (5 * amplitude.square().sum().sqrt()) + 0.5


@functools.cache
def wave_erp(h: int, w: int, **options: float) -> Tensor:
    return waves(rays("erp", (h, w)), **options)


def psnr(a: Tensor, b: Tensor) -> float:
    return -10 * math.log10((a.double() - b.double()).square().mean().item())


# ---- directions (G3), for every registration ----------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reg", [CENTER, PY360_E2X, CORNER])
def test_ray_panorama_gives_rays_of_output(reg: Registration, backend: str) -> None:
    """G3: at most 0.001 px in the mean and 0.01 px anywhere, face borders and poles included."""
    erp = ray_erp((512, 1024), reg)
    R = rotation_matrix(**ANGLES)
    options = {"reg": reg, "backend": backend}
    cases = [
        (erp_to_cubemap(erp, 128, **options), rays("cube", 128, reg=reg)),
        (erp_to_cubemap(erp, 97, fov=125, R=R, **options), rays("cube", 97, fov=125, R=R, reg=reg)),
        (rotate_erp(erp, **ANGLES, **options), rays("erp", (512, 1024), R=R, reg=reg)),
        (
            erp_to_perspective(erp, size=(90, 131), fov=100, **ANGLES, **options),
            rays("perspective", (90, 131), fov=100, R=R, reg=reg),
        ),
        (
            erp_to_perspective(erp, size=(64, 64), fov=(60, 40), pitch=-90, **options),
            rays("perspective", (64, 64), fov=(60, 40), R=rotation_matrix(pitch=-90), reg=reg),
        ),
    ]
    for found, expected in cases:
        error = pixel_error(found, expected, 1024)
        assert error.mean() <= 1e-3
        assert error.max() <= 1e-2


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reg", [CENTER, CORNER, SE360_P2E])
@pytest.mark.parametrize("fov", [90, 100])
def test_ray_cube_gives_rays_of_panorama(reg: Registration, fov: float, backend: str) -> None:
    cube = rays("cube", 256, fov=fov, reg=reg).movedim(-1, -3).contiguous()
    erp = cubemap_to_erp(cube, (512, 1024), fov=fov, reg=reg, backend=backend, **ANGLES)
    expected = rays("erp", (512, 1024), reg=reg, R=rotation_matrix(**ANGLES))
    error = pixel_error(erp, expected, 1024)
    assert error.mean() <= 1e-3
    assert error.max() <= 2e-3  # G6: no exception near the edges


def test_panoramas_of_any_aspect() -> None:
    """Frames of 576 x 1024 still cover the whole sphere."""
    erp = ray_erp((576, 1024))
    error = pixel_error(erp_to_cubemap(erp, 111), rays("cube", 111), 1024)
    assert error.max() <= 1e-2
    back = cubemap_to_erp(rays("cube", 200).movedim(-1, -3), (144, 256))
    assert pixel_error(back, rays("erp", (144, 256)), 256).max() <= 2e-3


@pytest.mark.parametrize("reg", [EDGE, PY360_E2X, CORNER, SE360_P2E])
def test_perspective_to_erp_inverts_directions(reg: Registration) -> None:
    R = rotation_matrix(**ANGLES)
    view = rays("perspective", (301, 401), fov=80, R=R, reg=reg, normalize=False)
    erp, mask = perspective_to_erp(view.movedim(-1, 0), (128, 256), fov=80, R=R.numpy(), reg=reg)
    expected = rays("erp", (128, 256), reg=reg, dtype=torch.float64)
    z_forward = expected @ R[:, 2]
    # One pixel inside the border, where the outermost samples are clamped.
    camera = expected @ R / z_forward[..., None]
    half_x = math.tan(math.radians(40))
    half_y = half_x * 301 / 401
    inside = (z_forward > 0) & (camera[..., 0].abs() <= half_x) & (camera[..., 1].abs() <= half_y)
    assert (mask[0] == inside).float().mean() > 0.9995
    core = (z_forward > 0) & (camera[..., 0].abs() < half_x - 0.01)
    core &= camera[..., 1].abs() < half_y - 0.01
    assert pixel_error(erp, expected, 256)[core].max() < 1e-3
    assert (erp[:, ~mask[0]] == 0).all()


def test_golden_values_of_a_small_rotation() -> None:
    erp = torch.tensor([[0, 1, 2, 3], [4, 5, 6, 7]])
    assert rotate_erp(erp, 90, mode="nearest").tolist() == [[1, 2, 3, 0], [5, 6, 7, 4]]
    assert rotate_erp(erp.float(), 45)[0].tolist() == [0.5, 1.5, 2.5, 1.5]


def test_centre_pixel_of_a_view_looks_forward() -> None:
    view = erp_to_perspective(ray_erp((256, 512)), size=(101, 101))
    assert view[:, 50, 50].tolist() == pytest.approx([0, 0, 1], abs=1e-4)
    corner = view[:, 0, 100] / view[2, 0, 100]
    assert corner.tolist() == pytest.approx([100 / 101, -100 / 101, 1], abs=2e-4)


# ---- guarantees ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.bfloat16])
def test_g1_identity(dtype: torch.dtype) -> None:
    erp = (torch.rand(2, 3, 16, 32) * 255).to(dtype)
    same = rotate_erp(erp)
    assert torch.equal(same, erp)
    assert same.data_ptr() != erp.data_ptr()


def test_g1_sampling_at_pixel_centres() -> None:
    erp = torch.rand(5, 16, 32, dtype=torch.float64)
    where = rays("erp", (16, 32), dtype=torch.float64)
    assert (sample_erp(erp, where) - erp).abs().max() < 1e-6
    assert (sample_erp(erp, xyz_to_lonlat(where)) - erp).abs().max() < 1e-6


@settings(max_examples=25, deadline=None)
@given(
    st.integers(2, 20),
    st.integers(1, 24),
    st.integers(-60, 60),
    st.sampled_from([torch.uint8, torch.float32, torch.int64, torch.bool, torch.float16]),
)
def test_g2_integer_yaw_is_a_roll(h: int, half_w: int, columns: int, dtype: torch.dtype) -> None:
    w = 2 * half_w
    erp = (torch.rand(2, h, w) * 2).to(dtype)
    turned = rotate_erp(erp, columns * 360 / w, mode="nearest")
    assert torch.equal(turned, erp.roll(-columns, -1))
    if dtype == torch.float32:
        assert torch.equal(rotate_erp(erp, columns * 360 / w), turned)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", ["bilinear", "bicubic", "nearest"])
def test_g4_no_output_depends_on_the_cut(mode: str, backend: str) -> None:
    """Rolling the panorama and turning the camera back gives the same picture, for every shift."""
    erp = wave_erp(24, 48, top=6).float()
    reference = erp_to_perspective(
        erp, size=(20, 20), fov=110, yaw=170, pitch=5, mode=mode, backend=backend
    )
    for columns in range(1, 48):
        turned = erp_to_perspective(
            erp.roll(columns, -1),
            size=(20, 20),
            fov=110,
            yaw=170 + columns * 7.5,
            pitch=5,
            mode=mode,
            backend=backend,
        )
        # Float32 longitudes near +-180 carry 1e-6 px of noise.
        assert (turned - reference).abs().max() < 1e-5 or mode == "nearest"
        if mode == "nearest":
            assert (turned != reference).float().mean() < 0.02  # ties between two pixels


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_g4_holds_for_cubes_and_rotations(mode: str, backend: str) -> None:
    """Faces and turned panoramas do not depend on the cut either; c2e puts its own cut anywhere."""
    erp = wave_erp(24, 48, top=6).float()
    options = {"mode": mode, "backend": backend}
    faces = erp_to_cubemap(erp, 16, yaw=20, pitch=10, **options)
    turned = rotate_erp(erp, yaw=15, pitch=20, roll=5, **options)
    whole = cubemap_to_erp(faces, (24, 48), **options)
    for columns in (1, 7, 24, 31, 47):
        rolled, angle = erp.roll(columns, -1), columns * 7.5
        again = erp_to_cubemap(rolled, 16, yaw=20 + angle, pitch=10, **options)
        assert (again - faces).abs().max() < 2e-5
        # Yaw is applied last, so turning the input back first gives the same rotation.
        back = rotation_matrix(angle, 0, 0) @ rotation_matrix(15, 20, 5)
        assert (rotate_erp(rolled, R=back, **options) - turned).abs().max() < 2e-5
        shifted = cubemap_to_erp(faces, (24, 48), yaw=angle, **options)
        assert (shifted - whole.roll(-columns, -1)).abs().max() < 2e-5


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_g5_constant_images_stay_constant(mode: str, backend: str) -> None:
    for value, dtype, ulp in [(199, np.uint8, 0), (0.7, np.float32, 2)]:
        erp = np.full((32, 64, 3), value, dtype)
        cube = erp_to_cubemap(erp, 15, mode=mode, backend=backend)
        outputs = [
            cube,
            rotate_erp(erp, **ANGLES, mode=mode, backend=backend),
            rotate_erp(erp, 7.3, mode=mode, backend=backend),
            cubemap_to_erp(cube, (40, 80), mode=mode, backend=backend),
            erp_to_cubemap(erp, 8, mode=mode, antialias=3, backend=backend),
        ]
        for out in outputs:
            error = np.abs(out.astype(np.float64) - erp[0, 0, 0]).max()
            # The cubic kernels of both libraries sum four rounded weights.
            allowed = ulp * (40 if mode == "bicubic" else 1)
            assert error <= allowed * np.spacing(np.float32(value)), (mode, backend, dtype)


def test_g5_pole_is_crossed_to_the_other_side() -> None:
    """Straight up from row 0 the picture continues with row 0, half a turn away."""
    erp = torch.rand(1, 4, 8, dtype=torch.float64)
    column = 4  # its centre is at longitude 22.5
    expected = (erp[0, 0, column] + erp[0, 0, (column + 4) % 8]) / 2
    where = torch.tensor([[22.5, 90.0]], dtype=torch.float64)
    assert sample_erp(erp, where)[0, 0].item() == pytest.approx(expected.item(), abs=1e-9)
    odd = torch.arange(3.0).expand(1, 2, 3)  # half a turn of three columns ends between two
    at_pole = sample_erp(odd, torch.tensor([[0.0, 90.0]]))
    assert at_pole.item() == pytest.approx((1 + (0 + 2) / 2) / 2)


@pytest.mark.parametrize("backend", BACKENDS)
def test_g6_cube_edges_are_as_good_as_the_inside(backend: str) -> None:
    faces = waves(rays("cube", 256, dtype=torch.float64)).movedim(0, 1).float().contiguous()
    directions = rays("erp", (512, 1024))
    expected = wave_erp(512, 1024)
    erp = cubemap_to_erp(faces, (512, 1024), backend=backend)
    assert psnr(erp, expected) >= 99
    error = (erp - expected).abs().amax(0)
    magnitude = directions.abs().sort(-1).values
    # Two face pixels in angle from the nearest cube edge.
    band = torch.atan2(magnitude[..., 2], magnitude[..., 1]) - math.pi / 4 < 2 * 2 / 256 / 2
    assert error[band].mean() / error[~band].mean() <= 1.0
    assert error[band].max() <= 1e-4


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=10, deadline=None)
@given(st.floats(-180, 180), st.floats(-90, 90), st.sampled_from(["nearest", "bilinear"]))
def test_g7_outputs_stay_within_the_range(
    backend: str, yaw: float, pitch: float, mode: str
) -> None:
    erp = torch.rand(2, 12, 24)
    slack = 0 if mode == "nearest" else 2e-7
    for out in (
        rotate_erp(erp, yaw, pitch, mode=mode, backend=backend),
        erp_to_cubemap(erp, 9, yaw=yaw, pitch=pitch, mode=mode, backend=backend),
        cubemap_to_erp(erp_to_cubemap(erp, 9), (16, 32), pitch=pitch, mode=mode, backend=backend),
    ):
        assert out.min() >= erp.min() - slack
        assert out.max() <= erp.max() + slack


@pytest.mark.skipif(resample._OPENCV_MAJOR < 5, reason="OpenCV 5 is not installed")
@pytest.mark.parametrize("mode", ["bilinear", "bicubic", "nearest"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_g8_back_ends_agree(dtype: type, mode: str) -> None:
    generator = np.random.default_rng(0)
    peak = 1.0 if dtype == np.float32 else np.iinfo(dtype).max
    erp = (generator.random((2, 64, 128, 3)) * peak).astype(dtype)
    cube = erp_to_cubemap(erp, 31, mode=mode)
    calls = [
        lambda backend: erp_to_cubemap(erp, 31, mode=mode, backend=backend, **ANGLES),
        lambda backend: cubemap_to_erp(cube, (64, 128), mode=mode, backend=backend),
        lambda backend: rotate_erp(erp, 3, 40, 5, mode=mode, backend=backend),
        lambda backend: perspective_to_erp(cube[:, 0], (64, 128), mode=mode, backend=backend)[0],
    ]
    for call in calls:
        a, b = (call(backend).astype(np.float64) for backend in ("torch", "cv2"))
        # Float32 positions on noise: 1e-4 of the range; integers round once more.
        limit = 1e-4 * peak + (0 if dtype == np.float32 else 1)
        assert np.abs(a - b).max() <= limit * (2 if mode == "bicubic" else 1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_g9_results_do_not_depend_on_batch_threads_or_cache(backend: str) -> None:
    erp = torch.rand(5, 3, 32, 64)
    calls = [
        lambda x: erp_to_cubemap(x, 13, backend=backend),
        lambda x: rotate_erp(x, **ANGLES, backend=backend),
        lambda x: cubemap_to_erp(erp_to_cubemap(x, 16), backend=backend),
    ]
    threads = torch.get_num_threads()
    for call in calls:
        batched = call(erp)
        clear_cache()
        torch.set_num_threads(2)
        alone = torch.stack([call(item) for item in erp])
        torch.set_num_threads(threads)
        assert torch.equal(batched, alone)


@pytest.mark.parametrize(("dtype", "ulp"), [(torch.float16, 2**-11), (torch.bfloat16, 2**-8)])
def test_g10_half_images_are_sampled_with_float32_positions(dtype: torch.dtype, ulp: float) -> None:
    erp = torch.rand(1, 64, 2048).to(dtype)
    half = rotate_erp(erp, **ANGLES)
    assert half.dtype == dtype
    assert (half.float() - rotate_erp(erp.float(), **ANGLES)).abs().max() <= ulp


# ---- accuracy and inverses ----------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_round_trip_through_the_cube(backend: str) -> None:
    for erp, least in (
        (wave_erp(512, 1024), 94),
        (wave_erp(512, 1024, count=96, top=160, power=1.25), 72),
    ):
        cube = erp_to_cubemap(erp.float(), backend=backend)
        assert psnr(cubemap_to_erp(cube, (512, 1024), backend=backend), erp) >= least


def test_group_laws_of_rotations() -> None:
    erp = wave_erp(256, 512, top=6).float()
    a, b = rotation_matrix(30, 40, 50), rotation_matrix(-70, 20, 10)
    twice = rotate_erp(rotate_erp(erp, R=a), R=b)
    assert (twice - rotate_erp(erp, R=a @ b)).abs().max() <= 5e-4
    assert (rotate_erp(rotate_erp(erp, R=a), R=a.mT) - erp).abs().max() <= 5e-4
    assert torch.equal(rotate_erp(rotate_erp(erp, 45), 90), rotate_erp(erp, 135))


def test_views_of_an_icosahedron_cover_and_rebuild_the_panorama() -> None:
    erp = wave_erp(128, 256, top=6).float()
    views = Views.icosahedron(fov=80)
    images = erp_to_perspective(erp, size=(96, 96), views=views)
    assert images.shape == (20, 3, 96, 96)
    for blend in ("feather", "mean", "nearest", "none"):
        back, weight = perspective_to_erp(images, (128, 256), views=views, blend=blend)
        # "none" also uses the clamped half pixel at the border of a view.
        assert (back - erp).abs().max() < (5e-3 if blend == "none" else 2e-3), blend
        assert weight.shape == (1, 128, 256)
        if blend == "mean":
            assert torch.equal(weight[0].long(), views.coverage((128, 256)))
    assert views.coverage((128, 256)).min() >= 1


def test_views_tables() -> None:
    faces = Views.icosahedron()
    assert sorted({round(abs(v), 4) for v in faces.pitch.tolist()}) == [10.8123, 52.6226]
    forward = faces.R[:, :, 2]
    nearest = (forward @ forward.T - 2 * torch.eye(20)).amax(1)
    assert torch.allclose(nearest, torch.full((20,), math.sqrt(5) / 3).double(), atol=1e-6)
    vertices = Views.icosahedron("vertices").R[:, :, 2]
    nearest = (vertices @ vertices.T - 2 * torch.eye(12)).amax(1)
    assert torch.allclose(nearest, torch.full((12,), 1 / math.sqrt(5)).double(), atol=1e-6)
    assert Views.horizon(4).yaw.tolist() == [0, 90, 180, 270]
    erp = torch.rand(3, 32, 64)
    assert (
        erp_to_perspective(erp, size=(8, 8), views=Views.cube()) - erp_to_cubemap(erp, 8)
    ).abs().max() < 1e-5
    assert len(Views.random(5, torch.Generator().manual_seed(0)).yaw) == 5
    assert Views.horizon_poles(6).pitch.tolist() == [0] * 6 + [90, -90]


def test_sequence_of_angles_equals_single_calls() -> None:
    erp = torch.rand(2, 3, 32, 64)
    several = erp_to_perspective(erp, size=(8, 12), yaw=[0, 50, 100], pitch=20)
    assert several.shape == (2, 3, 3, 8, 12)
    single = erp_to_perspective(erp, size=(8, 12), yaw=50, pitch=20)
    assert torch.equal(several[:, 1], single)


def test_feathered_cube_uses_the_overlap() -> None:
    erp = wave_erp(128, 256, top=6).float()
    cube = erp_to_cubemap(erp, 64, fov=110)
    for options in ({}, ANGLES):
        expected = rotate_erp(erp, **options)
        back = cubemap_to_erp(cube, (128, 256), fov=110, blend="feather", **options)
        assert (back - expected).abs().max() < 3e-3
        plain = cubemap_to_erp(cube, (128, 256), fov=110, **options)
        assert (plain - expected).abs().max() < 3e-3


def test_antialias_beats_plain_sampling() -> None:
    """Faces of 16 pixels from 256 x 512 (pitch ratio 10) against a 16 x 16 box reference."""
    erp = wave_erp(256, 512, count=96, top=80, power=0.5).float()
    fine = erp_to_cubemap(erp, 256)
    reference = torch.nn.functional.avg_pool2d(fine, 16)
    plain = psnr(erp_to_cubemap(erp, 16), reference)
    assert psnr(erp_to_cubemap(erp, 16, antialias=True), reference) > plain + 15
    assert psnr(erp_to_cubemap(erp, 16, antialias=4), reference) > plain + 8
    averaged = erp_to_cubemap(erp, 16, antialias=16)
    assert (averaged - reference).abs().max() < 1e-5  # the same samples in one call
    small = cubemap_to_erp(fine, (16, 32), antialias=True)
    box = torch.nn.functional.avg_pool2d(cubemap_to_erp(fine, (256, 512)), 16)
    assert psnr(small, box) > psnr(cubemap_to_erp(fine, (16, 32)), box) + 10


def test_fractional_yaw_fourier_keeps_the_variance_of_noise() -> None:
    noise = torch.randn(16, 32, 256, generator=torch.Generator().manual_seed(0))
    turned = rotate_erp(noise, 0.5 * 360 / 256, mode="fourier")
    assert turned.std() == pytest.approx(0.997, abs=0.005)
    assert rotate_erp(noise, 0.5 * 360 / 256).std() == pytest.approx(0.707, abs=0.01)
    assert (rotate_erp(noise, 90, mode="fourier") - noise.roll(-64, -1)).abs().max() < 1e-5
    smooth = wave_erp(16, 64, top=6).float()
    back = rotate_erp(rotate_erp(smooth, 33.3, mode="fourier"), -33.3, mode="fourier")
    assert (back - smooth).abs().max() < 1e-5


@pytest.mark.parametrize("mode", ["bilinear", "bicubic", "nearest"])
def test_one_dimensional_yaw_equals_the_general_path(mode: str) -> None:
    erp = torch.rand(2, 16, 32)
    yaw = torch.tensor(17.0, dtype=torch.float64, requires_grad=True)  # not a pure-yaw short cut
    assert (rotate_erp(erp, 17.0, mode=mode) - rotate_erp(erp, yaw, mode=mode)).abs().max() < 1e-5


def test_vectors_turn_with_the_camera() -> None:
    """The ray panorama seen as a vector field is the same from every orientation."""
    erp = ray_erp((128, 256))
    turned = rotate_erp(erp, **ANGLES, vectors=True)
    assert (turned - erp).abs().max() < 1e-3
    per_image = torch.stack([rotation_matrix(10), rotation_matrix(**ANGLES)])
    both = rotate_erp(erp.expand(2, -1, -1, -1), R=per_image, vectors=True)
    assert (both - erp).abs().max() < 1e-3


# ---- gradients ----------------------------------------------------------------------------------

IMAGE_CALLS = {
    "e2c": lambda x: erp_to_cubemap(x, 3),
    "e2c bicubic": lambda x: erp_to_cubemap(x, 3, mode="bicubic"),
    "e2c antialias": lambda x: erp_to_cubemap(x, 2, antialias=2),
    "e2p": lambda x: erp_to_perspective(x, size=(3, 4), **ANGLES),
    "rotate": lambda x: rotate_erp(x, **ANGLES),
    "yaw": lambda x: rotate_erp(x, 10.0),
    "yaw bicubic": lambda x: rotate_erp(x, 10.0, mode="bicubic"),
    "fourier": lambda x: rotate_erp(x, 10.0, mode="fourier"),
    "c2e": lambda x: cubemap_to_erp(x.reshape(6, 1, 4, 4), (6, 12)),
    "c2e feather": lambda x: cubemap_to_erp(
        x.reshape(6, 1, 4, 4), (6, 12), fov=110, blend="feather"
    ),
    "c2e bicubic": lambda x: cubemap_to_erp(x.reshape(6, 1, 4, 4), (6, 12), mode="bicubic"),
    "p2e": lambda x: perspective_to_erp(x, (6, 12), fov=110)[0],
    "sample": lambda x: sample_erp(x, rays("cube", 3, dtype=torch.float64)),
}


@pytest.mark.parametrize("name", IMAGE_CALLS)
def test_gradient_to_the_image(name: str) -> None:
    """All transforms are linear: gradcheck, and <Ax, y> = <x, A'y>."""
    call = IMAGE_CALLS[name]
    shape = (1, 8, 12) if name.startswith("c2e") else (1, 4, 8)
    x = torch.rand(shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(call, (x,), atol=1e-7)
    out = call(x)
    y = torch.rand_like(out)
    (adjoint,) = torch.autograd.grad(out, x, y)
    assert (out * y).sum().item() == pytest.approx((x * adjoint).sum().item(), rel=1e-10)


def test_gradient_to_rotation_and_intrinsics() -> None:
    erp = wave_erp(16, 32, top=3)
    yaw = torch.tensor(12.3, dtype=torch.float64, requires_grad=True)
    R = rotation_matrix(20, 30, 10)
    K = torch.tensor([[2.1, 0, 2.2], [0, 2.3, 1.4], [0, 0, 1]], dtype=torch.float64)
    K.requires_grad_()

    def turned(delta: Tensor) -> Tensor:  # a rotation stays one to first order
        skew = torch.zeros(3, 3, dtype=torch.float64)
        generator = skew.index_put((torch.tensor([0, 1, 2]), torch.tensor([1, 2, 0])), delta)
        return torch.linalg.matrix_exp(generator - generator.mT) @ R

    delta = torch.full((3,), 0.01, dtype=torch.float64, requires_grad=True)
    for call, value in [
        (lambda v: erp_to_perspective(erp, size=(3, 4), yaw=v, pitch=20), yaw),
        (lambda v: erp_to_perspective(erp, size=(3, 4), fov=None, K=v, yaw=20), K),
        (lambda v: rotate_erp(erp, R=turned(v))[..., ::7, ::9], delta),
        (lambda v: erp_to_cubemap(erp, 2, R=turned(v)), delta),
        (lambda v: sample_erp(erp, rays("cube", 2, dtype=torch.float64) + v), delta),
    ]:
        # Bilinear sampling has kinks where a tap changes; steps of 1e-7 rarely meet one.
        assert torch.autograd.gradcheck(call, (value,), eps=1e-7, atol=1e-4, rtol=1e-3)


def test_gradient_stays_finite_at_the_pole() -> None:
    pitch = torch.tensor(90.0, requires_grad=True)
    erp_to_perspective(torch.rand(1, 8, 16), size=(5, 5), pitch=pitch).sum().backward()
    assert pitch.grad is not None
    assert pitch.grad.isfinite()


def test_one_rotation_per_image() -> None:
    erp = torch.rand(2, 3, 1, 16, 32, requires_grad=True)
    angles = torch.rand(2, 3) * 90
    R = rotation_matrix(angles, angles, angles)
    out = rotate_erp(erp, R=R)
    assert torch.allclose(out[1, 2], rotate_erp(erp[1, 2], R=R[1, 2]), atol=1e-6)
    views = erp_to_perspective(erp, size=(4, 4), R=R)
    assert views.shape == (2, 3, 1, 4, 4)
    back, mask = perspective_to_erp(views, (16, 32), R=R)
    assert mask.shape == (2, 3, 1, 16, 32)
    assert mask.dtype == torch.bool
    single, _ = perspective_to_erp(views[0, 1], (16, 32), R=R[0, 1])
    assert torch.allclose(back[0, 1], single, atol=1e-6)
    out.sum().backward()
    assert erp.grad is not None
    with pytest.raises(ValueError, match="leading dimensions"):
        rotate_erp(erp, R=R[0, :2])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_gradients_keep_low_precision_dtypes(dtype: torch.dtype) -> None:
    x = torch.rand(1, 3, 8, 16).to(dtype).requires_grad_()
    cubemap_to_erp(erp_to_cubemap(x, 4)).float().sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == dtype


# ---- types, layouts, errors ---------------------------------------------------------------------


def test_numpy_and_torch_agree_in_kind_and_layout() -> None:
    hwc = np.random.default_rng(0).random((2, 16, 32, 3), dtype=np.float32)
    chw = torch.from_numpy(hwc).movedim(-1, -3)
    cube_np, cube = erp_to_cubemap(hwc, 8), erp_to_cubemap(chw, 8)
    assert isinstance(cube_np, np.ndarray)
    assert cube_np.shape == (2, 6, 8, 8, 3)
    assert cube_np.dtype == np.float32
    assert cube_np.flags.c_contiguous
    assert np.allclose(cube_np, cube.movedim(-3, -1), atol=1e-6)
    assert np.allclose(cubemap_to_erp(cube_np), cubemap_to_erp(cube).movedim(-3, -1), atol=1e-6)
    as_chw = erp_to_cubemap(chw.contiguous().numpy(), 8, layout="chw")
    assert np.allclose(as_chw, cube, atol=1e-6)
    as_hwc = erp_to_cubemap(torch.from_numpy(hwc), 8, layout="hwc")
    assert torch.allclose(as_hwc.movedim(-1, -3), cube, atol=1e-6)
    image, mask = perspective_to_erp(hwc[0], (16, 32))
    assert image.shape == (16, 32, 3)
    assert mask.shape == (16, 32, 1)
    assert sample_erp(hwc, np.zeros((2, 5, 4, 2), np.float32)).shape == (2, 5, 4, 3)
    assert sample_erp(hwc[0, ..., 0], np.zeros((5, 2), np.float32)).shape == (5,)


@pytest.mark.parametrize("lead", [(), (2,), (2, 1, 3)])
def test_any_number_of_leading_axes(lead: tuple[int, ...]) -> None:
    erp = torch.rand(*lead, 2, 8, 16)
    cube = erp_to_cubemap(erp)
    assert cube.shape == (*lead, 6, 2, 4, 4)
    assert cubemap_to_erp(cube).shape == erp.shape
    assert rotate_erp(erp, **ANGLES).shape == erp.shape
    assert erp_to_perspective(erp, size=(3, 5)).shape == (*lead, 2, 3, 5)
    assert perspective_to_erp(erp, (8, 16))[1].shape == (*lead, 1, 8, 16)
    assert erp_to_cubemap(erp[..., 0, :, :].reshape(-1, 8, 16)[0]).shape == (6, 4, 4)


def test_inputs_in_any_memory_order() -> None:
    erp = torch.rand(2, 3, 16, 32)
    expected = erp_to_cubemap(erp, 8)
    assert torch.equal(erp_to_cubemap(erp.to(memory_format=torch.channels_last), 8), expected)
    assert torch.equal(erp_to_cubemap(erp.mT.contiguous().mT, 8), expected)
    flipped = np.ascontiguousarray(erp[0].movedim(0, -1).numpy()[:, ::-1])[:, ::-1]
    assert np.allclose(erp_to_cubemap(flipped, 8), expected[0].movedim(1, -1), atol=1e-6)


@pytest.mark.parametrize("dtype", [np.bool_, np.int64, np.int16, np.uint16, np.float64])
def test_nearest_keeps_any_dtype(dtype: type) -> None:
    labels = np.random.default_rng(0).integers(0, 2, (16, 32, 1)).astype(dtype)
    cube = erp_to_cubemap(labels, 8, mode="nearest")
    assert cube.dtype == dtype
    assert cubemap_to_erp(cube, mode="nearest").dtype == dtype
    assert perspective_to_erp(cube[0], (16, 32), mode="nearest", fill=1)[0].dtype == dtype


def test_nearest_stays_on_its_face() -> None:
    cube = torch.arange(6.0).reshape(6, 1, 1, 1).expand(6, 1, 9, 9).contiguous()
    erp = cubemap_to_erp(cube, (64, 128), mode="nearest")
    _, axis = rays("erp", (64, 128)).abs().max(-1)
    positive = rays("erp", (64, 128)).gather(-1, axis[..., None])[..., 0] > 0
    table = torch.tensor([[3.0, 4.0, 2.0], [1.0, 5.0, 0.0]])  # L U B, R D F
    assert torch.equal(erp[0], table[positive.long(), axis])


def test_uint8_rounds_instead_of_truncating() -> None:
    erp = np.array([[10, 11, 10, 11], [10, 11, 10, 11]], np.uint8)
    assert rotate_erp(erp, 0.75 * 90).tolist() == [[11, 10, 11, 10]] * 2


def test_requires_grad_is_kept_and_maps_survive_inference_mode() -> None:
    clear_cache()
    with torch.inference_mode():
        erp_to_cubemap(torch.rand(1, 8, 16, dtype=torch.float64), 4)
    x = torch.rand(1, 8, 16, dtype=torch.float64, requires_grad=True)
    erp_to_cubemap(x, 4).sum().backward()
    assert cache_info().hits == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torch_compile() -> None:
    erp = torch.rand(3, 16, 32)

    def there_and_back(x: Tensor) -> Tensor:
        return cubemap_to_erp(erp_to_cubemap(x, 8))

    compiled = torch.compile(there_and_back, backend="eager")
    assert torch.allclose(compiled(erp), there_and_back(erp), atol=1e-6)


ERP = torch.rand(3, 8, 16)
ERRORS = [
    (ValueError, "finite", lambda: rotate_erp(ERP, math.nan, 1)),
    (ValueError, "rotation matrix", lambda: rotate_erp(ERP, R=torch.ones(3, 3))),
    (ValueError, "rotation matrix", lambda: erp_to_cubemap(ERP, R=-np.eye(3))),
    (ValueError, "fov is 180", lambda: erp_to_perspective(ERP, size=(4, 4), fov=180)),
    (ValueError, "fov is 0", lambda: erp_to_cubemap(ERP, fov=0)),
    (ValueError, "fov is 200", lambda: cubemap_to_erp(torch.rand(6, 1, 4, 4), fov=200)),
    (ValueError, "both fov", lambda: erp_to_perspective(ERP, size=(4, 4), fov=80, K=torch.eye(3))),
    (ValueError, "mode is 'cubic'", lambda: rotate_erp(ERP, 10, 5, mode="cubic")),
    (ValueError, "mode is 'cubic'", lambda: rotate_erp(ERP, 10, mode="cubic")),
    (ValueError, "backend is", lambda: erp_to_cubemap(ERP, backend="numpy")),
    (ValueError, "gradient", lambda: erp_to_cubemap(ERP.clone().requires_grad_(), backend="cv2")),
    (ValueError, "float64", lambda: erp_to_cubemap(ERP.double(), backend="cv2")),
    (TypeError, "int64", lambda: erp_to_cubemap(ERP.long())),
    (TypeError, "bool", lambda: rotate_erp(ERP > 0, 10, 5, mode="bicubic")),
    (TypeError, "int64", lambda: rotate_erp(ERP.long(), 1.0)),
    (ValueError, "even width", lambda: rotate_erp(torch.rand(1, 8, 15), 0, 40)),
    (ValueError, "layout='chw'", lambda: erp_to_cubemap(np.zeros((3, 32, 64)))),
    (ValueError, r"\(5, 3, 4, 4\)", lambda: cubemap_to_erp(torch.rand(5, 3, 4, 4))),
    (ValueError, "square", lambda: cubemap_to_erp(torch.rand(6, 3, 4, 5))),
    (ValueError, "at least 2", lambda: rotate_erp(torch.rand(3, 1, 8), 5)),
    (ValueError, r"\(8,\)", lambda: rotate_erp(torch.rand(8), 5)),
    (ValueError, "face_size is 1", lambda: erp_to_cubemap(ERP, 1)),
    (ValueError, "size is", lambda: erp_to_perspective(ERP, size=(4,))),
    (ValueError, "blend is", lambda: cubemap_to_erp(torch.rand(6, 1, 4, 4), blend="mean")),
    (ValueError, "blend is", lambda: perspective_to_erp(ERP, (8, 16), blend="best")),
    (ValueError, "20 views", lambda: perspective_to_erp(ERP, (8, 16), views=Views.icosahedron())),
    (ValueError, "sequences of angles", lambda: erp_to_cubemap(ERP, yaw=[0, 10])),
    (
        ValueError,
        "both views",
        lambda: erp_to_perspective(ERP, size=(4, 4), yaw=3, views=Views.cube()),
    ),
    (ValueError, "antialias", lambda: erp_to_cubemap(ERP, antialias=True, reg=CORNER)),
    (ValueError, "antialias is -1", lambda: erp_to_cubemap(ERP, antialias=-1)),
    (ValueError, "only turn by yaw", lambda: rotate_erp(ERP, 0, 5, mode="fourier")),
    (ValueError, "three", lambda: rotate_erp(ERP[:2], 5, vectors=True)),
    (ValueError, "where has shape", lambda: sample_erp(ERP, torch.rand(5, 4))),
    (TypeError, "where has dtype", lambda: sample_erp(ERP, torch.zeros(5, 2, dtype=torch.long))),
    (TypeError, "list", lambda: erp_to_cubemap([[0.0]])),
]


@pytest.mark.parametrize(("kind", "match", "call"), ERRORS)
def test_errors_name_the_problem(kind: type, match: str, call) -> None:
    if "gradient" in match and resample.cv2 is None:
        pytest.skip("OpenCV is not installed")
    with pytest.raises(kind, match=match):
        call()


# ---- cache --------------------------------------------------------------------------------------


@pytest.fixture
def fresh_cache():
    limit = cache_info().limit_bytes
    clear_cache()
    yield
    set_cache_limit(limit)
    clear_cache()


@pytest.mark.usefixtures("fresh_cache")
def test_cache_counts_and_keeps_its_bound() -> None:
    erp = torch.rand(1, 16, 32)
    for yaw in (10, 20, 10):
        erp_to_perspective(erp, size=(16, 16), yaw=yaw)
    info = cache_info()
    assert (info.hits, info.misses, info.entries) == (1, 2, 2)
    assert info.bytes == 2 * 16 * 16 * 2 * 4
    set_cache_limit(info.bytes)
    for yaw in range(30, 40):
        erp_to_perspective(erp, size=(16, 16), yaw=yaw)
    assert cache_info().entries == 2
    erp_to_perspective(erp, size=(64, 64))  # more than half of the bound
    assert cache_info().entries == 2
    set_cache_limit(0)
    assert cache_info().bytes == 0
    with pytest.raises(ValueError, match="limit_bytes is -1"):
        set_cache_limit(-1)


@pytest.mark.usefixtures("fresh_cache")
def test_tensor_angles_are_not_cached() -> None:
    erp = torch.rand(1, 16, 32)
    by_tensor = erp_to_perspective(erp, size=(8, 8), yaw=torch.tensor(30.0))
    assert cache_info().entries == 0
    assert torch.allclose(by_tensor, erp_to_perspective(erp, size=(8, 8), yaw=30), atol=1e-5)


@pytest.mark.usefixtures("fresh_cache")
def test_cache_is_shared_by_threads() -> None:
    erp = torch.rand(1, 16, 32)
    expected = [erp_to_perspective(erp, size=(8, 8), yaw=10 * k) for k in range(8)]
    set_cache_limit(5 * 8 * 8 * 2 * 4)  # evicts all the time
    wrong: list[int] = []

    def work() -> None:
        for k in range(200):
            out = erp_to_perspective(erp, size=(8, 8), yaw=10 * (k % 8))
            if not torch.equal(out, expected[k % 8]):
                wrong.append(k)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert cache_info().bytes <= cache_info().limit_bytes


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_equals_cpu() -> None:
    erp = torch.rand(3, 2, 64, 128)
    for call in (
        lambda x: erp_to_cubemap(x, 31),
        lambda x: cubemap_to_erp(erp_to_cubemap(x, 31)),
        lambda x: rotate_erp(x, **ANGLES),
        lambda x: perspective_to_erp(x, (64, 128))[0],
        lambda x: erp_to_cubemap(x, 31, mode="bicubic"),
    ):
        # Float32 positions on noise.
        assert (call(erp.cuda()).cpu() - call(erp)).abs().max() < 1e-4
