"""Cubemaps and views of a panorama, by `shared_pano_utils` and as the original's class made them.

The `legacy_` functions reproduce the original's image maths in NumPy, for comparisons. They take
pixel (u, v) for longitude 2 pi u / W - pi and latitude pi / 2 - pi v / H, without half a pixel, and
never sample across the border at +-180 degrees. `Explorer(legacy=True)` calls them.
"""

from collections.abc import Mapping
from typing import Literal, TypeVar, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from genex_explorer.rotation import truncated_indices
from shared_pano_utils import (
    convert_cube_layout,
    cubemap_to_erp,
    erp_to_cubemap,
    erp_to_perspective,
)

Erp = TypeVar("Erp", Tensor, np.ndarray)

FACE_KEYS = ("right", "left", "top", "bottom", "front", "back")
"""Keys of a dictionary of faces, in the original's order."""

# Row and column in the 3 x 4 cross, and the direction (forward, right, up) at (a, b), which run
# from 0 to 8 and 0 to 6 over the whole cross.
_CROSS = {
    "right": (1, 3, lambda a, b: (7.0 - a, 1.0, 3.0 - b)),
    "left": (1, 1, lambda a, b: (a - 3.0, -1.0, 3.0 - b)),
    "top": (0, 2, lambda a, b: (b - 1.0, a - 5.0, 1.0)),
    "bottom": (2, 2, lambda a, b: (5.0 - b, a - 5.0, -1.0)),
    "front": (1, 2, lambda a, b: (1.0, a - 5.0, 3.0 - b)),
    "back": (1, 0, lambda a, b: (-1.0, 1.0 - a, 3.0 - b)),
}


# ---- ours ---------------------------------------------------------------------------------------


def check_panorama(size: tuple[int, int], squeezed: tuple[int, int] | None = None) -> None:
    """Refuse an image that does not cover the sphere.

    Args:
        size: (width, height) of the image in pixels.
        squeezed: the one other (width, height) allowed, that of the model's own frames.

    Raises:
        ValueError: width is not 2 x height, and the size is not `squeezed`.
    """
    width, height = size
    if width == 2 * height or size == squeezed:
        return
    if width > 2 * height:
        rows = width // 2 - height
        remedy = f"add the missing {rows // 2} rows above and {rows - rows // 2} below"
    else:
        remedy = "crop what is not the panorama"
    model = f" or the model's {squeezed[0]}x{squeezed[1]}" if squeezed else ""
    raise ValueError(
        f"panorama is {width}x{height}; width must be 2 x height{model}; {remedy}, or resize it to "
        f"{width // 2 * 2}x{width // 2} if it shows 360 x 180 degrees"
    )


def cubemap_cross(
    erp: Erp, face_size: int | None = None, mode: Literal["bilinear", "nearest"] = "bilinear"
) -> tuple[Erp, dict[str, Erp]]:
    """Cut a panorama into cube faces.

    Args:
        erp: tensor (*, C, H, W) or array (*, H, W, C) of any aspect, 360 x 180 degrees.
        face_size: side S in pixels; None is W // 4. The original's faces were W // 2, its cross
            W // 4.
        mode: "bilinear" or "nearest".

    Returns:
        The cross (*, C, 3S, 4S), rows ``. . top .``, ``back left front right``, ``. . bottom .``,
        empty cells 0, and the faces (*, C, S, S) with the keys `FACE_KEYS`; arrays channel last.
    """
    cube = erp_to_cubemap(erp, face_size, mode=mode)
    faces = convert_cube_layout(cube, "canonical", "genex:list")
    cross = cast(Erp, convert_cube_layout(cube, "canonical", "dice_genex"))
    return cross, dict(zip(FACE_KEYS, cast(list[Erp], faces), strict=True))


def faces_to_erp(faces: Mapping[str, Erp], size: tuple[int, int]) -> Erp:
    """Assemble a panorama of `size` (height, width) from faces with the keys `FACE_KEYS`.

    Args:
        faces: tensors (*, C, S, S) or arrays (*, S, S, C).
        size: (height, width) in pixels.

    Returns:
        (*, C, H, W), arrays (*, H, W, C).

    Raises:
        ValueError: a face is missing.
    """
    missing = [key for key in FACE_KEYS if key not in faces]
    if missing:
        raise ValueError(f"faces {', '.join(missing)} are missing; give {', '.join(FACE_KEYS)}")
    cube = convert_cube_layout([faces[key] for key in FACE_KEYS], "genex:list", "stack")
    return cast(Erp, cubemap_to_erp(cast(Erp, cube), size))


