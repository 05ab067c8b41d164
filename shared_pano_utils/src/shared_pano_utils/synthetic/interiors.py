"""Random rooms and corridors."""

import numpy as np

from shared_pano_utils.synthetic import furniture
from shared_pano_utils.synthetic.draft import Draft, pick, stream, tinted
from shared_pano_utils.synthetic.elements import Camera, Light, MaterialBook, Structure, rounded
from shared_pano_utils.synthetic.labels import COLORS
from shared_pano_utils.synthetic.paths import EYE_M, clearance
from shared_pano_utils.synthetic.placing import WALL_YAWS, Footprint, Plan, footprint_of

TRIES = 40
START_TRIES = 200
START_CLEARANCE_M = 0.6
LIGHT_DROP_M = 0.75  # the point light hangs this far below the ceiling
TABLETOP_CHANCE = 0.4
# Per style: what comes first, then the weights of what fills up.
ROOM_STYLES: dict[str, tuple[tuple[str, ...], dict[str, int]]] = {
    "living": (
        ("sofa", "tv", "rug", "table", "picture", "shelf"),
        {
            "plant": 3,
            "lamp": 2,
            "picture": 3,
            "chair": 3,
            "cabinet": 2,
            "window": 2,
            "ball": 1,
            "shelf": 1,
        },
    ),
    "bedroom": (
        ("bed", "cabinet", "rug", "picture"),
        {
            "lamp": 2,
            "plant": 2,
            "picture": 3,
            "chair": 2,
            "stool": 1,
            "shelf": 2,
            "window": 2,
            "ball": 1,
        },
    ),
    "dining": (
        ("table", "chair", "chair", "chair", "cabinet", "picture"),
        {
            "chair": 3,
            "plant": 2,
            "lamp": 1,
            "picture": 2,
            "stool": 2,
            "shelf": 1,
            "window": 2,
            "rug": 1,
        },
    ),
    "storage": (
        ("shelf", "crate", "barrel", "crate"),
        {
            "crate": 4,
            "barrel": 3,
            "shelf": 2,
            "cabinet": 1,
            "stool": 1,
            "ball": 1,
            "table": 1,
            "window": 1,
        },
    ),
}
CORRIDOR_STYLES: dict[str, tuple[tuple[str, ...], dict[str, int]]] = {
    "office": (
        ("door", "door", "picture", "door", "plant", "door"),
        {"door": 4, "picture": 3, "plant": 2, "cabinet": 2, "chair": 1, "window": 1, "stool": 1},
    ),
    "hotel": (
        ("door", "door", "picture", "door", "lamp", "door", "picture"),
        {"door": 4, "picture": 4, "plant": 2, "lamp": 1, "stool": 1, "window": 1},
    ),
    "basement": (
        ("door", "crate", "barrel"),
        {"door": 2, "crate": 4, "barrel": 3, "shelf": 1, "stool": 1, "cabinet": 1},
    ),
}
ON_WALL = ("picture", "tv", "window", "door")
BACK_TO_WALL = ("sofa", "bed", "shelf", "cabinet", "lamp", "plant", "barrel")
WALL_COLORS = ("white", "beige", "gray", "blue", "green", "pink", "yellow", "orange", "purple")


