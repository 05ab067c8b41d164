"""From ray hits to surfaces: normal, face id, texture coordinates and pixel footprint.

Face ids: 0..5 = -x, +x, -y, +y, -z, +z in the frame of the box or room (a room shows its inner
side), 6 = curved or sloped; -1 = sky.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from shared_pano_utils.synthetic import primitives as shapes
from shared_pano_utils.synthetic.primitives import PrimitiveTable, to_local

CURVED = 6


class Surfaces(NamedTuple):
    """Surface points seen by n rays; fields are (n,) unless noted."""

    normal: Tensor  # (3, n) world frame, unit, towards the camera
    face: Tensor  # int8
    u: Tensor  # metres
    v: Tensor
    wu: Tensor  # footprint widths in metres
    wv: Tensor


def structure_distances(lo: Tensor, hi: Tensor, dirs: Tensor) -> tuple[Tensor, Tensor]:
    """Exit distance and face of rays that start inside a box.

    Args:
        lo: Lower corner minus the ray origin, (3,) metres.
        hi: Upper corner minus the ray origin, (3,) metres.
        dirs: (3, ...).

    Returns:
        Distance (...) in metres, face id (...) int8.
    """
    best, face = None, None
    for axis in range(3):
        d = dirs[axis]
        d = torch.where(d.abs() < shapes.TINY, shapes.TINY, d)
        t = torch.where(d > 0, hi[axis], lo[axis]) / d
        side = (d > 0).to(torch.int8) + 2 * axis
        if best is None or face is None:
            best, face = t, side
        else:
            face = torch.where(t < best, side, face)
            best = torch.minimum(best, t)
    assert best is not None
    assert face is not None
    return best, face


def footprint(reach: Tensor, dq: Tensor, dn: Tensor, nq: Tensor | float) -> Tensor:
    """Width along a surface axis q of a round pixel cone that meets the surface.

    The cone's cross-section of width `reach` (distance x pixel angle), projected along d onto the
    plane with normal n, spans `reach * |q - (d.q / d.n) n|`.
    """
    slope = dq / torch.where(dn.abs() < 1e-4, -1e-4, dn)
    return reach * (1 - 2 * slope * nq + slope * slope).clamp_min(0).sqrt()


def plane_surfaces(face: Tensor, point: Tensor, dirs: Tensor, reach: Tensor) -> Surfaces:
    """Surfaces of axis-aligned planes seen from inside: room faces and the ground.

    Args:
        face: (n,) int8.
        point: (3, n) metres.
        dirs: (3, n).
        reach: Distance times pixel angle, (n,) metres.
    """
    axis = face.long() // 2
    normal = torch.zeros_like(dirs)
    sign = (1 - 2 * (face % 2)).to(dirs.dtype)
    normal.scatter_(0, axis[None], sign[None])
    u, v, wu, wv = _plane_coordinates(axis, point, dirs, reach)
    return Surfaces(normal, face, u, v, wu, wv)


def _plane_coordinates(axis: Tensor, point: Tensor, dirs: Tensor, reach: Tensor):
    """Texture coordinates and footprints on planes across `axis`; all in one frame."""
    across_x, across_y = axis == 0, axis == 1
    u = torch.where(across_x, point[2], point[0])
    v = torch.where(across_y, point[2], point[1])
    du = torch.where(across_x, dirs[2], dirs[0])
    dv = torch.where(across_y, dirs[2], dirs[1])
    dn = torch.where(across_x, dirs[0], torch.where(across_y, dirs[1], dirs[2]))
    return u, v, footprint(reach, du, dn, 0.0), footprint(reach, dv, dn, 0.0)


def primitive_surfaces(
    table: PrimitiveTable, prim: Tensor, dirs: Tensor, t: Tensor, reach: Tensor
) -> Surfaces:
    """Surfaces of primitives hit at distance `t`; `prim`, `t`, `reach` (n,), `dirs` (3, n)."""
    cos, sin = table.cos.index_select(0, prim), table.sin.index_select(0, prim)
    half, offset = table.half.index_select(1, prim), table.offset.index_select(1, prim)
    d = torch.stack(to_local(dirs, cos, sin))
    p = torch.stack(to_local(offset, cos, sin)) + t * d  # metres, own frame
    q = p / half  # unit solid
    kind = table.type.index_select(0, prim)
    normal, axis = _box_normals(q)
    for number, solve in _NORMALS.items():
        (rows,) = (kind == number).nonzero(as_tuple=True)
        if rows.numel():
            normal[:, rows], axis[rows] = solve(q[:, rows], half[:, rows])
    flat = axis < 3
    u, v, wu, wv = _plane_coordinates(axis, p, d, reach)
    (rows,) = (~flat).nonzero(as_tuple=True)
    if rows.numel():
        u[rows], v[rows], wu[rows], wv[rows] = _curved_coordinates(
            p[:, rows], q[:, rows], d[:, rows], normal[:, rows], reach[rows]
        )
    side = (normal.gather(0, axis.clamp(max=2)[None])[0] > 0).long()
    face = torch.where(flat, 2 * axis + side, CURVED).to(torch.int8)
    world = torch.stack(
        (cos * normal[0] + sin * normal[2], normal[1], cos * normal[2] - sin * normal[0])
    )
    return Surfaces(world, face, u, v, wu, wv)


def _curved_coordinates(p: Tensor, q: Tensor, d: Tensor, normal: Tensor, reach: Tensor):
    """Arc length around the axis, and height."""
    radius = shapes.length2(p[0], p[2])
    # atan2 by the half-angle formula, see `primitives.dot`.
    ahead = shapes.length2(q[0], q[2]) + q[2]
    u = 2 * torch.atan(q[0] / ahead.clamp_min(1e-9)) * radius
    flat = shapes.length2(normal[0], normal[2]).clamp_min(1e-6)
    dn = shapes.dot(d, normal)
    du = (d[0] * normal[2] - d[2] * normal[0]) / flat
    return u, p[1], footprint(reach, du, dn, 0.0), footprint(reach, d[1], dn, normal[1])


def _box_normals(q: Tensor) -> tuple[Tensor, Tensor]:
    x, y, z = q.abs()
    axis = torch.where(x >= torch.maximum(y, z), 0, torch.where(y >= z, 1, 2))
    side = q.gather(0, axis[None]).sign()
    return torch.zeros_like(q).scatter_(0, axis[None], side), axis


def _unit(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    return shapes.unit(torch.stack((x, y, z)))


def _ellipsoid_normals(q: Tensor, half: Tensor) -> tuple[Tensor, Tensor]:
    return _unit(*(q / half)), torch.full_like(q[0], 3, dtype=torch.long)


def _cylinder_normals(q: Tensor, half: Tensor) -> tuple[Tensor, Tensor]:
    zero = torch.zeros_like(q[0])
    mantle = _unit(q[0] / half[0], zero, q[2] / half[2])
    is_cap = (1 - q[1].abs()).abs() * half[1] < (1 - shapes.length2(q[0], q[2])).abs() * half[0]
    cap = torch.stack((zero, q[1].sign(), zero))
    return torch.where(is_cap, cap, mantle), torch.where(is_cap, 1, 3)


def _cone_normals(q: Tensor, half: Tensor) -> tuple[Tensor, Tensor]:
    zero = torch.zeros_like(q[0])
    s = (1 + q[1]) / 2
    mantle = _unit(q[0] / half[0], -s / 2 / half[1], q[2] / half[2])
    is_cap = (1 - q[1]).abs() * half[1] < (s - shapes.length2(q[0], q[2])).abs() * half[0]
    cap = torch.stack((zero, torch.ones_like(zero), zero))
    return torch.where(is_cap, cap, mantle), torch.where(is_cap, 1, 3)


def _prism_normals(q: Tensor, half: Tensor) -> tuple[Tensor, Tensor]:
    zero = torch.zeros_like(q[0])
    depth = torch.stack(  # metres inside each of the planes
        ((1 - q[2].abs()) * half[2], (1 - q[1]) * half[1], ((1 + q[1]) / 2 - q[0].abs()) * half[0])
    )
    plane = depth.abs().argmin(0)
    gable = torch.stack((zero, zero, q[2].sign()))
    base = torch.stack((zero, torch.ones_like(zero), zero))
    slope = _unit(q[0].sign() / half[0], -0.5 / half[1], zero)
    normal = torch.where(plane == 0, gable, torch.where(plane == 1, base, slope))
    return normal, torch.where(plane == 0, 2, torch.where(plane == 1, 1, 3))


_NORMALS = {
    shapes.ELLIPSOID: _ellipsoid_normals,
    shapes.CYLINDER: _cylinder_normals,
    shapes.CONE: _cone_normals,
    shapes.PRISM: _prism_normals,
}
