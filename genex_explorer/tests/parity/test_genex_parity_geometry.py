"""Geometry numbers of the original that hold without weights.

Row numbers are those of the check list in the design document. The `legacy_` functions are held
against slow references that compute one pixel after the other.
"""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from genex_explorer.legacy import (
    cubemap_cross,
    legacy_cubemap,
    legacy_erp,
    legacy_rotate,
    legacy_view,
    perspective_view,
)
from genex_explorer.paths import Pose, read_path, split_moves, to_original_path, trace
from genex_explorer.rotation import legacy_roll, roll_columns, truncated_indices, turn


def gradient_erp(height: int, width: int) -> np.ndarray:
    """Red grows to the right, green downwards, blue along the diagonal; uint8."""
    row, column = np.mgrid[:height, :width]
    image = np.stack([255 * column / width, 255 * row / height, 60 + (row + column) / 3], -1)
    return image.astype(np.uint8)


def directions_erp(height: int, width: int, half: float) -> np.ndarray:
    """Unit vectors (right, down, forward) of pixels at (u + half, v + half), as (H, W, 3)."""
    lon = (np.arange(width) + half) / width * 2 * np.pi - np.pi
    lat = (np.pi / 2 - (np.arange(height) + half) / height * np.pi)[:, None]
    down = np.broadcast_to(-np.sin(lat), (height, width))
    return np.stack([np.cos(lat) * np.sin(lon), down, np.cos(lat) * np.cos(lon)], -1)


def lonlat(vector: np.ndarray) -> tuple[float, float]:
    x, y, z = vector / np.linalg.norm(vector)
    return math.degrees(math.atan2(x, z)), math.degrees(math.asin(-y))


# ---- rows 15 and 16: rolls ----------------------------------------------------------------------


@pytest.mark.parametrize(("yaw_deg", "columns"), [(90.1, 256), (123.456, 351)])
def test_row_15_legacy_roll_equals_torch_roll(yaw_deg: float, columns: int) -> None:
    x = torch.rand(2, 3, 8, 1024, generator=torch.Generator().manual_seed(0))
    assert torch.equal(legacy_roll(x, yaw_deg), torch.roll(x, -columns, -1))
    assert roll_columns(1024, yaw_deg) == columns


@pytest.mark.parametrize(("yaw_deg", "misplaced"), [(0.0, 81), (45.0, 284)])
def test_row_15_columns_that_differ_by_one(yaw_deg: float, misplaced: int) -> None:
    x = torch.arange(1024.0).expand(1, 8, 1024)
    exact = torch.roll(x, -roll_columns(1024, yaw_deg), -1)
    difference = (legacy_roll(x, yaw_deg) - exact + 512) % 1024 - 512
    assert (difference != 0).sum(-1).unique().tolist() == [misplaced]
    assert difference.unique().tolist() == [-1, 0]


def test_rows_that_the_legacy_roll_misplaces() -> None:
    rows = truncated_indices(576, 1024, 0.0, torch.float32)[0]
    assert (rows != torch.arange(576)).sum() == 73
    assert 576 - len(rows.unique()) == 57


@pytest.mark.parametrize("columns", [0, 1, 128, 511, 512, 1023])
def test_row_16_exact_roll(columns: int) -> None:
    x = torch.rand(1, 2, 1024, generator=torch.Generator().manual_seed(0))
    yaw_deg = columns * 360 / 1024
    assert torch.equal(turn(turn(x, yaw_deg), -yaw_deg), x)
    assert roll_columns(1024, 45.0) == 128


# ---- row 20: faces ------------------------------------------------------------------------------

# Face: longitude and latitude of the centre, of the middle of the left, right, top and bottom edge.
FACE_TABLE = {
    "front": ((0, 0), (-45, 0), (45, 0), (0, 45), (0, -45)),
    "right": ((90, 0), (45, 0), (135, 0), (90, 45), (90, -45)),
    "back": ((180, 0), (135, 0), (-135, 0), (180, 45), (180, -45)),
    "left": ((-90, 0), (-135, 0), (-45, 0), (-90, 45), (-90, -45)),
    "top": ((None, 90), (-90, 45), (90, 45), (180, 45), (0, 45)),
    "bottom": ((None, -90), (-90, -45), (90, -45), (0, -45), (180, -45)),
}


