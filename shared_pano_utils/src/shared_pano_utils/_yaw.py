"""Pure yaw: a panorama shifted along its rows, exactly or by one-dimensional interpolation."""

import math

import torch
from torch import Tensor

from .geometry import Registration
from .resample import Mode, taps, to_dtype, work_dtype


def yaw_columns(rotation: Tensor, width: int, reg: Registration) -> float | None:
    """Columns by which a pure yaw shifts, None for any other rotation."""
    if rotation.dim() > 3 or rotation.requires_grad:
        return None
    R = rotation[0]
    if R[[0, 1, 1, 2], [1, 0, 2, 1]].abs().max() > 1e-9:
        return None
    columns = math.atan2(R[0, 2].item(), R[2, 2].item()) / (2 * math.pi) * width
    columns = round(columns) if abs(columns - round(columns)) < 1e-6 else columns
    # With corner registration the first and last column coincide: only identity is a roll.
    return None if reg.erp == "corner" and columns != 0 else columns


def shifted(image: Tensor, columns: float, mode: Mode) -> Tensor:
    """Shift the content left; whole columns are moved exactly, in any dtype."""
    if columns == round(columns) or mode == "nearest":
        return _rolled(image, math.floor(columns + 0.5))
    index, weight = (t.tolist() for t in taps(torch.tensor(columns, dtype=torch.float64), mode))
    source = image.to(work_dtype(image.dtype))
    out = _rolled(source, index[0])
    if mode == "bilinear":
        for part, shown in _halves(source.shape[-1], index[1]):
            out[..., part].lerp_(source[..., shown], weight[1])
    else:
        out *= weight[0]
        for k, factor in zip(index[1:], weight[1:], strict=True):
            for part, shown in _halves(source.shape[-1], k):
                out[..., part].add_(source[..., shown], alpha=factor)
    return to_dtype(out, image.dtype)


def _rolled(image: Tensor, columns: int) -> Tensor:
    """Shift the content left by whole columns, keeping the memory order."""
    out = torch.empty_like(image)
    for part, shown in _halves(image.shape[-1], columns):
        out[..., part] = image[..., shown]
    return out


def _halves(width: int, columns: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Where the two parts of a row shifted left by `columns` are written and read."""
    k = columns % width
    return (slice(0, width - k), slice(k, width)), (slice(width - k, width), slice(0, k))


def fourier_shifted(image: Tensor, columns: float) -> Tensor:
    """Shift the content left by phase: the spectrum along a row keeps its magnitude."""
    width = image.shape[-1]
    spectrum = torch.fft.rfft(image.to(work_dtype(image.dtype)), dim=-1)
    turns = torch.arange(spectrum.shape[-1], dtype=torch.float64, device=image.device) / width
    phase = torch.polar(torch.ones_like(turns), 2 * math.pi * columns * turns)
    if width % 2 == 0:  # the Nyquist bin has no phase of its own
        phase[-1] = math.cos(math.pi * columns)
    out = torch.fft.irfft(spectrum * phase.to(spectrum.dtype), n=width, dim=-1)
    return to_dtype(out, image.dtype)
