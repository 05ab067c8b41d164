"""The three map builders behind the transforms, with antialiasing and per-image rotations.

All work on tensors: `views_from_erp`, `erp_from_cube`, `erp_from_views`, `erp_from_erp`.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ._maps import (
    Directions,
    by_rows,
    erp_directions,
    locate_in_cube,
    locate_in_erp,
    locate_in_view,
    view_directions,
)
from .geometry import CENTER, PixelGrid, Registration
from .padding import cube_ring, fill_padded
from .resample import (
    Backend,
    Mode,
    SamplingMap,
    cached_map,
    check_interpolable,
    choose_backend,
    erp_map,
    is_channels_last,
    make_map,
    sample,
    to_dtype,
    work_dtype,
)
from .views import Cameras, Pose

Kind = Literal["torch", "cv2"]


@dataclass(frozen=True)
class Options:
    """Arguments that all transforms pass on."""

    mode: Mode = "bilinear"
    antialias: bool | int = False
    reg: Registration = CENTER
    backend: Backend = "auto"


def views_from_erp(erp: Tensor, cameras: Cameras, options: Options) -> Tensor:
    """Render B pinhole views of panoramas (*, C, H, W): (*, B, C, h, w)."""
    h, w = erp.shape[-2:]
    focal_x, focal_y = cameras.K.detach()[:, [0, 1], [0, 1]].amin(0).tolist()
    ratio = max(w / (2 * math.pi * focal_x), h / (math.pi * focal_y))
    n, reduction = _antialias_plan(options, ratio)
    source, lead = _batched(erp, 3)
    source, dtype = _prefiltered(source, n, reduction, even_width=True), erp.dtype
    size = (source.shape[-2], source.shape[-1])
    cameras = cameras.scaled(n)
    reg = options.reg

    def build(R: Tensor, kind: Kind) -> SamplingMap:
        K = cameras.K.to(R)
        rays = view_directions(R, K, cameras.size, reg.view, work_dtype(source.dtype))
        column, row = locate_in_erp(rays, size, reg.erp)
        return erp_map(column, row, size, reg.erp, options.mode, kind)

    key = cameras.key and ("views_from_erp", size, cameras.size, reg, cameras.key)
    job = _Job(options, key, cameras.rotation, build, needs_grad=cameras.K.requires_grad)
    count = len(cameras.K)
    out = job.run(source, lead, (count * cameras.size[0], cameras.size[1]))
    out = to_dtype(_box_averaged(out, n), dtype)
    return out.reshape(*lead, *out.shape[1:])


def erp_from_erp(erp: Tensor, pose: Pose, options: Options) -> Tensor:
    """Turn panoramas (*, C, H, W) by any rotation."""
    source, lead = _batched(erp, 3)
    size = (source.shape[-2], source.shape[-1])
    grid = options.reg.erp

    def build(R: Tensor, kind: Kind) -> SamplingMap:
        rays = erp_directions(R[0], size, grid, work_dtype(source.dtype))
        return erp_map(*locate_in_erp(rays, size, grid), size, grid, options.mode, kind)

    key = pose.key and ("erp_from_erp", size, grid, pose.key)
    return _Job(options, key, pose.single, build).run(source, lead, size).reshape(erp.shape)


def erp_from_cube(
    faces: Tensor, size: tuple[int, int], tangent: float, pose: Pose, options: Options
) -> Tensor:
    """Assemble a panorama (*, C, H, W) from faces (*, 6, C, S, S), each showing its central 90."""
    pitch = 2 * tangent / faces.shape[-1]  # of a face pixel at the centre, radian
    n, reduction = _antialias_plan(options, math.pi / pitch * max(2 / size[1], 1 / size[0]))
    dtype = faces.dtype
    source, lead = _batched(faces, 4)
    source = _prefiltered(source, n, reduction)
    side = source.shape[-1]
    out_size = (n * size[0], n * size[1])
    reg, mode = options.reg, options.mode
    pad = _taps_beyond(side, tangent, reg.view, mode)
    wide = side + 2 * pad

    def build(R: Tensor, kind: Kind) -> SamplingMap:
        rays = erp_directions(R[0], out_size, reg.erp, work_dtype(source.dtype))
        return make_map(*locate(rays), (6 * wide, wide), mode, kind)

    @by_rows
    def locate(rays: Directions) -> tuple[Tensor, Tensor]:
        face, column, row = locate_in_cube(rays, side, tangent, reg.view)
        if mode == "nearest":  # stay on the face
            column, row = ((p + 0.5).floor().clamp(0, side - 1) for p in (column, row))
        return column + pad, row + (face * wide + pad)

    key = pose.key and ("erp_from_cube", side, out_size, tangent, reg, pose.key)
    tall = _tall(source, pad, tangent, reg.view)
    job = _Job(options, key, pose.single, build)
    out = to_dtype(_box_averaged(job.run(tall, lead, out_size), n), dtype)
    return out.reshape(*lead, *out.shape[2:])


def _taps_beyond(side: int, tangent: float, grid: PixelGrid, mode: Mode) -> int:
    """Width of the border that interpolation inside the central 90 degrees of a face needs."""
    if mode == "nearest":
        return 0
    last = {"center": side - 0.5, "corner": side - 1.0, "edge": float(side)}[grid]
    first = -0.5 if grid == "center" else 0.0
    margin = (last - first) / 2 * (1 - 1 / tangent)  # pixels outside of the central 90 degrees
    reach = 1 if mode == "bicubic" else 0
    needed = max(-math.floor(first + margin), math.ceil(last - margin) - (side - 1))
    return max(0, needed + reach)


def _tall(faces: Tensor, pad: int, tangent: float, grid: PixelGrid) -> Tensor:
    """Stack faces (N, 6, C, S, S) with `pad` border pixels into (N, C, 6 P, P) images."""
    if pad == 0:
        return faces.transpose(1, 2).flatten(2, 3)
    n, _, c, side, _ = faces.shape
    wide = side + 2 * pad
    if is_channels_last(faces):
        padded = faces.new_empty(n, 6, wide, wide, c).movedim(-1, 2)
    else:
        padded = faces.new_empty(n, c, 6, wide, wide).transpose(1, 2)
    ring = cube_ring(side, pad, tangent, grid, "resample", faces.device)
    fill_padded(padded, faces, ring)
    return padded.transpose(1, 2).flatten(2, 3)


# ---- views to panorama --------------------------------------------------------------------------


@dataclass(frozen=True)
class _ViewMap:
    map: SamplingMap
    weight: Tensor  # (1, H, W), feather weight, 0 outside of the view

    @property
    def nbytes(self) -> int:
        return self.map.nbytes + self.weight.nbytes


def erp_from_views(
    images: Tensor,
    cameras: Cameras,
    size: tuple[int, int],
    blend: str,
    fill: float,
    options: Options,
) -> tuple[Tensor, Tensor]:
    """Merge views (*, V, C, h, w) into panoramas (*, C, H, W) and weights (*, 1, H, W)."""
    source, lead = _batched(images, 4)
    rotation = None if cameras.key is not None else cameras.rotation()
    if rotation is not None and rotation.dim() > 3:
        rotation = per_image(rotation, lead)
    needs_grad = cameras.K.requires_grad or (rotation is not None and rotation.requires_grad)
    kind = choose_backend(source, size, options.mode, options.backend, grad=needs_grad)
    dtype, device = work_dtype(source.dtype), source.device

    def build(R: Tensor, v: int) -> _ViewMap:
        rays = erp_directions(R[v].mT.to(device), size, options.reg.erp, dtype)
        column, row, weight = locate_in_view(rays, cameras.K[v], cameras.size, options.reg.view)
        return _ViewMap(make_map(column, row, cameras.size, options.mode, kind), weight)

    merge = _Merge(blend, source.dtype)
    for v in range(source.shape[1]):
        if rotation is None:
            key = ("erp_from_views", size, cameras.size, options, kind, dtype, str(device), v)
            views = [cached_map((*key, cameras.key), lambda v=v: build(cameras.rotation(), v))]
        else:
            per_item = rotation[None] if rotation.dim() == 3 else rotation
            views = [build(R, v) for R in per_item]
        maps = views[0].map if len(views) == 1 else [view.map for view in views]
        weight = torch.stack([view.weight for view in views])
        merge.add(sample(source[:, v], maps, kind)[:, 0], weight)
    out, weight = merge.result(fill)
    weight = weight.expand(len(source), -1, -1, -1).contiguous()
    return out.reshape(*lead, *out.shape[1:]), weight.reshape(*lead, *weight.shape[1:])


class _Merge:
    """Running combination of views: weighted mean, or one chosen view per pixel."""

    def __init__(self, blend: str, dtype: torch.dtype) -> None:
        self._blend = blend
        self._dtype = dtype
        self._is_mean = blend in ("feather", "mean")
        if self._is_mean:
            check_interpolable(dtype, f"blend={blend}")
        self._image: Tensor | None = None
        self._weight: Tensor | None = None

    def add(self, image: Tensor, weight: Tensor) -> None:
        """Take in one view: image (N, C, H, W), feather weight (N or 1, 1, H, W)."""
        if self._blend in ("mean", "none"):
            weight = (weight > 0).to(weight.dtype)
        if self._is_mean:
            image = image.to(weight.dtype) * weight
        if self._image is None or self._weight is None:
            self._image, self._weight = image, weight
        elif self._is_mean:
            self._image, self._weight = self._image + image, self._weight + weight
        else:
            better = weight > self._weight
            self._image = torch.where(better, image, self._image)
            self._weight = torch.where(better, weight, self._weight)

    def result(self, fill: float) -> tuple[Tensor, Tensor]:
        """Merged image (N, C, H, W) with `fill` where no view looks, and its weight."""
        image, weight = self._image, self._weight
        if image is None or weight is None:
            raise ValueError("there are no views to merge; pass at least one")
        covered = weight > 0
        if self._is_mean:
            image = to_dtype(image / torch.where(covered, weight, 1.0), self._dtype)
        return torch.where(
            covered, image, torch.tensor(fill, device=image.device).to(image)
        ), weight


# ---- running a map ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Job:
    """One sampling: how its map is built, and under which key it is cached."""

    options: Options
    key: Hashable | None
    rotation: Callable[[], Tensor]
    build: Callable[[Tensor, Kind], SamplingMap]
    needs_grad: bool = False

    def run(self, source: Tensor, lead: Sequence[int], out_size: tuple[int, ...]) -> Tensor:
        """Sample (N, C, H, W): (N, B, C, h, w)."""
        options = self.options
        R = None if self.key is not None else self.rotation().to(source.device)
        needs_grad = self.needs_grad or (R is not None and R.requires_grad)
        kind = choose_backend(
            source, (out_size[0], out_size[1]), options.mode, options.backend, grad=needs_grad
        )
        if R is None:
            key = (self.key, options.mode, kind, work_dtype(source.dtype), str(source.device))
            maps = cached_map(key, lambda: self.build(self.rotation().to(source.device), kind))
        elif R.dim() == 3:
            maps = self.build(R, kind)
        else:
            maps = [self.build(one, kind) for one in per_image(R, lead)]
        return sample(source, maps, kind)


def per_image(R: Tensor, lead: Sequence[int]) -> Tensor:
    """Expand rotations (*, B, 3, 3) to one set per image, (N, B, 3, 3)."""
    try:
        return R.expand(*lead, *R.shape[-3:]).reshape(-1, *R.shape[-3:])
    except RuntimeError:
        raise ValueError(
            f"R has leading dimensions {tuple(R.shape[:-3])}, the images have {tuple(lead)}; "
            "pass one rotation per image, or a single 3x3 matrix"
        ) from None


def _batched(image: Tensor, rank: int) -> tuple[Tensor, Sequence[int]]:
    lead = image.shape[:-rank]
    return image.reshape(-1, *image.shape[-rank:]), lead


# ---- antialiasing -------------------------------------------------------------------------------


def _antialias_plan(options: Options, ratio: float) -> tuple[int, int]:
    """Samples per output pixel and axis, and the factor by which the source is reduced first.

    `ratio` is the pitch of output pixels over that of input pixels at the view centre.
    """
    if options.antialias is False or options.mode == "nearest":
        return 1, 1
    if options.reg != CENTER:
        raise ValueError(
            f"antialias with reg={options.reg} is undefined; use the centre registration or "
            "antialias=False"
        )
    if options.antialias is not True:
        if options.antialias < 1:
            raise ValueError(
                f"antialias is {options.antialias}; use True, False or an integer >= 1"
            )
        return options.antialias, 1
    reduction = 2 ** math.floor(math.log2(ratio / 4)) if ratio > 4 else 1
    return min(4, math.ceil(ratio / reduction - 1e-6)) or 1, reduction


def _prefiltered(source: Tensor, n: int, reduction: int, *, even_width: bool = False) -> Tensor:
    """Averaging happens in floats; very fine sources are area-reduced beforehand."""
    if n > 1:
        source = source.to(work_dtype(source.dtype))
    if reduction == 1:
        return source
    step = 2 if even_width else 1
    h, w = source.shape[-2:]
    size = (max(2, round(h / reduction)), max(2, step * round(w / reduction / step)))
    reduced = F.adaptive_avg_pool2d(source.reshape(-1, 1, h, w), size)
    return reduced.reshape(*source.shape[:-2], *size)


def _box_averaged(out: Tensor, n: int) -> Tensor:
    if n == 1:
        return out
    h, w = out.shape[-2:]
    pooled = F.avg_pool2d(out.reshape(-1, 1, h, w), n)
    return pooled.reshape(*out.shape[:-2], h // n, w // n)
