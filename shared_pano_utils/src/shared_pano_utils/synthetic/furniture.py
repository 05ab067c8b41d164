"""Indoor objects as composites of primitives; each function fills a draft."""

import math

import numpy as np

from shared_pano_utils.synthetic.draft import Draft, pick, tinted

WARM_WHITE = (1.0, 0.97, 0.90)
WOODS = ("brown", "beige", "black", "white", "orange")
CLOTHS = ("red", "blue", "green", "gray", "beige", "purple", "orange", "yellow", "pink", "brown")


def table(d: Draft) -> None:
    """Dining, round or coffee table."""
    top = d.surface("wood", pick(d.rng, WOODS))
    height = d.between(0.70, 0.78)
    if d.rng.random() < 0.3:
        radius = d.between(0.45, 0.7)
        d.cylinder(0, height - 0.04, 0, radius, 0.04, top)
        leg = d.surface("metal", pick(d.rng, ("gray", "black", "white")))
        d.cylinder(0, 0.03, 0, 0.05, height - 0.07, leg)
        d.cylinder(0, 0, 0, radius * 0.5, 0.03, leg)
        return
    width, depth = d.between(1.1, 1.9), d.between(0.65, 0.95)
    if d.rng.random() < 0.3:
        height = d.between(0.38, 0.46)
    d.box(0, height - 0.045, 0, width, 0.045, depth, top)
    leg = top if d.rng.random() < 0.6 else d.surface("metal", "black")
    d.legs(width - 0.08, depth - 0.08, height - 0.045, d.between(0.05, 0.08), leg)


def chair(d: Draft) -> None:
    """Wooden or upholstered chair, 0.4-0.55 m wide."""
    width, depth = d.between(0.40, 0.52), d.between(0.42, 0.52)
    seat, height = d.between(0.43, 0.48), d.between(0.80, 1.0)
    cloth = d.rng.random() < 0.5
    main = (
        d.surface("fabric", pick(d.rng, CLOTHS)) if cloth else d.surface("wood", pick(d.rng, WOODS))
    )
    leg = d.surface("wood", pick(d.rng, WOODS)) if cloth else main
    d.box(0, seat - 0.05, 0, width, 0.05 if not cloth else 0.08, depth, main)
    d.legs(width - 0.02, depth - 0.02, seat - 0.05, 0.04, leg)
    back_z = -depth / 2 + 0.02
    if cloth:
        d.box(0, seat + 0.05, back_z, width, height - seat - 0.05, 0.06, main)
        return
    for sx in (-1, 1):
        d.box(sx * (width / 2 - 0.02), seat, back_z, 0.04, height - seat, 0.04, main)
    for y in (0.45, 0.8):
        d.box(0, seat + y * (height - seat) - 0.04, back_z, width, 0.08, 0.025, main)


def stool(d: Draft) -> None:
    """Round stool."""
    height, radius = d.between(0.45, 0.75), d.between(0.16, 0.21)
    seat = d.surface(pick(d.rng, ("fabric", "wood", "plastic")))
    d.cylinder(0, height - 0.06, 0, radius, 0.06, seat)
    leg = d.surface("metal", pick(d.rng, ("gray", "black")))
    d.cylinder(0, 0.02, 0, 0.03, height - 0.08, leg)
    d.cylinder(0, 0, 0, radius, 0.02, leg)


def sofa(d: Draft) -> None:
    """Sofa with arm rests, seat cushions and sometimes pillows."""
    width, depth = d.between(1.5, 2.4), d.between(0.82, 0.98)
    cloth = d.surface("fabric", pick(d.rng, CLOTHS), pattern="weave", scale=0.012)
    arm = d.between(0.14, 0.22)
    d.box(0, 0.06, 0, width, 0.24, depth, cloth)
    d.box(0, 0.30, -depth / 2 + 0.11, width - 2 * arm, d.between(0.45, 0.55), 0.22, cloth)
    for sx in (-1, 1):
        d.box(sx * (width - arm) / 2, 0.30, 0, arm, 0.30, depth, cloth)
    seats = 2 if width < 1.9 else 3
    cushion = (width - 2 * arm) / seats
    seat_cloth = cloth if d.rng.random() < 0.7 else d.surface("fabric", pick(d.rng, CLOTHS))
    for k in range(seats):
        x = (k - (seats - 1) / 2) * cushion
        d.box(x, 0.30, 0.10, cushion - 0.02, 0.14, depth - 0.22, seat_cloth)
    for sx in (-1, 1):
        if d.rng.random() < 0.6:
            pillow = d.surface("fabric", pick(d.rng, CLOTHS))
            x = sx * (width / 2 - arm - 0.22)
            d.ball(x, 0.60, -depth / 2 + 0.28, (0.21, 0.19, 0.08), pillow)