@pytest.mark.parametrize("version", ["modern", "legacy"])
@pytest.mark.parametrize("key", FACE_TABLE)
def test_row_20_face_table(version: str, key: str) -> None:
    if version == "modern":
        face = cubemap_cross(directions_erp(256, 512, 0.5))[1][key]
        half = slice(63, 65)
    else:
        coded = np.round(directions_erp(256, 512, 0.0) * 127 + 127).astype(np.uint8)
        face = legacy_cubemap(coded, scale_factor=1)[1][key] - 127.0
        half = slice(64, 65)  # its pixels lie on the left and upper border of a pixel
    assert face.shape == (128, 128, 3)
    middle = face[half, half].mean((0, 1))
    edges = [face[half, 0], face[half, -1], face[0, half], face[-1, half]]
    for vector, (lon, lat) in zip(
        [middle, *(edge.mean(0) for edge in edges)], FACE_TABLE[key], strict=True
    ):
        shown_lon, shown_lat = lonlat(vector)
        assert abs(shown_lat - lat) < 1
        if lon is not None:
            assert abs((shown_lon - lon + 180) % 360 - 180) < 1


# ---- section 11.2, item 8: the image maths of the original -----------------------------------------


def look_up(image: np.ndarray, u: float, v: float) -> np.ndarray:
    """Bilinear with clamped neighbours."""
    height, width = image.shape[:2]
    column, row = math.floor(u), math.floor(v)
    total = np.zeros(3)
    for i, wi in ((row, 1 - (v - row)), (row + 1, v - row)):
        for j, wj in ((column, 1 - (u - column)), (column + 1, u - column)):
            total += wi * wj * image[min(max(i, 0), height - 1), min(max(j, 0), width - 1)]
    return total


def lanczos(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))


def assert_within_one(a: np.ndarray, b: np.ndarray) -> None:
    assert np.abs(a.astype(int) - b.astype(int)).max() <= 1


@pytest.mark.parametrize("yaw_deg", [33.3, -71.9, 400.2])
def test_legacy_rotation_moves_pixels_of_the_enlarged_image(yaw_deg: float) -> None:
    erp = np.random.default_rng(0).integers(0, 256, (64, 128, 3), np.uint8)
    large = lanczos(erp, (640, 320))
    pi = math.pi
    # Rows go through an angle and back, in double precision.
    rows = [int((i / 320 * pi - pi / 2 + pi / 2) / pi * 320) for i in range(320)]
    assert rows != list(range(320))
    rolled = np.roll(large[rows], -math.floor(yaw_deg / 360 * 640), axis=1)
    assert (legacy_rotate(erp, yaw_deg) == lanczos(rolled, (128, 64))).all()


