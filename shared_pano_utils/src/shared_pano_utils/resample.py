"""The sampling engine: a cached map, one gather, and a short list of corrected pixels.

Every transform is `map -> sample -> fix up`. The source is sampled without padding; the few output
pixels whose taps cross the +-180 degree cut or a pole are then overwritten from a list of source
indices and weights that is cached with the map. Two back-ends give the same numbers: torch
(`grid_sample`, differentiable) and OpenCV (`remap` on interleaved channels, CPU only).
"""

import importlib
import importlib.util
import os
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ._cache import CacheInfo, Entry, MapCache
from .geometry import PixelGrid

Mode = Literal["bilinear", "nearest", "bicubic"]
Backend = Literal["auto", "torch", "cv2"]

# The extra [cv2] is optional.
cv2: Any = importlib.import_module("cv2") if importlib.util.find_spec("cv2") else None

_MODES = ("bilinear", "nearest", "bicubic")
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_CV2_DTYPES = (torch.uint8, torch.uint16, torch.float32)
_OPENCV_MAJOR = int(cv2.__version__.split(".")[0]) if cv2 else 0
_CV2_MAX_CHANNELS = 4
_CV2_MAX_SIDE = 32766

_cache = MapCache(int(float(os.environ.get("PANO_CACHE_MB", "512")) * 2**20))


def cache_info() -> CacheInfo:
    """Hits, misses, entries, bytes and byte limit of the map cache of this process."""
    return _cache.info()


def clear_cache() -> None:
    """Empty the map cache and reset its counters."""
    _cache.clear()


def set_cache_limit(limit_bytes: int) -> None:
    """Bound the map cache (default 512 MiB, or the environment variable PANO_CACHE_MB)."""
    _cache.set_limit(limit_bytes)


# ---- maps ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fixup:
    """Output pixels given as weighted sums of source pixels.

    Attributes:
        out: (n,) flat index of the output pixel.
        source: (n, K) flat indices of source pixels.
        weight: (n, K), rows sum to 1.
    """

    out: Tensor
    source: Tensor
    weight: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes held by the three tensors."""
        return self.out.nbytes + self.source.nbytes + self.weight.nbytes


@dataclass(frozen=True)
class SamplingMap:
    """Where each of the (B, h, w) output pixels reads an (H, W) source.

    Attributes:
        where: (B, h, w) int64 flat source index for "nearest"; else (B, h, w, 2) fractional
            (column, row), in [-1, 1] for the torch back-end and in pixels for OpenCV.
        mode: interpolation the map was made for.
        fixup: corrected pixels, or None.
    """

    where: Tensor
    mode: Mode
    fixup: Fixup | None

    @property
    def nbytes(self) -> int:
        """Bytes held by the map."""
        return self.where.nbytes + (self.fixup.nbytes if self.fixup else 0)


def cached_map(key: Hashable | None, build: Callable[[], Entry]) -> Entry:
    """Fetch a map from the process-wide cache, or build it there, without gradient."""
    # A tensor made in inference mode could not take part in a later backward pass.
    with torch.inference_mode(False), torch.no_grad():
        return _cache.get(key, build)


def make_map(
    column: Tensor,
    row: Tensor,
    size: tuple[int, int],
    mode: Mode,
    backend: Literal["torch", "cv2"],
    fixup: Fixup | None = None,
) -> SamplingMap:
    """Turn fractional source positions (B, h, w) in an (H, W) source into a sampling map.

    Positions beyond the border are clamped, so sources that wrap bring a `fixup` (or, for
    "nearest", wrapped columns).
    """
    h, w = size
    if mode == "nearest":
        column = (column + 0.5).floor().long().clamp(0, w - 1)
        row = (row + 0.5).floor().long().clamp(0, h - 1)
        return SamplingMap(row * w + column, mode, None)
    if backend == "torch":
        column, row = column * (2 / (w - 1)) - 1, row * (2 / (h - 1)) - 1
    return SamplingMap(torch.stack([column, row], -1), mode, fixup)


def erp_map(
    column: Tensor,
    row: Tensor,
    size: tuple[int, int],
    grid: PixelGrid,
    mode: Mode,
    backend: Literal["torch", "cv2"],
    *,
    half_columns: bool = False,
) -> SamplingMap:
    """Sampling map into an ERP: columns wrap, and rows continue across the poles.

    Beyond a pole lies the same row half a turn away ("center" registration); the legacy
    registrations have no row beyond the poles and clamp. With an odd width half a turn falls
    between two columns, whose mean is used when `half_columns` is set.

    Raises:
        ValueError: a pole is crossed, the width is odd and `half_columns` is not set.
    """
    if mode == "nearest":
        return make_map((column + 0.5) % size[1] - 0.5, row, size, mode, backend)
    fixup = _erp_fixup(column.flatten(), row.flatten(), size, grid, mode, half_columns)
    return make_map(column, row, size, mode, backend, fixup)


def _erp_fixup(
    column: Tensor,
    row: Tensor,
    size: tuple[int, int],
    grid: PixelGrid,
    mode: Mode,
    half_columns: bool,
) -> Fixup | None:
    h, w = size
    reach = 1 if mode == "bicubic" else 0
    crosses = (column < reach) | (column > w - 1 - reach) | (row < reach) | (row > h - 1 - reach)
    out = crosses.nonzero().squeeze(1)
    if len(out) == 0:
        return None
    columns, column_weight = taps(column[out], mode)
    rows, row_weight = taps(row[out], mode)
    period = w - 1 if grid == "corner" else w
    beyond = ((rows < 0) | (rows >= h)) & (grid == "center")
    if grid == "center":
        rows = torch.where(rows < 0, -1 - rows, torch.where(rows >= h, 2 * h - 1 - rows, rows))
    rows = rows.clamp(0, h - 1)[:, :, None]
    columns = (columns[:, None, :] + beyond[:, :, None] * (w // 2)) % period
    weight = row_weight[:, :, None] * column_weight[:, None, :]
    source = rows * w + columns
    if w % 2 and bool(beyond.any()):
        if not half_columns:
            raise ValueError(
                f"the ERP is {h}x{w}: the output looks across a pole, where half a turn is not a "
                "whole number of columns; resize to an even width (sample_erp accepts odd widths)"
            )
        source = torch.cat([source, rows * w + (columns + beyond[:, :, None]) % w], 1)
        weight = torch.cat([weight, weight], 1) / 2
    return Fixup(out, source.flatten(1), weight.flatten(1))


def taps(position: Tensor, mode: Mode) -> tuple[Tensor, Tensor]:
    """Integer taps (..., T) and their weights (..., T) around fractional positions (...).

    T is 2 for "bilinear" and 4 for "bicubic" (kernel with a = -0.75, as in torch and OpenCV).
    """
    base = position.detach().floor()
    f = position - base
    if mode == "bilinear":
        offsets, weight = [0, 1], [1 - f, f]
    else:
        a = -0.75
        g = 1 - f
        offsets = [-1, 0, 1, 2]
        weight = [
            a * f * g * g,
            ((a + 2) * f - (a + 3)) * f * f + 1,
            ((a + 2) * g - (a + 3)) * g * g + 1,
            a * g * f * f,
        ]
    index = base.long()[..., None] + torch.tensor(offsets, device=base.device)
    return index, torch.stack(weight, -1)


# ---- memory order and dtypes --------------------------------------------------------------------


def is_channels_last(image: Tensor) -> bool:
    """Whether the channels of (..., C, H, W) are adjacent in memory, as in NumPy images."""
    return image.dim() >= 3 and image.shape[-3] > 1 and image.stride(-3) == 1


def in_memory_order(out: Tensor, like: Tensor) -> Tensor:
    """Lay `out` (..., C, h, w) out in memory as `like`: channels last, or contiguous."""
    if is_channels_last(like):
        return out.movedim(-3, -1).contiguous().movedim(-1, -3)
    return out.contiguous()


def work_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype of coordinates and sums: float64 for float64 images, float32 for all others."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def to_dtype(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Cast results back; integers are rounded half up and clamped to their range."""
    if values.dtype == dtype:
        return values
    if dtype.is_floating_point:
        return values.to(dtype)
    return (values + 0.5).floor_().clamp_(0, torch.iinfo(dtype).max).to(dtype)