def bed(d: Draft) -> None:
    """Bed with head board at the back, blanket and pillows."""
    width, length = d.between(0.95, 1.8), d.between(1.95, 2.1)
    frame = d.surface("wood", pick(d.rng, WOODS))
    d.box(0, 0.08, 0, width, 0.22, length, frame)
    d.box(0, 0.08, -length / 2 - 0.03, width + 0.06, d.between(0.8, 1.1), 0.06, frame)
    sheet = d.surface("fabric", "white", pattern="solid")
    d.box(0, 0.30, 0, width - 0.04, 0.20, length - 0.04, sheet)
    blanket = d.surface("fabric", pick(d.rng, CLOTHS))
    d.box(0, 0.26, 0.17 * length, width + 0.03, 0.27, length * 0.66, blanket)
    count = 1 if width < 1.3 else 2
    for k in range(count):
        x = (k - (count - 1) / 2) * width * 0.46
        d.ball(x, 0.56, -length / 2 + 0.26, (0.3, 0.09, 0.2), sheet)


def shelf(d: Draft) -> None:
    """Open shelf with rows of books."""
    width, height, depth = d.between(0.7, 1.3), d.between(1.3, 2.1), d.between(0.26, 0.34)
    wood = d.surface("wood", pick(d.rng, WOODS))
    side = 0.03
    for sx in (-1, 1):
        d.box(sx * (width - side) / 2, 0, 0, side, height, depth, wood)
    d.box(0, 0, -depth / 2 + 0.01, width - 2 * side, height, 0.02, wood)
    boards = 4 if height < 1.7 else 5
    gap = (height - side) / boards
    for k in range(boards + 1):
        d.box(0, k * gap, 0.005, width - 2 * side, side, depth - 0.01, wood)
    others = [tinted(d.rng, pick(d.rng, CLOTHS)) for _ in range(3)]
    books = d.surface("plastic", pick(d.rng, CLOTHS), pattern="books", scale=0.035, others=others)
    for k in range(boards):
        if d.rng.random() < 0.8:
            length = d.between(0.4, 0.95) * (width - 0.08)
            x = pick(d.rng, (-1, 1)) * (width - 0.08 - length) / 2
            d.box(x, k * gap + side, 0.01, length, gap * d.between(0.55, 0.8), depth * 0.7, books)


def cabinet(d: Draft) -> None:
    """Wardrobe or sideboard with doors and handles."""
    tall = d.rng.random() < 0.45
    width = d.between(0.9, 1.5) if tall else d.between(0.8, 1.8)
    height = d.between(1.7, 2.15) if tall else d.between(0.7, 0.95)
    depth = d.between(0.4, 0.6)
    wood = d.surface("wood", pick(d.rng, WOODS))
    d.box(0, 0.06, 0, width, height - 0.06, depth, wood)
    d.box(0, 0, -0.02, width - 0.06, 0.06, depth - 0.06, d.surface("wood", "black"))
    front = wood if d.rng.random() < 0.5 else d.surface("wood", pick(d.rng, WOODS))
    handle = d.surface("metal", "gray")
    doors = 2 if width < 1.3 else 3
    leaf = width / doors
    for k in range(doors):
        x = (k - (doors - 1) / 2) * leaf
        d.box(x, 0.09, depth / 2 + 0.008, leaf - 0.02, height - 0.12, 0.016, front)
        side = 1 if k < doors / 2 else -1
        y = 1.0 if tall else height * 0.6
        d.box(x + side * (leaf / 2 - 0.05), y - 0.08, depth / 2 + 0.025, 0.015, 0.16, 0.02, handle)


def lamp(d: Draft) -> None:
    """Floor lamp with a conical shade."""
    height = d.between(1.4, 1.75)
    pole = d.surface("metal", pick(d.rng, ("black", "gray", "white")))
    d.cylinder(0, 0, 0, 0.14, 0.03, pole)
    d.cylinder(0, 0.03, 0, 0.015, height - 0.3, pole)
    shade = d.surface("fabric", pick(d.rng, ("beige", "white", "yellow")), pattern="glow")
    d.cylinder(0, height - 0.3, 0, d.between(0.14, 0.2), 0.3, shade)


