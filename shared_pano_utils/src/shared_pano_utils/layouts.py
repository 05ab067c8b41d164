"""Cubemap layouts of other tools: face order, face orientation and arrangement in images."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor

from ._arrays import Array, Restore, to_torch
from .geometry import FACE_NAMES
from .resample import in_memory_order

Container = Literal["stack", "list", "dict", "names", "horizon", "dice", "dice_genex"]
Cube = Array | Sequence[Array] | Mapping[str, Array]

_CONTAINERS = ("stack", "list", "dict", "names", "horizon", "dice", "dice_genex")
_NAMES = ("Front", "Right", "Back", "Left", "Up", "Down")

# What each slot of a source shows, in terms of the canonical faces. Operations are applied from
# left to right: lr mirrors left-right, ud mirrors up-down, tr swaps rows and columns.
PRESETS = {
    "canonical": "F R B L U D",
    "py360convert": "F R B L U D",
    "pytorch360convert": "F R B L U D",
    "equilib": "F R B L U D",
    "py360convert_old": "F R.lr B.lr L U.ud D",
    "dit360": "R.lr L.lr D.ud U.ud F B",
    "genex": "R L U D F B",
    "genex_blender": "F L B R D U",
    "tartanair": "F R D L U B",
    "opengl": "R L U D F B",
    "panoenv": "L R U D F B",
    # skybox0 ... skybox5, with skybox1 called front, and as two stitchers turn the panorama.
    "matterport": "U F R B L D",
    "matterport_panfusion": "U.tr.ud L F R B D.tr.lr",
    "matterport_se360": "U.lr.ud B L F R D.lr.ud",
}

_OPERATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "lr": lambda face: face.flip(-1),
    "ud": lambda face: face.flip(-2),
    "tr": lambda face: face.transpose(-1, -2),
}

# Cells of the cross layouts: (rows, columns) of the grid and (row, column) of F R B L U D.
_GRIDS: dict[str, tuple[tuple[int, int], list[tuple[int, int]]]] = {
    "horizon": ((1, 6), [(0, k) for k in range(6)]),
    "dice": ((3, 4), [(1, 1), (1, 2), (1, 3), (1, 0), (0, 1), (2, 1)]),
    "dice_genex": ((3, 4), [(1, 2), (1, 3), (1, 0), (1, 1), (0, 2), (2, 2)]),
}


@dataclass(frozen=True)
class _Layout:
    """Canonical face and operations of each slot, and how the slots are kept together."""

    faces: tuple[int, ...]
    operations: tuple[tuple[str, ...], ...]
    container: Container


def convert_cube_layout(
    cube: Cube, src: str, dst: str = "stack"
) -> Array | list[Array] | dict[str, Array]:
    """Rearrange a cubemap between the layouts of different tools.

    A layout is ``"<faces>"``, ``"<container>"`` or ``"<faces>:<container>"``.

    * faces: a preset (`PRESETS`, default "canonical") or the six slots written out, such as
      ``"U F R B L D"`` or ``"F R.lr B.lr L U.ud D"``.
    * container (default "stack"): "stack" is one array (*, 6, C, S, S), "list" six arrays, "dict"
      has the keys F R B L U D and "names" the keys Front Right Back Left Up Down, "horizon" is an
      image of 1 x 6 faces in slot order. "dice" (rows ``. U . .``, ``L F R B``, ``. D . .``) and
      "dice_genex" (rows ``. . U .``, ``B L F R``, ``. . D .``) always hold upright faces and take
      no face order; their empty cells are 0 and ignored.

    Args:
        cube: torch tensors (channel first) or NumPy arrays (channel last), in layout `src`.
        src: layout of `cube`.
        dst: layout of the result; "stack" is what the transforms take.

    Returns:
        The rearranged cubemap, of the same kind and dtype.

    >>> cube = torch.arange(6.0).reshape(6, 1, 1, 1).expand(6, 1, 2, 2)
    >>> convert_cube_layout(cube, "matterport")[:, 0, 0, 0].tolist()
    [1.0, 2.0, 3.0, 4.0, 0.0, 5.0]
    """
    source, target = _parse(src), _parse(dst)
    slots, restore = _unpack(cube, source)
    upright: dict[int, Tensor] = {}
    for slot, face, operations in zip(slots, source.faces, source.operations, strict=True):
        # Every operation is its own inverse.
        upright[face] = _operated(slot, tuple(reversed(operations)))
    slots = [_operated(upright[f], o) for f, o in zip(target.faces, target.operations, strict=True)]
    container = target.container
    if container in ("list", "dict", "names"):
        faces = [restore(in_memory_order(slot, slots[0])) for slot in slots]
        if container == "list":
            return faces
        return dict(zip(_keys(target), faces, strict=True))
    image = torch.stack(slots, -4) if container == "stack" else _arranged(slots, container)
    return restore(in_memory_order(image, slots[0]))


def _parse(layout: str) -> _Layout:
    faces, _, container = layout.strip().partition(":")
    faces, container = faces.strip(), container.strip()
    if not container:
        faces, container = ("canonical", faces) if faces in _CONTAINERS else (faces, "stack")
    if container not in _CONTAINERS:
        raise ValueError(f"container of layout {layout!r} is unknown; use one of {_CONTAINERS}")
    if container.startswith("dice") and faces not in ("canonical", ""):
        raise ValueError(
            f"layout {layout!r} combines faces with a dice, whose cells are fixed and upright; "
            f"use {container!r} alone"
        )
    slots = [slot.split(".") for slot in PRESETS.get(faces, faces).split()]
    operations = {name for slot in slots for name in slot[1:]}
    if sorted(slot[0] for slot in slots) != sorted(FACE_NAMES) or operations - set(_OPERATIONS):
        raise ValueError(
            f"faces of layout {layout!r} are unknown; use one of {tuple(PRESETS)} or six slots "
            "such as 'U F R B L D' or 'F R.lr B.lr L U.ud D' (operations lr, ud, tr)"
        )
    return _Layout(
        tuple(FACE_NAMES.index(slot[0]) for slot in slots),
        tuple(tuple(slot[1:]) for slot in slots),
        cast("Container", container),
    )


def _unpack(cube: Cube, layout: _Layout) -> tuple[list[Tensor], Restore]:
    """Six channel-first tensors (*, C, S, S) in slot order, and the way back to their kind."""
    container = layout.container
    if container in ("list", "dict", "names"):
        slots, restore = _separate(cube, layout)
    elif isinstance(cube, (Mapping, Sequence)):
        raise TypeError(
            f"layout {container!r} is one array, got a {type(cube).__name__}; "
            "use 'list', 'dict' or 'names'"
        )
    elif container == "stack":
        stack, restore = to_torch(cube, cube=True, name="cube")
        slots = list(stack.unbind(-4))
    else:
        image, restore = to_torch(cube, name="cube")
        (rows, columns), cells = _GRIDS[container]
        side = image.shape[-1] // columns
        if tuple(image.shape[-2:]) != (rows * side, columns * side):
            raise ValueError(
                f"the {container} image has shape {tuple(cube.shape)}; expected {rows} x {columns} "
                "square faces"
            )
        slots = [_cell(image, cell, side) for cell in cells]
    shapes = {tuple(slot.shape) for slot in slots}
    if len(shapes) != 1 or slots[0].shape[-1] != slots[0].shape[-2]:
        raise ValueError(f"faces have shapes {sorted(shapes)}; expected six equal square faces")
    return slots, restore


def _separate(cube: Cube, layout: _Layout) -> tuple[list[Tensor], Restore]:
    if layout.container == "list":
        if not isinstance(cube, Sequence) or len(cube) != 6:
            raise ValueError("layout 'list' is a sequence of six faces; pass one array per face")
        faces = list(cube)
    else:
        if not isinstance(cube, Mapping) or set(_keys(layout)) - set(cube):
            raise ValueError(
                f"layout {layout.container!r} is a mapping with the keys {sorted(_keys(layout))}"
            )
        faces = [cube[key] for key in _keys(layout)]
    pairs = [to_torch(face, name="face") for face in faces]
    return [tensor for tensor, _ in pairs], pairs[0][1]


def _arranged(slots: list[Tensor], container: str) -> Tensor:
    (rows, columns), cells = _GRIDS[container]
    *lead, side, _ = slots[0].shape
    image = slots[0].new_zeros(*lead, rows * side, columns * side)
    for slot, cell in zip(slots, cells, strict=True):
        _cell(image, cell, side).copy_(slot)
    return image


def _cell(image: Tensor, cell: tuple[int, int], side: int) -> Tensor:
    row, column = (k * side for k in cell)
    return image[..., row : row + side, column : column + side]


def _keys(layout: _Layout) -> list[str]:
    names = FACE_NAMES if layout.container == "dict" else _NAMES
    return [names[face] for face in layout.faces]


def _operated(face: Tensor, operations: Sequence[str]) -> Tensor:
    for name in operations:
        face = _OPERATIONS[name](face)
    return face
