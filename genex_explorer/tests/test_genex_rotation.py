"""Turns, cubemaps and views: exactness, the closed circle, and where the original loses."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genex_explorer.legacy import (
    FACE_KEYS,
    check_panorama,
    cubemap_cross,
    faces_to_erp,
    legacy_cubemap,
    legacy_erp,
    legacy_rotate,
    legacy_view,
    perspective_view,
)
from genex_explorer.rotation import legacy_roll, roll_columns, turn

unhurried = settings(deadline=None)  # machines that train beside the tests stall


def smooth_erp(height: int, width: int) -> np.ndarray:
    """A function of direction with few waves, uint8."""
    lon = (np.arange(width) + 0.5) / width * 2 * np.pi - np.pi
    lat = np.pi / 2 - (np.arange(height) + 0.5) / height * np.pi
    x, z = np.cos(lat)[:, None] * np.sin(lon), np.cos(lat)[:, None] * np.cos(lon)
    y = np.broadcast_to(-np.sin(lat)[:, None], x.shape)
    waves = np.stack([np.sin(2 * x + y), np.cos(3 * z + 2 * x), np.sin(2 * y + 3 * z)], -1)
    return np.round(127.5 + 110 * waves).astype(np.uint8)


def decibels(a: np.ndarray, b: np.ndarray) -> float:
    error = np.mean((a.astype(float) - b) ** 2)
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---- turning ------------------------------------------------------------------------------------


@unhurried
@given(columns=st.integers(-2000, 2000), mode=st.sampled_from(["bilinear", "fourier"]))
def test_turn_by_whole_columns_is_a_roll_to_the_bit(columns: int, mode: str) -> None:
    erp = noise(2, 3, 4, 90).float()
    yaw = columns * 360 / 90
    turned = turn(erp, yaw, mode)  # pyright: ignore[reportArgumentType]
    assert torch.equal(turned, torch.roll(erp, -columns, -1))
    assert torch.equal(torch.roll(erp, -roll_columns(90, yaw), -1), turned)


def test_right_is_positive_and_content_moves_left() -> None:
    erp = torch.zeros(1, 4, 8)
    erp[..., 6] = 1  # 90 degrees to the right of the centre column 4
    assert turn(erp, 90)[0, 0].argmax() == 4
    hwc = erp.permute(1, 2, 0).numpy()
    assert turn(hwc, 90)[0, :, 0].argmax() == 4
    assert (turn(hwc, 90, "fourier") == turn(hwc, 90)).all()


def test_a_fraction_of_a_column_against_float64_references() -> None:
    erp = noise(3, 4, 16)
    yaw = 37.7
    shift = yaw / 360 * 16
    low = math.floor(shift)
    linear = torch.roll(erp, -low, -1).lerp(torch.roll(erp, -low - 1, -1), shift - low)
    torch.testing.assert_close(turn(erp, yaw), linear, rtol=0, atol=1e-12)
    x = torch.arange(16, dtype=torch.float64)
    wave = torch.cos(2 * math.pi * 5 * x / 16 + 0.3).expand(1, 2, 16)
    shifted = torch.cos(2 * math.pi * 5 * (x + shift) / 16 + 0.3).expand(1, 2, 16)
    torch.testing.assert_close(turn(wave, yaw, "fourier"), shifted, rtol=0, atol=1e-12)


def test_gradient_of_a_turn_is_the_turn_back() -> None:
    erp = noise(1, 2, 12).requires_grad_()
    weight = noise(1, 2, 12, seed=1)
    (turn(erp, 41.0) * weight).sum().backward()
    torch.testing.assert_close(erp.grad, turn(weight, -41.0), rtol=0, atol=1e-12)


@pytest.mark.parametrize("width", [128, 160])
def test_ten_turns_by_36_degrees_are_the_identity_where_the_original_loses(width: int) -> None:
    erp = smooth_erp(width // 2, width)
    ours = torch.from_numpy(erp).movedim(-1, 0).double()
    original, heading = erp, 0.0
    for _ in range(10):
        ours = turn(ours, 36.0, "fourier")
        original = legacy_rotate(original, 36.0)
        heading += 36.0
    # 160 columns: 16 per turn, exact. 128: the Nyquist bin is lost, the image has nothing there.
    np.testing.assert_allclose(ours.movedim(0, -1), erp, atol=0 if width == 160 else 1.0)
    assert decibels(ours.movedim(0, -1).numpy(), erp) > 55
    assert 30 < decibels(original, erp) < 45
    assert (turn(erp, heading) == erp).all()


def test_turn_names_what_is_wrong() -> None:
    erp = torch.zeros(1, 2, 8)
    with pytest.raises(ValueError, match="turn is nan degrees"):
        turn(erp, math.nan)
    with pytest.raises(ValueError, match="mode is 'cubic'; use 'bilinear' or 'fourier'"):
        turn(erp, 1.0, "cubic")  # pyright: ignore[reportArgumentType]


def test_legacy_roll_is_differentiable_and_shares_the_indices_of_all_images() -> None:
    x = noise(2, 3, 8, 64).requires_grad_()
    rolled = legacy_roll(x, 90.1)
    assert torch.equal(rolled, torch.roll(x, -16, -1))
    rolled.sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))  # pyright: ignore[reportArgumentType]


# ---- cubemaps and views -------------------------------------------------------------------------


def test_cross_holds_the_faces_in_their_cells() -> None:
    erp = smooth_erp(64, 128)
    cross, faces = cubemap_cross(erp)
    assert tuple(faces) == FACE_KEYS == ("right", "left", "top", "bottom", "front", "back")
    assert cross.shape == (96, 128, 3)
    cells = {"top": (0, 2), "back": (1, 0), "left": (1, 1), "front": (1, 2), "right": (1, 3)}
    empty = np.ones((3, 4), bool)
    for key, (row, column) in {**cells, "bottom": (2, 2)}.items():
        cell = cross[row * 32 : row * 32 + 32, column * 32 : column * 32 + 32]
        assert (cell == faces[key]).all()
        empty[row, column] = False
    assert (cross[np.kron(empty, np.ones((32, 32), bool))] == 0).all()


def test_modern_and_legacy_agree_on_smooth_images() -> None:
    erp = smooth_erp(128, 256)
    cross, faces = legacy_cubemap(erp)
    assert decibels(cubemap_cross(erp)[0], cross) > 35
    for key, face in cubemap_cross(erp, face_size=128)[1].items():
        assert decibels(face, faces[key]) > 35, key
    assert decibels(faces_to_erp(faces, (128, 256)), legacy_erp(faces, (128, 256))) > 35
    assert decibels(turn(erp, 33.0), legacy_rotate(erp, 33.0)) > 35
    for angles in [(90, 90, 0, 0, 0), (90, 60, -130, 25, 30), (100, 70, 80, -40, -15)]:
        ours, theirs = (f(erp, *angles, (90, 120)) for f in (perspective_view, legacy_view))
        assert decibels(ours, theirs) > 35, angles


def test_faces_assemble_to_the_panorama() -> None:
    erp = smooth_erp(128, 256)
    again = faces_to_erp(cubemap_cross(erp)[1], (128, 256))
    assert np.abs(again.astype(float) - erp).max() <= 2
    tensor = torch.from_numpy(erp).movedim(-1, 0)
    cross, faces = cubemap_cross(tensor)
    assert cross.shape == (3, 192, 256)
    assert torch.equal(faces_to_erp(faces, (128, 256)).movedim(0, -1), torch.from_numpy(again))
    with pytest.raises(ValueError, match="faces right are missing"):
        faces_to_erp({key: face for key, face in faces.items() if key != "right"}, (128, 256))


def test_nothing_happens_at_the_seam_where_the_original_has_a_line() -> None:
    erp = noise(32, 64, 3).numpy()
    behind = perspective_view(turn(erp, 180.0), 90, 90, 0, 0, 0, (24, 24))
    np.testing.assert_allclose(
        perspective_view(erp, 90, 90, 180, 0, 0, (24, 24)), behind, atol=1e-5
    )
    back = cubemap_cross(erp)[1]["back"]
    np.testing.assert_allclose(back, cubemap_cross(turn(erp, 180.0))[1]["front"], atol=1e-5)
    step = np.zeros((32, 64, 3), np.uint8)
    step[:, 0], step[:, 63] = 100, 200
    # Half-way between the last and the first column lies 180 degrees, for the original half a
    # pixel to the left; it shows the last column alone.
    angles = (90, 90, 180 - 0.5 * 360 / 64, 0, 0, (25, 25))
    assert legacy_view(step, *angles)[12, 12, 0] == 200
    assert abs(int(perspective_view(step, 90, 90, 180, 0, 0, (25, 25))[12, 12, 0]) - 150) <= 1


def test_squeezed_frames_show_the_same_directions() -> None:
    tall, wide = smooth_erp(144, 256), smooth_erp(128, 256)
    assert decibels(cubemap_cross(tall)[0], cubemap_cross(wide)[0]) > 45
    assert decibels(legacy_cubemap(tall)[0], legacy_cubemap(wide)[0]) > 35
    angles = (90, 60, 120, 30, 10, (60, 90))
    assert decibels(perspective_view(tall, *angles), perspective_view(wide, *angles)) > 45


def test_panoramas_that_do_not_cover_the_sphere_are_refused() -> None:
    check_panorama((1024, 512))
    check_panorama((1024, 576), squeezed=(1024, 576))
    with pytest.raises(
        ValueError, match=r"1536x640; width must be 2 x height; add the missing 64 rows above "
        r"and 64 below, or resize it to 1536x768 if",
    ):  # fmt: skip
        check_panorama((1536, 640))
    with pytest.raises(ValueError, match=r"1000x700; .* or the model's 1024x576; crop .*1000x500"):
        check_panorama((1000, 700), squeezed=(1024, 576))
    with pytest.raises(ValueError, match="258x129; the width must be a multiple of 4"):
        legacy_cubemap(np.zeros((129, 258, 3), np.uint8))
