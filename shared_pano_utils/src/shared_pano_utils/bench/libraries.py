"""One interface to the libraries that are compared: this package and its three peers."""

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from shared_pano_utils import transforms

Operation = Callable[[Any], Any]

YAW, PITCH, ROLL = 37.0, 11.0, 5.0
OURS = "shared_pano_utils"
OURS_TORCH = "shared_pano_utils (torch)"
_RADIANS = np.pi / 180


@dataclass(frozen=True, kw_only=True)
class Library:
    """A library in its natural array type.

    Attributes:
        name: as it appears in the report.
        dtypes: what it takes, "uint8" and/or "float32".
        load: (H, W, 3) or (6, S, S, 3) NumPy array to the library's panorama or cubemap.
        unload: the inverse, for results.
        operations: panorama height H to the functions "e2c" (panorama to faces of H / 2), "c2e"
            (back), "e2p" (90-degree view of H / 2) and "e2e" (rotation), as far as they exist.
    """

    name: str
    dtypes: tuple[str, ...]
    load: Callable[[np.ndarray], Any]
    unload: Callable[[Any], np.ndarray]
    operations: Callable[[int], Mapping[str, Operation]]


def installed_libraries(device: str, *, compare: bool) -> list[Library]:
    """Libraries that can be measured on the device; only ours unless `compare`."""
    builders: dict[str, Callable[[str], Library]] = {"torch": _ours_torch}
    if device == "cpu":
        builders = {"numpy": _ours_numpy, **builders}
    if compare:
        builders |= {"equilib": _equilib, "pytorch360convert": _pytorch360convert}
        if device == "cpu":
            builders["py360convert"] = _py360convert
    return [build(device) for name, build in builders.items() if importlib.util.find_spec(name)]


def _ours_numpy(_device: str) -> Library:
    return Library(
        name=OURS,
        dtypes=("uint8", "float32"),
        load=np.ascontiguousarray,
        unload=np.asarray,
        operations=lambda height: _our_operations(height, "auto"),
    )


def _ours_torch(device: str) -> Library:
    return Library(
        name=OURS_TORCH,
        dtypes=("float32",),
        load=_tensor_loader(device),
        unload=_tensor_to_numpy,
        operations=lambda height: _our_operations(height, "torch"),
    )


def _our_operations(height: int, backend: Any) -> dict[str, Operation]:
    side = height // 2
    angles: dict[str, Any] = {"yaw": YAW, "pitch": PITCH, "roll": ROLL}
    return {
        "e2c": lambda x: transforms.erp_to_cubemap(x, side, backend=backend),
        "c2e": lambda x: transforms.cubemap_to_erp(x, (height, 2 * height), backend=backend),
        "e2p": lambda x: transforms.erp_to_perspective(
            x, size=(side, side), **angles, backend=backend
        ),
        "e2e": lambda x: transforms.rotate_erp(x, **angles, backend=backend),
    }


def _py360convert(_device: str) -> Library:
    import py360convert

    def load(array: np.ndarray) -> Any:
        return list(array) if array.ndim == 4 else array

    def operations(height: int) -> dict[str, Operation]:
        side = height // 2
        return {
            "e2c": lambda x: py360convert.e2c(x, side, cube_format="list"),
            "c2e": lambda x: py360convert.c2e(x, height, 2 * height, cube_format="list"),
            "e2p": lambda x: py360convert.e2p(x, 90, YAW, PITCH, (side, side), in_rot_deg=ROLL),
        }

    return Library(
        name="py360convert",
        dtypes=("uint8", "float32"),
        load=load,
        unload=np.asarray,
        operations=operations,
    )


def _equilib(device: str) -> Library:
    from equilib import Cube2Equi, Equi2Cube, Equi2Equi, Equi2Pers

    upright = {"yaw": 0.0, "pitch": 0.0, "roll": 0.0}
    turned = {"yaw": -YAW * _RADIANS, "pitch": -PITCH * _RADIANS, "roll": ROLL * _RADIANS}
    to_tensor = _tensor_loader(device)

    def load(array: np.ndarray) -> torch.Tensor:
        if array.ndim == 4:
            array = np.concatenate(list(array), axis=1)
        return to_tensor(array)

    def unload(result: torch.Tensor) -> np.ndarray:
        array = _tensor_to_numpy(result)
        side = array.shape[0]
        if array.shape[1] == 6 * side:
            return array.reshape(side, 6, side, -1).swapaxes(0, 1)
        return array

    def operations(height: int) -> dict[str, Operation]:
        side = height // 2
        e2c = Equi2Cube(w_face=side, cube_format="horizon")
        c2e = Cube2Equi(height=height, width=2 * height, cube_format="horizon")
        e2p = Equi2Pers(height=side, width=side, fov_x=90.0)
        e2e = Equi2Equi(height=height, width=2 * height)
        return {
            "e2c": lambda x: e2c(equi=x, rots=upright),
            "c2e": lambda x: c2e(cubemap=x),
            "e2p": lambda x: e2p(equi=x, rots=turned),
            "e2e": lambda x: e2e(src=x, rots=turned),
        }

    return Library(
        name="equilib",
        dtypes=("uint8", "float32"),
        load=load,
        unload=unload,
        operations=operations,
    )


def _pytorch360convert(device: str) -> Library:
    import pytorch360convert

    def operations(height: int) -> dict[str, Operation]:
        side = height // 2
        return {
            "e2c": lambda x: pytorch360convert.e2c(x, side, cube_format="stack"),
            "c2e": lambda x: pytorch360convert.c2e(x, height, 2 * height, cube_format="stack"),
            "e2p": lambda x: pytorch360convert.e2p(x, 90.0, YAW, PITCH, (side, side), ROLL),
            "e2e": lambda x: pytorch360convert.e2e(x, ROLL, YAW, PITCH),
        }

    return Library(
        name="pytorch360convert",
        dtypes=("float32",),
        load=_tensor_loader(device),
        unload=_tensor_to_numpy,
        operations=operations,
    )


def _tensor_loader(device: str) -> Callable[[np.ndarray], torch.Tensor]:
    def load(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(np.moveaxis(array, -1, -3))).to(device)

    return load


def _tensor_to_numpy(result: torch.Tensor) -> np.ndarray:
    return np.moveaxis(result.cpu().numpy(), -3, -1)
