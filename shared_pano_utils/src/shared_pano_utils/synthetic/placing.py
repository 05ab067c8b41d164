"""Collision bookkeeping of a scene under construction: floor rectangles and wall rectangles."""

import math
from dataclasses import dataclass, field

import numpy as np

from shared_pano_utils.synthetic.draft import Draft
from shared_pano_utils.synthetic.elements import SceneObject, Vec3

# Wall index: -x, +x, -z, +z. An object with this yaw has its back to the wall.
WALL_YAWS = (90.0, -90.0, 0.0, 180.0)


@dataclass(frozen=True)
class Footprint:
    """Rectangle on the floor: centre, half sizes in metres, yaw in degrees."""

    x: float
    z: float
    half_x: float
    half_z: float
    yaw: float = 0.0

    def axes(self) -> np.ndarray:
        """Return the two unit axes, (2, 2) rows in (x, z)."""
        c, s = math.cos(math.radians(self.yaw)), math.sin(math.radians(self.yaw))
        return np.array(((c, -s), (s, c)))

    def extent(self, axis: np.ndarray) -> float:
        """Return the half length of the projection on a unit axis (2,)."""
        return float(np.abs(self.axes() @ axis) @ (self.half_x, self.half_z))

    def overlaps(self, other: "Footprint", gap: float = 0.05) -> bool:
        """Tell whether two rectangles come nearer than `gap` (separating axes)."""
        between = np.array((other.x - self.x, other.z - self.z))
        return all(
            abs(between @ axis) < self.extent(axis) + other.extent(axis) + gap
            for axis in (*self.axes(), *other.axes())
        )


def footprint_of(draft: Draft, x: float, z: float, yaw: float) -> Footprint:
    """Return the floor rectangle of a draft placed at (x, z)."""
    lo, hi = draft.bounds()
    middle, half = (lo + hi) / 2, (hi - lo) / 2
    turned = np.array((middle[0], middle[2])) @ Footprint(0, 0, 1, 1, yaw).axes()
    return Footprint(x + turned[0], z + turned[1], half[0], half[2], yaw)


@dataclass
class Plan:
    """What is occupied so far.

    Attributes:
        lo: Lower corner of the free volume, metres.
        hi: Upper corner of the free volume, metres.
    """

    lo: Vec3
    hi: Vec3
    taken: list[Footprint] = field(default_factory=list)
    walls: list[list[tuple[float, float, float, float]]] = field(
        default_factory=lambda: [[], [], [], []]
    )
    objects: list[SceneObject] = field(default_factory=list)

    def add(self, draft: Draft, position, yaw: float, support: str) -> SceneObject:
        """Place a draft with the next free id."""
        obj = draft.place(len(self.objects) + 1, position, yaw, support)
        self.objects.append(obj)
        return obj

    def is_free(self, spot: Footprint, gap: float = 0.05, margin: float = 0.02) -> bool:
        """Tell whether a rectangle lies inside the walls and clear of everything placed."""
        for axis, center, low, high in (
            (np.array((1.0, 0.0)), spot.x, self.lo[0], self.hi[0]),
            (np.array((0.0, 1.0)), spot.z, self.lo[2], self.hi[2]),
        ):
            reach = spot.extent(axis) + margin
            if center - reach < low - 1e-6 or center + reach > high + 1e-6:
                return False
        return not any(spot.overlaps(other, gap) for other in self.taken)

    def wall_range(self, wall: int) -> tuple[float, float]:
        """Return the extent of a wall along itself."""
        axis = 2 if wall < 2 else 0
        return self.lo[axis], self.hi[axis]

    def wall_point(self, wall: int, along: float, off: float) -> tuple[float, float]:
        """Return (x, z) of a point `off` metres in front of a wall."""
        if wall == 0:
            return self.lo[0] + off, along
        if wall == 1:
            return self.hi[0] - off, along
        return along, (self.lo[2] + off if wall == 2 else self.hi[2] - off)

    def claim_wall(self, wall: int, along: float, draft: Draft, y: float) -> bool:
        """Reserve the draft's rectangle on a wall (centre `along`, origin at height y); or not."""
        lo, hi = draft.bounds()
        reach = max(hi[0], -lo[0])
        a, b, low, high = along - reach, along + reach, y + lo[1], y + hi[1]
        start, stop = self.wall_range(wall)
        if a < start + 0.05 or b > stop - 0.05 or low < self.lo[1] + 0.05:
            return False
        if any(
            a < q + 0.05 and p < b + 0.05 and low < s and r < high
            for p, q, r, s in self.walls[wall]
        ):
            return False
        self.walls[wall].append((a, b, low, high))
        return True
