"""Plain data of a procedural scene: materials, primitives, objects, structure, sky, light, pose.

World frame RDF (x right, y down, z forward), metres, yaw in degrees about +y. Every number is
rounded to 0.1 mm when an element is made, so that a scene equals its JSON exactly.
"""

import math
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import torch

Vec3 = tuple[float, float, float]

KINDS = ("room", "corridor", "outdoor")
PRIMITIVE_TYPES = ("box", "sphere", "ellipsoid", "cylinder", "cone", "prism")
STRUCTURE_SLOTS = {
    "room": ("floor", "ceiling", "wall_-x", "wall_+x", "wall_-z", "wall_+z"),
    "corridor": ("floor", "ceiling", "wall_-x", "wall_+x", "wall_-z", "wall_+z"),
    "outdoor": ("ground",),
}


class Pose(NamedTuple):
    """Camera pose, camera to world: `x_world = R @ x_camera + t`.

    Attributes:
        R: Rotation, (3, 3) float32.
        t: Camera centre in metres, (3,) float32.
    """

    R: torch.Tensor
    t: torch.Tensor


def rounded(values: Any, digits: int = 4) -> Vec3:
    """Return three floats rounded to `digits` decimals, with -0.0 turned into 0.0."""
    x, y, z = (round(float(v), digits) + 0.0 for v in values)
    return (x, y, z)


def check_keys(data: dict, allowed: tuple[str, ...], where: str, optional: tuple[str, ...] = ()):
    """Raise ValueError unless `data` has all `allowed` keys, none unknown (`optional` may lack)."""
    if not isinstance(data, dict):
        raise TypeError(f"{where} is a {type(data).__name__}, expected a dict: fix the scene file")
    unknown = sorted(set(data) - set(allowed))
    if unknown:
        raise ValueError(f"{where} has unknown keys {unknown}, allowed are {list(allowed)}")
    missing = sorted(set(allowed) - set(data) - set(optional))
    if missing:
        raise ValueError(f"{where} lacks the keys {missing}: add them")


@dataclass(frozen=True, kw_only=True)
class Material:
    """Surface of a primitive.

    Attributes:
        name: Material word used in captions, e.g. `"wood"`.
        color_name: One of the 12 colour words.
        pattern: Texture function, a key of `textures.PATTERNS`.
        scale: Size of one texture cell in metres.
        colors: One to four sRGB colours in [0, 1].
        seed: Shifts noise and cell tints, 0 <= seed < 4096.
    """

    name: str
    color_name: str
    pattern: str
    scale: float
    colors: tuple[Vec3, ...]
    seed: int

    def to_json(self) -> dict:
        """Return the JSON form."""
        data = {f.name: getattr(self, f.name) for f in fields(self)}
        return data | {"colors": [list(c) for c in self.colors]}

    @classmethod
    def from_json(cls, data: dict, where: str) -> "Material":
        """Build from the JSON form; `where` names the place in error messages."""
        check_keys(data, tuple(f.name for f in fields(cls)), where)
        colors = tuple(rounded(c) for c in data["colors"])
        if not 1 <= len(colors) <= 4:
            raise ValueError(f"{where} has {len(colors)} colors, allowed are 1 to 4")
        return cls(
            name=data["name"],
            color_name=data["color_name"],
            pattern=data["pattern"],
            scale=float(data["scale"]),
            colors=colors,
            seed=data["seed"],
        )


@dataclass(frozen=True, kw_only=True)
class Primitive:
    """One convex solid.

    Attributes:
        type: One of `PRIMITIVE_TYPES`. `cone` has its apex up, `prism` is a gable roof whose
            ridge runs along its z axis.
        center: Centre of the bounding box in metres.
        half: Half sizes along the own x, y, z axes in metres.
        yaw: Degrees about +y.
        material: Key of the scene's materials.
    """

    type: str
    center: Vec3
    half: Vec3
    yaw: float
    material: str

    def to_json(self) -> dict:
        """Return the JSON form: `r` for spheres, `r` and `h` (half height) for round solids."""
        data: dict = {"type": self.type, "center": list(self.center)}
        if self.type == "sphere":
            data["r"] = self.half[0]
        elif self.type in ("cylinder", "cone") and self.half[0] == self.half[2]:
            data |= {"r": self.half[0], "h": self.half[1]}
        else:
            data["half"] = list(self.half)
        return data | {"yaw": self.yaw, "material": self.material}

    @classmethod
    def from_json(cls, data: dict, where: str) -> "Primitive":
        """Build from the JSON form; `where` names the place in error messages."""
        size_keys = ("half", "r", "h")
        check_keys(data, ("type", "center", *size_keys, "yaw", "material"), where, size_keys)
        if data["type"] not in PRIMITIVE_TYPES:
            raise ValueError(f"{where} has type {data['type']!r}, allowed: {PRIMITIVE_TYPES}")
        if "half" in data:
            half = data["half"]
        elif "r" in data and (data["type"] == "sphere" or "h" in data):
            half = (data["r"], data.get("h", data["r"]), data["r"])
        else:
            raise ValueError(f"{where} has no size: give half, or r (and h for cylinders)")
        if min(half) <= 0:
            raise ValueError(f"{where} has half sizes {list(half)}, all must be positive")
        return cls(
            type=data["type"],
            center=rounded(data["center"]),
            half=rounded(half),
            yaw=round(float(data["yaw"]), 4),
            material=data["material"],
        )