def ceiling_lamp(d: Draft) -> None:
    """Lamp hanging from y = 0 downwards."""
    shade = d.surface("plastic", "white", pattern="glow", base=WARM_WHITE)
    form = d.rng.random()
    if form < 0.3:
        d.add("box", (0, 0.035, 0), (0.1, 0.035, 0.6), shade)
        return
    if form < 0.6:
        d.add("cylinder", (0, 0.05, 0), (0.25, 0.05, 0.25), shade)
        return
    cord = d.surface("metal", "black")
    d.add("cylinder", (0, 0.15, 0), (0.012, 0.15, 0.012), cord)
    d.add("sphere", (0, 0.42, 0), (0.14, 0.14, 0.14), shade)


def plant(d: Draft) -> None:
    """Potted plant."""
    pot_h, radius = d.between(0.22, 0.4), d.between(0.13, 0.2)
    green = tinted(d.rng, "green")
    leaf = d.surface("fabric", "green", pattern="foliage", others=[green * 1.6])
    d.material = "plastic"
    pot = d.surface("plastic", pick(d.rng, ("brown", "white", "gray", "orange", "blue")))
    d.cylinder(0, 0, 0, radius, pot_h, pot)
    stem = d.surface("wood", "brown")
    d.cylinder(0, pot_h, 0, 0.02, 0.3, stem)
    size = d.between(0.2, 0.3)
    count = int(d.rng.integers(3, 6))
    for k in range(count):
        angle = 2 * math.pi * k / count + d.between(-0.4, 0.4)
        x, z = 0.55 * size * math.cos(angle), 0.55 * size * math.sin(angle)
        y = pot_h + 0.25 + d.between(0.05, 0.5)
        d.ball(x, y, z, (size * 0.75, size * d.between(0.7, 1.1), size * 0.75), leaf)


def tv(d: Draft) -> None:
    """Flat television hung on the wall; its centre is at y = 0."""
    width = d.between(0.9, 1.4)
    height = width * 0.57
    d.add("box", (0, 0, 0.025), (width / 2, height / 2, 0.025), d.surface("plastic", "black"))
    screen = d.surface("glass-like", "black", pattern="solid")
    d.add("box", (0, 0, 0.052), (width / 2 - 0.02, height / 2 - 0.02, 0.003), screen)


def picture(d: Draft) -> None:
    """Framed picture; its centre is at y = 0."""
    width, height = d.between(0.4, 1.1), d.between(0.35, 0.8)
    frame = d.surface("wood", pick(d.rng, WOODS))
    d.add("box", (0, 0, 0.015), (width / 2, height / 2, 0.015), frame)
    others = [tinted(d.rng, pick(d.rng, CLOTHS)) for _ in range(3)]
    canvas = d.surface(
        "fabric", pick(d.rng, CLOTHS), pattern="picture", scale=width / 2, others=others
    )
    rim = d.between(0.025, 0.05)
    d.add("box", (0, 0, 0.031), (width / 2 - rim, height / 2 - rim, 0.003), canvas)


def window(d: Draft) -> None:
    """Window with frame, bars and sometimes curtains; its sill is at y = 0."""
    width, height = d.between(0.9, 1.9), d.between(1.0, 1.4)
    frame = d.surface("wood", pick(d.rng, ("white", "white", "brown", "gray")))
    sky = [(0.80, 0.88, 0.95), (0.38, 0.46, 0.36), (0.30, 0.36, 0.22)]
    pane = d.surface("glass-like", "blue", pattern="view", others=sky)
    d.box(0, 0, 0.01, width, height, 0.02, pane)
    bar = 0.06
    for sx in (-1, 1):
        d.box(sx * (width - bar) / 2, 0, 0.03, bar, height, 0.06, frame)
    for y in (0.0, height - bar):
        d.box(0, y, 0.03, width, bar, 0.06, frame)
    d.box(0, 0, 0.025, 0.045, height, 0.05, frame)
    d.box(0, -0.04, 0.07, width + 0.12, 0.04, 0.14, frame)
    if d.rng.random() < 0.6:
        cloth = d.surface(
            "fabric", pick(d.rng, CLOTHS), pattern="stripes", scale=0.045, contrast=0.86
        )
        span = d.between(0.22, 0.34)
        for sx in (-1, 1):
            d.box(sx * (width / 2 + 0.05), -0.35, 0.09, span, height + 0.5, 0.06, cloth)
        d.box(0, height + 0.13, 0.09, width + 0.7, 0.03, 0.03, frame)


