"""Frames, rays, faces, registrations and solid angles against closed forms."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shared_pano_utils import geometry
from shared_pano_utils.geometry import (
    CENTER,
    CORNER,
    EDGE,
    FACE_AXES,
    FACE_NAMES,
    PY360_C2E,
    PY360_E2X,
    SE360_P2E,
    PixelGrid,
    Projection,
    Registration,
    face_to_xyz,
    intrinsics,
    lonlat_to_pixel,
    lonlat_to_xyz,
    pixel_to_lonlat,
    rays,
    resolve_rotation,
    rotation_matrix,
    sphere_weights,
    xyz_to_face,
    xyz_to_lonlat,
)

TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}
REGISTRATIONS = (CENTER, CORNER, EDGE, PY360_E2X, PY360_C2E, SE360_P2E)
AXES = [[s * (k == axis) for k in range(3)] for axis in range(3) for s in (1.0, -1.0)]
SIZES = st.integers(8, 96)
SEEDS = st.integers(0, 2**31 - 1)


def degrees(x: float) -> float:
    return math.degrees(math.atan(x))


def special_rays(dtype: torch.dtype) -> torch.Tensor:
    """Poles, +-180 degrees, cube edges and corners."""
    edges = [[a, b, 0.0] for a in (1, -1) for b in (1, -1)]
    edges += [[a, 0.0, b] for a in (1, -1) for b in (1, -1)]
    edges += [[0.0, a, b] for a in (1, -1) for b in (1, -1)]
    corners = [[a, b, c] for a in (1, -1) for b in (1, -1) for c in (1, -1)]
    return torch.nn.functional.normalize(torch.tensor(AXES + edges + corners, dtype=dtype), dim=-1)


def random_rays(seed: int, count: int, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    xyz = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    return torch.nn.functional.normalize(xyz, dim=-1).to(dtype)


# ---- test plan 1: inverse maps -------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TOLERANCE)
@given(seed=SEEDS)
@settings(max_examples=15, deadline=None)
def test_xyz_lonlat_xyz(dtype: torch.dtype, seed: int) -> None:
    xyz = torch.cat([special_rays(dtype), random_rays(seed, 200, dtype)])
    lonlat = xyz_to_lonlat(xyz)
    assert (lonlat[:, 0] > -180).all()
    assert (lonlat[:, 0] <= 180 * (1 + torch.finfo(dtype).eps)).all()
    assert (lonlat[:, 1].abs() <= 90 * (1 + torch.finfo(dtype).eps)).all()
    torch.testing.assert_close(lonlat_to_xyz(lonlat), xyz, rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("grid", ["center", "corner", "edge"])
@pytest.mark.parametrize("dtype", TOLERANCE)
@given(height=SIZES, width=SIZES, seed=SEEDS)
@settings(max_examples=15, deadline=None)
def test_pixel_lonlat_pixel(
    grid: PixelGrid, dtype: torch.dtype, height: int, width: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    size = torch.tensor([width - 1, height - 1], dtype=dtype)
    pixel = torch.rand(100, 2, generator=generator, dtype=dtype) * size
    there_and_back = lonlat_to_pixel(
        pixel_to_lonlat(pixel, (height, width), grid), (height, width), grid
    )
    # Relative to the image side: a pixel index has the precision of the longitude.
    atol = TOLERANCE[dtype] * max(height, width)
    torch.testing.assert_close(there_and_back, pixel, rtol=0, atol=atol)


@pytest.mark.parametrize("dtype", TOLERANCE)
@given(seed=SEEDS)
@settings(max_examples=15, deadline=None)
def test_xyz_face_xyz(dtype: torch.dtype, seed: int) -> None:
    xyz = torch.cat([special_rays(dtype), random_rays(seed, 200, dtype)])
    face, uv = xyz_to_face(xyz)
    assert (uv.abs() <= 1).all()
    again = torch.nn.functional.normalize(face_to_xyz(face, uv), dim=-1)
    torch.testing.assert_close(again, xyz, rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_face_xyz_face_inside_every_face(dtype: torch.dtype) -> None:
    uv = torch.rand(6, 50, 2, generator=torch.Generator().manual_seed(0), dtype=dtype) * 1.98 - 0.99
    face = torch.arange(6)[:, None].expand(6, 50)
    found, coordinates = xyz_to_face(face_to_xyz(face, uv))
    assert torch.equal(found, face)
    torch.testing.assert_close(coordinates, uv, rtol=0, atol=TOLERANCE[dtype])


# ---- golden values: directions and faces ---------------------------------------------------------


@pytest.mark.parametrize(
    ("xyz", "lon", "lat"),
    [
        ((0, 0, 1), 0, 0),
        ((1, 0, 0), 90, 0),
        ((-1, 0, 0), -90, 0),
        ((0, 0, -1), 180, 0),
        ((-0.0, 0, -1), 180, 0),
        ((0, -1, 0), 0, 90),
        ((0, 1, 0), 0, -90),
        ((1, -math.sqrt(2), 1), 45, 45),
    ],
)
def test_lonlat_golden(xyz: tuple[float, ...], lon: float, lat: float) -> None:
    for dtype in TOLERANCE:
        found = xyz_to_lonlat(torch.tensor(xyz, dtype=dtype))
        expected = torch.tensor([lon, lat], dtype=dtype)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize(
    ("xyz", "name"),
    [
        ((1, 0, 0.999), "R"),
        ((0.999, 0, 1), "F"),
        ((1, 0, 1), "F"),
        ((1, 1, 1), "F"),
        ((0, -1, 0), "U"),
        ((0, 1, 0), "D"),
        ((-1, 0, -1), "B"),
        ((1, 0, -1), "R"),
        ((-1, -1, 0), "L"),
    ],
)
def test_face_of_ray_and_ties_to_lower_index(xyz: tuple[float, ...], name: str) -> None:
    for dtype in TOLERANCE:
        face, _ = xyz_to_face(torch.tensor(xyz, dtype=dtype))
        assert FACE_NAMES[face] == name


def test_face_axes_are_right_handed_and_as_in_the_table() -> None:
    letters = {"+x": 0, "-x": 1, "+y": 2, "-y": 3, "+z": 4, "-z": 5}
    table = ["+x+y+z", "-z+y+x", "-x+y-z", "+z+y-x", "+x+z-y", "+x-z+y"]
    for axes, row in zip(FACE_AXES, table, strict=True):
        expected = [AXES[letters[row[k : k + 2]]] for k in (0, 2, 4)]
        assert axes.tolist() == expected
        torch.testing.assert_close(torch.linalg.cross(axes[0], axes[1]), axes[2])


def test_erp_4x8_longitudes_and_latitudes() -> None:
    lonlat = xyz_to_lonlat(rays("erp", (4, 8), dtype=torch.float64))
    lon = torch.tensor(
        [-157.5, -112.5, -67.5, -22.5, 22.5, 67.5, 112.5, 157.5], dtype=torch.float64
    )
    lat = torch.tensor([67.5, 22.5, -22.5, -67.5], dtype=torch.float64)
    torch.testing.assert_close(lonlat[..., 0], lon.expand(4, 8), rtol=0, atol=1e-12)
    torch.testing.assert_close(lonlat[..., 1], lat[:, None].expand(4, 8), rtol=0, atol=1e-12)


def test_face_s2_corner_ray() -> None:
    lon, lat = xyz_to_lonlat(rays("cube", 2, dtype=torch.float64)[0, 0, 0]).tolist()
    assert (lon, lat) == pytest.approx((-26.5651, 24.0948), abs=5e-5)


def test_perspective_101_centre_and_corner() -> None:
    view = rays("perspective", (101, 101), dtype=torch.float64)
    torch.testing.assert_close(
        view[50, 50], torch.tensor([0, 0, 1.0], dtype=torch.float64), rtol=0, atol=1e-15
    )
    unscaled = rays("perspective", (101, 101), normalize=False, dtype=torch.float64)
    corner = torch.tensor([-100 / 101, -100 / 101, 1], dtype=torch.float64)
    torch.testing.assert_close(unscaled[0, 0], corner, rtol=0, atol=1e-14)
    assert xyz_to_lonlat(unscaled[50, 100])[0].item() == pytest.approx(
        degrees(100 / 101), abs=1e-12
    )


# ---- test plan 4: rays of every projection, registration, fov and size ---------------------------


def axis_fractions(n: int, grid: str) -> np.ndarray:
    index = np.arange(n)
    return {"center": (index + 0.5) / n, "corner": index / (n - 1), "edge": index / n}[grid]


@pytest.mark.parametrize("reg", REGISTRATIONS)
@pytest.mark.parametrize("size", [(16, 32), (17, 31), (64, 64), (36, 64)])
def test_erp_rays_are_the_rays_of_their_longitude_and_latitude(
    reg: Registration, size: tuple[int, int]
) -> None:
    lon = 2 * np.pi * (axis_fractions(size[1], reg.erp) - 0.5)
    lat = np.pi * (0.5 - axis_fractions(size[0], reg.erp))[:, None]
    expected = np.stack(
        np.broadcast_arrays(np.cos(lat) * np.sin(lon), -np.sin(lat), np.cos(lat) * np.cos(lon)), -1
    )
    np.testing.assert_allclose(
        rays("erp", size, reg=reg, dtype=torch.float64), expected, atol=1e-14
    )
    np.testing.assert_allclose(rays("erp", size, reg=reg), expected, atol=1e-7)


@pytest.mark.parametrize("reg", REGISTRATIONS)
@pytest.mark.parametrize("fov", [60.0, 90.0, 100.0, 125.0])
@pytest.mark.parametrize("side", [8, 9])
def test_cube_rays_are_centre_plus_steps(reg: Registration, fov: float, side: int) -> None:
    t = math.tan(math.radians(fov / 2))
    s = (2 * axis_fractions(side, reg.view) - 1) * t
    found = rays("cube", side, fov=fov, reg=reg, normalize=False, dtype=torch.float64)
    for face, (right, down, forward) in enumerate(FACE_AXES.numpy()):
        expected = forward + s[None, :, None] * right + s[:, None, None] * down
        np.testing.assert_allclose(found[face], expected, atol=1e-14)
    torch.testing.assert_close(
        rays("cube", side, fov=fov, reg=reg).norm(dim=-1), torch.ones(6, side, side)
    )


@pytest.mark.parametrize("reg", REGISTRATIONS)
@pytest.mark.parametrize("fov", [60.0, 100.0, (125.0, 60.0)])
@pytest.mark.parametrize("size", [(12, 16), (9, 15)])
def test_perspective_rays_reach_the_border_at_half_the_fov(
    reg: Registration, fov: float | tuple[float, float], size: tuple[int, int]
) -> None:
    h, w = size
    horizontal, vertical = fov if isinstance(fov, tuple) else (fov, None)
    t_x = math.tan(math.radians(horizontal / 2))
    t_y = t_x * h / w if vertical is None else math.tan(math.radians(vertical / 2))
    found = rays("perspective", size, fov=fov, reg=reg, normalize=False, dtype=torch.float64)
    x = (2 * axis_fractions(w, reg.view) - 1) * t_x
    y = (2 * axis_fractions(h, reg.view) - 1) * t_y
    np.testing.assert_allclose(found[..., 0], np.broadcast_to(x, size), atol=1e-13)
    np.testing.assert_allclose(found[..., 1], np.broadcast_to(y[:, None], size), atol=1e-13)
    np.testing.assert_allclose(found[..., 2], 1, atol=1e-15)


def test_front_face_equals_perspective_of_90_degrees_and_others_its_rotations() -> None:
    cube = rays("cube", 7, dtype=torch.float64)
    view = rays("perspective", (7, 7), dtype=torch.float64)
    turns = [(0, 0), (90, 0), (180, 0), (-90, 0), (0, 90), (0, -90)]
    for face, (yaw, pitch) in enumerate(turns):
        turned = rays("perspective", (7, 7), R=rotation_matrix(yaw, pitch), dtype=torch.float64)
        torch.testing.assert_close(cube[face], turned, rtol=0, atol=1e-15)
    torch.testing.assert_close(cube[0], view, rtol=0, atol=1e-15)


def test_rays_of_a_pinhole_matrix() -> None:
    matrix = torch.tensor([[50.0, 0, 31.5], [0, 40.0, 20.5], [0, 0, 1]], dtype=torch.float64)
    found = rays("perspective", (48, 64), fov=None, K=matrix, normalize=False, dtype=torch.float64)
    expected = torch.tensor([(10.5 - 31.5) / 50, (5.5 - 20.5) / 40, 1], dtype=torch.float64)
    torch.testing.assert_close(found[5, 10], expected, rtol=0, atol=1e-15)


def test_rotation_of_rays_is_camera_to_reference() -> None:
    turned = rays("perspective", (3, 3), R=rotation_matrix(yaw=90), dtype=torch.float64)
    torch.testing.assert_close(
        turned[1, 1], torch.tensor([1.0, 0, 0], dtype=torch.float64), atol=1e-15, rtol=0
    )


# ---- test plan 2 and golden values: rotations ----------------------------------------------------


@pytest.mark.parametrize(
    ("angles", "axis", "image"),
    [
        ({"yaw": 90}, (0, 0, 1), (1, 0, 0)),
        ({"pitch": 90}, (0, 0, 1), (0, -1, 0)),
        ({"roll": 90}, (1, 0, 0), (0, 1, 0)),
    ],
)
def test_rotation_signs(angles: dict[str, float], axis: tuple, image: tuple) -> None:
    found = rotation_matrix(**angles) @ torch.tensor(axis, dtype=torch.float64)
    torch.testing.assert_close(found, torch.tensor(image, dtype=torch.float64), rtol=0, atol=1e-15)


@given(st.tuples(*[st.floats(-720, 720)] * 3))
@settings(max_examples=30, deadline=None)
def test_rotation_matrix_is_a_rotation_and_the_product_of_its_axes(angles: tuple) -> None:
    yaw, pitch, roll = angles
    matrix = rotation_matrix(yaw, pitch, roll)
    torch.testing.assert_close(matrix @ matrix.mT, torch.eye(3).double(), rtol=0, atol=1e-12)
    assert torch.linalg.det(matrix).item() == pytest.approx(1, abs=1e-12)
    product = rotation_matrix(yaw) @ rotation_matrix(0, pitch) @ rotation_matrix(0, 0, roll)
    torch.testing.assert_close(matrix, product, rtol=0, atol=1e-12)


def test_rotation_matrix_broadcasts_and_differentiates() -> None:
    yaw = torch.tensor([0.0, 30.0, 60.0])
    assert rotation_matrix(yaw, 10.0).shape == (3, 3, 3)
    torch.testing.assert_close(rotation_matrix(yaw, 10.0)[1], rotation_matrix(30, 10).float())
    angles = torch.tensor([20.0, -35.0, 50.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a: rotation_matrix(*a), (angles,))


def test_resolve_rotation_errors() -> None:
    with pytest.raises(ValueError, match="finite degrees"):
        resolve_rotation(math.nan)
    with pytest.raises(ValueError, match="not a rotation matrix"):
        resolve_rotation(R=torch.eye(3) * 1.01)
    with pytest.raises(ValueError, match="not a rotation matrix"):
        resolve_rotation(R=torch.diag(torch.tensor([1.0, 1.0, -1.0])))
    with pytest.raises(ValueError, match=r"shape \(2, 2\)"):
        resolve_rotation(R=torch.eye(2))


# ---- golden values: fields of view ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("fov", "focal"),
    # Half the width of 200 px over tan(fov / 2).
    [(60, 173.205081), (90, 100.0), (100, 83.909963), (120, 57.735027), (125, 52.056705)],
)
def test_fov_to_focal_length(fov: float, focal: float) -> None:
    matrix = intrinsics((100, 200), fov)
    expected = torch.tensor([[focal, 0, 100], [0, focal, 50], [0, 0, 1]], dtype=torch.float64)
    torch.testing.assert_close(matrix, expected, rtol=0, atol=1e-6)


def test_anisotropic_fov() -> None:
    matrix = intrinsics((100, 200), (90, 90))
    assert matrix.diagonal().tolist() == pytest.approx([100, 50, 1])


@pytest.mark.parametrize("fov", [0.0, -10.0, 180.0, (90.0, 200.0)])
def test_fov_out_of_range(fov: float | tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="0 < fov < 180"):
        intrinsics((4, 4), fov)


def test_fov_and_matrix_errors() -> None:
    with pytest.raises(ValueError, match="pass one of them"):
        intrinsics((4, 4), 60.0, torch.eye(3))
    with pytest.raises(ValueError, match="pass one of them"):
        intrinsics((4, 4), None)
    with pytest.raises(ValueError, match=r"shape \(2, 2\)"):
        intrinsics((4, 4), None, torch.eye(2))
    with pytest.raises(ValueError, match="square"):
        rays("cube", (4, 5))
    with pytest.raises(ValueError, match="'erp', 'cube' or 'perspective'"):
        rays("fisheye", 4)  # pyright: ignore[reportArgumentType]


# ---- test plan 5: solid angles -------------------------------------------------------------------


def test_erp_4x8_weights_by_hand() -> None:
    weights = sphere_weights("erp", (4, 8))
    rows = torch.tensor([0.23004, 0.55536, 0.55536, 0.23004], dtype=torch.float64)
    torch.testing.assert_close(weights, rows[:, None].expand(4, 8), rtol=0, atol=5e-6)
    assert weights.sum().item() == pytest.approx(12.56637, abs=5e-6)


def test_face_weights_by_hand() -> None:
    torch.testing.assert_close(
        sphere_weights("cube", 2), torch.full((6, 2, 2), 0.523599).double(), rtol=0, atol=5e-7
    )
    face = sphere_weights("cube", 4)[3]
    assert face[0, 0].item() == pytest.approx(0.0814556, abs=5e-8)
    assert face[0, 1].item() == pytest.approx(0.1203926, abs=5e-8)
    assert face[1, 1].item() == pytest.approx(0.2013579, abs=5e-8)


@given(height=SIZES, width=SIZES)
@settings(max_examples=30, deadline=None)
def test_weights_sum_to_the_sphere(height: int, width: int) -> None:
    for weights in (sphere_weights("erp", (height, width)), sphere_weights("cube", height)):
        assert weights.dtype == torch.float64
        assert weights.sum().item() == pytest.approx(4 * math.pi, abs=1e-12)
        assert (weights > 0).all()


@pytest.mark.parametrize(("projection", "size"), [("erp", (64, 128)), ("cube", 32)])
def test_mean_squared_components_are_a_third(
    projection: Projection, size: int | tuple[int, int]
) -> None:
    weights = sphere_weights(projection, size) / (4 * math.pi)
    squares = (rays(projection, size, dtype=torch.float64) ** 2 * weights[..., None]).flatten(0, -2)
    np.testing.assert_allclose(squares.sum(0), [1 / 3] * 3, atol=1e-3)


def test_erp_weights_are_proportional_to_the_cosine_of_the_row() -> None:
    lat = (0.5 - (torch.arange(33, dtype=torch.float64) + 0.5) / 33) * math.pi
    ratio = sphere_weights("erp", (33, 50))[:, 0] / lat.cos()
    torch.testing.assert_close(ratio, ratio[:1].expand(33), rtol=1e-12, atol=0)


def test_perspective_weight_is_the_solid_angle_of_the_pyramid() -> None:
    h, v = math.radians(100 / 2), math.radians(60 / 2)
    weights = sphere_weights("perspective", (30, 40), fov=(100.0, 60.0))
    assert weights.sum().item() == pytest.approx(
        4 * math.asin(math.sin(h) * math.sin(v)), abs=1e-12
    )


# ---- registrations -------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", ["center", "corner", "edge"])
def test_border_and_index_are_inverse_and_as_in_the_table(grid: PixelGrid) -> None:
    s = torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64)
    index = geometry.border_to_index(s, 8, grid)
    expected = {"center": [-0.5, 1.5, 7.5], "corner": [0, 1.75, 7], "edge": [0, 2, 8]}[grid]
    assert index.tolist() == expected
    torch.testing.assert_close(geometry.index_to_border(index, 8, grid), s)
    coordinates = geometry.axis_coordinates(8, grid)
    np.testing.assert_allclose(coordinates, axis_fractions(8, grid), atol=1e-15)


def test_named_registrations() -> None:
    assert Registration() == CENTER == ("center", "center")
    assert PY360_E2X == ("center", "corner")
    assert PY360_C2E == ("corner", "edge")
    assert SE360_P2E == ("corner", "center")
