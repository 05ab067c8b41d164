"""Array adapter: NumPy channel-last and torch channel-first in, the same kind out.

Every public function works on a torch tensor `(..., C, H, W)` inside and hands its result to the
`restore` callable made here, so the rules about layout and rank are written down once.
"""

from collections.abc import Callable
from typing import Literal, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

Array = Tensor | np.ndarray
# For functions that return the kind of array they are given.
ArrayT = TypeVar("ArrayT", bound=Array)
Layout = Literal["chw", "hwc"]
Restore = Callable[[Tensor], Array]

_NUMPY_DTYPES = "float16, float32, float64, uint8, uint16, int8 to int64 and bool"
_MAX_IMAGE_CHANNELS = 4
_MIN_IMAGE_WIDTH = 17


def to_torch(
    array: ArrayT, layout: Layout | None = None, *, cube: bool = False, name: str = "image"
) -> tuple[Tensor, Callable[[Tensor], ArrayT]]:
    """Give the array as a channel-first tensor and a callable that undoes the change.

    NumPy arrays are `(H, W)` or `(..., H, W, C)`, tensors `(H, W)` or `(..., C, H, W)`; `layout`
    overrides the channel position. Cubemaps carry their six faces in front of these axes. Memory
    is shared with the input where NumPy's strides and flags allow it.

    Args:
        array: `torch.Tensor` or `numpy.ndarray` of any float, integer or bool dtype.
        layout: `"chw"`, `"hwc"` or None for the rule of the kind of array.
        cube: whether the array must be a cubemap of six square faces.
        name: what error messages call the array.

    Returns:
        The tensor `(..., C, H, W)`, or `(..., 6, C, S, S)` for a cubemap, with its dtype unchanged,
        and `restore(result)`, which takes a tensor `(..., C', H', W')` of any dtype and number of
        leading axes back to the kind, channel position and (for an input without a channel axis
        and a result of one channel) rank of the input. The dtype of `result` is kept.

    Raises:
        TypeError: Not a tensor or array, or of a dtype without a torch counterpart.
        ValueError: Unknown layout, too few axes, a side below two pixels, a NumPy array that looks
            channel-first, or a cubemap without six square faces.

    >>> tensor, restore = to_torch(np.zeros((4, 8, 3), np.uint8))
    >>> tuple(tensor.shape), restore(tensor[:, :2]).shape
    ((3, 4, 8), (2, 8, 3))
    """
    if layout not in (None, "chw", "hwc"):
        raise ValueError(f"layout={layout!r} is unknown: use 'chw', 'hwc' or None")
    tensor, is_numpy = _wrap(array, name)
    is_hwc = layout == "hwc" or (layout is None and is_numpy)
    has_channels = _check_rank(tensor, cube=cube, name=name)
    if is_numpy and layout is None and has_channels:
        _refuse_channel_first(tensor, name)
    if not has_channels:
        tensor = tensor.unsqueeze(-3)
    elif is_hwc:
        tensor = tensor.movedim(-1, -3)
    _check_sides(tensor, array, cube=cube, name=name)

    def restore(result: Tensor) -> ArrayT:
        if not has_channels and result.shape[-3] == 1:
            result = result.squeeze(-3)
        elif is_hwc:
            result = result.movedim(-3, -1)
        return cast(ArrayT, result.detach().cpu().numpy() if is_numpy else result)

    return tensor, restore


def _wrap(array: Array, name: str) -> tuple[Tensor, bool]:
    if isinstance(array, Tensor):
        return array, False
    if not isinstance(array, np.ndarray):
        raise TypeError(
            f"{name} is a {type(array).__name__}: pass a torch.Tensor or a numpy.ndarray "
            "(for a PIL image: numpy.asarray(image))"
        )
    if array.dtype.kind not in "fiub" or array.dtype.itemsize > 8:
        raise TypeError(
            f"{name} has dtype {array.dtype}: allowed are {_NUMPY_DTYPES}; convert it with .astype"
        )
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    # torch can express neither negative strides nor read-only memory.
    if not array.flags.writeable or any(stride < 0 for stride in array.strides):
        array = array.copy()
    return torch.from_numpy(array), True


def _check_rank(tensor: Tensor, *, cube: bool, name: str) -> bool:
    """Return whether the array has a channel axis; raise if it has too few axes."""
    plain_rank = 3 if cube else 2
    if tensor.ndim < plain_rank:
        expected = "(6, S, S) or more axes" if cube else "(H, W) or more axes"
        raise ValueError(
            f"{name} has shape {tuple(tensor.shape)}: expected {expected}; add the missing axes"
        )
    return tensor.ndim > plain_rank


def _refuse_channel_first(tensor: Tensor, name: str) -> None:
    height, _, channels = tensor.shape[-3:]
    if height <= _MAX_IMAGE_CHANNELS and channels >= _MIN_IMAGE_WIDTH:
        raise ValueError(
            f"{name} has shape {tuple(tensor.shape)} and looks channel-first: NumPy arrays are "
            "(..., H, W, C) here; pass layout='chw' (or a torch tensor) for (..., C, H, W)"
        )


def _check_sides(tensor: Tensor, array: Array, *, cube: bool, name: str) -> None:
    height, width = tensor.shape[-2:]
    if height < 2 or width < 2:
        raise ValueError(
            f"{name} has shape {tuple(array.shape)}, read as {height} rows and {width} columns: "
            "at least 2 of each are needed; check the layout argument"
        )
    if cube and (tensor.shape[-4] != 6 or height != width):
        raise ValueError(
            f"{name} has shape {tuple(array.shape)}, read as {tensor.shape[-4]} faces of "
            f"{height} x {width} pixels: expected 6 square faces in the order F R B L U D; "
            "use convert_cube_layout for other arrangements"
        )
