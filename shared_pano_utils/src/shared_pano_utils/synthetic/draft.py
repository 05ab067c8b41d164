"""Objects under construction: random streams, colours, materials, placing.

A draft lives in its own frame: it stands on y = 0, up is -y, its front looks along +z.
"""

import math
import zlib
from dataclasses import dataclass, field

import numpy as np

from shared_pano_utils.synthetic.elements import (
    Box3d,
    MaterialBook,
    Primitive,
    SceneObject,
    rounded,
)
from shared_pano_utils.synthetic.labels import COLOR_JITTER, COLORS

# Texture and cell size (metres) by material word.
SURFACES = {
    "wood": (("grain", 0.1),),
    "metal": (("solid", 0.1),),
    "plastic": (("solid", 0.1),),
    "fabric": (("weave", 0.02), ("stripes", 0.05), ("checker", 0.06), ("dots", 0.09)),
    "brick": (("bricks", 0.075),),
    "tile": (("tiles", 0.3),),
    "plaster": (("plaster", 0.1),),
    "stone": (("noise", 0.1),),
}
ADJECTIVES = {"wood": "wooden", "tile": "tiled", "glass-like": "glass"}


def stream(seed: int, purpose: str, index: int = 0) -> np.random.Generator:
    """Return the Philox generator of one purpose and object index of a scene."""
    sequence = np.random.SeedSequence([seed, zlib.crc32(purpose.encode()), index])
    return np.random.Generator(np.random.Philox(sequence))


def pick(rng: np.random.Generator, options, weights=None):
    """Return one of the options."""
    p = None if weights is None else np.asarray(weights, float) / sum(weights)
    return options[int(rng.choice(len(options), p=p))]


def tinted(rng: np.random.Generator, color: str) -> np.ndarray:
    """Return the sRGB centre of a colour word plus at most `COLOR_JITTER` per channel."""
    return np.array(COLORS[color]) + rng.uniform(-COLOR_JITTER, COLOR_JITTER, 3)


@dataclass
class Draft:
    """Primitives of one object.

    Attributes:
        category: Category word.
        rng: Stream of this object.
        book: Where materials are stored.
    """

    category: str
    rng: np.random.Generator
    book: MaterialBook
    color: str = ""
    material: str = ""
    prims: list[tuple] = field(default_factory=list)  # (type, center, half, yaw, material key)

    def surface(
        self, name: str, color: str | None = None, *, pattern: str | None = None, **options
    ) -> str:
        """Add a material and return its key.

        Args:
            name: Material word.
            color: Colour word, random among the usual ones if None.
            pattern: Texture, random among those of the material if None.
            **options: `base` sRGB instead of the tinted colour word, `scale` in metres, `contrast` of the second colour, `others` further
                sRGB colours.
        """
        color = color or pick(self.rng, list(COLORS))
        choices = SURFACES.get(name, (("solid", 0.1),))
        pattern_default, scale = choices[int(self.rng.integers(len(choices)))]
        base = np.array(options.get("base", tinted(self.rng, color)))
        contrast = options.get("contrast", 0.72 if base.mean() > 0.25 else 1.5)
        others = options.get("others", [base * contrast])
        if not self.color:
            self.color, self.material = color, name
        return self.book.add(
            name,
            color,
            pattern or pattern_default,
            options.get("scale", scale),
            [base, *others],
            int(self.rng.integers(4096)),
        )

    def between(self, low: float, high: float) -> float:
        """Return a uniform number."""
        return float(self.rng.uniform(low, high))

    def add(self, kind: str, center, half, material: str, yaw: float = 0.0) -> None:
        """Add a primitive given by its centre, half sizes and yaw in degrees."""
        self.prims.append((kind, tuple(center), tuple(half), yaw, material))

    def box(self, x, y0, z, width, height, depth, material, yaw: float = 0.0) -> None:
        """Add a box whose bottom is `y0` metres above the floor; full sizes."""
        center = (x, -(y0 + height / 2), z)
        self.add("box", center, (width / 2, height / 2, depth / 2), material, yaw)

    def cylinder(self, x, y0, z, radius, height, material) -> None:
        """Add an upright cylinder whose bottom is `y0` metres above the floor."""
        self.add("cylinder", (x, -(y0 + height / 2), z), (radius, height / 2, radius), material)

    def ball(self, x, y, z, half, material) -> None:
        """Add an ellipsoid whose centre is `y` metres above the floor; half sizes."""
        half = (half,) * 3 if isinstance(half, float) else half
        kind = "sphere" if half[0] == half[1] == half[2] else "ellipsoid"
        self.add(kind, (x, -y, z), half, material)

    def legs(self, width: float, depth: float, height: float, thick: float, material) -> None:
        """Add four square legs inside a rectangle of full sizes."""
        for sx in (-1, 1):
            for sz in (-1, 1):
                x, z = sx * (width - thick) / 2, sz * (depth - thick) / 2
                self.box(x, 0, z, thick, height, thick, material)

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Return lower and upper corner (3,) of the primitives in the own frame."""
        corners = []
        for _, center, half, yaw, _ in self.prims:
            c, s = abs(math.cos(math.radians(yaw))), abs(math.sin(math.radians(yaw)))
            reach = np.array((c * half[0] + s * half[2], half[1], s * half[0] + c * half[2]))
            corners.append((np.array(center) - reach, np.array(center) + reach))
        return np.min([a for a, _ in corners], 0), np.max([b for _, b in corners], 0)

    def place(self, number: int, position, yaw: float, support: str) -> SceneObject:
        """Move the draft to a world position, turned by yaw degrees."""
        yaw = round((yaw + 180) % 360 - 180, 2)
        c, s = math.cos(math.radians(yaw)), math.sin(math.radians(yaw))
        px, py, pz = position

        def moved(p) -> tuple[float, float, float]:
            return rounded((px + c * p[0] + s * p[2], py + p[1], pz - s * p[0] + c * p[2]))

        prims = tuple(
            Primitive(
                type=kind,
                center=moved(center),
                half=rounded(np.maximum(half, 0.001)),
                yaw=round((turn + yaw + 180) % 360 - 180, 2),
                material=material,
            )
            for kind, center, half, turn, material in self.prims
        )
        lo, hi = self.bounds()
        adjective = ADJECTIVES.get(self.material, self.material)
        return SceneObject(
            id=number,
            category=self.category,
            name=f"{self.color} {adjective} {self.category}",
            color=self.color,
            material=self.material,
            box3d=Box3d(center=moved((lo + hi) / 2), size=rounded(hi - lo), yaw=yaw),
            support=support,
            prims=prims,
        )
