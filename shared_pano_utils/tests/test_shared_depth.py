"""Depth conversion, points, normals, silhouettes and the mesh against analytic scenes."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shared_pano_utils._arrays import to_torch
from shared_pano_utils.depth import (
    DepthKind,
    convert_depth,
    depth_to_normals,
    depth_to_points,
    edge_mask,
)
from shared_pano_utils.geometry import CENTER, EDGE, Projection, rays, rotation_matrix
from shared_pano_utils.mesh import erp_mesh
from shared_pano_utils.synthetic import Scene

# Box room 5 x 2.8 x 7 m around three camera positions: middle, corner, wall.
ROOM_MIN, ROOM_MAX = (-2.5, -1.2, -3.5), (2.5, 1.6, 3.5)
CAMERAS = [(0.0, 0.0, 0.0), (1.7, 0.3, 2.8), (-1.9, 0.9, 0.0)]


def box_room(directions: Tensor, camera: tuple[float, ...] = CAMERAS[0]) -> tuple[Tensor, Tensor]:
    """Distance (...) and inward normal (..., 3) of the room's walls along rays (..., 3)."""
    low, high = (torch.tensor(b, dtype=torch.float64) for b in (ROOM_MIN, ROOM_MAX))
    origin = torch.tensor(camera, dtype=torch.float64)
    distance, axis = torch.maximum((low - origin) / directions, (high - origin) / directions).min(
        -1
    )
    sign = -directions.gather(-1, axis[..., None]).sign()
    normals = torch.zeros_like(directions).scatter_(-1, axis[..., None], sign)
    return distance, normals


def with_sphere(
    directions: Tensor, distance: Tensor, centre: tuple[float, ...], radius: float
) -> tuple[Tensor, Tensor]:
    """Put a ball in front: distance (...) and whether it is seen (...)."""
    c = torch.tensor(centre, dtype=torch.float64)
    b = directions @ c
    root = b**2 - (c @ c - radius**2)
    hit = (root > 0) & (b > 0)
    nearer = b - root.clamp(min=0).sqrt()
    hit &= nearer < distance
    return torch.where(hit, nearer, distance), hit


def angle_between(a: Tensor, b: Tensor) -> Tensor:
    """Angle in radians between vectors (..., 3, H, W), accurate for small angles."""
    a, b = a.double(), b.double()
    return torch.atan2(torch.linalg.cross(a, b, dim=-3).norm(dim=-3), (a * b).sum(-3))


def erp_room(
    height: int, width: int, camera: tuple[float, ...] = CAMERAS[0]
) -> tuple[Tensor, Tensor]:
    """Distance (1, H, W) and normals (3, H, W) of the empty room, float64."""
    distance, normals = box_room(rays("erp", (height, width), dtype=torch.float64), camera)
    return distance[None], normals.movedim(-1, 0)


def away_from_creases(normals: Tensor, margin: int = 2) -> Tensor:
    """Pixels (H, W) of an ERP further than `margin` from a pixel with another normal (3, H, W)."""
    walls = normals.flatten(1).unique(dim=1)
    masks = [eroded((normals == wall[:, None, None]).all(0), margin) for wall in walls.T]
    return torch.stack(masks).any(0)


def eroded(mask: Tensor, margin: int) -> Tensor:
    """Pixels (H, W) of an ERP further than `margin` rows and columns from a pixel outside `mask`."""
    outside = torch.nn.functional.pad((~mask).float()[None, None], (0, 0, margin, margin))
    outside = torch.nn.functional.pad(outside, (margin, margin, 0, 0), mode="circular")
    return torch.nn.functional.max_pool2d(outside, 2 * margin + 1, 1)[0, 0] == 0


# ---- conversion ----------------------------------------------------------------------------------


def test_planar_one_at_a_face_corner_is_1_224745() -> None:
    found = convert_depth(torch.ones(6, 1, 2, 2).double(), "planar", "euclidean", projection="cube")
    torch.testing.assert_close(found, torch.full((6, 1, 2, 2), math.sqrt(1.5)).double())


