"""Random outdoor scenes: streets, parks and squares."""

import numpy as np

from shared_pano_utils.synthetic import outdoors
from shared_pano_utils.synthetic.draft import Draft, pick, stream, tinted
from shared_pano_utils.synthetic.elements import (
    Camera,
    Light,
    MaterialBook,
    Sky,
    Structure,
    rounded,
)
from shared_pano_utils.synthetic.placing import Footprint, Plan, footprint_of

TRIES = 40
EXTENT_M = 60.0
OUTDOOR_STYLES: dict[str, tuple[tuple[str, ...], dict[str, int]]] = {
    "street": (
        ("house", "house", "tree", "car", "house", "lamp post"),
        {
            "house": 5,
            "tree": 4,
            "car": 3,
            "lamp post": 2,
            "bench": 1,
            "fence": 2,
            "bin": 1,
            "sign": 1,
            "rock": 1,
        },
    ),
    "park": (
        ("tree", "bench", "tree", "tree"),
        {"tree": 7, "bench": 2, "lamp post": 1, "bin": 1, "rock": 3, "fence": 1, "sign": 1},
    ),
    "plaza": (
        ("house", "house", "house", "tree", "bench"),
        {"house": 5, "tree": 3, "bench": 2, "lamp post": 2, "bin": 1, "car": 1, "sign": 1},
    ),
}
MAKERS = {
    "house": outdoors.house,
    "tree": outdoors.tree,
    "car": outdoors.car,
    "lamp post": outdoors.lamp_post,
    "bench": outdoors.bench,
    "fence": outdoors.fence,
    "rock": outdoors.rock,
    "bin": outdoors.litter_bin,
    "sign": outdoors.sign,
}
# Sky presets: zenith, horizon, sun elevation range in degrees (None = overcast), ambient.
SKIES = (
    ((0.22, 0.42, 0.78), (0.74, 0.84, 0.93), (30, 65), 0.38),
    ((0.30, 0.50, 0.82), (0.82, 0.87, 0.90), (25, 50), 0.38),
    ((0.34, 0.42, 0.62), (0.96, 0.76, 0.58), (8, 18), 0.42),
    ((0.62, 0.67, 0.73), (0.80, 0.82, 0.84), None, 0.62),
)


def _street_spot(draft: Draft, road: float) -> tuple[float, float, float]:
    """Return x, z, yaw where a category belongs along a road of half width `road`."""
    side = pick(draft.rng, (-1, 1))
    facing = -90.0 * side  # front towards the road
    depth = draft.bounds()[1][2]
    z, verge = draft.between(-24, 24), road + 2.1
    offsets = {
        "house": verge + depth + draft.between(1.5, 5),
        "tree": verge + draft.between(1.2, 7),
        "car": road - 1.15,
        "lamp post": road + 0.3,
        "bench": road + 1.6,
        "fence": verge + draft.between(0.3, 0.8),
        "rock": verge + draft.between(1, 12),
        "bin": road + draft.between(0.5, 1.8),
        "sign": road + 0.45,
    }
    if draft.category in ("car", "sign"):
        facing = 0.0 if side < 0 else 180.0
    near = draft.category in ("bench", "bin", "sign", "rock", "fence", "lamp post", "car")
    return side * offsets[draft.category], z * (0.6 if near else 1.0), facing


def _open_spot(draft: Draft, inner: float) -> tuple[float, float, float]:
    """Return x, z, yaw around the middle of a park or square, front to the middle."""
    large = draft.category == "house"
    low, high = (inner + 12, inner + 24) if large else (3.5, inner + 14)
    radius, angle = draft.between(low, high), draft.between(-np.pi, np.pi)
    x, z = radius * np.sin(angle), radius * np.cos(angle)
    yaw = float(np.degrees(np.arctan2(-x, -z)))
    return x, z, 90.0 * round(yaw / 90) if large else yaw