def perspective_view(
    erp: Erp,
    fov_h: float,
    fov_v: float,
    yaw: float,
    pitch_down: float,
    roll: float,
    size: tuple[int, int],
) -> Erp:
    """Look into a panorama with a pinhole camera; angles as the original counted them.

    Args:
        erp: tensor (*, C, H, W) or array (*, H, W, C) of any aspect, 360 x 180 degrees.
        fov_h: degrees from the left to the right border.
        fov_v: degrees from the upper to the lower border.
        yaw: degrees to the right.
        pitch_down: degrees down.
        roll: degrees counter-clockwise: the left border of the camera sinks.
        size: (height, width) in pixels.

    Returns:
        (*, C, height, width), arrays (*, height, width, C).
    """
    view = erp_to_perspective(
        erp, size=size, fov=(fov_h, fov_v), yaw=yaw, pitch=-pitch_down, roll=-roll
    )
    return cast(Erp, view)


# ---- the original -------------------------------------------------------------------------------


def legacy_rotate(erp: np.ndarray, yaw_deg: float, scale_factor: int = 5) -> np.ndarray:
    """Turn to the right by enlarging, moving truncated pixels, and reducing.

    The angle is exact to ``1 / scale_factor`` pixel, both resizes clamp at the borders, so that
    every turn leaves an edge where the seam was; `rotation.turn` does neither.

    Args:
        erp: (H, W, 3) uint8.
        yaw_deg: degrees.
        scale_factor: of the Lanczos enlargement.

    Returns:
        (H, W, 3) uint8.
    """
    height, width = erp.shape[:2]
    large = _resized(erp, (width * scale_factor, height * scale_factor))
    rows, columns = truncated_indices(large.shape[0], large.shape[1], yaw_deg, torch.float64)
    return _resized(large[rows.numpy()][:, columns.numpy()], (width, height))


