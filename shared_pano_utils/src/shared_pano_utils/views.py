"""Sets of pinhole views around a panorama, and the resolved cameras of a transform."""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ._maps import erp_directions, locate_in_view
from .geometry import FACE_AXES, intrinsics, resolve_rotation, rotation_matrix

Angle = float | Sequence[float] | Tensor | np.ndarray
Fov = float | tuple[float, float] | None
Matrix = Tensor | np.ndarray | Sequence[Sequence[float]]

# Latitudes of the face centres and of the upper ring of vertices of a regular icosahedron.
_ICOSAHEDRON_CAP = 52.62263186
_ICOSAHEDRON_BELT = 10.81231696
_ICOSAHEDRON_RING = math.degrees(math.atan(0.5))


class Views(NamedTuple):
    """V views from one point, all of the same pixel size.

    Attributes:
        yaw: (V,) degrees, right positive.
        pitch: (V,) degrees, up positive.
        roll: (V,) degrees, clockwise positive.
        fov: (V,) horizontal field of view in degrees.
    """

    yaw: Tensor
    pitch: Tensor
    roll: Tensor
    fov: Tensor

    @classmethod
    def _of(cls, yaw: Sequence[float], pitch: Sequence[float], fov: float) -> "Views":
        lon, lat = (torch.tensor(angle, dtype=torch.float64) for angle in (yaw, pitch))
        return cls(lon, lat, torch.zeros_like(lon), torch.full_like(lon, fov))

    @classmethod
    def cube(cls, fov: float = 90.0) -> "Views":
        """Six views that look like the cube faces F R B L U D."""
        return cls._of([0, 90, 180, -90, 0, 0], [0, 0, 0, 0, 90, -90], fov)

    @classmethod
    def horizon(cls, n: int = 8, pitch: float = 0.0, fov: float = 90.0) -> "Views":
        """`n` views at yaw 360 k / n and one pitch."""
        return cls._of([360 * k / n for k in range(n)], [pitch] * n, fov)

    @classmethod
    def horizon_poles(cls, n: int = 8, fov: float = 90.0) -> "Views":
        """`n` views around the horizon, then one up and one down."""
        return cls._of([360 * k / n for k in range(n)] + [0, 0], [0.0] * n + [90, -90], fov)

    @classmethod
    def icosahedron(
        cls, kind: Literal["faces", "vertices"] = "faces", fov: float = 90.0
    ) -> "Views":
        """Views along the 20 face centres or the 12 vertices of an icosahedron."""
        if kind == "faces":
            shifted = [-180 + 72 * k for k in range(5)]
            upright = [-144 + 72 * k for k in range(5)]
            bands = (_ICOSAHEDRON_CAP, _ICOSAHEDRON_BELT, -_ICOSAHEDRON_BELT, -_ICOSAHEDRON_CAP)
            return cls._of(upright * 2 + shifted * 2, [lat for lat in bands for _ in range(5)], fov)
        if kind != "vertices":
            raise ValueError(f"kind is {kind!r}; use 'faces' or 'vertices'")
        upper, lower = [72 * k for k in range(5)], [36 + 72 * k for k in range(5)]
        ring = [_ICOSAHEDRON_RING] * 5
        return cls._of([0, *upper, *lower, 0], [90, *ring, *(-lat for lat in ring), -90], fov)

    @classmethod
    def random(cls, n: int, generator: torch.Generator | None = None, fov: float = 90.0) -> "Views":
        """`n` upright views whose directions are uniform on the sphere."""
        yaw, height = torch.rand(2, n, generator=generator, dtype=torch.float64)
        lat = torch.asin(2 * height - 1).rad2deg()
        return cls(360 * yaw - 180, lat, torch.zeros_like(lat), torch.full_like(lat, fov))

    @property
    def R(self) -> Tensor:
        """Orientations (V, 3, 3), camera to reference."""
        return rotation_matrix(self.yaw, self.pitch, self.roll)

    def K(self, size: tuple[int, int]) -> Tensor:
        """Pinhole matrices (V, 3, 3) in pixels for views of `size` (h, w)."""
        return torch.stack([intrinsics(size, float(fov)) for fov in self.fov])

    def coverage(self, size: tuple[int, int]) -> Tensor:
        """Number of views (square) that see each pixel of an ERP of `size`, (H, W) int64."""
        count = torch.zeros(size, dtype=torch.int64)
        for R, K in zip(self.R.double(), self.K((1, 1)), strict=True):
            rays = erp_directions(R.mT, size, "center", torch.float32)
            count += (locate_in_view(rays, K, (1, 1), "center")[2][0] > 0).long()
        return count