def test_conversion_is_the_length_of_the_ray_for_any_view() -> None:
    matrix = torch.tensor([[20.0, 0, 7.0], [0, 30.0, 4.0], [0, 0, 1]], dtype=torch.float64)
    found = convert_depth(
        np.full((9, 13), 2.0), "planar", "euclidean", projection="perspective", fov=None, K=matrix
    )
    x, y = (np.arange(13) + 0.5 - 7) / 20, (np.arange(9)[:, None] + 0.5 - 4) / 30
    np.testing.assert_allclose(found, 2 * np.sqrt(1 + x**2 + y**2), rtol=1e-14)


def test_edge_registration_moves_the_principal_point_by_half_a_pixel() -> None:
    found = convert_depth(
        torch.ones(1, 4, 4).double(), "planar", "euclidean", projection="perspective", reg=EDGE
    )
    assert found[0, 2, 2].item() == pytest.approx(1, abs=1e-15)
    assert found[0, 0, 0].item() == pytest.approx(math.sqrt(3), abs=1e-15)


@given(
    side=st.integers(8, 96),
    fov=st.sampled_from([60.0, 90.0, 100.0, 125.0]),
    projection=st.sampled_from(["cube", "perspective"]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=20, deadline=None)
def test_planar_and_euclidean_are_inverse(
    side: int, fov: float, projection: Projection, seed: int
) -> None:
    lead = (6,) if projection == "cube" else ()
    generator = torch.Generator().manual_seed(seed)
    depth = torch.rand(*lead, 1, side, side, generator=generator) * 20 + 0.1
    options: dict[str, Any] = {"projection": projection, "fov": fov}
    euclidean = convert_depth(depth, "planar", "euclidean", **options)
    assert (euclidean >= depth).all()
    again = convert_depth(euclidean, "euclidean", "planar", **options)
    torch.testing.assert_close(again, depth, rtol=1e-6, atol=0)


# ---- points --------------------------------------------------------------------------------------


def test_floor_1_6_m_below_at_latitude_minus_30_is_3_2_m_away() -> None:
    depth = torch.full((1, 3, 3), 3.2, dtype=torch.float64)
    points = depth_to_points(depth, projection="perspective", R=rotation_matrix(pitch=-30))
    assert points[1, 1, 1].item() == pytest.approx(1.6, abs=1e-14)


@pytest.mark.parametrize("camera", CAMERAS)
def test_points_of_a_room_lie_on_its_walls(camera: tuple[float, ...]) -> None:
    distance, normals = erp_room(128, 256, camera)
    points = depth_to_points(distance.float()).double() + torch.tensor(camera)[:, None, None]
    axis = normals.abs().argmax(0, keepdim=True)
    on_low = normals.gather(0, axis) > 0
    low, high = (torch.tensor(b, dtype=torch.float64)[axis] for b in (ROOM_MIN, ROOM_MAX))
    gap = (points.gather(0, axis) - torch.where(on_low, low, high)).abs()
    assert gap.max().item() <= 1e-4
    assert gap.max().item() <= 2e-6  # float32 of 8 m


def test_cube_points_of_either_kind_equal_the_analytic_points() -> None:
    directions = rays("cube", 12, fov=100.0, dtype=torch.float64)
    distance, _ = box_room(directions)
    expected = (directions * distance[..., None]).movedim(-1, -3)
    euclidean = distance[:, None]
    planar = convert_depth(euclidean, "euclidean", "planar", projection="cube", fov=100.0)
    by_kind: dict[DepthKind, Tensor] = {"euclidean": euclidean, "planar": planar}
    for kind, depth in by_kind.items():
        found = depth_to_points(depth, projection="cube", kind=kind, fov=100.0)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_points_in_the_reference_frame() -> None:
    turns = rotation_matrix(yaw=torch.tensor([0.0, 90.0], dtype=torch.float64))
    depth = torch.full((2, 1, 5, 5), 2.0, dtype=torch.float64)
    points = depth_to_points(depth, projection="perspective", R=turns)
    torch.testing.assert_close(points[0, :, 2, 2], torch.tensor([0.0, 0, 2], dtype=torch.float64))
    torch.testing.assert_close(
        points[1, :, 2, 2], torch.tensor([2.0, 0, 0], dtype=torch.float64), rtol=0, atol=1e-14
    )
    cubes = torch.full((2, 6, 1, 4, 4), 2.0, dtype=torch.float64)
    turned = depth_to_points(cubes, projection="cube", R=turns)
    # After a quarter turn to the right, what was F is R.
    torch.testing.assert_close(turned[1, 0], depth_to_points(cubes[0], projection="cube")[1])


def test_points_of_infinite_depth_are_not_finite() -> None:
    depth = torch.full((1, 5, 5), math.inf)
    assert not depth_to_points(depth, projection="perspective").isfinite().any()


# ---- normals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("edges", ["min", "central"])
@pytest.mark.parametrize("size", [(8, 16), (9, 22), (33, 48), (64, 128), (36, 64)])
def test_normals_of_a_sphere_around_the_camera_point_back(
    size: tuple[int, int], edges: Any
) -> None:
    normals, mask = depth_to_normals(torch.ones(1, *size), edges=edges)
    expected = -rays("erp", size, dtype=torch.float64).movedim(-1, 0)
    assert mask.all()
    assert angle_between(normals, expected).max().item() <= 1e-6


@pytest.mark.parametrize("edges", ["min", "central"])
@pytest.mark.parametrize("size", [(16, 32), (17, 33), (64, 128), (256, 512), (36, 64)])
@pytest.mark.parametrize("tilt", [0.0, 25.0])
def test_normals_of_a_plane_are_exact_in_float64(
    size: tuple[int, int], edges: Any, tilt: float
) -> None:
    # A ceiling: seen from the pole down to 10 degrees from the horizon, pole row included.
    up = rotation_matrix(pitch=tilt) @ torch.tensor([0.0, -1, 0], dtype=torch.float64)
    directions = rays("erp", size, dtype=torch.float64)
    cosine = directions @ up
    is_seen = cosine > math.sin(math.radians(10))
    depth = torch.where(is_seen, 1.3 / cosine.clamp(min=1e-3), math.nan)[None]
    normals, mask = depth_to_normals(depth, edges=edges)
    error = angle_between(normals, -up[:, None, None].expand_as(normals))[mask[0]]
    assert mask[0, 0].all()
    assert mask.sum() > 0.5 * is_seen.sum()
    assert error.max().item() <= 1e-10


@pytest.mark.parametrize("camera", CAMERAS)
@pytest.mark.parametrize("size", [(32, 64), (96, 192), (256, 512)])
def test_normals_of_a_room_in_float32(size: tuple[int, int], camera: tuple[float, ...]) -> None:
    distance, expected = erp_room(*size, camera)
    normals, mask = depth_to_normals(distance.float())
    error = angle_between(normals, expected)
    flat = away_from_creases(expected)
    # Above 60 degrees of latitude horizontal neighbours are further away than the margin.
    flat[: size[0] // 6], flat[-(size[0] // 6) :] = False, False
    assert mask.all()
    assert error[flat].max().item() <= 1e-4
    # The pole rows see one wall only in these rooms.
    assert error[0].max().item() <= 1e-4
    assert error[-1].max().item() <= 1e-4


def test_min_keeps_creases_sharp_where_central_rounds_them() -> None:
    distance, expected = erp_room(128, 256)
    is_off = [
        (angle_between(depth_to_normals(distance, edges=edges)[0], expected) > 0.01).double().mean()
        for edges in ("central", "min")
    ]
    assert is_off[0] > 0.03
    assert is_off[1] < 0.003


@pytest.mark.parametrize("width", [1, 2, 3, 8])
def test_min_does_not_mix_a_silhouette(width: int) -> None:
    """A post `width` pixels wide at 2 m before a wall at 4 m, both facing the camera."""
    planar = torch.full((1, 24, 24), 4.0, dtype=torch.float64)
    planar[..., 10 : 10 + width] = 2.0
    normals, mask = depth_to_normals(planar, projection="perspective", kind="planar")
    facing = torch.tensor([0.0, 0, -1], dtype=torch.float64)[:, None, None].expand_as(normals)
    error = angle_between(normals, facing)
    assert mask.all()
    columns = torch.ones(24, dtype=torch.bool)
    columns[10 : 10 + width] = width > 1  # one pixel has no slope of its own
    assert error[:, columns].max().item() <= 1e-12
    central, _ = depth_to_normals(planar, projection="perspective", kind="planar", edges="central")
    assert angle_between(central, facing)[:, 9].min().item() > 0.5


@pytest.mark.parametrize("kind", ["euclidean", "planar"])
@pytest.mark.parametrize("fov", [90.0, 100.0])
def test_cube_normals_are_in_the_frame_of_the_cube(kind: Any, fov: float) -> None:
    directions = rays("cube", 24, fov=fov, dtype=torch.float64)
    distance, expected = box_room(directions)
    depth = distance[:, None]
    if kind == "planar":
        depth = convert_depth(depth, "euclidean", "planar", projection="cube", fov=fov)
    normals, mask = depth_to_normals(depth, projection="cube", kind=kind, fov=fov)
    error = angle_between(normals, expected.movedim(-1, -3))
    assert mask.all()  # borders included
    assert (error < 1e-9).double().mean() > 0.97
    facing = (normals * directions.movedim(-1, -3)).sum(-3)
    assert (facing < 0).all()


def test_perspective_normals_with_a_skewed_pinhole_matrix() -> None:
    matrix = torch.tensor([[30.0, 4.0, 15.0], [0, 36.0, 11.0], [0, 0, 1]], dtype=torch.float64)
    options: dict[str, Any] = {"projection": "perspective", "fov": None, "K": matrix}
    directions = rays("perspective", (24, 32), fov=None, K=matrix, dtype=torch.float64)
    normal = torch.nn.functional.normalize(torch.tensor([0.3, -0.4, -1.0]).double(), dim=0)
    depth = (-2.0 / (directions @ normal))[None]
    normals, mask = depth_to_normals(depth, **options)
    assert mask.all()
    assert angle_between(normals, normal[:, None, None].expand_as(normals)).max().item() <= 1e-12


def test_normals_do_not_depend_on_the_cut() -> None:
    distance, _ = erp_room(24, 48, CAMERAS[1])
    distance[0, 5, 3] = math.nan
    for shift in (1, 24, 30):
        normals, mask = depth_to_normals(distance)
        # Turn the content and its normals by the same angle.
        turn = rotation_matrix(yaw=shift / 48 * 360)
        expected = torch.einsum("ij,jhw->ihw", turn, normals.roll(shift, -1))
        found, found_mask = depth_to_normals(distance.roll(shift, -1))
        assert torch.equal(found_mask, mask.roll(shift, -1))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("bad", [math.nan, 0.0, -1.0])
def test_invalid_depth_reaches_its_four_neighbours_only(bad: float) -> None:
    clean, _ = erp_room(32, 64)
    spoilt = clean.clone()
    spoilt[0, 14, 0] = bad
    normals, mask = depth_to_normals(spoilt, edges="central")
    gone = {tuple(p) for p in (~mask[0]).nonzero().tolist()}
    assert gone == {(14, 0), (13, 0), (15, 0), (14, 1), (14, 63)}
    reference, _ = depth_to_normals(clean, edges="central")
    assert torch.equal(normals[:, mask[0]], reference[:, mask[0]])
    assert (normals[:, ~mask[0]] == 0).all()
    assert normals.isfinite().all()


def test_valid_mask_is_the_same_as_nan() -> None:
    clean, _ = erp_room(16, 32)
    valid = torch.rand(1, 16, 32, generator=torch.Generator().manual_seed(1)) > 0.1
    marked = depth_to_normals(clean, valid=valid)
    spoilt = depth_to_normals(torch.where(valid, clean, math.nan))
    assert torch.equal(marked[0], spoilt[0])
    assert torch.equal(marked[1], spoilt[1])


def test_sky_has_no_normal_but_its_neighbours_have() -> None:
    size = (64, 128)
    down = rays("erp", size, dtype=torch.float64)[..., 1]
    ground = torch.where(down > 0, 1.6 / down.clamp(min=1e-9), math.inf)[None]
    normals, mask = depth_to_normals(ground)
    assert torch.equal(mask[0], down > 0)
    up = torch.tensor([0.0, -1, 0], dtype=torch.float64)[:, None, None].expand_as(normals)
    assert angle_between(normals, up)[mask[0]].max().item() <= 1e-9


# ---- silhouettes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("camera", CAMERAS)
@pytest.mark.parametrize("height", [64, 128, 256, 512])
def test_empty_room_keeps_its_pixels_at_every_size(height: int, camera: tuple[float, ...]) -> None:
    distance, _ = erp_room(height, 2 * height, camera)
    edges = edge_mask(distance.float())
    assert edges.double().mean().item() < 0.01
    assert edges.sum() == 0


def compat_keep(distance: Tensor, threshold: float) -> float:
    """Share of pixels that the difference test of the original point cloud export keeps."""
    edge = torch.zeros_like(distance, dtype=torch.bool)
    for dim in (-1, -2):
        length = distance.shape[dim] - 1
        a, b = distance.narrow(dim, 0, length), distance.narrow(dim, 1, length)
        jump = ((a - b).abs() > threshold) & ((a - b).abs() / torch.minimum(a, b) > threshold)
        edge.narrow(dim, 0, length).logical_or_(jump)
        edge.narrow(dim, 1, length).logical_or_(jump)
    return 1 - edge.double().mean().item()


def test_threshold_on_differences_would_remove_the_room() -> None:
    """Why the slope-aware test exists: the published figure of the original is 28 %."""
    distance, _ = erp_room(512, 1024)
    assert compat_keep(distance, 0.002) < 0.5
    assert edge_mask(distance).sum() == 0


@pytest.mark.parametrize("size", [(128, 256), (256, 512)])
def test_silhouettes_of_balls_are_removed_and_nothing_else(size: tuple[int, int]) -> None:
    directions = rays("erp", size, dtype=torch.float64)
    distance, _ = box_room(directions)
    label = torch.zeros(size, dtype=torch.int64)
    # One ball crosses the cut at +-180 degrees, one covers the south pole.
    balls = [((0.0, 0.2, -2.0), 0.4), ((1.0, -0.2, 1.5), 0.3), ((0.1, 1.2, 0.0), 0.25)]
    for number, (centre, radius) in enumerate(balls, start=1):
        distance, hit = with_sphere(directions, distance, centre, radius)
        label[hit] = number
    marked = edge_mask(distance[None].float())[0]

    border = torch.zeros(size, dtype=torch.bool)
    for dim, count in ((-1, size[1]), (-2, size[0] - 1)):
        here, there = distance, distance.roll(-1, dim)
        jump = (label != label.roll(-1, dim)) & ((here - there).abs() > 0.05 * here.minimum(there))
        jump &= (torch.arange(size[dim]) < count)[:, None] if dim == -2 else True
        border |= jump | jump.roll(1, dim)
    assert border.sum() > 100
    assert (marked & border).sum() / border.sum() > 0.99
    # Nothing is marked out of reach of the outline of a ball.
    inside = torch.zeros(size, dtype=torch.bool)
    for number in range(4):
        inside |= eroded(label == number, 3)
    assert inside.double().mean() > 0.8
    assert not (marked & inside).any()
    # The seam column is treated like any other: the first ball straddles it.
    assert marked[:, 0].any()
    shifted = edge_mask(distance[None].float().roll(77, -1))[0]
    assert torch.equal(shifted, marked.roll(77, -1))


def test_blurred_silhouettes_are_removed_over_their_whole_ramp() -> None:
    depth = torch.full((1, 64, 128), 2.0)
    depth[..., 64:] = 4.0
    depth[..., 63], depth[..., 64] = 2.4, 3.2  # a ramp of three steps
    assert edge_mask(depth)[0, 32].nonzero().flatten().tolist() == [0, 62, 63, 64, 65, 127]
    found = edge_mask(depth, reach=1)[0, 32].nonzero().flatten().tolist()
    assert found == [0, 63, 64, 127]  # the steepest step only


def test_ground_up_to_the_horizon_is_kept_and_a_roof_against_the_sky_is_not() -> None:
    down = rays("erp", (64, 128), dtype=torch.float64)[..., 1]
    ground = torch.where(down > 0, 1.6 / down.clamp(min=1e-9), math.inf)[None]
    assert not edge_mask(ground).any()
    roof = torch.full((1, 32, 64), 5.0)
    roof[:, :16] = math.inf
    marked = edge_mask(roof)
    assert marked[0, 16].all()
    assert marked.sum() == 64  # the last row before the sky, and no sky


def test_edge_mask_of_cube_faces_stops_at_their_borders() -> None:
    distance, _ = box_room(rays("cube", 64, dtype=torch.float64))
    assert not edge_mask(distance[:, None], projection="cube").any()
    planar = torch.ones(1, 16, 16)
    planar[..., 8:] = 2.0
    marked = edge_mask(planar, projection="perspective", kind="planar")
    assert marked[0, 3].nonzero().flatten().tolist() == [7, 8]


# ---- scenes with objects --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["room", "corridor", "outdoor"])
def test_normals_and_silhouettes_of_procedural_scenes(kind: Any) -> None:
    render = Scene.random(3, kind).render(
        size=(128, 256), outputs=("depth", "normals_cam", "instance")
    )
    assert render.depth is not None
    assert render.normals_cam is not None
    assert render.instance is not None
    normals, mask = depth_to_normals(render.depth)
    error = angle_between(normals, render.normals_cam)[mask[0]]
    rough, _ = depth_to_normals(render.depth, edges="central")
    central = angle_between(rough, render.normals_cam)[mask[0]]
    assert error.median().item() < 1e-4
    assert error.mean().item() < central.mean().item() / 2

    depth, marked = render.depth[0], edge_mask(render.depth)[0]
    other = depth.roll(-1, -1)
    jump = (render.instance != render.instance.roll(-1, -1)) & depth.isfinite() & other.isfinite()
    jump &= (depth - other).abs() > 0.1 * depth.minimum(other)
    assert (marked & marked.roll(-1, -1))[jump].double().mean() > 0.9
    assert marked.double().mean() < 0.15


# ---- arrays, dtypes, gradients, errors -----------------------------------------------------------


@pytest.mark.parametrize("lead", [(), (2,), (2, 3)])
@pytest.mark.parametrize("projection", ["erp", "cube", "perspective"])
def test_numpy_and_torch_agree_with_any_leading_axes(
    projection: Any, lead: tuple[int, ...]
) -> None:
    shape = (*lead, 6, 1, 8, 8) if projection == "cube" else (*lead, 1, 8, 16)
    tensor = torch.rand(shape, generator=torch.Generator().manual_seed(3)) + 1
    array = np.ascontiguousarray(tensor.movedim(-3, -1).numpy())
    options: dict[str, Any] = {"projection": projection}
    pairs = [
        (depth_to_points(tensor, **options), depth_to_points(array, **options)),
        *zip(depth_to_normals(tensor, **options), depth_to_normals(array, **options), strict=True),
        (edge_mask(tensor, **options), edge_mask(array, **options)),
    ]
    for from_torch, from_numpy in pairs:
        assert isinstance(from_numpy, np.ndarray)
        assert isinstance(from_torch, Tensor)
        assert from_torch.shape[: len(lead)] == lead
        np.testing.assert_array_equal(from_torch.movedim(-3, -1).numpy(), from_numpy)


def test_maps_without_channel_axis() -> None:
    depth = np.ones((8, 16), np.float32)
    normals, mask = depth_to_normals(depth)
    assert depth_to_points(depth).shape == normals.shape == (8, 16, 3)
    assert mask.shape == edge_mask(depth).shape == (8, 16)
    assert mask.dtype == np.bool_
    assert depth_to_points(torch.ones(8, 16)).shape == (3, 8, 16)
    converted = convert_depth(np.ones((6, 4, 4)), "planar", "euclidean", projection="cube")
    assert converted.shape == (6, 4, 4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_depth_is_computed_in_float32(dtype: torch.dtype) -> None:
    depth = erp_room(16, 32)[0].to(dtype)
    for function in (depth_to_points, lambda d: depth_to_normals(d)[0]):
        found, wide = function(depth), function(depth.float())
        assert found.dtype == dtype
        assert torch.equal(found, wide.to(dtype))


@pytest.mark.parametrize("edges", ["min", "central"])
@pytest.mark.parametrize("projection", ["erp", "perspective", "cube"])
def test_gradcheck(projection: Any, edges: Any) -> None:
    shape = {"erp": (1, 4, 8), "perspective": (1, 4, 5), "cube": (6, 1, 3, 3)}[projection]
    generator = torch.Generator().manual_seed(5)
    depth = (torch.rand(shape, generator=generator, dtype=torch.float64) + 1).requires_grad_()
    check = torch.autograd.gradcheck
    assert check(lambda d: depth_to_points(d, projection=projection), depth)
    assert check(lambda d: depth_to_normals(d, projection=projection, edges=edges)[0], depth)
    if projection != "erp":
        assert check(
            lambda d: convert_depth(d, "euclidean", "planar", projection=projection), depth
        )
        assert check(
            lambda d: depth_to_normals(d, projection=projection, kind="planar", edges=edges)[0],
            depth,
        )


def test_gradcheck_of_the_camera() -> None:
    depth = torch.full((1, 3, 4), 2.0, dtype=torch.float64)
    matrix = torch.tensor([[5.0, 0, 2], [0, 6, 1.5], [0, 0, 1]], dtype=torch.float64)
    matrix.requires_grad_()
    options: dict[str, Any] = {"projection": "perspective", "fov": None}
    check = torch.autograd.gradcheck
    assert check(lambda k: depth_to_points(depth, K=k, **options), matrix)
    assert check(lambda k: convert_depth(depth, "planar", "euclidean", K=k, **options), matrix)
    assert check(lambda k: depth_to_normals(depth, K=k, **options)[0], matrix)
    angles = torch.tensor([10.0, 20, 30], dtype=torch.float64, requires_grad=True)
    assert check(lambda a: depth_to_points(depth, R=rotation_matrix(*a)), angles)


def test_gradients_stay_finite_beside_invalid_pixels() -> None:
    depth = erp_room(8, 16)[0]
    depth[0, 3, 4], depth[0, 5, 9], depth[0, 0, 0] = math.nan, math.inf, 0.0
    depth.requires_grad_()
    depth_to_normals(depth)[0].sum().backward()
    assert depth.grad is not None
    assert depth.grad.isfinite().all()


def test_errors_name_the_problem_and_the_remedy() -> None:
    depth = torch.ones(1, 8, 16)
    for src in ("planar", "euclidean"):
        with pytest.raises(ValueError, match="optical axis"):
            convert_depth(depth, src, "euclidean", projection="erp")
    with pytest.raises(ValueError, match="'euclidean' or 'planar'"):
        convert_depth(depth, "z", "planar", projection="cube")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="pass kind='euclidean'"):
        depth_to_points(depth, kind="planar")
    with pytest.raises(ValueError, match=r"shape \(3, 8, 16\).*depth has one"):
        depth_to_points(torch.ones(3, 8, 16))
    with pytest.raises(TypeError, match="millimetres"):
        depth_to_points(np.ones((8, 16), np.uint16))
    with pytest.raises(ValueError, match="'central' or 'min'"):
        depth_to_normals(depth, edges="both")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="valid is"):
        depth_to_normals(depth, valid=torch.ones(1, 8, 16))
    with pytest.raises(ValueError, match="at least 3"):
        depth_to_normals(torch.ones(1, 4, 2))
    with pytest.raises(ValueError, match="threshold is -1"):
        edge_mask(depth, threshold=-1)
    with pytest.raises(ValueError, match="6 square faces"):
        depth_to_points(torch.ones(5, 1, 4, 4), projection="cube")


def test_array_adapter_errors_and_sharing() -> None:
    with pytest.raises(ValueError, match="layout='chw'"):
        to_torch(np.zeros((3, 32, 64)))
    with pytest.raises(ValueError, match=r"\(H, W\)"):
        to_torch(torch.zeros(5))
    with pytest.raises(ValueError, match="at least 2"):
        to_torch(torch.zeros(1, 8))
    with pytest.raises(ValueError, match="use 'chw', 'hwc' or None"):
        to_torch(torch.zeros(4, 8), "cwh")  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="list"):
        to_torch([[1, 2]])  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="complex"):
        to_torch(np.zeros((4, 8), np.complex64))
    array = np.zeros((4, 8, 3), np.float32)
    tensor, restore = to_torch(array)
    tensor[1, 2, 3] = 7
    assert array[2, 3, 1] == 7
    assert np.shares_memory(restore(tensor), array)
    flipped, _ = to_torch(array[::-1])
    assert flipped[1, 1, 3] == 7
    swapped, _ = to_torch(np.array([[1, 2], [3, 4]], dtype=">u2"))
    assert swapped.tolist() == [[[1, 2], [3, 4]]]
    chw, _ = to_torch(np.zeros((3, 32, 64)), "chw")
    hwc, _ = to_torch(torch.zeros(32, 64, 3), "hwc")
    assert chw.shape == hwc.shape == (3, 32, 64)


