"""Scene files, version 1: strict reading (unknown keys are errors) and byte-stable writing."""

import json
from pathlib import Path

from shared_pano_utils.synthetic.elements import (
    KINDS,
    STRUCTURE_SLOTS,
    Camera,
    Light,
    Material,
    SceneObject,
    Sky,
    Structure,
    check_keys,
    rounded,
)
from shared_pano_utils.synthetic.labels import CATEGORIES, COLORS
from shared_pano_utils.synthetic.textures import PATTERNS

HEADER = {"version": 1, "frame": "RDF", "unit": "m"}
LIGHT_VECTORS = {"point": "pos", "sun": "dir"}
KEYS = (*HEADER, "seed", "kind", "room", "sky", "light", "materials", "objects", "cameras")


def scene_to_json(fields: dict) -> dict:
    """Return the JSON form of the fields of a scene."""
    room, sky, light = fields["room"], fields["sky"], fields["light"]
    return {
        **HEADER,
        "seed": fields["seed"],
        "kind": fields["kind"],
        "room": {
            "min": list(room.min),
            "max": list(room.max),
            "materials": dict(room.materials),
        },
        "sky": sky
        and {
            "zenith": list(sky.zenith),
            "horizon": list(sky.horizon),
            "sun_dir": sky.sun_dir and list(sky.sun_dir),
        },
        "light": {
            "type": light.type,
            LIGHT_VECTORS[light.type]: list(light.vector),
            "ambient": light.ambient,
        },
        "materials": {key: m.to_json() for key, m in fields["materials"].items()},
        "objects": [o.to_json() for o in fields["objects"]],
        "cameras": [
            {"name": c.name, "R": [list(row) for row in c.R], "t": list(c.t)}
            for c in fields["cameras"]
        ],
    }


def scene_from_json(source: dict | str | Path) -> dict:
    """Return the checked fields of a scene from its JSON form or a file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Unknown or missing keys, unknown words, missing materials, duplicate ids.
    """
    data = source if isinstance(source, dict) else _read_file(Path(source))
    check_keys(data, KEYS, "the scene")
    for key, value in HEADER.items():
        if data[key] != value:
            raise ValueError(f"scene {key} is {data[key]!r}, only {value!r} can be read")
    kind = data["kind"]
    if kind not in KINDS:
        raise ValueError(f"scene kind is {kind!r}, allowed are {KINDS}")
    if (data["sky"] is not None) != (kind == "outdoor"):
        raise ValueError(f"a scene of kind {kind!r} has sky={data['sky']!r}; only outdoor has one")
    materials = {
        key: Material.from_json(m, f"materials[{key!r}]") for key, m in data["materials"].items()
    }
    fields = {
        "seed": data["seed"],
        "kind": kind,
        "room": _read_structure(data["room"], kind),
        "sky": None if data["sky"] is None else _read_sky(data["sky"]),
        "light": _read_light(data["light"]),
        "materials": materials,
        "objects": tuple(
            SceneObject.from_json(o, f"objects[{k}]") for k, o in enumerate(data["objects"])
        ),
        "cameras": tuple(_read_camera(c, f"cameras[{k}]") for k, c in enumerate(data["cameras"])),
    }
    _check_references(fields)
    return fields


def _read_file(path: Path) -> dict:
    if not path.is_file():
        raise FileNotFoundError(f"there is no scene file {path}; check the path")
    return json.loads(path.read_text())


def _read_structure(data: dict, kind: str) -> Structure:
    check_keys(data, ("min", "max", "materials"), "room")
    check_keys(data["materials"], STRUCTURE_SLOTS[kind], "room.materials")
    low, high = rounded(data["min"]), rounded(data["max"])
    if any(a >= b for a, b in zip(low, high, strict=True)):
        raise ValueError(f"room min {low} is not below max {high} on every axis: swap them")
    if kind == "outdoor" and high[1] != 0:
        raise ValueError(f"room.max[1] is {high[1]}; outdoors the ground is y = 0")
    return Structure(min=low, max=high, materials=dict(data["materials"]))


def _read_sky(data: dict) -> Sky:
    check_keys(data, ("zenith", "horizon", "sun_dir"), "sky")
    sun = data["sun_dir"]
    return Sky(
        zenith=rounded(data["zenith"]),
        horizon=rounded(data["horizon"]),
        sun_dir=None if sun is None else rounded(sun, 6),
    )


def _read_light(data: dict) -> Light:
    kind = data.get("type")
    if kind not in LIGHT_VECTORS:
        raise ValueError(f"light type is {kind!r}, allowed are {list(LIGHT_VECTORS)}")
    vector = LIGHT_VECTORS[kind]
    check_keys(data, ("type", vector, "ambient"), "light")
    return Light(type=kind, vector=rounded(data[vector], 6), ambient=float(data["ambient"]))


def _read_camera(data: dict, where: str) -> Camera:
    check_keys(data, ("name", "R", "t"), where)
    if len(data["R"]) != 3:
        raise ValueError(f"{where}.R has {len(data['R'])} rows, expected 3")
    first, second, third = (rounded(row, 8) for row in data["R"])
    return Camera(name=data["name"], R=(first, second, third), t=rounded(data["t"]))


def _check_references(fields: dict) -> None:
    """Check that words, materials and ids of a scene refer to something."""
    if not fields["cameras"]:
        raise ValueError("cameras is empty, at least one camera is needed")
    materials = fields["materials"]
    for key, material in materials.items():
        if material.pattern not in PATTERNS:
            raise ValueError(
                f"materials[{key!r}] has pattern {material.pattern!r}, allowed: {list(PATTERNS)}"
            )
        if material.color_name not in COLORS:
            raise ValueError(
                f"materials[{key!r}] has color_name {material.color_name!r}, "
                f"allowed: {list(COLORS)}"
            )
    ids = [o.id for o in fields["objects"]]
    twice = sorted({i for i in ids if ids.count(i) > 1})
    if twice:
        raise ValueError(f"object ids {twice} occur more than once: ids must be unique")
    for obj in fields["objects"]:
        if obj.category not in CATEGORIES:
            raise ValueError(
                f"object {obj.id} has category {obj.category!r}, allowed: {CATEGORIES}"
            )
        if not obj.prims:
            raise ValueError(f"object {obj.id} has no prims, at least one is needed")
        if obj.support not in ("floor", "wall", "ceiling") and not obj.support.startswith(
            "object:"
        ):
            raise ValueError(
                f"object {obj.id} has support {obj.support!r}, allowed: floor, wall, ceiling, "
                "object:<id>"
            )
    used = {p.material: f"object {o.id}" for o in fields["objects"] for p in o.prims}
    used |= {key: f"room.materials[{slot!r}]" for slot, key in fields["room"].materials.items()}
    for key, user in used.items():
        if key not in materials:
            raise ValueError(f"{user} uses material {key!r}, which is not in materials: add it")
