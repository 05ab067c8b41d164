"""Nearest hits of grouped rays with convex primitives, analytic and vectorised.

Rays of one call share their origin and come in groups of neighbours, directions (3, G, P). A
primitive is tested only with the groups whose bounding cone meets it. In the primitive's own
frame, scaled by its half sizes, every solid is a unit solid; `t` is unchanged by that map.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from shared_pano_utils.synthetic.elements import Primitive

BOX, ELLIPSOID, CYLINDER, CONE, PRISM = range(5)
TYPE_IDS = {
    "box": BOX,
    "sphere": ELLIPSOID,
    "ellipsoid": ELLIPSOID,
    "cylinder": CYLINDER,
    "cone": CONE,
    "prism": PRISM,
}
T_MIN = 1e-3
TINY = 1e-9


class PrimitiveTable(NamedTuple):
    """Primitives as arrays of length K; `origin` is the offset (origin - centre) in metres."""

    type: Tensor  # (K,) int64, TYPE_IDS
    offset: Tensor  # (3, K) float32
    half: Tensor  # (3, K) float32
    cos: Tensor  # (K,) float32, of the yaw
    sin: Tensor  # (K,) float32
    radius: Tensor  # (K,) float32, of the bounding sphere


def build_table(prims: list[Primitive], origin: Tensor, device) -> PrimitiveTable:
    """Collect primitives relative to a ray origin (3,) in metres."""
    o = origin.double().cpu()
    center = torch.tensor([p.center for p in prims], dtype=torch.float64).reshape(-1, 3)
    half = torch.tensor([p.half for p in prims], dtype=torch.float64).reshape(-1, 3)
    yaw = torch.tensor([math.radians(p.yaw) for p in prims], dtype=torch.float64)
    kind = torch.tensor([TYPE_IDS[p.type] for p in prims], dtype=torch.int64)
    round_xz = torch.maximum(half[:, 0], half[:, 2])
    radius = torch.where(
        kind == ELLIPSOID, half.amax(1) if len(prims) else half.sum(1), half.norm(dim=1)
    )
    is_round = (kind == CYLINDER) | (kind == CONE)
    radius = torch.where(is_round, torch.hypot(round_xz, half[:, 1]), radius)

    def ship(x: Tensor) -> Tensor:
        return x.float().to(device)

    return PrimitiveTable(
        type=kind.to(device),
        offset=ship((o - center).T.contiguous()),
        half=ship(half.T.contiguous()),
        cos=ship(yaw.cos()),
        sin=ship(yaw.sin()),
        radius=ship(radius),
    )


def to_local(x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rotate world vectors (3, ...) into frames turned by yaw about +y."""
    return cos * x[0] - sin * x[2], x[1], sin * x[0] + cos * x[2]


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Dot product of vectors (3, ...), written out so that it rounds alike at any length.

    The same care elsewhere in this package (no hypot, atan2, lerp or odd powers of tensors): their
    vector and remainder code differ in the last bit, and then removing one object would change
    pixels of others.
    """
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def length2(x: Tensor, z: Tensor) -> Tensor:
    """Length of a vector with two components."""
    return (x * x + z * z).sqrt()


def unit(x: Tensor) -> Tensor:
    """Normalise vectors (3, ...); much faster than a norm over the leading axis."""
    return x * dot(x, x).clamp_min(TINY * TINY).rsqrt()


def _nonzero(x: Tensor) -> Tensor:
    return torch.where(x.abs() < TINY, torch.where(x < 0, -TINY, TINY), x)


def _slab(o: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """Interval of t with |o + t d| <= 1."""
    inv = 1 / _nonzero(d)
    mid, width = -o * inv, inv.abs()
    return mid - width, mid + width


def _box(o, d) -> tuple[Tensor, Tensor]:
    near, far = _slab(o[0], d[0])
    for k in (1, 2):
        n, f = _slab(o[k], d[k])
        near, far = torch.maximum(near, n), torch.minimum(far, f)
    return near, far


def _disc_interval(o, d, axes) -> tuple[Tensor, Tensor]:
    """Interval of t inside the unit ball of the given axes; closest-approach form."""
    a = b = torch.zeros_like(d[0])
    for k in axes:
        a, b = a + d[k] * d[k], b + o[k] * d[k]
    a = a.clamp_min(TINY * TINY)
    t0 = -b / a
    miss2 = torch.zeros_like(t0)
    for k in axes:
        p = o[k] + t0 * d[k]
        miss2 = miss2 + p * p
    reach = ((1 - miss2) / a).sqrt()  # NaN where the ray misses; comparisons then fail
    return t0 - reach, t0 + reach


def _cylinder(o, d) -> tuple[Tensor, Tensor]:
    near, far = _disc_interval(o, d, (0, 2))
    n, f = _slab(o[1], d[1])
    return torch.maximum(near, n), torch.minimum(far, f)


def _prism(o, d) -> tuple[Tensor, Tensor]:
    near, far = _slab(o[2], d[2])
    for nx, ny, k in ((0.0, 1.0, 1.0), (1.0, -0.5, 0.5), (-1.0, -0.5, 0.5)):
        slope = _nonzero(nx * d[0] + ny * d[1])
        t = (k - nx * o[0] - ny * o[1]) / slope
        near = torch.where(slope < 0, torch.maximum(near, t), near)
        far = torch.where(slope > 0, torch.minimum(far, t), far)
    return near, far


def _cone(o, d) -> tuple[Tensor, Tensor]:
    """Apex at y = -1 (up), unit base disc at y = 1: x^2 + z^2 = ((1 + y) / 2)^2."""
    t0 = -(o[0] * d[0] + o[1] * d[1] + o[2] * d[2]) / (d[0] ** 2 + d[1] ** 2 + d[2] ** 2)
    x, y, z = (o[k] + t0 * d[k] for k in range(3))
    s, ds = (1 + y) / 2, d[1] / 2
    a = _nonzero(d[0] ** 2 + d[2] ** 2 - ds**2)
    b = x * d[0] + z * d[2] - s * ds
    root = (b * b - a * (x * x + z * z - s * s)).sqrt()
    best = torch.full_like(t0, math.inf)
    for t in ((-b - root) / a, (-b + root) / a):
        inside = (y + t * d[1]).abs() <= 1
        best = torch.where(inside & (t < best) & (t0 + t > T_MIN), t, best)
    t = (1 - y) / _nonzero(d[1])
    on_cap = (x + t * d[0]) ** 2 + (z + t * d[2]) ** 2 <= 1
    best = torch.where(on_cap & (t < best) & (t0 + t > T_MIN), t, best)
    return t0 + best, torch.full_like(t0, math.inf)


_INTERVALS = {
    BOX: _box,
    ELLIPSOID: lambda o, d: _disc_interval(o, d, (0, 1, 2)),
    CYLINDER: _cylinder,
    CONE: _cone,
    PRISM: _prism,
}


def _candidates(table: PrimitiveTable, dirs: Tensor) -> tuple[Tensor, Tensor]:
    """Return (group, primitive) index pairs whose bounding volumes meet."""
    axis = unit(dirs.mean(2))  # (3, G)
    cos_g = (dirs * axis[..., None]).sum(0).amin(1).clamp(-1, 1) - 1e-6  # (G,)
    sin_g = (1 - cos_g * cos_g).clamp_min(0).sqrt()
    dist = table.offset.norm(dim=0)  # (K,)
    sin_k = (table.radius / dist.clamp_min(TINY)).clamp(max=1)
    cos_k = (1 - sin_k * sin_k).sqrt()
    dot = axis.T @ (-table.offset / dist.clamp_min(TINY))  # (G, K)
    meets = dot > cos_g[:, None] * cos_k - sin_g[:, None] * sin_k - 1e-6
    meets |= (dist <= table.radius * 1.001) | (cos_g < 0.5)[:, None]
    group, prim = meets.nonzero(as_tuple=True)
    # Second test: the axis ray against the box grown by the group's radius at that distance.
    cos, sin = table.cos[prim], table.sin[prim]
    o = to_local(table.offset[:, prim], cos, sin)
    d = to_local(axis[:, group], cos, sin)
    reach = (dist + table.radius)[prim]
    grow = reach * (sin_g / cos_g.clamp_min(0.1))[group] * 1.01 + 1e-4
    half = table.half[:, prim] + grow
    near, far = _box([o[k] / half[k] for k in range(3)], [d[k] / half[k] for k in range(3)])
    keep = ((near <= far) & (far > 0)) | (cos_g < 0.5)[group]
    return group[keep], prim[keep]


def trace(table: PrimitiveTable, dirs: Tensor, limit: Tensor) -> tuple[Tensor, Tensor]:
    """Find the nearest primitive in front of each ray.

    Args:
        table: Primitives relative to the common ray origin.
        dirs: Unit directions, (3, G, P); a group holds neighbouring rays.
        limit: Hits must be nearer than this, metres, (G, P).

    Returns:
        Distance in metres (`limit` where nothing is hit) and primitive index (-1 where nothing
        is hit), both (G, P).
    """
    n_rays = limit.shape[1]
    best, winner = limit.clone(), torch.full(limit.shape, -1, device=limit.device)
    if table.type.numel() == 0:
        return best, winner
    groups, prims = _candidates(table, dirs)
    for kind, interval in _INTERVALS.items():
        chosen = table.type[prims] == kind
        group, prim = groups[chosen], prims[chosen]
        if group.numel() == 0:
            continue
        t = _pair_distances(table, dirs, group, prim, interval)  # (M, P)
        index = group[:, None].expand(-1, n_rays)
        best_new = best.scatter_reduce(0, index, t, "amin")
        winner[best_new < best] = -1
        best = best_new
        row, col = ((t == best[group]) & (t < limit[group])).nonzero(as_tuple=True)
        winner.view(-1).scatter_reduce_(0, group[row] * n_rays + col, prim[row], "amax")
    return best, winner


def _pair_distances(table: PrimitiveTable, dirs, group, prim, interval) -> Tensor:
    """Distances (M, P) of group-primitive pairs, inf for misses."""
    cos, sin = table.cos[prim][:, None], table.sin[prim][:, None]
    half = table.half[:, prim][..., None]  # (3, M, 1)
    d = [x / half[k] for k, x in enumerate(to_local(dirs[:, group], cos, sin))]
    o = [x / half[k] for k, x in enumerate(to_local(table.offset[:, prim][..., None], cos, sin))]
    near, far = interval(o, d)
    return torch.where((near < far) & (near > T_MIN), near, math.inf)