def test_legacy_cubemap_pixel_by_pixel() -> None:
    erp = gradient_erp(32, 64)
    large = lanczos(erp, (128, 64))
    cross, faces = legacy_cubemap(erp)
    reference = np.zeros((96, 128, 3), np.uint8)
    # The cross, its middle row left to right, then above and below the front.
    for j in range(96):
        for i in range(128):
            a, b = 2 * i / 32, 2 * j / 32
            if 32 <= j < 64:
                x, y = [(-1, 1 - a), (a - 3, -1), (1, a - 5), (7 - a, 1)][i // 32]
                z = 3 - b
            elif i // 32 == 2:
                x, y, z = (b - 1, a - 5, 1) if j < 32 else (5 - b, a - 5, -1)
            else:
                continue
            theta, phi = math.atan2(y, x), math.atan2(z, math.hypot(x, y))
            u, v = 64 * (theta + math.pi) / math.pi, 64 * (math.pi / 2 - phi) / math.pi
            reference[j, i] = look_up(large, u, v)
    assert_within_one(faces["back"], reference[32:64, :32])
    assert_within_one(faces["left"], reference[32:64, 32:64])
    assert_within_one(faces["front"], reference[32:64, 64:96])
    assert_within_one(faces["right"], reference[32:64, 96:])
    assert_within_one(faces["top"], reference[:32, 64:96])
    assert_within_one(faces["bottom"], reference[64:, 64:96])
    assert_within_one(cross, lanczos(reference, (64, 48)))


def test_legacy_erp_looks_up_the_pixel_it_points_at() -> None:
    erp = gradient_erp(64, 128)
    faces = legacy_cubemap(erp)[1]
    again = legacy_erp(faces, (64, 128), scale_factor=1)
    # (forward axis, its sign), right and down in (right, down, forward) of the viewer.
    axes = {
        "right": ((1, 0, 0), (0, 0, -1), (0, 1, 0)), "left": ((-1, 0, 0), (0, 0, 1), (0, 1, 0)),
        "top": ((0, -1, 0), (1, 0, 0), (0, 0, 1)), "bottom": ((0, 1, 0), (1, 0, 0), (0, 0, -1)),
        "front": ((0, 0, 1), (1, 0, 0), (0, 1, 0)), "back": ((0, 0, -1), (-1, 0, 0), (0, 1, 0)),
    }  # fmt: skip
    rays = directions_erp(64, 128, 0.0)
    compared = 0
    for i in range(64):
        for j in range(128):
            key = max(axes, key=lambda name: rays[i, j] @ axes[name][0])
            forward, right, down = (rays[i, j] @ np.array(axis) for axis in axes[key])
            column, row = (right / forward + 1) * 32, (down / forward + 1) * 32
            if min(abs(column - round(column)), abs(row - round(row))) < 1e-9:
                continue  # rounding decides between two neighbours
            assert (again[i, j] == faces[key][min(int(row), 63), min(int(column), 63)]).all()
            compared += 1
    assert compared > 7000
    # The round trip was measured to lose about one grey level.
    assert np.abs(legacy_erp(faces, (64, 128))[:, 4:-4].astype(float) - erp[:, 4:-4]).mean() < 2


@pytest.mark.parametrize("angles", [(0, 0, 0), (30, 0, 0), (-100, 40, 0), (75, -20, 30)])
def test_legacy_view_pixel_by_pixel(angles: tuple[float, float, float]) -> None:
    erp = gradient_erp(128, 256)
    yaw, pitch, roll = (math.radians(angle) for angle in angles)
    view = legacy_view(erp, 90, 60, *angles, (20, 30))
    reference = np.zeros((20, 30, 3))
    for i in range(20):
        for j in range(30):
            x, y = j / 29 * 2 - 1, (1 - i / 19 * 2) * math.tan(math.radians(30))
            z = 1 / math.sqrt(x * x + y * y + 1)
            x, y = x * z, y * z
            x, y = x * math.cos(roll) - y * math.sin(roll), x * math.sin(roll) + y * math.cos(roll)
            y, z = (
                y * math.cos(pitch) - z * math.sin(pitch),
                y * math.sin(pitch) + z * math.cos(pitch),
            )
            x, z = x * math.cos(yaw) + z * math.sin(yaw), z * math.cos(yaw) - x * math.sin(yaw)
            u = (math.atan2(x, z) + math.pi) / (2 * math.pi) * 256
            v = (math.pi / 2 - math.asin(y)) / math.pi * 128
            reference[i, j] = look_up(erp, min(max(u, 0), 255), min(max(v, 0), 127))
    assert np.abs(view - reference).max() <= 1


def test_signs_of_a_view() -> None:
    erp = directions_erp(256, 512, 0.5)
    centre = perspective_view(erp, 90, 90, 40, 30, 0, (65, 65))[32, 32]
    assert lonlat(centre) == pytest.approx((40, -30), abs=0.5)
    view = perspective_view(erp, 90, 90, 0, 0, 30, (65, 65))
    assert lonlat(view[32, 0])[1] == pytest.approx(-21, abs=1)
    assert lonlat(view[32, 64])[1] == pytest.approx(20, abs=1)
    coded = np.round(directions_erp(256, 512, 0.0) * 127 + 127).astype(np.uint8)
    view = legacy_view(coded, 90, 90, 0, 0, 30, (65, 65)) - 127.0
    assert lonlat(view[32, 0])[1] == pytest.approx(-21, abs=1)
    assert lonlat(legacy_view(coded, 90, 90, 0, 30, 0, (65, 65))[32, 32] - 127.0)[1] < -29


# ---- paths --------------------------------------------------------------------------------------


def test_path_written_by_the_original() -> None:
    turns, lengths = [62.44414980499492, 261.78416914120317, 218.2137484705168], [5, 7, 8]
    steps = [{"turn_angle": t, "move_distance": n} for t, n in zip(turns, lengths, strict=True)]
    steps.append({"turn_angle": 177.5579325832851, "move_distance": 0})
    written = to_original_path(read_path(steps))
    angles = [62.44414980499492, 324.2283189461981, 182.4420674167149, 0.0]
    positions = [(2.31, 4.43), (7.99, 0.34), (0.0, 0.0), (0.0, 0.0)]
    for step, angle, position in zip(written, angles, positions, strict=True):
        assert abs((step["new_angle"] - angle + 180) % 360 - 180) < 1e-9
        assert step["new_position"] == pytest.approx(position, abs=0.006)
    assert [step["turn_angle"] for step in written] == [step["turn_angle"] for step in steps]
    # As panoramas turn to the right, the loop is walked as its mirror image, and closes as well.
    end = trace(read_path(steps))[1]
    assert end.x_m == pytest.approx(4.43 * 0.4, abs=0.003)
    assert Pose().heading_deg == 0.0


def test_row_21_of_the_defects_a_walk_of_25_frames() -> None:
    moves = split_moves(read_path([{"turn_angle": 0.0, "move_distance": 25}]), 25)
    assert [move.frames for move in moves] == [24, 1]
