"""Outdoor objects as composites of primitives; each function fills a draft."""

import math

from shared_pano_utils.synthetic.draft import Draft, pick, tinted

WALLS = ("white", "beige", "yellow", "pink", "gray", "blue", "red", "orange", "green")
ROOFS = ("red", "brown", "black", "gray", "orange")


def house(d: Draft) -> None:
    """House with gable roof (ridge left to right), door, windows and chimney."""
    width, depth = d.between(7, 12), d.between(6, 9)
    floors = 2 if d.rng.random() < 0.5 else 1
    wall_h = 2.9 * floors + 0.3
    brick = d.rng.random() < 0.35
    if brick:
        mortar = [(0.74, 0.70, 0.65)]
        color = pick(d.rng, ("red", "brown", "orange", "gray"))
        wall = d.surface("brick", color, scale=0.12, others=mortar)
    else:
        pattern = pick(d.rng, ("plaster", "siding"))
        wall = d.surface("plaster", pick(d.rng, WALLS), pattern=pattern, scale=0.2, contrast=0.86)
    d.box(0, 0, 0, width, wall_h, depth, wall)
    roof = d.surface("tile", pick(d.rng, ROOFS), pattern="bricks", scale=0.3, contrast=0.6)
    rise = d.between(1.6, 3.0)
    center = (0, -(wall_h + rise / 2), 0)
    d.add("prism", center, (depth / 2 + 0.5, rise / 2, width / 2 + 0.4), roof, 90.0)
    trim = d.surface("wood", pick(d.rng, ("white", "brown", "gray")))
    pane = d.surface("glass-like", "blue", pattern="solid")
    door = d.surface("wood", pick(d.rng, ("brown", "green", "red", "blue", "white")))
    front, door_x = depth / 2, pick(d.rng, (-0.25, 0.0, 0.25)) * width
    d.box(door_x, 0, front + 0.03, 1.0, 2.15, 0.08, door)
    d.box(door_x, 0, front + 0.5, 1.8, 0.15, 1.0, d.surface("stone", "gray"))
    columns = 3 if width < 9.5 else 4
    for floor in range(floors):
        for k in range(columns):
            x = (k - (columns - 1) / 2) * width / columns
            if floor == 0 and abs(x - door_x) < 1.3:
                continue
            y = 1.0 + 2.9 * floor
            d.box(x, y, front + 0.02, 1.25, 1.35, 0.06, trim)
            d.box(x, y + 0.08, front + 0.04, 1.09, 1.19, 0.06, pane)
            d.box(x, y + 0.08, front + 0.055, 0.06, 1.19, 0.06, trim)
    d.box(
        0.3 * width,
        wall_h,
        -0.1 * depth,
        0.7,
        rise + 0.6,
        0.7,
        d.surface("brick", "red", others=[(0.7, 0.66, 0.6)]),
    )


def tree(d: Draft) -> None:
    """Conifer, or broad-leaved tree with a crown of ellipsoids."""
    conifer = d.rng.random() < 0.35
    green = "green" if conifer else pick(d.rng, ("green", "orange", "yellow"), (6, 1, 1))
    base = tinted(d.rng, green) * d.between(0.55, 0.85)
    leaf = d.surface("grass", green, pattern="foliage", others=[base * 1.7])
    d.material = "wood"
    bark = d.surface("wood", "brown", contrast=0.5)
    if conifer:
        height, radius = d.between(5, 11), d.between(1.2, 1.9)
        d.cylinder(0, 0, 0, 0.16, height * 0.3, bark)
        for k in range(4):
            low = height * (0.14 + 0.2 * k)
            tall, wide = height * 0.34, radius * (1 - 0.21 * k)
            d.add("cone", (0, -(low + tall / 2), 0), (wide, tall / 2, wide), leaf)
        return
    trunk, crown = d.between(1.8, 3.0), d.between(1.2, 2.2)
    d.cylinder(0, 0, 0, d.between(0.12, 0.25), trunk + 0.8 * crown, bark)
    d.ball(0, trunk + crown, 0, (crown * 0.85, crown, crown * 0.85), leaf)
    count = int(d.rng.integers(4, 7))
    for k in range(count):
        angle = 2 * math.pi * k / count + d.between(-0.3, 0.3)
        size = crown * d.between(0.5, 0.7)
        x, z = 0.65 * crown * math.cos(angle), 0.65 * crown * math.sin(angle)
        d.ball(x, trunk + crown * d.between(0.45, 1.4), z, (size, size * 0.85, size), leaf)