def door(d: Draft) -> None:
    """Closed door with frame, two panels and a handle."""
    width, height = d.between(0.85, 1.0), d.between(2.0, 2.1)
    leaf = d.surface("wood", pick(d.rng, ("white", "brown", "gray", "beige", "blue", "green")))
    frame = d.surface("wood", pick(d.rng, ("white", "brown")))
    d.box(0, 0, 0.02, width, height, 0.04, leaf)
    for y, tall in ((0.18, 0.70), (1.08, 0.78)):
        d.box(0, y, 0.043, width * 0.62, tall, 0.008, leaf)
    for sx in (-1, 1):
        d.box(sx * (width / 2 + 0.04), 0, 0.03, 0.08, height, 0.06, frame)
    d.box(0, height, 0.03, width + 0.16, 0.08, 0.06, frame)
    d.ball(width / 2 - 0.09, 1.0, 0.075, 0.032, d.surface("metal", "gray"))


def rug(d: Draft) -> None:
    """Flat rug."""
    width, depth = d.between(1.2, 2.2), d.between(1.6, 3.0)
    others = [tinted(d.rng, pick(d.rng, CLOTHS)) for _ in range(2)]
    cloth = d.surface("fabric", pick(d.rng, CLOTHS), pattern="rug", scale=width / 2, others=others)
    d.box(0, 0, 0, width, 0.012, depth, cloth)


def ball(d: Draft) -> None:
    """Toy ball."""
    radius = d.between(0.1, 0.2)
    skin = d.surface("plastic", pattern=pick(d.rng, ("solid", "stripes")), scale=0.08)
    d.ball(0, radius, 0, radius, skin)


def crate(d: Draft) -> None:
    """Wooden crate with battens."""
    size = d.between(0.35, 0.6)
    wood = d.surface("wood", pick(d.rng, ("brown", "beige", "orange")), pattern="planks", scale=0.1)
    d.box(0, 0, 0, size, size, size, wood)
    rim = d.surface("wood", "brown")
    for sx in (-1, 1):
        for sz in (-1, 1):
            d.box(sx * size / 2, 0, sz * size / 2, 0.06, size + 0.01, 0.06, rim)


def barrel(d: Draft) -> None:
    """Barrel with two hoops."""
    radius, height = d.between(0.25, 0.33), d.between(0.75, 0.95)
    body = d.surface(pick(d.rng, ("wood", "metal", "plastic")))
    d.cylinder(0, 0, 0, radius, height, body)
    hoop = d.surface("metal", pick(d.rng, ("gray", "black")))
    for y in (0.25, 0.65):
        d.cylinder(0, y * height, 0, radius + 0.012, 0.04, hoop)


TABLETOP = ("plant", "ball", "lamp", "crate")


def tabletop(d: Draft) -> None:
    """Small version of a category, to stand on a table."""
    if d.category == "plant":
        pot = d.surface("plastic", pick(d.rng, ("white", "orange", "blue", "gray")))
        d.cylinder(0, 0, 0, 0.06, 0.1, pot)
        green = np.array(tinted(d.rng, "green"))
        leaf = d.surface("fabric", "green", pattern="foliage", others=[green * 1.6])
        d.ball(0, 0.2, 0, (0.11, 0.13, 0.11), leaf)
    elif d.category == "ball":
        radius = d.between(0.05, 0.09)
        d.ball(0, radius, 0, radius, d.surface("plastic"))
    elif d.category == "lamp":
        d.cylinder(0, 0, 0, 0.07, 0.02, d.surface("metal", "black"))
        d.cylinder(0, 0.02, 0, 0.012, 0.22, d.surface("metal", "black"))
        shade = d.surface("fabric", "beige", pattern="glow")
        d.add("cone", (0, -0.32, 0), (0.12, 0.1, 0.12), shade)
    else:
        d.box(0, 0, 0, 0.22, 0.14, 0.16, d.surface("wood", pick(d.rng, WOODS)))
