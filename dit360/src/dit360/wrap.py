"""Position-aware wrap padding of FLUX tokens (paper section 3.3, "circular padding").

The last columns of the token grid are repeated on its left and the first ones on its right,
together with their position ids, so that the attention sees the two ends of the panorama as one
place. A copy has the content and the position of its source, therefore the two stay equal through
all blocks and all steps of the sampler.

A grid is (Hp, Wp), rows and columns of 16 x 16 pixels, always without the padding.
"""

from typing import Literal

import torch
from torch import Tensor

PadIds = Literal["source", "extended"]
PAD_IDS: tuple[PadIds, ...] = ("source", "extended")


def pad_tokens(tokens: Tensor, grid: tuple[int, int], columns: int) -> Tensor:
    """Lay `columns` columns of the other end on both sides of the grid.

    Args:
        tokens: (B, Hp*Wp, C), row by row.
        grid: (Hp, Wp).
        columns: 0..Wp.

    Returns:
        (B, Hp*(Wp + 2*columns), C).

    Raises:
        ValueError: there are not so many columns, or `tokens` do not fill the grid.

    >>> pad_tokens(torch.arange(4).view(1, 4, 1), (1, 4), 1).flatten().tolist()
    [3, 0, 1, 2, 3, 0]
    """
    _check(tokens, grid, columns, padded=False)
    return _wrap(tokens.unflatten(-2, grid), columns).flatten(-3, -2)


def crop_tokens(tokens: Tensor, grid: tuple[int, int], columns: int) -> Tensor:
    """Undo `pad_tokens`: (B, Hp*(Wp + 2*columns), C) to (B, Hp*Wp, C); same arguments.

    Raises:
        ValueError: as `pad_tokens`.
    """
    _check(tokens, grid, columns, padded=True)
    height, width = grid
    rows = tokens.unflatten(-2, (height, width + 2 * columns))
    return rows[..., columns : columns + width, :].flatten(-3, -2)


def pad_ids(ids: Tensor, grid: tuple[int, int], columns: int, mode: PadIds = "source") -> Tensor:
    """Position ids of padded tokens.

    Args:
        ids: (Hp*Wp, 3) with (0, row, column).
        grid: (Hp, Wp).
        columns: 0..Wp.
        mode: "source": a copy keeps the column number of its source, as the released weights were
            trained; "extended": the columns are numbered on, -columns .. Wp + columns - 1, which
            makes the two ends neighbours.

    Returns:
        (Hp*(Wp + 2*columns), 3).

    Raises:
        ValueError: as `pad_tokens`, or `mode` is unknown.
    """
    _check(ids, grid, columns, padded=False)
    if mode not in PAD_IDS:
        raise ValueError(f"pad_ids is {mode!r}; use one of {', '.join(PAD_IDS)}")
    padded = _wrap(ids.unflatten(-2, grid), columns)
    if mode == "extended":
        numbers = torch.arange(-columns, grid[1] + columns, device=ids.device, dtype=ids.dtype)
        padded[..., 2] = numbers
    return padded.flatten(-3, -2)


def _wrap(rows: Tensor, columns: int) -> Tensor:
    """(..., Hp, Wp, C) to (..., Hp, Wp + 2*columns, C), a new tensor."""
    width = rows.shape[-2]
    return torch.cat([rows[..., width - columns :, :], rows, rows[..., :columns, :]], -2)


def _check(tokens: Tensor, grid: tuple[int, int], columns: int, *, padded: bool) -> None:
    height, width = grid
    if not 0 <= columns <= width:
        raise ValueError(
            f"cannot wrap {columns} columns around a grid of {width}; use 0 to {width} (padding_n)"
        )
    expected = height * (width + 2 * columns * padded)
    if tokens.shape[-2] != expected:
        raise ValueError(
            f"there are {tokens.shape[-2]} tokens, expected {expected} for a grid of "
            f"{height}x{width} with {columns * padded} columns on each side"
        )