def _finishes(rng: np.random.Generator, book: MaterialBook, style: str) -> dict[str, str]:
    """Choose floor, ceiling and wall materials; one wall may differ."""

    def add(name, color, pattern, scale, *others, base=None) -> str:
        base = tinted(rng, color) if base is None else base
        colors = [base, *(others or (base * 0.93,))]
        return book.add(name, color, pattern, scale, colors, int(rng.integers(4096)))

    rough = style in ("storage", "basement")
    grout = np.array((0.55, 0.53, 0.50)) + rng.uniform(-0.15, 0.15)
    floors = (
        ("concrete", "brick", "tiles")
        if rough
        else ("planks", "planks", "tiles", "checker", "carpet", "marble")
    )
    floor = pick(rng, floors)
    if floor == "planks":
        color = pick(rng, ("brown", "beige", "gray", "orange"))
        wood = tinted(rng, color) * rng.uniform(0.7, 1.0)
        floor_key = add("wood", color, "planks", rng.uniform(0.09, 0.18), wood * 0.72, base=wood)
    elif floor == "tiles":
        color = pick(rng, ("white", "beige", "gray", "brown", "blue"))
        floor_key = add("tile", color, "tiles", rng.uniform(0.25, 0.6), grout)
    elif floor == "checker":
        dark = tinted(rng, pick(rng, ("black", "gray", "brown", "blue", "green", "red")))
        floor_key = add("tile", "white", "checker", rng.uniform(0.3, 0.6), dark)
    elif floor == "carpet":
        color = pick(rng, ("gray", "beige", "blue", "green", "red", "purple"))
        base = tinted(rng, color)
        floor_key = add("fabric", color, "noise", 0.1, base * 0.75, base=base)
    elif floor == "marble":
        floor_key = add("tile", "white", "marble", rng.uniform(0.4, 0.8), (0.45, 0.45, 0.48))
    elif floor == "brick":
        floor_key = add("brick", "gray", "bricks", 0.1, (0.3, 0.3, 0.3))
    else:
        floor_key = add("plaster", "gray", "noise", 0.1)
    wall_patterns = (
        ("plaster", "bricks", "plaster")
        if rough
        else ("plaster", "plaster", "stripes", "dots", "siding")
    )

    def wall() -> str:
        pattern, color = pick(rng, wall_patterns), pick(rng, WALL_COLORS)
        base = np.array(tinted(rng, color)) * 0.45 + 0.5 * rng.uniform(0.6, 1.0)
        if pattern == "bricks":
            color = pick(rng, ("red", "white", "gray", "brown"))
            return add("brick", color, "bricks", 0.075, (0.72, 0.70, 0.66))
        scale = {"stripes": rng.uniform(0.06, 0.2), "dots": 0.16, "siding": 0.15}.get(pattern, 0.1)
        name = "wood" if pattern == "siding" else "plaster"
        return add(name, color, pattern, scale, base * 0.9, base=base)

    main = wall()
    walls = dict.fromkeys(("wall_-x", "wall_+x", "wall_-z", "wall_+z"), main)
    if rng.random() < 0.35:
        walls[pick(rng, list(walls))] = wall()
    pale = np.array(COLORS["white"]) + rng.uniform(-0.02, 0.02, 3)
    ceiling = add("plaster", "white", "plaster", 0.1, base=pale)
    return {"floor": floor_key, "ceiling": ceiling, **walls}


def _put_on_wall(plan: Plan, draft: Draft, narrow: bool) -> bool:
    """Hang a picture, television, window or door on a free stretch of wall."""
    rng = draft.rng
    y = {"door": 0.0, "window": -draft.between(0.85, 1.0)}.get(draft.category)
    y = -draft.between(1.4, 1.6) if y is None else y
    for _ in range(TRIES):
        wall = int(rng.integers(4))
        if narrow and wall > 1 and draft.category != "window":
            continue
        if narrow and wall < 2 and draft.category == "window":
            continue
        start, stop = plan.wall_range(wall)
        along = draft.between(start, stop)
        x, z = plan.wall_point(wall, along, 0.0)
        doorway = Footprint(*plan.wall_point(wall, along, 0.47), 0.45, 0.45)
        if draft.category == "door" and not plan.is_free(doorway, 0.0):
            continue
        if plan.claim_wall(wall, along, draft, y):
            if draft.category == "door":
                plan.taken.append(doorway)
            plan.add(draft, (x, y, z), WALL_YAWS[wall], "wall")
            return True
    return False