@dataclass(frozen=True)
class Pose:
    """Orientation arguments of a transform: three angles in degrees, or a matrix `R`.

    Sequences of angles, and one-dimensional tensors, stand for several views.
    """

    yaw: Angle = 0.0
    pitch: Angle = 0.0
    roll: Angle = 0.0
    R: Matrix | None = None

    @property
    def key(self) -> Hashable | None:
        """Value that identifies the pose in the map cache; None for tensors, never cached."""
        arguments = (self.yaw, self.pitch, self.roll, self.R)
        if any(isinstance(argument, Tensor) for argument in arguments):
            return None
        return tuple(None if a is None else array_key(a) for a in arguments)

    @property
    def count(self) -> int | None:
        """Number of views when the angles are sequences, None for a single view."""
        if self.R is not None:
            return None
        shape = np.broadcast_shapes(*(np.shape(a) for a in (self.yaw, self.pitch, self.roll)))
        if len(shape) > 1:
            raise ValueError(f"angles have shape {shape}; use numbers or one-dimensional sequences")
        return shape[0] if shape else None

    @property
    def is_sequence(self) -> bool:
        """Whether the angles describe several views."""
        return self.count is not None

    def matrix(self) -> Tensor:
        """Orientation, camera to reference: (3, 3), (V, 3, 3) for views, (*, 3, 3) for a batch R."""
        R = torch.tensor(self.R) if isinstance(self.R, np.ndarray) else self.R
        yaw, pitch, roll = (_angles(a) for a in (self.yaw, self.pitch, self.roll))
        matrix = resolve_rotation(yaw, pitch, roll, R).double()
        return matrix if self.R is not None or self.is_sequence else matrix.reshape(3, 3)

    def single(self) -> Tensor:
        """Orientations as (1, 3, 3), or (*, 1, 3, 3) with one matrix per image."""
        if self.is_sequence:
            raise ValueError(
                f"yaw, pitch, roll are {self.yaw}, {self.pitch}, {self.roll}; sequences of angles "
                "are views of erp_to_perspective; pass numbers, or R of shape (*, 3, 3) for one "
                "rotation per image"
            )
        return self.matrix().unsqueeze(-3)


def _angles(angle: Angle) -> Tensor:
    """Numbers as one-dimensional float64 tensors, so that they keep their precision."""
    if isinstance(angle, Tensor):
        return angle
    return torch.from_numpy(np.atleast_1d(np.asarray(angle, dtype=np.float64)))


def array_key(value: Any) -> Hashable:
    """Hashable form of a number or an array, rounded to 1e-9."""
    array = np.asarray(value, dtype=np.float64)
    return array.shape, (array.round(9) + 0.0).tobytes()


@dataclass(frozen=True)
class Cameras:
    """The pinhole cameras of one transform.

    Attributes:
        size: (h, w) of every view.
        K: (B, 3, 3) intrinsics in pixels.
        rotation: builds the orientations: (B, 3, 3), or (*, B, 3, 3) for one set per image.
        key: identifies the cameras in the map cache; None when they must not be cached.
    """

    size: tuple[int, int]
    K: Tensor
    rotation: Callable[[], Tensor]
    key: Hashable | None

    def scaled(self, factor: int) -> "Cameras":
        """The same views with `factor` times as many pixels along each axis."""
        if factor == 1:
            return self
        scale = torch.tensor([factor, factor, 1.0]).to(self.K)[:, None]
        size = (self.size[0] * factor, self.size[1] * factor)
        return Cameras(size, self.K * scale, self.rotation, self.key)


def face_cameras(side: int, fov: float, pose: Pose) -> Cameras:
    """The six cameras of a cubemap whose F face looks along `pose`."""
    K = intrinsics((side, side), fov).expand(6, 3, 3)
    pose_key = pose.key
    key = None if pose_key is None else ("faces", fov, pose_key)
    return Cameras((side, side), K, lambda: _face_orientations(pose), key)


def _face_orientations(pose: Pose) -> Tensor:
    R = pose.single()
    return R @ FACE_AXES.to(R).mT


def view_cameras(
    size: tuple[int, int], fov: Fov, K: Matrix | None, pose: Pose, views: Views | None
) -> Cameras:
    """The cameras of a perspective transform: one pose, a sequence of poses, or `views`."""
    K = torch.tensor(K) if isinstance(K, np.ndarray) else K
    if views is not None:
        if pose.key != Pose().key:
            raise ValueError("both views and yaw, pitch, roll or R are given; pass one of them")
        matrices = (
            views.K(size) if K is None else intrinsics(size, fov, K).expand(len(views.yaw), 3, 3)
        )
        has_grad = any(field.requires_grad for field in views)
        key = None if has_grad else tuple(array_key(field.cpu()) for field in views)
        return Cameras(size, matrices, lambda: views.R.double(), _with_intrinsics(key, matrices))
    matrices = intrinsics(size, fov, K).expand(pose.count or 1, 3, 3)
    key = None if isinstance(K, Tensor) else pose.key
    rotation = pose.matrix if pose.is_sequence else pose.single
    return Cameras(size, matrices, rotation, _with_intrinsics(key, matrices))


def _with_intrinsics(key: Hashable | None, K: Tensor) -> Hashable | None:
    return None if key is None or K.requires_grad else (key, array_key(K))