def legacy_cubemap(
    erp: np.ndarray, scale_factor: int = 2
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Cut into faces: pixels lie on the left and upper border of a face, neighbours are clamped.

    `cubemap_cross` samples pixel centres and wraps.

    Args:
        erp: (H, W, 3) uint8, W a multiple of 4.
        scale_factor: of the Lanczos enlargement before.

    Returns:
        The cross (3W/4, W, 3) uint8, reduced again, and the faces, which are not: their side is
        ``W // 4 * scale_factor``. Values are truncated to uint8.
    """
    height, width = erp.shape[:2]
    if width % 4:
        raise ValueError(f"panorama is {width}x{height}; the width must be a multiple of 4")
    large = _resized(erp, (width * scale_factor, height * scale_factor))
    rows, columns = large.shape[:2]
    side = columns // 4
    cross = np.zeros((3 * side, columns, 3), np.uint8)
    faces = {}
    for key, (row, column, direction) in _CROSS.items():
        a, b = np.meshgrid(
            2.0 * (np.arange(side) + column * side) / side,
            2.0 * (np.arange(side) + row * side) / side,
        )
        forward, right, up = np.broadcast_arrays(*direction(a, b))
        theta = np.arctan2(right, forward)
        phi = np.arctan2(up, np.hypot(forward, right))
        u = columns / 2 * (theta + np.pi) / np.pi
        v = rows * (np.pi / 2 - phi) / np.pi
        faces[key] = _bilinear(large, u, v).astype(np.uint8)
        cross[row * side : (row + 1) * side, column * side : (column + 1) * side] = faces[key]
    return _resized(cross, (width, width * 3 // 4)), faces


def legacy_erp(
    faces: Mapping[str, np.ndarray], size: tuple[int, int], scale_factor: int = 2
) -> np.ndarray:
    """Assemble a panorama: the nearest pixel of the face on a larger grid, then reduced.

    `faces_to_erp` interpolates, across the edges of the cube too.

    Args:
        faces: (S, S, 3) uint8 with the keys `FACE_KEYS`.
        size: (height, width) in pixels.
        scale_factor: of the grid.

    Returns:
        (height, width, 3) uint8.
    """
    height, width = size
    columns, rows = width * scale_factor, height * scale_factor
    theta, phi = np.meshgrid(
        np.arange(columns) / columns * 2 * np.pi - np.pi, np.arange(rows) / rows * np.pi - np.pi / 2
    )
    sphere = np.stack([np.cos(phi) * np.cos(theta), np.cos(phi) * np.sin(theta), np.sin(phi)])
    # Not the permutation it stands for: the rounding decides pixels on the borders of faces.
    matrix = _about(2, 180.0) @ _about(1, -90.0) @ _about(0, 90.0)
    x, y, z = (matrix @ sphere.reshape(3, -1)).reshape(sphere.shape)
    axis = np.abs([x, y, z]).argmax(0)
    # Axis, its sign, and what runs to the right and down on the face.
    table = {
        "right": (0, x, -z, y),
        "left": (0, -x, z, y),
        "top": (1, -y, x, z),
        "bottom": (1, y, x, -z),
        "front": (2, z, x, y),
        "back": (2, -z, -x, y),
    }
    erp = np.zeros((rows, columns, 3), np.uint8)
    for key, (number, depth, right, down) in table.items():
        shown = (axis == number) & (depth > 0)
        side = len(faces[key])
        j, i = (
            ((axis_[shown] / depth[shown] + 1) / 2 * side).astype(int).clip(0, side - 1)
            for axis_ in (right, down)
        )
        erp[shown] = faces[key][i, j]
    return _resized(erp, (width, height))


def legacy_view(
    erp: np.ndarray,
    fov_h: float,
    fov_v: float,
    yaw: float,
    pitch_down: float,
    roll: float,
    size: tuple[int, int],
) -> np.ndarray:
    """Look with a pinhole camera whose outermost pixel centres lie at the borders of the view.

    Positions are clamped at the panorama's borders, so that a line shows behind the viewer;
    `perspective_view` wraps. Equal to OpenCV 5's remap; OpenCV 4 rounds positions to 1/32 pixel.

    Args:
        erp: (H, W, 3) uint8.
        fov_h: degrees.
        fov_v: degrees.
        yaw: degrees to the right.
        pitch_down: degrees down.
        roll: degrees, the left border sinks.
        size: (height, width) in pixels.

    Returns:
        (height, width, 3) uint8.
    """
    height, width = erp.shape[:2]
    half_x, half_y = np.tan(np.deg2rad([fov_h, fov_v]) / 2)
    x, y = np.meshgrid(np.linspace(-half_x, half_x, size[1]), np.linspace(half_y, -half_y, size[0]))
    rays = np.stack([x, y, np.ones_like(x)], -1)
    rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
    # Right, up, forward.
    right, up, forward = np.moveaxis(
        rays @ (_about(1, yaw) @ _about(0, pitch_down) @ _about(2, roll)).T, -1, 0
    )
    u = (np.arctan2(right, forward) + np.pi) / (2 * np.pi) * width
    v = (np.pi / 2 - np.arcsin(up.clip(-1, 1))) / np.pi * height
    u = u.astype(np.float32).clip(0, width - 1)
    v = v.astype(np.float32).clip(0, height - 1)
    return np.round(_bilinear(erp, u, v)).astype(np.uint8)


def _resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize (H, W, 3) uint8 to (width, height) by Lanczos; borders are clamped."""
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))


def _bilinear(image: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Look up (H, W, C) at columns `u` and rows `v`, neighbours clamped; float64."""
    last_row, last_column = image.shape[0] - 1, image.shape[1] - 1
    column, row = np.floor(u).astype(int), np.floor(v).astype(int)
    right, down = (u - column)[..., None], (v - row)[..., None]
    top, bottom = row.clip(0, last_row), (row + 1).clip(0, last_row)
    left, other = column.clip(0, last_column), (column + 1).clip(0, last_column)
    upper = image[top, left] * (1 - right) + image[top, other] * right
    lower = image[bottom, left] * (1 - right) + image[bottom, other] * right
    return upper * (1 - down) + lower * down


def _about(axis: int, degrees: float) -> np.ndarray:
    """Right-handed rotation (3, 3) about axis 0, 1 or 2."""
    i, j = (axis + 1) % 3, (axis + 2) % 3
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    matrix = np.eye(3)
    matrix[[i, j, i, j], [i, j, j, i]] = cos, cos, -sin, sin
    return matrix