def _ground(rng: np.random.Generator, book: MaterialBook, style: str, road: float) -> str:
    grass = tinted(rng, "green") * rng.uniform(0.7, 0.9) + np.array((0.08, 0.05, 0.0))
    seed = int(rng.integers(4096))
    if style == "street":
        asphalt = np.array((0.36, 0.36, 0.37)) + rng.uniform(-0.06, 0.06)
        paving = tinted(rng, pick(rng, ("gray", "beige"))) * rng.uniform(0.85, 1.1)
        return book.add(
            "asphalt", "gray", "road", road, [asphalt, paving, grass, (0.9, 0.9, 0.86)], seed
        )
    if style == "park" and rng.random() < 0.6:
        gravel = tinted(rng, "beige") * rng.uniform(0.7, 0.95)
        return book.add("grass", "green", "road", 0.6, [gravel, gravel, grass, gravel], seed)
    if style == "park":
        return book.add("grass", "green", "grass", 0.1, [grass, grass * 1.35], seed)
    color = pick(rng, ("gray", "beige", "brown"))
    base = tinted(rng, color)
    pattern, scale = pick(rng, (("tiles", 0.8), ("bricks", 0.25), ("checker", 1.0)))
    return book.add(
        "tile", color, pattern, scale, [base, base * (0.85 if pattern == "checker" else 0.72)], seed
    )


def _light(rng: np.random.Generator) -> tuple[Sky, Light]:
    zenith, horizon, elevation, ambient = pick(rng, SKIES)
    angle = np.radians(rng.uniform(*(elevation or (40, 70))))
    azimuth = rng.uniform(-np.pi, np.pi)
    flat = np.cos(angle)
    sun = rounded((flat * np.sin(azimuth), -np.sin(angle), flat * np.cos(azimuth)), 6)
    jitter = rng.uniform(-0.03, 0.03, 3)
    sky = Sky(
        zenith=rounded(np.array(zenith) + jitter),
        horizon=rounded(np.clip(np.array(horizon) + jitter, 0, 1)),
        sun_dir=None if elevation is None else sun,
    )
    return sky, Light(type="sun", vector=sun, ambient=ambient)


def build_landscape(seed: int, n_objects: tuple[int, int], style: str) -> dict:
    """Return the fields of a random outdoor scene."""
    rng = stream(seed, "structure")
    book = MaterialBook()
    road = float(rng.uniform(2.5, 3.4))
    ground = _ground(rng, book, style, road)
    sky, light = _light(rng)
    total = int(rng.integers(n_objects[0], n_objects[1] + 1))
    x, z, eye = rng.uniform(-0.6, 0.6) * road, rng.uniform(-3, 3), rng.uniform(1.2, 1.7)
    lo, hi = (-EXTENT_M, -30.0, -EXTENT_M), (EXTENT_M, 0.0, EXTENT_M)
    plan = Plan(lo, hi)
    plan.taken.append(Footprint(x, z, 1.2, 1.2))
    wanted, weights = OUTDOOR_STYLES[style]
    queue, names = list(wanted), stream(seed, "categories")
    for attempt in range(6 * total):
        if len(plan.objects) >= total:
            break
        category = queue.pop(0) if queue else pick(names, list(weights), list(weights.values()))
        draft = Draft(category, stream(seed, "object", attempt), book)
        MAKERS[category](draft)
        for _ in range(TRIES):
            if style == "street":
                at_x, at_z, yaw = _street_spot(draft, road)
            else:
                at_x, at_z, yaw = _open_spot(draft, 6.0)
            spot = footprint_of(draft, at_x, at_z, yaw)
            if plan.is_free(spot, 0.3):
                plan.taken.append(spot)
                plan.add(draft, (at_x, 0.0, at_z), yaw, "floor")
                break
    return {
        "seed": seed,
        "kind": "outdoor",
        "room": Structure(min=lo, max=hi, materials={"ground": ground}),
        "sky": sky,
        "light": light,
        "materials": book.materials,
        "objects": tuple(plan.objects),
        "cameras": (Camera.upright("start", rng.uniform(-180, 180), (x, -eye, z)),),
    }