def _put_against_wall(plan: Plan, draft: Draft) -> bool:
    rng = draft.rng
    back = -draft.bounds()[0][2] + 0.03
    for _ in range(TRIES):
        wall = int(rng.integers(4))
        along = draft.between(*plan.wall_range(wall))
        x, z = plan.wall_point(wall, along, back)
        spot = footprint_of(draft, x, z, WALL_YAWS[wall])
        if plan.is_free(spot) and plan.claim_wall(wall, along, draft, 0.0):
            plan.taken.append(spot)
            plan.add(draft, (x, 0.0, z), WALL_YAWS[wall], "floor")
            return True
    return False


def _put_at_table(plan: Plan, draft: Draft) -> bool:
    """Put a chair at a side of a table, looking at it."""
    rng = draft.rng
    tables = [o for o in plan.objects if o.category == "table"]
    if not tables:
        return False
    target = pick(rng, tables)
    base = Footprint(
        target.box3d.center[0],
        target.box3d.center[2],
        target.box3d.size[0] / 2,
        target.box3d.size[2] / 2,
        target.box3d.yaw,
    )
    for _ in range(TRIES):
        side = int(rng.integers(4))
        axis = base.axes()[side % 2] * (1 if side < 2 else -1)
        reach = base.extent(axis) + draft.bounds()[1][2] + draft.between(0.06, 0.3)
        slide = base.axes()[1 - side % 2] * draft.between(-0.3, 0.3)
        x, z = np.array((base.x, base.z)) + axis * reach + slide
        yaw = float(np.degrees(np.arctan2(-axis[0], -axis[1]))) + draft.between(-8, 8)
        spot = footprint_of(draft, x, z, yaw)
        if plan.is_free(spot, 0.01):
            plan.taken.append(spot)
            plan.add(draft, (x, 0.0, z), yaw, "floor")
            return True
    return False


def _put_on_floor(plan: Plan, draft: Draft) -> bool:
    rng = draft.rng
    for _ in range(TRIES):
        x, z = draft.between(plan.lo[0], plan.hi[0]), draft.between(plan.lo[2], plan.hi[2])
        yaw = float(rng.integers(4)) * 90
        if draft.category in ("chair", "ball", "crate", "stool", "barrel"):
            yaw += draft.between(-45, 45)
        spot = footprint_of(draft, x, z, yaw)
        if draft.category == "rug":
            inside = Plan(plan.lo, plan.hi).is_free(spot, margin=0.1)
            if inside:
                plan.add(draft, (x, 0.0, z), yaw, "floor")
                return True
        elif plan.is_free(spot, 0.08):
            plan.taken.append(spot)
            plan.add(draft, (x, 0.0, z), yaw, "floor")
            return True
    return False


def _put_on_table(plan: Plan, draft: Draft) -> bool:
    tables = [o for o in plan.objects if o.category == "table"]
    used = {o.support for o in plan.objects}
    tables = [o for o in tables if f"object:{o.id}" not in used]
    if not tables:
        return False
    base = pick(draft.rng, tables).box3d
    radius = 0.4 * min(base.size[0], base.size[2])
    x = base.center[0] + draft.between(-0.5, 0.5) * radius
    z = base.center[2] + draft.between(-0.5, 0.5) * radius
    owner = next(o.id for o in tables if o.box3d is base)
    plan.add(draft, (x, -base.size[1], z), draft.between(-180, 180), f"object:{owner}")
    return True


def _put(plan: Plan, draft: Draft, narrow: bool) -> bool:
    """Place a draft where its category belongs; False if there is no room."""
    if draft.category in ON_WALL:
        return _put_on_wall(plan, draft, narrow)
    if draft.category in BACK_TO_WALL:
        return _put_against_wall(plan, draft)
    if draft.category == "chair" and draft.rng.random() < 0.8 and _put_at_table(plan, draft):
        return True
    return _put_on_floor(plan, draft)