def car(d: Draft) -> None:
    """Car, nose along +z: 1.6-1.9 x 3.8-4.8 x 1.4-1.6 m."""
    width, length, height = d.between(1.6, 1.9), d.between(3.8, 4.8), d.between(1.4, 1.6)
    paint = d.surface(
        "metal", pick(d.rng, ("red", "blue", "white", "gray", "black", "green", "yellow"))
    )
    glass = d.surface("glass-like", "black", pattern="solid")
    tyre, rim = d.surface("plastic", "black"), d.surface("metal", "gray")
    d.box(0, 0.3, 0, width, 0.55, length, paint)
    cabin_z, cabin = -0.04 * length, 0.5 * length
    top = height - 0.85
    d.box(0, 0.85, cabin_z, width * 0.86, top, cabin, glass)
    d.box(0, height - 0.07, cabin_z, width * 0.88, 0.07, cabin * 0.92, paint)
    for z in (-cabin / 2 + 0.04, 0.0, cabin / 2 - 0.04):
        for sx in (-1, 1):
            d.box(sx * width * 0.415, 0.85, cabin_z + z, width * 0.05, top, 0.1, paint)
    for sz in (-0.31, 0.31):
        for sx in (-1, 1):
            d.ball(sx * (width / 2 - 0.08), 0.33, sz * length, (0.12, 0.33, 0.33), tyre)
            d.ball(sx * (width / 2 + 0.01), 0.33, sz * length, (0.05, 0.18, 0.18), rim)
    front = d.surface("plastic", "yellow", pattern="glow")
    rear = d.surface("plastic", "red")
    for sx in (-1, 1):
        d.box(sx * width * 0.36, 0.58, length / 2, 0.3, 0.14, 0.04, front)
        d.box(sx * width * 0.38, 0.6, -length / 2, 0.26, 0.14, 0.04, rear)


def lamp_post(d: Draft) -> None:
    """Street lamp."""
    height = d.between(4.0, 5.5)
    pole = d.surface("metal", pick(d.rng, ("gray", "black", "green")))
    d.cylinder(0, 0, 0, 0.12, 0.5, pole)
    d.cylinder(0, 0.5, 0, 0.055, height - 0.5, pole)
    d.box(0, height - 0.05, 0.45, 0.06, 0.05, 1.0, pole)
    d.box(0, height - 0.12, 0.9, 0.22, 0.1, 0.5, pole)
    d.box(
        0, height - 0.135, 0.9, 0.18, 0.03, 0.42, d.surface("glass-like", "white", pattern="glow")
    )


def bench(d: Draft) -> None:
    """Slatted park bench."""
    width = d.between(1.4, 1.9)
    wood = d.surface("wood", pick(d.rng, ("brown", "orange", "green")))
    iron = d.surface("metal", "black")
    for z in (-0.16, 0.0, 0.16):
        d.box(0, 0.42, z, width, 0.04, 0.13, wood)
    for y in (0.56, 0.72):
        d.box(0, y, -0.26, width, 0.12, 0.035, wood)
    for sx in (-1, 1):
        x = sx * (width / 2 - 0.15)
        d.box(x, 0, 0, 0.06, 0.42, 0.44, iron)
        d.box(x, 0.42, -0.29, 0.06, 0.44, 0.05, iron)


def fence(d: Draft) -> None:
    """Picket fence, 3-6 m long: rails and a row of posts."""
    width, height = d.between(3, 6), d.between(0.9, 1.3)
    wood = d.surface("wood", pick(d.rng, ("white", "brown", "gray", "green")))
    for y in (0.25, 0.72):
        d.box(0, y * height, 0, width, 0.08, 0.03, wood)
    count = int(width / 0.45)
    for k in range(count):
        x = (k - (count - 1) / 2) * width / count
        d.box(x, 0, 0.03, 0.14, height, 0.025, wood)


def rock(d: Draft) -> None:
    """Boulder of two or three ellipsoids."""
    stone = d.surface("stone", pick(d.rng, ("gray", "brown", "beige")), contrast=0.6)
    size = d.between(0.3, 0.9)
    d.ball(0, size * 0.35, 0, (size, size * 0.6, size * 0.8), stone)
    d.ball(size * 0.55, size * 0.2, size * 0.3, (size * 0.6, size * 0.42, size * 0.5), stone)
    if d.rng.random() < 0.5:
        d.ball(-size * 0.5, size * 0.2, -size * 0.2, (size * 0.5, size * 0.5, size * 0.6), stone)


def litter_bin(d: Draft) -> None:
    """Litter bin with a lid."""
    body = d.surface(
        pick(d.rng, ("metal", "plastic")), pick(d.rng, ("green", "gray", "blue", "orange"))
    )
    lid = d.surface("plastic", "black")
    height = d.between(0.75, 0.95)
    d.cylinder(0, 0, 0, 0.25, height, body)
    d.cylinder(0, height, 0, 0.28, 0.06, lid)
    d.ball(0, height + 0.06, 0, (0.24, 0.12, 0.24), lid)


def sign(d: Draft) -> None:
    """Traffic sign on a pole."""
    height = d.between(2.1, 2.6)
    plate = d.surface("metal", pick(d.rng, ("red", "blue", "yellow", "white")), pattern="solid")
    inner = d.surface("metal", pick(d.rng, ("white", "black", "red")), pattern="solid")
    d.cylinder(0, 0, -0.03, 0.03, height, d.surface("metal", "gray"))
    if d.rng.random() < 0.5:
        d.ball(0, height - 0.1, 0.01, (0.34, 0.34, 0.015), plate)
        d.box(0, height - 0.16, 0.022, 0.4, 0.12, 0.02, inner)
    else:
        d.box(0, height - 0.4, 0.01, 0.6, 0.6, 0.02, plate)
        d.box(0, height - 0.32, 0.015, 0.44, 0.44, 0.025, inner)