# ---- mesh ----------------------------------------------------------------------------------------


def edge_counts(faces: np.ndarray) -> np.ndarray:
    edges = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), -1)
    return np.unique(edges, axis=0, return_counts=True)[1]


def welded(vertices: np.ndarray, faces: np.ndarray) -> tuple[int, np.ndarray]:
    points, index = np.unique(np.round(vertices, 5), axis=0, return_inverse=True)
    return len(points), index.reshape(-1)[faces]


@pytest.mark.parametrize("camera", CAMERAS)
@pytest.mark.parametrize("size", [(64, 128), (65, 127)])
def test_mesh_of_a_room_is_closed_faces_the_camera_and_has_its_volume(
    camera: tuple[float, ...], size: tuple[int, int]
) -> None:
    distance, _ = erp_room(*size, camera)
    mesh = erp_mesh(distance.float())
    count, faces = welded(mesh.vertices, mesh.faces)
    sharing = edge_counts(faces)
    assert set(sharing) == {2}
    assert count - len(sharing) + len(faces) == 2  # Euler: a sphere
    a, b, c = (mesh.vertices[mesh.faces[:, k]].astype(np.float64) for k in range(3))
    assert (np.einsum("fk,fk->f", np.cross(b - a, c - a), a + b + c) < 0).all()
    volume = -np.einsum("fk,fk->f", np.cross(a, b), c).sum() / 6
    assert volume == pytest.approx(5 * 2.8 * 7, rel=0.02)
    poles = mesh.vertices[
        (np.abs(mesh.vertices[:, 0]) < 1e-7) & (np.abs(mesh.vertices[:, 2]) < 1e-7)
    ]
    expected = [ROOM_MIN[1] - camera[1], ROOM_MAX[1] - camera[1]]
    np.testing.assert_allclose(np.unique(np.round(poles[:, 1], 4)), np.round(expected, 4))


