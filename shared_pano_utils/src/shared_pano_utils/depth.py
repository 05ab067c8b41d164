"""Depth geometry on panoramas, cube faces and pinhole views.

Depth is in metres along the ray ("euclidean") or along the optical axis ("planar"). Derivatives
are taken of the inverse depth, which is linear on a plane (in the direction on the sphere, in the
pixel of a pinhole view): its differences are exact there, not approximate.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from ._arrays import Array, ArrayT, Layout, to_torch
from ._surface import EdgeRule, pinhole_gradient, silhouette_pairs, sphere_gradient
from .geometry import (
    CENTER,
    FACE_AXES,
    Projection,
    Registration,
    intrinsics,
    rays,
    resolve_rotation,
)

DepthKind = Literal["euclidean", "planar"]
Matrix = Tensor | Sequence[Sequence[float]]
Fov = float | tuple[float, float] | None


def convert_depth(
    depth: ArrayT,
    src: DepthKind,
    dst: DepthKind,
    *,
    projection: Projection,
    fov: Fov = 90.0,
    K: Matrix | None = None,
    reg: Registration = CENTER,
    layout: Layout | None = None,
) -> ArrayT:
    """Convert between distance along the ray and depth along the optical axis.

    ``planar = euclidean / sqrt(1 + x**2 + y**2)`` with the normalised image coordinates x, y of
    the pixels. Infinite and NaN values stay what they are.

    Args:
        depth: one-channel floating array (*, 1, h, w) for "perspective", (*, 6, 1, S, S) for
            "cube"; NumPy channel last; a single view or cube may lack the channel axis.
        src: what `depth` holds, "euclidean" or "planar".
        dst: what to return.
        projection: "cube" or "perspective"; an ERP has no optical axis.
        fov: degrees (see `geometry.intrinsics`).
        K: pinhole matrix in pixels instead of `fov`.
        reg: pixel registration; its `view` field counts.
        layout: "chw" or "hwc" against the rule of the kind of array.

    Returns:
        Array of the kind, shape, dtype and unit of `depth`.

    Raises:
        ValueError: Unknown kind, an ERP, or more than one channel.
        TypeError: Integer depth.

    >>> faces = torch.ones(6, 1, 2, 2, dtype=torch.float64)
    >>> round(convert_depth(faces, "planar", "euclidean", projection="cube")[0, 0, 0, 0].item(), 6)
    1.224745
    """
    _check_kind(src, projection)
    _check_kind(dst, projection)
    if projection == "erp":
        raise ValueError(
            "projection='erp' has no optical axis, so there is nothing to convert; "
            "use 'cube' or 'perspective'"
        )
    values, restore = _depth_tensor(depth, projection, layout)
    if src == dst:
        return restore(values)
    work = _working(values)
    length = _ray_length(work, projection, fov, K, reg)
    result = work * length if dst == "euclidean" else work / length
    return restore(result.to(values.dtype))


def depth_to_points(
    depth: ArrayT,
    *,
    projection: Projection = "erp",
    kind: DepthKind = "euclidean",
    fov: Fov = 90.0,
    K: Matrix | None = None,
    R: Matrix | None = None,
    layout: Layout | None = None,
) -> ArrayT:
    """Give the scene point seen by every pixel.

    Points are in the RDF frame of the camera (of the whole cube for "cube"), or in the reference
    frame when `R` is given. A depth that is not finite gives a point that is not finite.

    Args:
        depth: (*, 1, H, W), or (*, 6, 1, S, S) for "cube"; NumPy channel last; a single map may
            lack the channel axis.
        projection: "erp", "cube" or "perspective".
        kind: "euclidean", or "planar" for faces and views.
        fov: degrees (see `geometry.intrinsics`).
        K: pinhole matrix in pixels instead of `fov`.
        R: (3, 3), or (*, 3, 3) with the leading axes of `depth`: orientation, camera to reference.
        layout: "chw" or "hwc" against the rule of the kind of array.

    Returns:
        (*, 3, H, W) or (*, 6, 3, S, S), channel last for NumPy, in the unit of `depth`.

    >>> points = depth_to_points(torch.full((1, 4, 8), 2.0))
    >>> [round(v, 4) for v in points[:, 1, 4].tolist()]
    [0.7071, -0.7654, 1.7071]
    """
    _check_kind(kind, projection)
    values, restore = _depth_tensor(depth, projection, layout)
    work = _working(values)
    directions = rays(
        projection,
        (work.shape[-2], work.shape[-1]),
        fov=fov,
        K=K,
        normalize=kind == "euclidean",
        dtype=work.dtype,
        device=work.device,
    )
    points = work * directions.movedim(-1, -3)
    if R is not None:
        matrix = resolve_rotation(R=R).to(points)
        if projection == "cube" and matrix.ndim > 2:
            matrix = matrix.unsqueeze(-3)
        points = torch.einsum("...ij,...jhw->...ihw", matrix, points)
    return restore(points.to(values.dtype))


def depth_to_normals(
    depth: ArrayT,
    *,
    projection: Projection = "erp",
    kind: DepthKind = "euclidean",
    valid: Array | None = None,
    edges: EdgeRule = "min",
    fov: Fov = 90.0,
    K: Matrix | None = None,
    layout: Layout | None = None,
) -> tuple[ArrayT, ArrayT]:
    """Give the unit surface normal of every pixel from its depth and that of its neighbours.

    Normals are in the RDF frame of the rays, point towards the camera and are exact on planes. An
    ERP wraps at +-180 degrees and continues across the poles; above 60 degrees of latitude (in 2:1
    images) the horizontal neighbours are several columns away, as far from the pixel as the
    vertical ones, so that noise of the depth is not amplified towards the poles.

    Infinite depth (sky) is an inverse depth of 0: it has no normal, its neighbours do. NaN and
    depth <= 0 are invalid and take the normal from the four pixels that use them, no others.

    Args:
        depth: (*, 1, H, W), or (*, 6, 1, S, S) for "cube"; NumPy channel last; a single map may
            lack the channel axis.
        projection: "erp", "cube" or "perspective".
        kind: "euclidean", or "planar" for faces and views.
        valid: bool array of the shape of `depth`; False pixels are treated as invalid.
        edges: "central" differences everywhere, or "min": where the two one-sided differences
            disagree, the side that stays on the surface, so that normals do not mix two surfaces.
        fov: degrees (see `geometry.intrinsics`).
        K: pinhole matrix in pixels instead of `fov`.
        layout: "chw" or "hwc" against the rule of the kind of array.

    Returns:
        Normals (*, 3, H, W), 0 outside the mask, and the mask (*, 1, H, W): bool, True where the
        depth and its neighbours inside the image are known.

    >>> normals, mask = depth_to_normals(torch.full((1, 8, 16), 3.0))
    >>> bool(mask.all()), torch.allclose(normals, -rays("erp", (8, 16)).movedim(-1, 0), atol=1e-6)
    (True, True)
    """
    if edges not in ("central", "min"):
        raise ValueError(f"edges={edges!r} is unknown: use 'central' or 'min'")
    values, restore = _depth_tensor(depth, projection, layout)
    inverse, surface, known = inverse_depth(
        values, projection, kind, _mask_tensor(valid, values, projection, layout), fov, K
    )
    if projection == "erp":
        plane, complete = sphere_gradient(inverse, known, edges)
    else:
        matrix = intrinsics((values.shape[-2], values.shape[-1]), fov, K).to(inverse)
        plane, complete = pinhole_gradient(inverse, known, edges, matrix)
        if projection == "cube":
            plane = torch.einsum("fki,...fkhw->...fihw", FACE_AXES.to(plane), plane)
    mask = (surface & complete).unsqueeze(-3)
    normals = torch.where(mask, -functional.normalize(plane, dim=-3), 0.0)
    return restore(normals.to(values.dtype)), restore(mask)


def edge_mask(
    depth: ArrayT,
    *,
    projection: Projection = "erp",
    kind: DepthKind = "euclidean",
    threshold: float = 0.01,
    reach: int = 3,
    valid: Array | None = None,
    fov: Fov = 90.0,
    K: Matrix | None = None,
    layout: Layout | None = None,
) -> ArrayT:
    """Mark the pixels on both sides of silhouettes, whatever the slope and the resolution.

    Slanted surfaces and the creases between them are not marked: a silhouette is where inverse
    depth steps out of the range of the steps beside it. The pixels of a clean point cloud are
    ``isfinite(depth) & (depth > 0) & ~edge_mask(depth)``.

    Args:
        depth: (*, 1, H, W), or (*, 6, 1, S, S) for "cube"; NumPy channel last; a single map may
            lack the channel axis.
        projection: "erp", "cube" or "perspective"; an ERP continues across +-180 degrees and poles.
        kind: "euclidean", or "planar" for faces and views.
        threshold: smallest jump that counts, relative to the nearer depth.
        reach: a ramp of up to so many pixel steps counts as one silhouette.
        valid: bool array of the shape of `depth`; False pixels are treated as invalid.
        fov: degrees (see `geometry.intrinsics`).
        K: pinhole matrix in pixels instead of `fov`.
        layout: "chw" or "hwc" against the rule of the kind of array.

    Returns:
        Bool (*, 1, H, W), True on silhouettes; False where there is no depth (sky, NaN, <= 0).

    >>> depth = torch.full((1, 32, 64), 2.0)
    >>> depth[..., 40:] = 3.0
    >>> edge_mask(depth)[0, 16].nonzero().flatten().tolist()
    [0, 39, 40, 63]
    """
    values, restore = _depth_tensor(depth, projection, layout)
    inverse, surface, known = inverse_depth(
        values, projection, kind, _mask_tensor(valid, values, projection, layout), fov, K
    )
    columns, rows = silhouette_pairs(
        inverse, known, projection=projection, threshold=threshold, reach=reach
    )
    marked = columns[..., 1:] | columns[..., :-1] | rows[..., 1:, :] | rows[..., :-1, :]
    return restore((marked & surface).unsqueeze(-3))


def inverse_depth(
    values: Tensor,
    projection: Projection = "erp",
    kind: DepthKind = "euclidean",
    valid: Tensor | None = None,
    fov: Fov = 90.0,
    K: Matrix | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Give the inverse depth that is linear on planes, and what is known about each pixel.

    Args:
        values: depth (*, 1, H, W).
        projection: inverse distance for "erp", inverse planar depth for "cube", "perspective".
        kind: what `values` holds.
        valid: bool tensor of the shape of `values`.
        fov: degrees (see `geometry.intrinsics`).
        K: pinhole matrix in pixels instead of `fov`.

    Returns:
        Three maps (*, H, W): inverse depth, 0 for sky and where unknown; whether the pixel shows a
        surface (finite positive depth); whether its inverse depth is known (surface or sky).
    """
    _check_kind(kind, projection)
    work = _working(values)
    surface, sky = work.isfinite() & (work > 0), work.isposinf()
    if valid is not None:
        surface, sky = surface & valid, sky & valid
    depth = torch.where(surface, work, 1.0)
    if projection != "erp" and kind == "euclidean":
        depth = depth / _ray_length(depth, projection, fov, K, CENTER)
    inverse = torch.where(surface, depth.reciprocal(), 0.0)
    return inverse.squeeze(-3), surface.squeeze(-3), (surface | sky).squeeze(-3)