# ---- sampling -----------------------------------------------------------------------------------


def choose_backend(
    source: Tensor, out_size: tuple[int, int], mode: Mode, backend: Backend, *, grad: bool = False
) -> Literal["torch", "cv2"]:
    """Check dtype and mode, and pick the back-end for a (..., C, H, W) source.

    "auto" takes OpenCV 5 (whose float maps are exact) for CPU images of at most 4 channels in
    uint8, uint16 or float32 that need no gradient, and torch for everything else.

    Args:
        source: image as it will be sampled.
        out_size: (rows, columns) of the stacked output.
        mode: interpolation.
        backend: what the caller asked for.
        grad: whether the map itself needs a gradient.

    Raises:
        TypeError: a dtype that cannot be interpolated.
        ValueError: an unknown mode or back-end, or "cv2" where it cannot work.
    """
    if mode not in _MODES:
        raise ValueError(f"mode is {mode!r}; use 'bilinear', 'nearest' or 'bicubic'")
    if backend not in ("auto", "torch", "cv2"):
        raise ValueError(f"backend is {backend!r}; use 'auto', 'torch' or 'cv2'")
    if mode != "nearest":
        check_interpolable(source.dtype, f"mode={mode!r}")
    if backend == "torch":
        return "torch"
    needs_grad = grad or (torch.is_grad_enabled() and source.requires_grad)
    reasons = {
        "OpenCV is not installed (extra [cv2])": cv2 is None,
        f"the image is on {source.device}": source.device.type != "cpu",
        "a gradient is needed": needs_grad,
        "the caller is being compiled": torch.compiler.is_compiling(),
        f"the dtype is {source.dtype}": source.dtype not in _CV2_DTYPES,
        f"a side is above {_CV2_MAX_SIDE} pixels": max(*source.shape[-2:], *out_size)
        > _CV2_MAX_SIDE,
    }
    failed = [reason for reason, applies in reasons.items() if applies]
    if backend == "cv2":
        if failed:
            raise ValueError(f"backend='cv2' cannot be used: {failed[0]}; use backend='torch'")
        return "cv2"
    is_exact = _OPENCV_MAJOR >= 5 and source.shape[-3] <= _CV2_MAX_CHANNELS
    return "cv2" if is_exact and not failed else "torch"