def _furnish(
    seed: int, kind: str, plan: Plan, book: MaterialBook, wanted: list[str], weights, total: int
) -> None:
    """Add objects until there are `total`, first `wanted`, then random ones."""
    rng = stream(seed, "categories")
    queue = [*wanted]
    again = set(wanted)  # what matters gets a second draft, of other size, when it does not fit
    for attempt in range(6 * total):
        if len(plan.objects) >= total:
            break
        category = queue.pop(0) if queue else pick(rng, list(weights), list(weights.values()))
        draft = Draft(category, stream(seed, "object", attempt), book)
        getattr(furniture, category)(draft)
        placed = _put(plan, draft, narrow=kind == "corridor")
        if not placed and category in again:
            again.remove(category)
            queue.insert(0, category)
        if placed and category == "table" and len(plan.objects) < total:
            top = stream(seed, "tabletop", attempt)
            if top.random() < TABLETOP_CHANCE:
                small = Draft(pick(top, furniture.TABLETOP), top, book)
                furniture.tabletop(small)
                _put_on_table(plan, small)


def _hang_lamps(seed: int, plan: Plan, book: MaterialBook, count: int) -> None:
    """Hang equal ceiling lamps in a row along z."""
    length = plan.hi[2] - plan.lo[2]
    for k in range(count):
        draft = Draft("lamp", stream(seed, "ceiling"), book)
        furniture.ceiling_lamp(draft)
        z = ((k + 0.5) / count - 0.5) * length
        plan.add(draft, (0.0, plan.lo[1], z), 0.0, "ceiling")


def _start_camera(seed: int, room: Structure, plan: Plan) -> Camera:
    """Put a camera into the middle part of a room, if possible `START_CLEARANCE_M` from all."""
    rng = stream(seed, "start")
    lo, hi = np.array(room.min), np.array(room.max)
    points = rng.uniform(0.7 * lo, 0.7 * hi, (START_TRIES, 3))
    points[:, 1] = -rng.uniform(*EYE_M, START_TRIES)
    free = clearance(room, plan.objects, points)
    best = int((np.minimum(free, START_CLEARANCE_M)).argmax())
    return Camera.upright("start", rng.uniform(-180, 180), points[best])


def build_interior(seed: int, kind: str, n_objects: tuple[int, int], style: str) -> dict:
    """Return the fields of a random room or corridor scene."""
    rng = stream(seed, "structure")
    book = MaterialBook()
    if kind == "room":
        width, depth = 3 + 6 * rng.uniform(0, 1, 2) ** 1.7  # small rooms are more frequent
        height = rng.uniform(2.4, 3.6)
        height = min(height, 2.4 + 0.2 * min(width, depth))
        wanted, weights = ROOM_STYLES[style]
    else:
        width, depth, height = rng.uniform(1.8, 3), rng.uniform(8, 20), rng.uniform(2.4, 3.0)
        wanted, weights = CORRIDOR_STYLES[style]
    lo, hi = rounded((-width / 2, -height, -depth / 2)), rounded((width / 2, 0, depth / 2))
    materials = _finishes(rng, book, style)
    total = int(rng.integers(n_objects[0], n_objects[1] + 1))
    plan = Plan(lo, hi)
    if kind == "corridor":  # a lane to walk along
        plan.taken.append(Footprint(0, 0, 0.36, depth / 2 - 0.3))
    lamps = min(total, 1 if kind == "room" else 1 + 2 * int(depth / 8))
    _hang_lamps(seed, plan, book, lamps)
    first = ["door", "window"] if kind == "room" else ["door"]
    _furnish(seed, kind, plan, book, first + list(wanted), weights, total)
    light = Light(
        type="point",
        vector=rounded((0, lo[1] + LIGHT_DROP_M, 0)),
        ambient=0.35 if kind == "room" else 0.45,
    )
    room = Structure(min=lo, max=hi, materials=materials)
    return {
        "seed": seed,
        "kind": kind,
        "room": room,
        "sky": None,
        "light": light,
        "materials": book.materials,
        "objects": tuple(plan.objects),
        "cameras": (_start_camera(seed, room, plan),),
    }
