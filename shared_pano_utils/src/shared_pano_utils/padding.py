"""Padding of panoramas and cubemaps with what really lies beyond their borders."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ._arrays import Array, to_torch
from .geometry import (
    FACE_AXES,
    PixelGrid,
    axis_coordinates,
    border_to_index,
    face_tangent,
    face_to_xyz,
    index_to_border,
    xyz_to_face,
)
from .resample import (
    Fixup,
    cached_map,
    check_interpolable,
    is_channels_last,
    taps,
    write_weighted,
)


def pad_erp(
    x: Array,
    pad: int | tuple[int, int, int, int],
    *,
    poles: Literal["shift", "replicate", "zeros"] = "shift",
) -> Array:
    """Pad a panorama: columns wrap around, rows continue beyond the poles.

    Args:
        x: (*, C, H, W), any dtype.
        pad: pixels on all sides, or (left, right, top, bottom).
        poles: what lies above the top and below the bottom row: "shift" is the same rows seen half
            a turn away (needs an even W), "replicate" repeats the border row, "zeros" is 0.

    Returns:
        (*, C, H + top + bottom, W + left + right).

    >>> pad_erp(torch.tensor([[0, 1, 2, 3], [4, 5, 6, 7]]), 1)[0].tolist()
    [1, 2, 3, 0, 1, 2]
    """
    image, restore = to_torch(x)
    sides = (pad,) * 4 if isinstance(pad, int) else pad
    if not isinstance(sides, Sequence) or len(sides) != 4:
        raise TypeError(f"pad is {pad!r}; use a whole number or (left, right, top, bottom)")
    left, right, top, bottom = sides
    h, w = image.shape[-2:]
    if min(left, right, top, bottom) < 0 or max(left, right) > w or max(top, bottom) > h:
        raise ValueError(
            f"pad is {pad} for a {h}x{w} panorama; allowed are 0 to W columns and 0 to H rows"
        )
    if poles not in ("shift", "replicate", "zeros"):
        raise ValueError(f"poles is {poles!r}; use 'shift', 'replicate' or 'zeros'")
    if poles == "shift" and w % 2 and (top or bottom):
        raise ValueError(
            f"the panorama is {h}x{w}: poles='shift' needs an even width; resize it, or use "
            "poles='replicate' or 'zeros'"
        )
    rows = torch.arange(-top, h + bottom, device=image.device)
    columns = torch.arange(-left, w + right, device=image.device) % w
    if poles == "shift":
        beyond = (rows < 0) | (rows >= h)
        rows = torch.where(rows < 0, -1 - rows, torch.where(rows >= h, 2 * h - 1 - rows, rows))
        columns = (columns + beyond[:, None] * (w // 2)) % w
        return restore(image[..., rows[:, None], columns])
    padded = image[..., rows.clamp(0, h - 1)[:, None], columns]
    if poles == "zeros":
        padded[..., :top, :].zero_()
        padded[..., top + h :, :].zero_()
    return restore(padded)


def pad_cubemap(
    cube: Array, pad: int, *, mode: Literal["resample", "copy"] = "resample", fov: float = 90.0
) -> Array:
    """Pad every cube face with what its neighbours show.

    Args:
        cube: (*, 6, C, S, S), faces F R B L U D.
        pad: pixels on each side, 1 to S.
        mode: "resample" looks each new pixel's ray up on the neighbour (bilinear); "copy" takes the
            neighbour's pixels as they are, without the tangential shrink (corners are the mean of
            the two adjacent strips).
        fov: degrees covered by a face.

    Returns:
        (*, 6, C, S + 2 pad, S + 2 pad).
    """
    faces, restore = to_torch(cube, cube=True, name="cube")
    side = faces.shape[-1]
    if not 1 <= pad <= side:
        raise ValueError(f"pad is {pad} for faces of {side} pixels; allowed are 1 to {side}")
    if mode not in ("resample", "copy"):
        raise ValueError(f"mode is {mode!r}; use 'resample' or 'copy'")
    check_interpolable(faces.dtype, f"mode={mode!r}")
    ring = cube_ring(side, pad, face_tangent(fov), "center", mode, faces.device)
    lead = faces.shape[:-4]
    faces = faces.reshape(-1, *faces.shape[-4:])
    n, _, c = faces.shape[:3]
    wide = side + 2 * pad
    if is_channels_last(faces):
        padded = faces.new_empty(n, 6, wide, wide, c).movedim(-1, 2)
    else:
        padded = faces.new_empty(n, 6, c, wide, wide)
    fill_padded(padded, faces, ring)
    return restore(padded.reshape(*lead, *padded.shape[1:]))


@dataclass(frozen=True)
class Ring:
    """Pixels around every face as weighted sums of face pixels, as indices of (6, P, P).

    Attributes:
        parts: lists with different numbers of sources per pixel; together they cover the ring.
    """

    parts: tuple[Fixup, ...]

    @property
    def nbytes(self) -> int:
        """Bytes held by the lists."""
        return sum(part.nbytes for part in self.parts)


def fill_padded(padded: Tensor, faces: Tensor, ring: Ring) -> None:
    """Write faces (N, 6, C, S, S) and their ring into `padded` (N, 6, C, P, P), in place."""
    pad = (padded.shape[-1] - faces.shape[-1]) // 2
    padded[..., pad:-pad, pad:-pad] = faces
    for part in ring.parts:
        write_weighted(padded, padded, part)


def cube_ring(
    side: int,
    pad: int,
    tangent: float,
    grid: PixelGrid,
    mode: Literal["resample", "copy"],
    device: torch.device,
) -> Ring:
    """Find (or fetch from the map cache) what `pad` pixels around every face show."""

    def build() -> Ring:
        index = torch.arange(-pad, side + pad, device=device)
        outside = (index < 0) | (index >= side)
        row, column = (outside[:, None] | outside).nonzero().unbind(1)
        at = torch.stack([column, row], -1).repeat(6, 1) - pad  # [n, 2]
        face = torch.arange(6, device=device).repeat_interleave(len(row))
        if mode == "copy":
            plain, mixed, is_mixed = _copied(face, at, side)
        else:
            plain, mixed, is_mixed = _resampled(face, at, side, tangent, grid)
        wide = side + 2 * pad

        def flat(face: Tensor, column: Tensor, row: Tensor) -> Tensor:
            return (face * wide + row + pad) * wide + column + pad

        out = flat(face, *at.unbind(-1))
        parts = ((plain, ~is_mixed), (mixed, is_mixed))
        return Ring(tuple(Fixup(out[m], flat(*p.position)[m], p.weight[m]) for p, m in parts))

    return cached_map(("ring", side, pad, tangent, grid, mode, str(device)), build)


class _Sources(NamedTuple):
    """K face pixels per ring pixel: (face, column, row), each (n, K), and weights (n, K)."""

    position: tuple[Tensor, Tensor, Tensor]
    weight: Tensor


def _joined(parts: Sequence[_Sources], shares: Sequence[Tensor | float]) -> _Sources:
    face, column, row = (
        torch.cat(axis, 1) for axis in zip(*(part.position for part in parts), strict=True)
    )
    weights = [part.weight * share for part, share in zip(parts, shares, strict=True)]
    return _Sources((face, column, row), torch.cat(weights, 1))


def _resampled(
    face: Tensor, at: Tensor, side: int, tangent: float, grid: PixelGrid
) -> tuple[_Sources, _Sources, Tensor]:
    """Bilinear look-up of each pixel's ray on the face that it meets.

    Behind the corners of the cube the ray falls between the outermost pixels of two faces. There
    each of the two is continued by one step of the other, and the mean of both is taken.

    Returns:
        Sources of the pixels that meet one face, of those between two, and the mask (n,) of these.
    """
    uv = (2 * index_to_border(at.double(), side, grid) - 1) * tangent
    ray = face_to_xyz(face, uv)
    axes = FACE_AXES.to(ray)
    parts, shares, masks = [], [], []
    for met in (ray @ axes[:, 2].T).topk(2, -1).indices.unbind(-1):
        right, down, depth = (axes[met] @ ray[..., None]).squeeze(-1).unbind(-1)
        uv = torch.stack([right, down], -1) / depth[:, None]
        position = border_to_index(uv / tangent / 2 + 0.5, side, grid)
        inner = position.clamp(0, side - 1)
        beyond = position - inner
        # Next to an edge the shrink moves rays by 1/(2S) pixels beyond: that is clamped.
        step = torch.where(beyond.abs() > 0.25, beyond.sign(), 0.0)
        share = (beyond * step).amax(-1, keepdim=True)
        masks.append(share[:, 0] > 0)
        parts += [_look_up(met, p, side, tangent, grid) for p in (inner, inner + step)]
        shares += [(1 - share) / 2, share / 2]
    return parts[0], _joined(parts, shares), masks[0]


def _look_up(face: Tensor, at: Tensor, side: int, tangent: float, grid: PixelGrid) -> _Sources:
    """The four face pixels around what lies at position `at` (n, 2) of the plane of `face` (n,)."""
    uv = (2 * index_to_border(at, side, grid) - 1) * tangent
    met, uv = xyz_to_face(face_to_xyz(face, uv))
    position = border_to_index(uv / tangent / 2 + 0.5, side, grid)
    index, weight = taps(position.clamp(0, side - 1), "bilinear")  # [n, 2 axes, 2 taps]
    index = index.clamp(max=side - 1)
    columns = index[:, 0, None, :].expand(-1, 2, -1).flatten(1)
    rows = index[:, 1, :, None].expand(-1, -1, 2).flatten(1)
    weight = (weight[:, 1, :, None] * weight[:, 0, None, :]).flatten(1)
    return _Sources((met[:, None].expand_as(rows), columns, rows), weight)


def _copied(face: Tensor, at: Tensor, side: int) -> tuple[_Sources, _Sources, Tensor]:
    """The neighbour's pixel; behind a corner, the ends of the two strips beside it."""
    inner = at.clamp(0, side - 1)
    beside = torch.stack([at[:, 0], inner[:, 1]], -1)
    above = torch.stack([inner[:, 0], at[:, 1]], -1)
    is_beside, is_above = (at != inner).unbind(-1)
    first = _strip_source(face, torch.where(is_beside[:, None], beside, above), side)
    second = _strip_source(face, torch.where(is_above[:, None], above, beside), side)
    return first, _joined([first, second], [0.5, 0.5]), is_beside & is_above


def _strip_source(face: Tensor, at: Tensor, side: int) -> _Sources:
    """The face pixel as far behind the shared edge as `at` (n, 2) is beyond it."""
    inner = at.clamp(0, side - 1)
    depth = (at - inner).abs().amax(-1, keepdim=True)  # 1 for the row next to the edge
    uv = 2 * axis_coordinates(side, device=at.device)[inner] - 1
    # A point just beyond the edge, at the tangential coordinate of the pixel.
    uv = torch.where(at == inner, uv, uv.sign() * (1 + 1e-6))
    met, uv = xyz_to_face(face_to_xyz(face, uv))
    on_edge = uv.abs() > 1 - 1e-5
    along = border_to_index(uv / 2 + 0.5, side, "center").round().long()
    column, row = torch.where(on_edge, torch.where(uv > 0, side - depth, depth - 1), along).split(
        1, -1
    )
    return _Sources((met[:, None], column, row), torch.ones_like(depth, dtype=torch.float64))