def check_interpolable(dtype: torch.dtype, option: str) -> None:
    """Raise a TypeError unless values of `dtype` can be averaged and stored again."""
    if dtype not in (*_FLOATS, torch.uint8, torch.uint16):
        raise TypeError(
            f"dtype {dtype} cannot be averaged, as {option} does; use 'nearest' for labels and "
            "masks, or convert to a float dtype, uint8 or uint16"
        )


def sample(
    source: Tensor, maps: SamplingMap | Sequence[SamplingMap], backend: Literal["torch", "cv2"]
) -> Tensor:
    """Read (N, C, H, W) through one map, or one map per item: (N, B, C, h, w), same dtype."""
    if isinstance(maps, SamplingMap):
        if source.device.type != "cpu":
            return _sample_items(source, maps, backend)
        maps = [maps] * len(source)
    # On the CPU a loop over items is faster than one call, whose large temporaries page-fault.
    items = [
        _sample_items(item[None], one, backend) for item, one in zip(source, maps, strict=True)
    ]
    return torch.cat(items) if len(items) > 1 else items[0]


def write_weighted(image: Tensor, source: Tensor, fixup: Fixup) -> None:
    """Write the listed pixels of `image` (N, B, C, h, w), in place.

    `source` (N, B', C, H, W) may be `image` itself. Flat indices run over (B, h, w).
    """
    flat = source.flatten(3)
    block, pixel = fixup.source // flat.shape[3], fixup.source % flat.shape[3]
    values = flat[:, block, :, pixel].to(work_dtype(source.dtype))  # [n, K, N, C]
    values = (values * fixup.weight.to(values.dtype)[..., None, None]).sum(1)
    values = to_dtype(values, image.dtype)
    flat = image.flatten(3)
    if flat.dtype == torch.uint16:  # which torch cannot write at given indices
        flat, values = flat.view(torch.int16), values.view(torch.int16)
    flat[:, fixup.out // flat.shape[3], :, fixup.out % flat.shape[3]] = values


def _sample_items(source: Tensor, one: SamplingMap, backend: Literal["torch", "cv2"]) -> Tensor:
    """Sample (N, C, H, W), N = 1 on the CPU, giving (N, B, C, h, w)."""
    if one.mode == "nearest":
        return source.flatten(2)[..., one.where].transpose(1, 2)
    dtype = source.dtype
    if backend == "torch":
        source = source.to(work_dtype(dtype))
    out = _grid_sample(source, one) if backend == "torch" else _remap(source, one)
    if one.fixup is not None:
        write_weighted(out, source[:, None], one.fixup)
    return to_dtype(out, dtype)


def _grid_sample(source: Tensor, one: SamplingMap) -> Tensor:
    grid = one.where.to(source.dtype)
    b, h, w, _ = grid.shape
    n, c = source.shape[:2]
    options = {"mode": one.mode, "padding_mode": "border", "align_corners": True}
    if n > 1:
        out = F.grid_sample(source, grid.reshape(1, b * h, w, 2).expand(n, -1, -1, -1), **options)
        return out.view(n, c, b, h, w).transpose(1, 2)
    # The CPU kernel runs in parallel over the batch only, so rows become batch items.
    blocks = next(k for k in range(torch.get_num_threads(), 0, -1) if h % k == 0) if b == 1 else b
    grid = grid.reshape(blocks, b * h // blocks, w, 2)
    out = F.grid_sample(source.expand(blocks, -1, -1, -1), grid, **options)
    if b == 1 and blocks > 1:
        out = out.transpose(0, 1).reshape(1, c, h, w)
    return out[None]


def _remap(source: Tensor, one: SamplingMap) -> Tensor:
    b, h, w, _ = one.where.shape
    interpolation = cv2.INTER_LINEAR if one.mode == "bilinear" else cv2.INTER_CUBIC
    where = one.where.view(b * h, w, 2).numpy()

    def remap(image: Tensor) -> np.ndarray:
        pixels = np.ascontiguousarray(image.numpy())
        return cv2.remap(pixels, where, None, interpolation, borderMode=cv2.BORDER_REPLICATE)

    channels = source.shape[1]
    if channels <= _CV2_MAX_CHANNELS and is_channels_last(source):
        out = torch.from_numpy(remap(source[0].permute(1, 2, 0)))
        return out.view(1, b, h, w, channels).movedim(-1, 2)
    out = source.new_empty(1, b, channels, h, w)
    for k, plane in enumerate(source[0]):
        out[0, :, k] = torch.from_numpy(remap(plane)).view(b, h, w)
    return out
