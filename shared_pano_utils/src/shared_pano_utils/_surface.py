"""First derivatives and interruptions of inverse depth on ERP grids and pinhole views.

On a plane, inverse distance is a linear function of the ray and inverse planar depth one of the
pixel. The differences here are those whose result is exact for such functions.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from .geometry import Projection, axis_coordinates, rays

EdgeRule = Literal["central", "min"]
# (map, +1 or -1) -> the map's value at the next or previous pixel, 0 or False outside the image.
Shift = Callable[[Tensor, int], Tensor]

# One-sided differences that differ by more than this part of the slope, or of the inverse depth if
# that is larger (about 6 degrees of the normal), are taken to straddle an edge of the scene.
_DISAGREEMENT = 0.1


def sphere_gradient(inverse: Tensor, usable: Tensor, edges: EdgeRule) -> tuple[Tensor, Tensor]:
    """Give ``n / c`` of the plane ``n . P = c`` through every pixel of an ERP inverse distance.

    With rho = 1/r this is ``rho * d + rho_lon / cos(lat) * east + rho_lat * north``.

    Args:
        inverse: (*, H, W) inverse distance, 0 where unknown or infinitely far.
        usable: bool (*, H, W), whether `inverse` is known.
        edges: "central" or "min" differences.

    Returns:
        Vectors (*, 3, H, W) in the RDF frame and whether the neighbours are known, (*, H, W).
    """
    height, width = inverse.shape[-2:]
    if width < 3:
        raise ValueError(f"an ERP of {width} columns has no normals: at least 3 are needed")
    options = {"dtype": inverse.dtype, "device": inverse.device}
    lat = ((0.5 - axis_coordinates(height, device=inverse.device)) * math.pi)[:, None]  # [h, 1]
    lon_step, lat_step = 2 * math.pi / width, math.pi / height
    strides = (lat_step / (lon_step * lat.cos())).floor().clamp(1, max(1, width // 4))  # [h, 1]
    angle = strides * lon_step
    sin_lat, cos_lat = lat.sin().to(**options), lat.cos().to(**options)

    north, known_rows = _slope(
        inverse,
        usable,
        # Rows run south, latitude north.
        shift=lambda x, sign: _shift_rows(x, -sign),
        step=math.sin(lat_step),
        curvature=(1 - math.cos(lat_step)) * inverse,
        edges=edges,
    )
    # A parallel is a small circle: its centre does not lie on the plane's great circles, and
    # `vertical` is the part of the inverse distance that stays constant along it.
    vertical = (inverse * sin_lat + north * cos_lat) * sin_lat
    east, known_columns = _slope(
        inverse,
        usable,
        shift=partial(_shift_columns, strides=strides.long()),
        step=(angle.sin() * lat.cos()).to(**options),
        curvature=(1 - angle.cos()).to(**options) * (inverse - vertical),
        edges=edges,
    )
    directions = rays("erp", (height, width), **options).movedim(-1, 0)  # [3, h, w]
    lon = ((axis_coordinates(width, device=inverse.device) - 0.5) * 2 * math.pi).to(**options)
    zero = torch.zeros_like(lon)
    to_east = torch.stack([lon.cos(), zero, -lon.sin()])[:, None]  # [3, 1, w]
    to_north = torch.stack(
        [-sin_lat * lon.sin(), (-cos_lat).expand(height, width), -sin_lat * lon.cos()]
    )
    plane = (
        inverse.unsqueeze(-3) * directions
        + east.unsqueeze(-3) * to_east
        + north.unsqueeze(-3) * to_north
    )
    return plane, known_rows & known_columns


def pinhole_gradient(
    inverse: Tensor, usable: Tensor, edges: EdgeRule, matrix: Tensor
) -> tuple[Tensor, Tensor]:
    """Give ``n / c`` of the plane ``n . P = c`` through every pixel of an inverse planar depth.

    With rho = 1/z at normalised coordinates (x, y): ``(rho_x, rho_y, rho - x rho_x - y rho_y)``.

    Args:
        inverse: (*, h, w) inverse planar depth, 0 where unknown or infinitely far.
        usable: bool (*, h, w), whether `inverse` is known.
        edges: "central" or "min" differences.
        matrix: pinhole matrix (3, 3) in pixels.

    Returns:
        Vectors (*, 3, h, w) in the RDF frame of the view and whether the neighbours are known.
    """
    flat = torch.zeros_like(inverse)
    slopes = []
    for dim, focal in ((-1, matrix[0, 0]), (-2, matrix[1, 1])):
        shift = partial(_shift_inside, dim=dim)
        slopes.append(
            _slope(inverse, usable, shift=shift, step=1 / focal, curvature=flat, edges=edges)
        )
    (along_x, known_x), (along_v, known_y) = slopes
    # One row down moves x by -skew / (f_x f_y).
    along_y = along_v + matrix[0, 1] / matrix[0, 0] * along_x
    x, y, _ = _image_coordinates(inverse, matrix)
    plane = torch.stack([along_x, along_y, inverse - x * along_x - y * along_y], -3)
    return plane, known_x & known_y


def _image_coordinates(like: Tensor, matrix: Tensor) -> tuple[Tensor, ...]:
    size = (like.shape[-2], like.shape[-1])
    pixels = rays(
        "perspective", size, K=matrix, normalize=False, dtype=like.dtype, device=like.device
    )
    return pixels.unbind(-1)


def _slope(
    inverse: Tensor,
    usable: Tensor,
    *,
    shift: Shift,
    step: Tensor | float,
    curvature: Tensor,
    edges: EdgeRule,
) -> tuple[Tensor, Tensor]:
    """Differentiate along one axis.

    Args:
        inverse: (*, h, w).
        usable: bool (*, h, w).
        shift: neighbour look-up along the axis.
        step: length of one step in the unit of the derivative; of angles, their sine.
        curvature: what a plane's value loses in one step of the sphere without changing slope.
        edges: "central" or "min".

    Returns:
        The derivative, and whether the pixel's neighbours inside the image are known and exist.
    """
    has_before, has_after = shift(usable, -1), shift(usable, 1)
    backward = inverse - shift(inverse, -1) - curvature
    forward = shift(inverse, 1) - inverse + curvature
    slope = (backward + forward) / 2
    if edges == "min":
        one_sided, disagree = _better_side(
            backward, forward, has_before & has_after, inverse * step, shift
        )
        slope = torch.where(disagree, one_sided, slope)
    slope = torch.where(has_before, slope, forward)
    slope = torch.where(has_after, slope, torch.where(has_before, backward, 0.0))
    inside = torch.ones_like(usable)
    complete = (
        (has_before | ~shift(inside, -1))
        & (has_after | ~shift(inside, 1))
        & (has_before | has_after)
    )
    return slope / step, complete


def _better_side(
    backward: Tensor, forward: Tensor, bend_known: Tensor, level: Tensor, shift: Shift
) -> tuple[Tensor, Tensor]:
    """Choose the side that stays on the pixel's surface, and say where the sides disagree.

    Across a silhouette the slope is steep, across a crease the surface is bent; the product of
    slope and bend at the next pixel is the smaller one on the pixel's own surface in both cases.
    """
    bend = forward - backward
    score = []
    for side, sign in ((backward, -1), (forward, 1)):
        next_bend = torch.where(shift(bend_known, sign), shift(bend, sign), bend)
        score.append((side * next_bend).abs())
    one_sided = torch.where(score[1] < score[0], forward, backward)
    scale = torch.maximum(torch.maximum(forward.abs(), backward.abs()), level)
    # On a curved surface both sides are equally good, and the central difference is the best one.
    is_clear = torch.minimum(*score) < torch.maximum(*score) / 2
    return one_sided, is_clear & (bend.abs() > _DISAGREEMENT * scale)


# ---- neighbours ---------------------------------------------------------------------------------


def _shift_rows(x: Tensor, sign: int) -> Tensor:
    """Next (+1) or previous (-1) row of an ERP, across the poles to the opposite meridian."""
    return extend(x, 1, -2, "erp").narrow(-2, 1 + sign, x.shape[-2])


def _shift_columns(x: Tensor, sign: int, *, strides: Tensor) -> Tensor:
    """Column `strides` (h, 1) away to the right (+1) or left (-1), with wrap."""
    width = x.shape[-1]
    columns = (torch.arange(width, device=x.device) + sign * strides) % width
    return x.gather(-1, columns.expand(x.shape))


def _shift_inside(x: Tensor, sign: int, *, dim: int) -> Tensor:
    """Next (+1) or previous (-1) pixel along `dim`, 0 or False outside the image."""
    return extend(x, 1, dim, "perspective").narrow(dim, 1 + sign, x.shape[dim])


def extend(x: Tensor, pad: int, dim: int, projection: Projection) -> Tensor:
    """Continue maps (*, H, W) by `pad` pixels on both sides of an axis (-1 columns, -2 rows).

    An ERP wraps at +-180 degrees, and row -1 - k is row k of the opposite meridian. Faces, views
    and the poles of an ERP of odd width (no opposite column) are continued by 0 or False.
    """
    height, width = x.shape[-2:]
    length = x.shape[dim]
    index = torch.arange(-pad, length + pad, device=x.device)
    if projection == "erp" and dim == -1:
        return x.index_select(-1, index % width)
    if projection == "erp" and width % 2 == 0:
        around = index % (2 * height)
        is_opposite = around >= height
        result = x.index_select(-2, torch.where(is_opposite, 2 * height - 1 - around, around))
        return torch.where(is_opposite[:, None], result.roll(width // 2, -1), result)
    padding = [pad, pad, 0, 0] if dim == -1 else [0, 0, pad, pad]
    return torch.nn.functional.pad(x, padding)


# ---- silhouettes --------------------------------------------------------------------------------


def silhouette_pairs(
    inverse: Tensor,
    usable: Tensor,
    *,
    projection: Projection = "erp",
    threshold: float = 0.01,
    reach: int = 3,
) -> tuple[Tensor, Tensor]:
    """Find the neighbouring pixels between which the surface is interrupted.

    On a plane, and across the crease of two planes, the step of inverse depth between two pixels
    lies between the steps before and after it. Across a silhouette it lies outside. A pair is
    marked where it does so by more than `threshold` times the farther pixel's inverse depth, which
    is a jump of that part of the nearer depth. The steps 1 to `reach` pixels away on both sides are
    compared, so that ramps of up to `reach` steps are found; where a step on one side is unknown
    (border of a view, hole) there is no telling a silhouette from a crease, and no mark.

    Args:
        inverse: (*, H, W) inverse depth, 0 for sky.
        usable: bool (*, H, W), whether `inverse` is known.
        projection: "erp" has neighbours across +-180 degrees and the poles.
        threshold: smallest relative jump.
        reach: how far away, in pixel steps, the surface is compared.

    Returns:
        Bool (*, H, W + 1) and (*, H + 1, W): entry k is the pair of columns (rows) k - 1 and k. The
        first and last entries are the pairs across +-180 degrees (the poles).
    """
    if threshold <= 0 or reach < 1:
        raise ValueError(
            f"threshold is {threshold} and reach {reach}: threshold must be positive and reach a "
            "positive number of pixels"
        )
    height, width = inverse.shape[-2:]
    angle = max(math.pi / height, 2 * math.pi / width) if projection == "erp" else 0.0
    columns, rows = (
        _interrupted(
            extend(inverse, reach + 1, dim, projection),
            extend(usable, reach + 1, dim, projection),
            dim,
            threshold=threshold,
            reach=reach,
            angle=angle,
        )
        for dim in (-1, -2)
    )
    return columns, rows


def _interrupted(
    value: Tensor, known: Tensor, dim: int, *, threshold: float, reach: int, angle: float
) -> Tensor:
    """Mark the interrupted pairs along `dim` of maps extended by ``reach + 1`` pixels.

    Along a circle of pixels `angle` radians apart, the steps of a plane change too: by up to
    ``reach * angle**2`` of its value and ``((reach + 1) * angle)**2 / 2`` of the step.
    """
    count = value.shape[dim] - 1
    step = value.diff(dim=dim)
    step_known = known.narrow(dim, 0, count) & known.narrow(dim, 1, count)
    farther = torch.minimum(value.narrow(dim, 0, count), value.narrow(dim, 1, count))

    def window(x: Tensor, offset: int) -> Tensor:
        return x.narrow(dim, reach + offset, count - 2 * reach)

    here = window(step, 0)
    excess = torch.zeros_like(here)
    for distance in range(1, reach + 1):
        before, after = window(step, -distance), window(step, distance)
        outside = torch.maximum(
            here - torch.maximum(before, after), torch.minimum(before, after) - here
        )
        is_judged = window(step_known, -distance) & window(step_known, distance)
        excess = torch.maximum(excess, torch.where(is_judged, outside, 0.0))
    allowed = (threshold + reach * angle**2) * window(farther, 0)
    allowed = allowed + ((reach + 1) * angle) ** 2 / 2 * here.abs()
    return (excess > allowed) & window(step_known, 0)