# ---- checks and shared steps --------------------------------------------------------------------


def _check_kind(kind: DepthKind, projection: Projection) -> None:
    if kind not in ("euclidean", "planar"):
        raise ValueError(f"depth kind {kind!r} is unknown: use 'euclidean' or 'planar'")
    if kind == "planar" and projection == "erp":
        raise ValueError(
            "planar depth needs an optical axis, an ERP has none: pass kind='euclidean', "
            "or projection='cube' or 'perspective'"
        )


def _depth_tensor(
    depth: ArrayT, projection: Projection, layout: Layout | None
) -> tuple[Tensor, Callable[[Tensor], ArrayT]]:
    values, restore = to_torch(depth, layout, cube=projection == "cube", name="depth")
    if values.shape[-3] != 1:
        raise ValueError(
            f"depth has shape {tuple(depth.shape)}, read as {values.shape[-3]} channels: depth has "
            "one; add a channel axis (depth[:, None] in torch, depth[..., None] in NumPy)"
        )
    if not values.is_floating_point():
        raise TypeError(
            f"depth has dtype {values.dtype}: pass floating metres, e.g. depth / 1000.0 for an "
            "image of millimetres"
        )
    return values, restore


def _mask_tensor(
    valid: Array | None, values: Tensor, projection: Projection, layout: Layout | None
) -> Tensor | None:
    if valid is None:
        return None
    mask, _ = to_torch(valid, layout, cube=projection == "cube", name="valid")
    if mask.dtype != torch.bool or mask.shape != values.shape:
        raise ValueError(
            f"valid is {mask.dtype} of shape {tuple(valid.shape)}: expected bool in the shape of "
            "the depth"
        )
    return mask.to(values.device)


def _working(values: Tensor) -> Tensor:
    """Half-precision depth is computed with in float32."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _ray_length(
    like: Tensor, projection: Projection, fov: Fov, K: Matrix | None, reg: Registration
) -> Tensor:
    """Length of the rays with forward component 1: (1, h, w) or (6, 1, S, S)."""
    directions = rays(
        projection,
        (like.shape[-2], like.shape[-1]),
        fov=fov,
        K=K,
        reg=reg,
        normalize=False,
        dtype=like.dtype,
        device=like.device,
    )
    return directions.norm(dim=-1).unsqueeze(-3)