def test_mesh_texture_coordinates_are_those_of_the_pixels() -> None:
    mesh = erp_mesh(np.full((8, 16), 2.0, np.float32))
    lon = (mesh.uv[:, 0] - 0.5) * 2 * np.pi
    lat = (mesh.uv[:, 1] - 0.5) * np.pi
    directions = np.stack([np.cos(lat) * np.sin(lon), -np.sin(lat), np.cos(lat) * np.cos(lon)], -1)
    inner = np.abs(lat) < 1.5
    np.testing.assert_allclose(mesh.vertices[inner] / 2, directions[inner], atol=1e-6)
    span = np.ptp(mesh.uv[mesh.faces][..., 0], axis=1)
    assert span.max() <= 1 / 16 + 1e-6  # no triangle runs back through the whole texture


def test_mesh_is_cut_at_silhouettes_and_at_left_out_pixels() -> None:
    depth = np.full((16, 32), 2.0, np.float32)
    depth[6:10, 10:20] = 1.0
    mesh = erp_mesh(depth)
    inner = (mesh.uv[:, 1][mesh.faces] % 1 != 0).all(axis=1)  # without the flat polar caps
    radius = np.linalg.norm(mesh.vertices, axis=1)[mesh.faces][inner]
    assert np.ptp(radius, axis=1).max() < 1e-5
    assert (radius < 1.5).all(axis=1).sum() == 2 * 3 * 9
    keep = np.ones((16, 32), bool)
    keep[4:12, 8:22] = False
    assert np.linalg.norm(erp_mesh(depth, keep=keep).vertices, axis=1).min() > 1.9
    empty = erp_mesh(np.full((8, 16), np.inf, np.float32))
    assert empty.vertices.shape == (0, 3)
    assert empty.faces.shape == (0, 3)


def test_mesh_square_with_three_pixels_is_one_triangle() -> None:
    whole = len(erp_mesh(np.ones((8, 16), np.float32)).faces)
    depth = np.ones((8, 16), np.float32)
    depth[4, 5] = np.nan
    # Four squares lose one corner each: 8 triangles become 4.
    assert len(erp_mesh(depth).faces) == whole - 4


def test_mesh_errors() -> None:
    with pytest.raises(ValueError, match="one by one"):
        erp_mesh(torch.ones(2, 1, 8, 16))
    with pytest.raises(ValueError, match="keep has shape"):
        erp_mesh(torch.ones(1, 8, 16), keep=torch.ones(1, 8, 8, dtype=torch.bool))
    with pytest.raises(ValueError, match="at least 3"):
        erp_mesh(torch.ones(1, 4, 2))


def test_default_registration_is_the_pixel_centre() -> None:
    assert CENTER.view == "center"
