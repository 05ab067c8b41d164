"""Procedural worlds that can be put into words, and a checker that looks for those words.

A world is a room or an open field with one or two large objects around the viewer. Its caption
names the colours of walls, floor, ground and sky, and the colour, shape and direction of every
object. `check` finds the colours and directions again in a panorama, so that text to panorama
can be scored without another network.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch

from shared_pano_utils.synthetic import Scene
from shared_pano_utils.synthetic.elements import (
    Box3d,
    Camera,
    Light,
    MaterialBook,
    Primitive,
    SceneObject,
    Sky,
    Structure,
    rounded,
)
from shared_pano_utils.synthetic.labels import COLORS

TRIGGER = "This is a panorama."
SURFACE_COLORS = ("red", "yellow", "green", "blue", "purple", "white")
SKIES = {  # zenith, horizon (sRGB)
    "blue": ((0.22, 0.42, 0.84), (0.62, 0.78, 0.95)),
    "gray": ((0.46, 0.47, 0.49), (0.72, 0.73, 0.74)),
    "orange": ((0.84, 0.42, 0.16), (0.98, 0.74, 0.38)),
    "pink": ((0.78, 0.38, 0.56), (0.96, 0.72, 0.80)),
}
DIRECTIONS = {"in front": 0.0, "to the right": 90.0, "behind": 180.0, "to the left": -90.0}
SHAPES = {"ball": "sphere", "box": "box", "pillar": "cylinder", "cone": "cone"}
SPREAD_DEG = 8.0  # objects stand at most this far from the named direction
EYE_M = 1.5  # every object is lower than this, so walls and sky are free above the horizon
OBJECT_STEP = 0.12  # tone difference between an object and what is behind it
SPLIT_SEEDS = {"train": 0, "val": 50_000_000, "test": 60_000_000}


@dataclass(frozen=True, kw_only=True)
class Item:
    """An object beside the viewer."""

    shape: str  # key of SHAPES
    color: str  # one of SURFACE_COLORS
    direction: str  # key of DIRECTIONS


@dataclass(frozen=True, kw_only=True)
class World:
    """What a caption says.

    Attributes:
        seed: of everything that the caption leaves open (sizes, distances, light, patterns).
        above: colour of the walls, or of the sky.
        below: colour of the floor, or of the ground.
        outdoor: field under a sky instead of a room.
        items: one or two objects in different directions, of different colours.
    """

    seed: int
    above: str
    below: str
    outdoor: bool
    items: tuple[Item, ...]


def random_world(seed: int) -> World:
    """Draw a world; the same seed gives the same one."""
    rng = np.random.default_rng([seed, 1])
    outdoor = bool(rng.random() < 0.5)
    below, *colors = (str(color) for color in rng.permutation(SURFACE_COLORS))
    if outdoor:
        above = str(rng.choice(list(SKIES)))
        colors = [color for color in colors if color != above]
    else:
        above = colors.pop()
    directions = rng.permutation(list(DIRECTIONS))[: rng.integers(1, 3)]
    items = tuple(
        Item(shape=str(rng.choice(list(SHAPES))), color=color, direction=str(direction))
        for color, direction in zip(colors, directions, strict=False)
    )
    return World(seed=seed, above=above, below=below, outdoor=outdoor, items=items)


def split_seed(split: Literal["train", "val", "test"], index: int) -> int:
    """Seed of a world of a split; splits share none.

    Raises:
        ValueError: unknown split, or an index out of its range.
    """
    if split not in SPLIT_SEEDS:
        raise ValueError(f"split is {split!r}, use one of {', '.join(SPLIT_SEEDS)}")
    if not 0 <= index < 10_000_000:
        raise ValueError(f"world {index}: a split has worlds 0 to 9999999")
    return SPLIT_SEEDS[split] + index


def caption(world: World) -> str:
    """The world in words, with the trigger; one of a few wordings, chosen by its seed."""
    things = [f"a {item.color} {item.shape} {item.direction}" for item in world.items]
    wording = np.random.default_rng([world.seed, 2]).integers(2)
    if world.outdoor:
        place = (
            f"A {world.below} field under {article(world.above)} {world.above} sky"
            if wording
            else f"Outdoors, the ground is {world.below} and the sky is {world.above}"
        )
    else:
        place = (
            f"A room with {world.above} walls and a {world.below} floor"
            if wording
            else f"Indoors, the walls are {world.above} and the floor is {world.below}"
        )
    return f"{TRIGGER} {place}. There is {' and '.join(things)}."


def article(word: str) -> str:
    """The indefinite article of a word."""
    return "an" if word[0] in "aeiou" else "a"


def world_scene(world: World) -> Scene:
    """Build the world; the camera of the scene looks to the front."""
    rng = np.random.default_rng([world.seed, 3])
    book = MaterialBook()

    def material(color: str, pattern: str, scale: float) -> str:
        base = np.array(COLORS[color]) + rng.uniform(-0.03, 0.03, 3)
        shades = (base, base * rng.uniform(0.86, 0.94))
        return book.add("painted", color, pattern, scale, shades, int(rng.integers(4096)))

    items = [_object(k + 1, item, rng, material) for k, item in enumerate(world.items)]
    sky = None
    if world.outdoor:
        low, high = (-200.0, -30.0, -200.0), (200.0, 0.0, 200.0)
        materials = {"ground": material(world.below, "noise", rng.uniform(0.2, 0.6))}
        zenith, horizon = SKIES[world.above]
        azimuth, height = rng.uniform(-np.pi, np.pi), np.radians(rng.uniform(30, 60))
        sun = rounded(
            (
                np.cos(height) * np.sin(azimuth),
                -np.sin(height),
                np.cos(height) * np.cos(azimuth),
            ),
            6,
        )
        sky = Sky(zenith=zenith, horizon=horizon, sun_dir=None)
        light = Light(type="sun", vector=sun, ambient=0.55)
    else:
        x, z = rng.uniform(2.9, 3.9, 2)
        height = rng.uniform(2.5, 3.2)
        low, high = rounded((-x, -height, -z)), rounded((x, 0, z))
        wall = material(world.above, str(rng.choice(["plaster", "solid"])), 0.3)
        floor = material(world.below, str(rng.choice(["tiles", "checker"])), rng.uniform(0.4, 0.8))
        ceiling = book.add("painted", "white", "solid", 1.0, ((0.9, 0.9, 0.88),), 0)
        materials = {"floor": floor, "ceiling": ceiling}
        materials |= dict.fromkeys(("wall_-x", "wall_+x", "wall_-z", "wall_+z"), wall)
        light = Light(type="point", vector=rounded((0, 0.3 - height, 0)), ambient=0.55)
    return Scene(
        seed=world.seed,
        kind="outdoor" if world.outdoor else "room",
        room=Structure(min=low, max=high, materials=materials),
        sky=sky,
        light=light,
        materials=book.materials,
        objects=tuple(items),
        cameras=(Camera.upright("start", 0.0, (0, -EYE_M, 0)),),
    )


def _object(number: int, item: Item, rng: np.random.Generator, material) -> SceneObject:
    azimuth = np.radians(DIRECTIONS[item.direction] + rng.uniform(-SPREAD_DEG, SPREAD_DEG))
    distance, radius = rng.uniform(1.7, 2.0), rng.uniform(0.6, 0.72)
    tall = item.shape in ("pillar", "cone")
    half = (radius, rng.uniform(0.55, 0.68) if tall else radius, radius)
    center = rounded((distance * np.sin(azimuth), -half[1], distance * np.cos(azimuth)))
    yaw = float(rng.uniform(-45, 45)) if item.shape == "box" else 0.0
    key = material(item.color, "solid", 0.5)
    solid = Primitive(
        type=SHAPES[item.shape], center=center, half=rounded(half), yaw=round(yaw, 4), material=key
    )
    size = rounded([2 * value for value in half])
    return SceneObject(
        id=number,
        category="ball" if item.shape == "ball" else "crate",
        name=f"{item.color} {item.shape}",
        color=item.color,
        material="painted",
        box3d=Box3d(center=center, size=size, yaw=solid.yaw),
        support="floor",
        prims=(solid,),
    )


def render_world(world: World, height: int, aa: int = 3) -> np.ndarray:
    """Its panorama (H, 2H, 3) uint8; `aa` squared rays a pixel at edges."""
    return _pixels(world_scene(world).render(size=(height, 2 * height), aa=aa, outputs=("rgb",)))


def render_photo(
    world: World, size: int, fov_deg: float, rotation: np.ndarray | None = None
) -> np.ndarray:
    """A square photo (size, size, 3) uint8 from the same place.

    Args:
        world: what is seen.
        size: pixels of a side.
        fov_deg: of a side.
        rotation: (3, 3) view to camera; None looks to the front.
    """
    turn = None if rotation is None else torch.as_tensor(rotation, dtype=torch.float32)
    scene = world_scene(world)
    rendered = scene.render(
        size=(size, size), projection="perspective", fov=fov_deg, R=turn, outputs=("rgb",)
    )
    return _pixels(rendered)


def _pixels(rendered) -> np.ndarray:
    image = (rendered.rgb * 255).round().clamp(0, 255).to(torch.uint8)
    return image.movedim(0, -1).contiguous().numpy()


class Finding(NamedTuple):
    """What a panorama shows, as `look` sees it."""

    above: str  # nearest of the colours asked for
    below: str
    items: dict[str, str | None]  # colour at each direction; None: nothing stands there


def look(erp: np.ndarray, *, outdoor: bool) -> Finding:
    """Colours above and below, and what stands in the four directions.

    Args:
        erp: (H, 2H, 3) uint8.
        outdoor: whether the colour above is one of `SKIES` (of `SURFACE_COLORS` otherwise).
    """
    band = _band(erp, 4, 15)
    if outdoor:
        skies = {name: np.mean(pair, 0) for name, pair in SKIES.items()}
        above = min(skies, key=lambda name: float(np.linalg.norm(skies[name] - band)))
    else:
        above = _nearest_color(band)
    floor = _band(erp, -80, -62)
    around = [floor] if outdoor else [floor, _band(erp, -4, 6)]
    items: dict[str, str | None] = {}
    for direction, azimuth in DIRECTIONS.items():
        patch = _band(erp, -32, -16, azimuth, 7)
        is_free = min(float(np.linalg.norm(_tone(patch) - _tone(x))) for x in around) < OBJECT_STEP
        items[direction] = None if is_free else _nearest_color(patch)
    return Finding(above, _nearest_color(floor), items)


def check(erp: np.ndarray, world: World) -> dict[str, list[bool]]:
    """Which statements of the caption hold in a panorama.

    Args:
        erp: (H, 2H, 3) uint8.
        world: whose caption it should show.

    Returns:
        Lists of answers: ``wall`` or ``sky``, and ``floor`` have one each; ``object_color``
        (something of that colour stands around) and ``object_direction`` (it stands where the
        caption has it) one for each object.
    """
    found = look(erp, outdoor=world.outdoor)
    return {
        "sky" if world.outdoor else "wall": [found.above == world.above],
        "floor": [found.below == world.below],
        "object_color": [item.color in found.items.values() for item in world.items],
        "object_direction": [found.items[item.direction] == item.color for item in world.items],
    }


def _band(
    erp: np.ndarray, low_deg: float, high_deg: float, azimuth: float = 0.0, half_deg: float = 180.0
) -> np.ndarray:
    """Median sRGB colour in [0, 1] (3,) between two elevations and around an azimuth."""
    height, width = erp.shape[:2]
    top, bottom = ((90 - deg) / 180 * height for deg in (high_deg, low_deg))
    rows = erp[round(top) : max(round(bottom), round(top) + 1)]
    center, half = (azimuth / 360 + 0.5) * width, half_deg / 360 * width
    columns = np.arange(round(center - half), round(center + half)) % width
    return np.median(rows[:, columns].reshape(-1, 3), axis=0) / 255


def _tone(color: np.ndarray) -> np.ndarray:
    """Colour without most of its shading: divided by its brightest channel, half as strong."""
    return color / max(float(color.max()), 0.05) ** 0.7


def _nearest_color(color: np.ndarray) -> str:
    """The colour word whose paint, lit more or less, comes nearest (3,) sRGB in [0, 1]."""
    light = np.linspace(0.55, 1.15, 25)[:, None]

    def distance(name: str) -> float:
        return float(np.linalg.norm(light * np.array(COLORS[name]) - color, axis=1).min())

    return min(SURFACE_COLORS, key=distance)
