"""Padding of panoramas and cubemaps, and cubemap layouts of other tools."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shared_pano_utils.geometry import FACE_AXES, rays, rotation_matrix
from shared_pano_utils.layouts import PRESETS, convert_cube_layout
from shared_pano_utils.padding import pad_cubemap, pad_erp
from shared_pano_utils.transforms import erp_to_cubemap, rotate_erp

# ---- panoramas ----------------------------------------------------------------------------------


def test_pad_erp_golden_values() -> None:
    erp = torch.tensor([[0, 1, 2, 3], [4, 5, 6, 7]])
    padded = pad_erp(erp, 1)
    assert padded.tolist() == [
        [1, 2, 3, 0, 1, 2],
        [3, 0, 1, 2, 3, 0],
        [7, 4, 5, 6, 7, 4],
        [5, 6, 7, 4, 5, 6],
    ]
    assert pad_erp(erp, (0, 1, 2, 0)).tolist()[:2] == [[6, 7, 4, 5, 6], [2, 3, 0, 1, 2]]
    assert pad_erp(erp, (0, 0, 1, 1), poles="replicate").tolist()[0] == [0, 1, 2, 3]
    assert pad_erp(erp, (1, 0, 0, 2), poles="zeros").tolist()[2:] == [[0] * 5] * 2


@settings(max_examples=30, deadline=None)
@given(
    st.integers(2, 9),
    st.integers(1, 6),
    st.tuples(*[st.integers(0, 2)] * 4),
    st.sampled_from(["shift", "replicate", "zeros"]),
    st.sampled_from([np.uint8, np.uint16, np.int64, np.bool_, np.float32]),
)
def test_pad_erp_then_crop_is_identity(h, half_w, pad, poles, dtype) -> None:
    erp = (np.random.default_rng(0).random((h, 2 * half_w, 3)) * 200).astype(dtype)
    left, right, top, bottom = pad
    padded = pad_erp(erp, pad, poles=poles)
    assert padded.dtype == dtype
    assert np.array_equal(
        padded[top : padded.shape[0] - bottom, left : padded.shape[1] - right], erp
    )


def test_pad_erp_continues_the_sphere() -> None:
    """The rays of a world-frame vector field stay continuous across both poles."""
    erp = rays("erp", (64, 128), dtype=torch.float64).movedim(-1, 0)
    padded = pad_erp(erp, 2)
    steps = (padded[:, 1:] - padded[:, :-1]).norm(dim=0)
    assert steps.max() < 1.001 * math.pi / 64


def test_padded_convolution_commutes_with_yaw() -> None:
    erp = torch.rand(1, 2, 8, 16, dtype=torch.float64)
    kernel = torch.rand(3, 2, 3, 3, dtype=torch.float64)

    def convolved(x: Tensor) -> Tensor:
        return torch.nn.functional.conv2d(pad_erp(x, 1), kernel)

    assert (convolved(erp.roll(5, -1)) - convolved(erp).roll(5, -1)).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("match", "call"),
    [
        ("even width", lambda: pad_erp(torch.rand(1, 4, 7), 1)),
        ("pad is 5", lambda: pad_erp(torch.rand(1, 4, 8), 5)),
        ("pad is -1", lambda: pad_erp(torch.rand(1, 4, 8), -1)),
        ("poles is 'mirror'", lambda: pad_erp(torch.rand(1, 4, 8), 1, poles="mirror")),
        ("pad is 0", lambda: pad_cubemap(torch.rand(6, 1, 4, 4), 0)),
        ("pad is 5", lambda: pad_cubemap(torch.rand(6, 1, 4, 4), 5)),
        ("mode is 'wrap'", lambda: pad_cubemap(torch.rand(6, 1, 4, 4), 1, mode="wrap")),
        ("6 square faces", lambda: pad_cubemap(torch.rand(5, 1, 4, 4), 1)),
    ],
)
def test_padding_errors(match: str, call) -> None:
    with pytest.raises(ValueError, match=match):
        call()


def test_odd_width_is_allowed_without_pole_rows() -> None:
    assert pad_erp(torch.rand(1, 4, 7), (2, 2, 0, 0)).shape == (1, 4, 11)
    assert pad_erp(torch.rand(1, 4, 7), 1, poles="zeros").shape == (1, 6, 9)


# ---- cubemaps -----------------------------------------------------------------------------------


def extended_rays(side: int, pad: int, fov: float = 90.0) -> Tensor:
    """True unit rays (6, P, P, 3) of the pixels of padded faces."""
    tangent = math.tan(math.radians(fov) / 2) * (side + 2 * pad) / side
    wide = math.degrees(2 * math.atan(tangent))
    return rays("cube", side + 2 * pad, fov=wide, dtype=torch.float64)


@pytest.mark.parametrize(("side", "pad", "fov"), [(16, 1, 90), (33, 3, 90), (24, 2, 95)])
def test_resampled_padding_shows_the_true_rays(side: int, pad: int, fov: float) -> None:
    cube = rays("cube", side, fov=fov, dtype=torch.float64).movedim(-1, -3)
    padded = pad_cubemap(cube, pad, fov=fov).movedim(-3, -1)
    error = (padded - extended_rays(side, pad, fov)).norm(dim=-1)
    assert error[:, pad:-pad, pad:-pad].max() < 1e-12
    assert error.max() <= 1 / side**2  # behind edges and corners alike


# Neighbour of each side of each face, and the side of the neighbour that it touches, with
# whether the two edges run in opposite directions.
STRIPS = {
    "F": {"left": ("L", "right", False), "right": ("R", "left", False),
          "top": ("U", "bottom", False), "bottom": ("D", "top", False)},
    "R": {"left": ("F", "right", False), "right": ("B", "left", False),
          "top": ("U", "right", True), "bottom": ("D", "right", False)},
    "B": {"left": ("R", "right", False), "right": ("L", "left", False),
          "top": ("U", "top", True), "bottom": ("D", "bottom", True)},
    "L": {"left": ("B", "right", False), "right": ("F", "left", False),
          "top": ("U", "left", False), "bottom": ("D", "left", True)},
    "U": {"left": ("L", "top", False), "right": ("R", "top", True),
          "top": ("B", "top", True), "bottom": ("F", "top", False)},
    "D": {"left": ("L", "bottom", True), "right": ("R", "bottom", False),
          "top": ("F", "bottom", False), "bottom": ("B", "bottom", True)},
}  # fmt: skip


def strip(face: Tensor, side: str, depth: int) -> Tensor:
    """Row or column of a face (S, S), `depth` pixels inside of (or, negative, beyond) a side."""
    return {
        "left": face[:, depth], "right": face[:, -1 - depth],
        "top": face[depth], "bottom": face[-1 - depth],
    }[side]  # fmt: skip


@pytest.mark.parametrize("name", STRIPS)
def test_copied_strips_of_every_edge(name: str) -> None:
    side, pad = 5, 2
    cube = torch.arange(6.0 * side * side).reshape(6, 1, side, side)
    padded = pad_cubemap(cube, pad, mode="copy")
    face = padded["FRBLUD".index(name), 0]
    for where, (neighbour, touched, is_reversed) in STRIPS[name].items():
        other = cube["FRBLUD".index(neighbour), 0]
        for k in range(pad):
            expected = strip(other, touched, k)
            found = strip(face, where, pad - 1 - k)[pad:-pad]
            assert torch.equal(found, expected.flip(0) if is_reversed else expected), where
    corner = (face[pad - 1, pad] + face[pad, pad - 1]) / 2
    assert face[pad - 1, pad - 1] == corner


@pytest.mark.parametrize("mode", ["resample", "copy"])
def test_padded_convolution_commutes_with_a_quarter_turn(mode: str) -> None:
    """Turning by 90 degrees permutes F R B L and rotates U and D."""
    cube = torch.rand(6, 2, 8, 8, dtype=torch.float64)
    kernel = torch.rand(3, 2, 3, 3, dtype=torch.float64)
    # Averaged over the four orientations, so that rotated faces meet the same kernel.
    kernel = sum(torch.rot90(kernel, k, (-2, -1)) for k in range(4))

    def convolved(x: Tensor) -> Tensor:
        return torch.nn.functional.conv2d(pad_cubemap(x, 1, mode=mode), kernel)

    def turned(x: Tensor) -> Tensor:
        front, right, back, left, up, down = x
        up, down = torch.rot90(up, -1, (-2, -1)), torch.rot90(down, 1, (-2, -1))
        return torch.stack([right, back, left, front, up, down])

    erp = rays("erp", (64, 128), dtype=torch.float64).movedim(-1, 0)
    expected = erp_to_cubemap(rotate_erp(erp, 90), 8)
    assert (turned(erp_to_cubemap(erp, 8)) - expected).abs().max() < 1e-3
    assert (convolved(turned(cube)) - turned(convolved(cube))).abs().max() < 1e-12


@pytest.mark.parametrize("mode", ["resample", "copy"])
def test_pad_cubemap_gradient_and_kinds(mode: str) -> None:
    x = torch.rand(2, 6, 1, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda c: pad_cubemap(c, 2, mode=mode), (x,))
    as_numpy = x.detach().movedim(-3, -1).numpy()
    expected = pad_cubemap(x.detach(), 1, mode=mode).movedim(-3, -1)
    assert np.allclose(pad_cubemap(as_numpy, 1, mode=mode), expected)
    assert pad_cubemap(x.detach().bfloat16(), 1, mode=mode).dtype == torch.bfloat16
    constant = np.full((6, 4, 4, 3), 77, np.uint8)
    assert (pad_cubemap(constant, 2, mode=mode) == 77).all()
    with pytest.raises(TypeError, match="int64"):
        pad_cubemap(torch.zeros(6, 1, 4, 4, dtype=torch.int64), 1, mode=mode)


def test_pad_erp_gradient() -> None:
    x = torch.rand(2, 3, 4, dtype=torch.float64, requires_grad=True)
    for poles in ("shift", "replicate", "zeros"):
        assert torch.autograd.gradcheck(lambda e, p=poles: pad_erp(e, (1, 2, 1, 2), poles=p), (x,))


# ---- layouts ------------------------------------------------------------------------------------

RAY_CUBE = rays("cube", 4, dtype=torch.float64).movedim(-1, -3)  # (6, 3, 4, 4)
LETTERS = dict(zip("FRBLUD", FACE_AXES[:, 2], strict=True))


def orientation(face: Tensor) -> tuple[str, str, str]:
    """Canonical letters of the centre, of +column and of +row of a ray-valued face (3, S, S)."""
    steps = (face.sum((-2, -1)), face[:, 0, -1] - face[:, 0, 0], face[:, -1, 0] - face[:, 0, 0])

    def letter(vector: Tensor) -> str:
        return max(LETTERS, key=lambda name: float(LETTERS[name] @ vector))

    return letter(steps[0]), letter(steps[1]), letter(steps[2])


@pytest.mark.parametrize("container", ["stack", "list", "dict", "names", "horizon"])
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("is_numpy", [False, True])
def test_presets_round_trip(preset: str, container: str, is_numpy: bool) -> None:
    cube = torch.arange(6.0 * 2 * 3 * 3).reshape(6, 2, 3, 3)
    given = cube.movedim(-3, -1).contiguous().numpy() if is_numpy else cube
    there = convert_cube_layout(given, "stack", f"{preset}:{container}")
    back = convert_cube_layout(there, f"{preset}:{container}", "canonical")
    assert isinstance(back, np.ndarray) == is_numpy
    assert (back == given).all()


# (centre, +column, +row) of slots, in canonical letters of the panorama itself.
GOLDEN = {
    "canonical": {0: ("F", "R", "D"), 4: ("U", "R", "F"), 5: ("D", "R", "B")},
    "py360convert_old": {1: ("R", "F", "D"), 2: ("B", "R", "D"), 4: ("U", "R", "B"), 3: ("L", "F", "D")},
    "dit360": {0: ("R", "F", "D"), 1: ("L", "B", "D"), 2: ("D", "R", "F"), 3: ("U", "R", "B"),
               4: ("F", "R", "D"), 5: ("B", "L", "D")},
    "genex": {0: ("R", "B", "D"), 2: ("U", "R", "F"), 5: ("B", "L", "D")},
    "genex_blender": {1: ("L", "F", "D"), 4: ("D", "R", "B"), 5: ("U", "R", "F")},
    "tartanair": {2: ("D", "R", "B"), 3: ("L", "F", "D"), 5: ("B", "L", "D")},
    "opengl": {0: ("R", "B", "D"), 2: ("U", "R", "F"), 3: ("D", "R", "B"), 4: ("F", "R", "D")},
    "panoenv": {0: ("L", "F", "D"), 1: ("R", "B", "D"), 4: ("F", "R", "D")},
    "matterport": {0: ("U", "R", "F"), 1: ("F", "R", "D"), 2: ("R", "B", "D"), 5: ("D", "R", "B")},
    # skybox2, then skybox3, is the centre of the panorama.
    "matterport_panfusion": {0: ("U", "F", "L"), 2: ("F", "R", "D"), 1: ("L", "F", "D"),
                             5: ("D", "F", "R")},
    "matterport_se360": {0: ("U", "L", "B"), 3: ("F", "R", "D"), 5: ("D", "L", "F")},
}  # fmt: skip


@pytest.mark.parametrize("preset", GOLDEN)
def test_presets_show_the_documented_faces(preset: str) -> None:
    slots = convert_cube_layout(RAY_CUBE, "stack", f"{preset}:list")
    for slot, expected in GOLDEN[preset].items():
        assert orientation(slots[slot]) == expected, (preset, slot)


@pytest.mark.parametrize(
    ("preset", "yaw"), [("matterport_panfusion", 90), ("matterport_se360", 180)]
)
def test_matterport_stitchers_turn_the_same_six_files(preset: str, yaw: float) -> None:
    """The same skybox files, read with either preset, give panoramas that differ by a yaw."""
    files = [torch.rand(1, 6, 6) for _ in range(6)]
    world = convert_cube_layout(files, "matterport:list")
    turned = convert_cube_layout(files, f"{preset}:list")
    directions = rays("cube", 6)
    R = rotation_matrix(yaw).float()
    # Pixel-exact: every ray of the turned cube is a pixel of the other one.
    for face in range(6):
        for i, j in ((0, 1), (2, 4)):
            at = R @ directions[face, i, j]
            where = (directions - at).norm(dim=-1).argmin()
            assert turned[face, 0, i, j] == world[:, 0].flatten()[where]


def test_dice_and_horizon_cells() -> None:
    cube = torch.arange(1.0, 7).reshape(6, 1, 1, 1).expand(6, 1, 2, 2).contiguous()
    dice = convert_cube_layout(cube, "stack", "dice")
    assert dice[0, ::2, ::2].tolist() == [[0, 5, 0, 0], [4, 1, 2, 3], [0, 6, 0, 0]]
    genex = convert_cube_layout(cube, "stack", "dice_genex")
    assert genex[0, ::2, ::2].tolist() == [[0, 0, 5, 0], [3, 4, 1, 2], [0, 0, 6, 0]]
    horizon = convert_cube_layout(cube, "stack", "horizon")
    assert horizon[0, 0, ::2].tolist() == [1, 2, 3, 4, 5, 6]
    for layout in ("dice", "dice_genex"):
        image = convert_cube_layout(cube, "stack", layout)
        assert torch.equal(convert_cube_layout(image, layout), cube)
    names = convert_cube_layout(cube, "stack", "names")
    assert list(names) == ["Front", "Right", "Back", "Left", "Up", "Down"]
    batch = torch.rand(2, 3, 6, 1, 4, 4)
    assert convert_cube_layout(batch, "stack", "dice").shape == (2, 3, 1, 12, 16)
    grey = np.zeros((6, 4, 4), np.uint8)
    assert convert_cube_layout(grey, "stack", "horizon").shape == (4, 24)


def test_free_layout_strings() -> None:
    cube = torch.rand(6, 1, 3, 3)
    free = convert_cube_layout(cube, "F R B L U D", "F R.lr B.lr L U.ud D")
    assert torch.equal(free, convert_cube_layout(cube, "stack", "py360convert_old"))
    assert torch.equal(free[1], cube[1].flip(-1))
    turned = convert_cube_layout(cube, "stack", "F R B L U.tr.ud D")
    assert torch.equal(turned[4], cube[4].mT.flip(-2))


@pytest.mark.parametrize(
    ("kind", "match", "call"),
    [
        (ValueError, "faces of layout 'F R B'", lambda c: convert_cube_layout(c, "F R B")),
        (ValueError, "faces of layout", lambda c: convert_cube_layout(c, "F F B L U D")),
        (ValueError, "faces of layout", lambda c: convert_cube_layout(c, "F R.flip B L U D")),
        (ValueError, "faces of layout 'unity'", lambda c: convert_cube_layout(c, "unity")),
        (ValueError, "container", lambda c: convert_cube_layout(c, "stack", "dit360:tuple")),
        (ValueError, "dice", lambda c: convert_cube_layout(c, "stack", "dit360:dice")),
        (ValueError, "mapping", lambda c: convert_cube_layout(c, "dict")),
        (ValueError, "mapping", lambda c: convert_cube_layout({"F": c}, "dict")),
        (ValueError, "six faces", lambda c: convert_cube_layout([c], "list")),
        (TypeError, "one array", lambda c: convert_cube_layout(list(c), "stack")),
        (ValueError, "3 x 4", lambda c: convert_cube_layout(c[0], "dice")),
        (ValueError, "6 square faces", lambda c: convert_cube_layout(c[:5], "stack")),
        (ValueError, "equal square", lambda c: convert_cube_layout([*c[:5], c[0, :, :2]], "list")),
    ],
)
def test_layout_errors(kind: type, match: str, call) -> None:
    with pytest.raises(kind, match=match):
        call(torch.rand(6, 1, 4, 4))
