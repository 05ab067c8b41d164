"""Frames, angles, rays and solid angles: the one convention of the workspace.

Frame RDF (x right, y down, z forward). Degrees at every public boundary. An equirectangular
panorama (ERP) always covers 360 x 180 degrees, whatever its size. Cube faces are ordered
F R B L U D, each upright for an observer at the centre. `Registration` says where pixels lie on
an image axis, which is the one thing in which the five original code bases differ.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Projection = Literal["erp", "cube", "perspective"]
PixelGrid = Literal["center", "corner", "edge"]

FACE_NAMES = "FRBLUD"
# Rows: (right, down, forward) axis of each face in the RDF frame, faces in the order F R B L U D.
FACE_AXES = torch.tensor(
    [
        [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
        [[0, 0, -1], [0, 1, 0], [1, 0, 0]],
        [[-1, 0, 0], [0, 1, 0], [0, 0, -1]],
        [[0, 0, 1], [0, 1, 0], [-1, 0, 0]],
        [[1, 0, 0], [0, 0, 1], [0, -1, 0]],
        [[1, 0, 0], [0, 0, -1], [0, 1, 0]],
    ],
    dtype=torch.float64,
)


class Registration(NamedTuple):
    """Where the samples of an image axis lie, for the ERP side and for the face/view side.

    With `s` in [0, 1] from the left/top border to the right/bottom border of `n` pixels, the
    fractional pixel index of `s` is ``s*n - 0.5`` ("center"), ``s*(n-1)`` ("corner") or ``s*n``
    ("edge").
    """

    erp: PixelGrid = "center"
    view: PixelGrid = "center"


CENTER = Registration("center", "center")
CORNER = Registration("corner", "corner")
EDGE = Registration("edge", "edge")
PY360_E2X = Registration("center", "corner")
PY360_C2E = Registration("corner", "edge")
SE360_P2E = Registration("corner", "center")


def border_to_index(s: Tensor, n: int, grid: PixelGrid) -> Tensor:
    """Fractional pixel index of the axis coordinate `s` (0 = first border, 1 = last border)."""
    if grid == "center":
        return s * n - 0.5
    return s * (n - 1) if grid == "corner" else s * n


def index_to_border(index: Tensor, n: int, grid: PixelGrid) -> Tensor:
    """Axis coordinate in [0, 1] of a fractional pixel index; inverse of `border_to_index`."""
    if grid == "center":
        return (index + 0.5) / n
    return index / (n - 1) if grid == "corner" else index / n


def axis_coordinates(
    n: int,
    grid: PixelGrid = "center",
    *,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str | None = None,
) -> Tensor:
    """Axis coordinates in [0, 1] of the `n` pixels of an image axis, shape (n,)."""
    return index_to_border(torch.arange(n, dtype=dtype, device=device), n, grid)


# ---- rotations ----------------------------------------------------------------------------------


def rotation_matrix(
    yaw: float | Tensor = 0.0, pitch: float | Tensor = 0.0, roll: float | Tensor = 0.0
) -> Tensor:
    """Orientation of a camera that looks `yaw` right, `pitch` up and is rolled clockwise.

    ``R = Ry(yaw) @ Rx(pitch) @ Rz(roll)`` maps camera coordinates to reference coordinates, both
    RDF. Angles in degrees; they broadcast, and gradients flow to tensor arguments.

    Returns:
        (*, 3, 3), float64 for numbers, the promoted floating dtype for tensors.

    >>> [
    ...     round(v, 6) + 0.0
    ...     for v in (rotation_matrix(yaw=90) @ torch.tensor([0.0, 0, 1.0]).double()).tolist()
    ... ]
    [1.0, 0.0, 0.0]
    """
    tensors = [a for a in (yaw, pitch, roll) if isinstance(a, Tensor)]
    dtype = _promoted_float(tensors) if tensors else torch.float64
    device = tensors[0].device if tensors else None
    y, p, r = torch.broadcast_tensors(
        *(torch.as_tensor(a, dtype=dtype, device=device).deg2rad() for a in (yaw, pitch, roll))
    )
    zero, one = torch.zeros_like(y), torch.ones_like(y)

    def matrix(*rows: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        return torch.stack([torch.stack(row, -1) for row in rows], -2)

    ry = matrix((y.cos(), zero, y.sin()), (zero, one, zero), (-y.sin(), zero, y.cos()))
    rx = matrix((one, zero, zero), (zero, p.cos(), -p.sin()), (zero, p.sin(), p.cos()))
    rz = matrix((r.cos(), -r.sin(), zero), (r.sin(), r.cos(), zero), (zero, zero, one))
    return ry @ rx @ rz


def _promoted_float(tensors: Sequence[Tensor]) -> torch.dtype:
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def resolve_rotation(
    yaw: float | Tensor = 0.0,
    pitch: float | Tensor = 0.0,
    roll: float | Tensor = 0.0,
    R: Tensor | Sequence[Sequence[float]] | None = None,
) -> Tensor:
    """Return `R` when given (checked), else the matrix of the three angles (degrees).

    Raises:
        ValueError: an angle is NaN or infinite, or `R` is not a rotation (tolerance 1e-4).
    """
    if R is None:
        for name, angle in (("yaw", yaw), ("pitch", pitch), ("roll", roll)):
            values = torch.as_tensor(angle)
            if not values.isfinite().all():
                shown = values.item() if values.numel() == 1 else values.tolist()
                raise ValueError(f"{name} is {shown}; angles must be finite degrees")
        return rotation_matrix(yaw, pitch, roll)
    matrix = R if isinstance(R, Tensor) else torch.as_tensor(R, dtype=torch.float64)
    if matrix.shape[-2:] != (3, 3):
        raise ValueError(f"R has shape {tuple(matrix.shape)}; expected (..., 3, 3)")
    value = matrix.detach().double()
    residual = (value @ value.mT - torch.eye(3, dtype=value.dtype, device=value.device)).abs()
    if not bool(residual.max() < 1e-4) or not bool((torch.linalg.det(value) > 0).all()):
        raise ValueError(
            "R is not a rotation matrix (orthonormal within 1e-4, determinant +1); "
            "build it with rotation_matrix(yaw, pitch, roll)"
        )
    return matrix


# ---- directions ---------------------------------------------------------------------------------


def lonlat_to_xyz(lonlat: Tensor) -> Tensor:
    """Unit rays (..., 3) of longitude/latitude in degrees (..., 2); right and up are positive."""
    lon, lat = lonlat.deg2rad().unbind(-1)
    return torch.stack([lat.cos() * lon.sin(), -lat.sin(), lat.cos() * lon.cos()], -1)


def xyz_to_lonlat(xyz: Tensor) -> Tensor:
    """Longitude in (-180, 180] and latitude in [-90, 90], degrees, (..., 2), of rays (..., 3)."""
    x, y, z = xyz.unbind(-1)
    lon = torch.atan2(x, z)
    lon = torch.where(lon <= -math.pi, lon + 2 * math.pi, lon)
    lat = torch.atan2(-y, torch.hypot(x, z))
    return torch.stack([lon, lat], -1).rad2deg()


def lonlat_to_pixel(lonlat: Tensor, size: tuple[int, int], grid: PixelGrid = "center") -> Tensor:
    """Fractional (column, row) in an (H, W) ERP of longitude/latitude in degrees, (..., 2)."""
    lon, lat = lonlat.unbind(-1)
    column = border_to_index(lon / 360 + 0.5, size[1], grid)
    return torch.stack([column, border_to_index(0.5 - lat / 180, size[0], grid)], -1)


def pixel_to_lonlat(pixel: Tensor, size: tuple[int, int], grid: PixelGrid = "center") -> Tensor:
    """Longitude/latitude in degrees (..., 2) of fractional (column, row) in an (H, W) ERP."""
    column, row = pixel.unbind(-1)
    lon = (index_to_border(column, size[1], grid) - 0.5) * 360
    return torch.stack([lon, (0.5 - index_to_border(row, size[0], grid)) * 180], -1)


def xyz_to_face(xyz: Tensor) -> tuple[Tensor, Tensor]:
    """Face index (...) int64 and face coordinates (u, v) in [-1, 1] (..., 2) of rays (..., 3).

    The face is the one whose axis has the largest |component|; ties go to the lower index.
    """
    axes = FACE_AXES.to(xyz.device, xyz.dtype)
    along = torch.einsum("...k,fk->...f", xyz, axes[:, 2])
    face = along.argmax(-1)
    right, down, forward = axes[face].unbind(-2)
    depth = (xyz * forward).sum(-1)
    return face, torch.stack([(xyz * right).sum(-1) / depth, (xyz * down).sum(-1) / depth], -1)


def face_to_xyz(face: Tensor, uv: Tensor) -> Tensor:
    """Rays (..., 3), forward component 1, of face indices (...) and coordinates (u, v) (..., 2)."""
    right, down, forward = FACE_AXES.to(uv.device, uv.dtype)[face].unbind(-2)
    u, v = uv[..., :1], uv[..., 1:]
    return forward + u * right + v * down


# ---- views --------------------------------------------------------------------------------------


def intrinsics(
    size: tuple[int, int],
    fov: float | tuple[float, float] | None = 90.0,
    K: Tensor | Sequence[Sequence[float]] | None = None,
) -> Tensor:
    """Pinhole matrix (3, 3) float64 in pixels of an (h, w) view; pixel (0, 0) covers [0, 1)^2.

    Args:
        size: (h, w).
        fov: horizontal degrees with square pixels, or (horizontal, vertical).
        K: used as it is when given; `fov` must then be None or its default 90.

    Raises:
        ValueError: `fov` outside (0, 180), or both `fov` and `K` given.
    """
    h, w = size
    if K is not None:
        if fov is not None and fov != 90.0:
            raise ValueError(f"both fov={fov} and K are given; pass one of them")
        matrix = K if isinstance(K, Tensor) else torch.as_tensor(K, dtype=torch.float64)
        if matrix.shape[-2:] != (3, 3):
            raise ValueError(f"K has shape {tuple(matrix.shape)}; expected (3, 3)")
        return matrix if matrix.is_floating_point() else matrix.double()
    if fov is None:
        raise ValueError("neither fov nor K is given; pass one of them")
    horizontal, vertical = fov if isinstance(fov, (tuple, list)) else (fov, None)
    for value in (horizontal, vertical):
        if value is not None and not 0 < value < 180:
            raise ValueError(f"fov is {value} degrees; a pinhole view needs 0 < fov < 180")
    focal_x = w / 2 / math.tan(math.radians(horizontal) / 2)
    focal_y = focal_x if vertical is None else h / 2 / math.tan(math.radians(vertical) / 2)
    return torch.tensor([[focal_x, 0, w / 2], [0, focal_y, h / 2], [0, 0, 1]], dtype=torch.float64)


def face_tangent(fov: float) -> float:
    """Half extent ``tan(fov/2)`` of a cube face of `fov` degrees (1.0 exactly for 90)."""
    if not 0 < fov < 180:
        raise ValueError(f"fov is {fov} degrees; a cube face needs 0 < fov < 180")
    return 1.0 if fov == 90 else math.tan(math.radians(fov) / 2)


def rays(
    projection: Projection,
    size: int | tuple[int, int],
    *,
    fov: float | tuple[float, float] | None = 90.0,
    K: Tensor | Sequence[Sequence[float]] | None = None,
    R: Tensor | None = None,
    reg: Registration = CENTER,
    normalize: bool = True,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """Viewing ray of every pixel, in the RDF frame of the camera (or rotated by `R`).

    Args:
        projection: "erp", "cube" (faces F R B L U D) or "perspective".
        size: (H, W) of an ERP or a view; the side S (or (S, S)) of a cube face.
        fov: degrees, for "cube" and "perspective" (see `intrinsics`).
        K: pinhole matrix in pixels instead of `fov`.
        R: (3, 3) orientation, camera to reference; rays are returned in the reference frame.
        reg: pixel registration.
        normalize: unit length; otherwise faces and views have forward component 1.
        dtype: of the result; the computation is in float64.
        device: of the result.

    Returns:
        (H, W, 3), (6, S, S, 3) or (h, w, 3).
    """
    if projection == "erp":
        directions = _erp_rays(_pair(size), reg.erp, device)
    elif projection == "cube":
        side, other = _pair(size)
        if side != other:
            raise ValueError(f"cube faces are square, got {side}x{other}; pass one side length")
        directions = _cube_rays(
            side, face_tangent(90.0 if fov is None else _scalar(fov)), reg, device
        )
    elif projection == "perspective":
        directions = _perspective_rays(_pair(size), intrinsics(_pair(size), fov, K), reg, device)
    else:
        raise ValueError(f"projection is {projection!r}; use 'erp', 'cube' or 'perspective'")
    if normalize and projection != "erp":
        directions = torch.nn.functional.normalize(directions, dim=-1)
    if R is not None:
        directions = directions @ R.to(directions).mT
    return directions.to(dtype)


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _scalar(fov: float | tuple[float, float]) -> float:
    if isinstance(fov, (tuple, list)):
        raise ValueError(f"fov is {fov}; cube faces take one angle")
    return fov


def _erp_rays(size: tuple[int, int], grid: PixelGrid, device: torch.device | str | None) -> Tensor:
    lon = (axis_coordinates(size[1], grid, device=device) - 0.5) * (2 * math.pi)
    lat = (0.5 - axis_coordinates(size[0], grid, device=device)) * math.pi
    cos_lat = lat.cos()[:, None]
    y = (-lat.sin())[:, None].expand(*size)
    return torch.stack([cos_lat * lon.sin(), y, cos_lat * lon.cos()], -1)


def _cube_rays(
    side: int, tangent: float, reg: Registration, device: torch.device | str | None
) -> Tensor:
    s = (2 * axis_coordinates(side, reg.view, device=device) - 1) * tangent
    right, down, forward = FACE_AXES.to(device)[:, None, None].unbind(-2)
    return forward + s[:, None] * right + s[:, None, None] * down


def _perspective_rays(
    size: tuple[int, int], matrix: Tensor, reg: Registration, device: torch.device | str | None
) -> Tensor:
    h, w = size
    matrix = matrix.to(device)
    x = axis_coordinates(w, reg.view, dtype=matrix.dtype, device=device) * w
    y = axis_coordinates(h, reg.view, dtype=matrix.dtype, device=device) * h
    pixels = torch.stack(
        [x.expand(h, w), y[:, None].expand(h, w), torch.ones_like(x).expand(h, w)], -1
    )
    return pixels @ torch.linalg.inv(matrix).mT


# ---- solid angles -------------------------------------------------------------------------------


def sphere_weights(
    projection: Projection,
    size: int | tuple[int, int],
    *,
    fov: float | tuple[float, float] | None = 90.0,
    K: Tensor | Sequence[Sequence[float]] | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Solid angle of every pixel in steradian, float64; an ERP and a 90-degree cube sum to 4 pi.

    Returns:
        (H, W) for "erp" and "perspective", (6, S, S) for "cube".

    >>> weights = sphere_weights("erp", (4, 8))
    >>> [round(v, 5) for v in weights[:2, 0].tolist()], round(weights.sum().item(), 5)
    ([0.23004, 0.55536], 12.56637)
    """
    h, w = _pair(size)
    if projection == "erp":
        lat = (0.5 - torch.arange(h + 1, dtype=torch.float64, device=device) / h) * math.pi
        row = (lat[:-1].sin() - lat[1:].sin()) * (2 * math.pi / w)
        return row[:, None].expand(h, w).contiguous()
    if projection == "cube":
        matrix = intrinsics((h, w), 90.0 if fov is None else _scalar(fov))
    elif projection == "perspective":
        matrix = intrinsics((h, w), fov, K)
    else:
        raise ValueError(f"projection is {projection!r}; use 'erp', 'cube' or 'perspective'")
    matrix = matrix.double()
    x = (torch.arange(w + 1, dtype=torch.float64) - matrix[0, 2]) / matrix[0, 0]
    y = (torch.arange(h + 1, dtype=torch.float64) - matrix[1, 2]) / matrix[1, 1]
    corner = torch.atan(x * y[:, None] / torch.sqrt(1 + x**2 + y[:, None] ** 2))
    pixel = corner[1:, 1:] - corner[1:, :-1] - corner[:-1, 1:] + corner[:-1, :-1]
    pixel = pixel.to(device)
    return pixel.expand(6, h, w).contiguous() if projection == "cube" else pixel