@dataclass(frozen=True, kw_only=True)
class Box3d:
    """Oriented bounding box: centre and full sizes in metres, yaw in degrees about +y."""

    center: Vec3
    size: Vec3
    yaw: float


@dataclass(frozen=True, kw_only=True)
class SceneObject:
    """A named thing made of 1-40 primitives that share one instance id.

    Attributes:
        id: Instance id, >= 1.
        category: Key of `labels.CATEGORY_IDS`.
        name: Caption, e.g. `"red wooden chair"`.
        color: Colour word of the main part.
        material: Material word of the main part.
        box3d: Oriented bounding box.
        support: `"floor"`, `"wall"`, `"ceiling"` or `"object:<id>"`.
        prims: The primitives.
    """

    id: int
    category: str
    name: str
    color: str
    material: str
    box3d: Box3d
    support: str
    prims: tuple[Primitive, ...]

    def to_json(self) -> dict:
        """Return the JSON form."""
        box = self.box3d
        return {
            "id": self.id,
            "category": self.category,
            "name": self.name,
            "color": self.color,
            "material": self.material,
            "box3d": {"center": list(box.center), "size": list(box.size), "yaw": box.yaw},
            "support": self.support,
            "prims": [p.to_json() for p in self.prims],
        }

    @classmethod
    def from_json(cls, data: dict, where: str) -> "SceneObject":
        """Build from the JSON form; `where` names the place in error messages."""
        check_keys(data, tuple(f.name for f in fields(cls)), where)
        box = data["box3d"]
        check_keys(box, ("center", "size", "yaw"), f"{where}.box3d")
        box3d = Box3d(
            center=rounded(box["center"]), size=rounded(box["size"]), yaw=float(box["yaw"])
        )
        prims = tuple(
            Primitive.from_json(p, f"{where}.prims[{k}]") for k, p in enumerate(data["prims"])
        )
        if not isinstance(data["id"], int) or data["id"] < 1:
            raise ValueError(f"{where} has id {data['id']!r}, ids must be integers >= 1")
        return cls(**(data | {"box3d": box3d, "prims": prims}))


@dataclass(frozen=True, kw_only=True)
class Structure:
    """Walls, floor and ceiling of a room, or the extent of an outdoor ground plane y = 0.

    Attributes:
        min: Lower corner in metres (y is the ceiling).
        max: Upper corner in metres (y is the floor).
        materials: Material key per slot of `STRUCTURE_SLOTS`.
    """

    min: Vec3
    max: Vec3
    materials: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Sky:
    """Outdoor background: sRGB zenith and horizon colours, unit sun direction or None."""

    zenith: Vec3
    horizon: Vec3
    sun_dir: Vec3 | None


@dataclass(frozen=True, kw_only=True)
class Light:
    """Main light.

    Attributes:
        type: `"point"` or `"sun"`.
        vector: Position of a point light in metres, or unit direction towards the sun.
        ambient: Share of light that comes from everywhere, in [0, 1].
    """

    type: str
    vector: Vec3
    ambient: float = 0.35


@dataclass(frozen=True, kw_only=True)
class Camera:
    """A named pose stored with the scene: rotation rows camera to world, position in metres."""

    name: str
    R: tuple[Vec3, Vec3, Vec3]
    t: Vec3

    @classmethod
    def upright(cls, name: str, yaw: float, t) -> "Camera":
        """Return a level camera that looks `yaw` degrees right of +z."""
        c, s = math.cos(math.radians(yaw)), math.sin(math.radians(yaw))
        right, forward = rounded((c, 0.0, s), 8), rounded((-s, 0.0, c), 8)
        return cls(name=name, R=(right, (0.0, 1.0, 0.0), forward), t=rounded(t))


@dataclass(kw_only=True)
class MaterialBook:
    """Materials of a scene under construction, keyed m1, m2, ..."""

    materials: dict[str, Material] = field(default_factory=dict)

    def add(self, name: str, color_name: str, pattern: str, scale: float, colors, seed: int) -> str:
        """Store a material (colours sRGB, clipped to [0, 1]) and return its key."""
        key = f"m{len(self.materials) + 1}"
        clipped = tuple(rounded(min(max(float(v), 0.0), 1.0) for v in c) for c in colors)
        self.materials[key] = Material(
            name=name,
            color_name=color_name,
            pattern=pattern,
            scale=round(float(scale), 4),
            colors=clipped,
            seed=int(seed),
        )
        return key
