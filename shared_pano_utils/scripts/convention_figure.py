"""Draw docs/convention.png: the frame, the panorama, the cube faces and the pixel registrations.

python scripts/convention_figure.py [OUTPUT.png]
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from shared_pano_utils.geometry import FACE_AXES, FACE_NAMES, rays, xyz_to_face

WIDTH, HEIGHT = 1400, 1240
INK, GREY, PAPER = (25, 25, 30), (110, 110, 118), (255, 255, 255)
ARROW_COLORS = {"x": (200, 30, 30), "y": (20, 130, 50), "z": (30, 60, 200)}
ERP_SIZE = (420, 840)
ERP_AT = (80, 90)
FACE_SIDE = 200
CUBE_AT = (80, 610)
# Column and row of each face in the drawing, order F R B L U D.
DICE = ((1, 1), (2, 1), (3, 1), (0, 1), (1, 0), (1, 2))


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's built-in face."""
    return ImageFont.load_default(size)


def ray_colors(directions: np.ndarray) -> Image.Image:
    """Colours of unit rays (..., 3): red grows with x, green with y, blue with z."""
    return Image.fromarray(np.round((directions * 0.35 + 0.62) * 255).clip(0, 255).astype(np.uint8))


def arrow(
    draw: ImageDraw.ImageDraw, start: tuple[float, float], end: tuple[float, float], color: tuple
) -> None:
    """Line with a head at `end`."""
    a, b = np.array(start, float), np.array(end, float)
    along = (b - a) / np.linalg.norm(b - a)
    across = np.array([-along[1], along[0]])
    neck = b - 11 * along
    draw.line([tuple(a), tuple(neck)], fill=color, width=4)
    draw.polygon([tuple(b), tuple(neck + 6 * across), tuple(neck - 6 * across)], fill=color)


def axis_name(axis: np.ndarray) -> str:
    """Name of a signed coordinate axis, such as "-z"."""
    index = int(np.abs(axis).argmax())
    return ("+" if axis[index] > 0 else "-") + "xyz"[index]


def draw_panorama(image: Image.Image, draw: ImageDraw.ImageDraw) -> None:
    """Panorama with its angles and the outlines of the faces."""
    height, width = ERP_SIZE
    left, top = ERP_AT
    directions = rays("erp", ERP_SIZE)
    colors = np.array(ray_colors(directions.numpy()))
    face = xyz_to_face(directions)[0].numpy()
    border = (face != np.roll(face, 1, 1)) | (face != np.vstack([face[:1], face[:-1]]))
    colors[border] = 70
    image.paste(Image.fromarray(colors), (left, top))
    draw.text((left, top - 38), "Equirectangular panorama (ERP)", fill=INK, font=font(24))
    for lon in range(-180, 181, 45):
        x = left + (lon / 360 + 0.5) * width
        draw.line([(x, top + height), (x, top + height + 7)], fill=INK, width=2)
        label = f"{lon:+d}\N{DEGREE SIGN}".replace("+0", "0")
        draw.text((x, top + height + 10), label, fill=INK, font=font(17), anchor="mt")
    for lat in range(-90, 91, 45):
        y = top + (0.5 - lat / 180) * height
        draw.line([(left - 7, y), (left, y)], fill=INK, width=2)
        label = f"{lat:+d}\N{DEGREE SIGN}".replace("+0", "0")
        draw.text((left - 11, y), label, fill=INK, font=font(17), anchor="rm")
    draw.text(
        (left + width / 2, top + height + 34),
        "longitude, right is positive; latitude, up is positive",
        fill=GREY,
        font=font(18),
        anchor="mt",
    )
    for name, (x, y) in {
        "F": (0.5, 0.5),
        "R": (0.75, 0.5),
        "L": (0.25, 0.5),
        "B": (0.035, 0.5),
        "U": (0.5, 0.08),
        "D": (0.5, 0.92),
    }.items():
        at = (left + x * width, top + y * height)
        draw.text(at, name, fill=INK, font=font(34), anchor="mm")
    draw.text((left + 0.965 * width, top + height / 2), "B", fill=INK, font=font(34), anchor="mm")


def draw_faces(image: Image.Image, draw: ImageDraw.ImageDraw) -> None:
    """The six faces, unfolded, with their right, down and forward axes."""
    left, top = CUBE_AT
    faces = rays("cube", FACE_SIDE).numpy()
    draw.text(
        (left, top - 8), "Cube faces, order F R B L U D", fill=INK, font=font(24), anchor="lb"
    )
    for index, (column, row) in enumerate(DICE):
        x, y = left + column * FACE_SIDE, top + row * FACE_SIDE
        image.paste(ray_colors(faces[index]), (x, y))
        draw.rectangle([x, y, x + FACE_SIDE, y + FACE_SIDE], outline=(70, 70, 70), width=2)
        right, down, forward = FACE_AXES[index].numpy()
        for axis, tip, label_at in (
            (right, (x + 92, y + 24), (x + 99, y + 24)),
            (down, (x + 24, y + 92), (x + 24, y + 108)),
        ):
            name = axis_name(axis)
            arrow(draw, (x + 24, y + 24), tip, ARROW_COLORS[name[-1]])
            anchor = "lm" if axis is right else "mm"
            draw.text(label_at, name, fill=INK, font=font(19), anchor=anchor)
        centre = (x + FACE_SIDE / 2 + 14, y + FACE_SIDE / 2 + 12)
        draw.text(centre, FACE_NAMES[index], fill=INK, font=font(44), anchor="mm")
        draw.text(
            (centre[0], centre[1] + 36),
            f"face {index}, looks along {axis_name(forward)}",
            fill=INK,
            font=font(14),
            anchor="mm",
        )


def draw_frame(draw: ImageDraw.ImageDraw, left: int, top: int) -> None:
    """The camera frame and the signs of the three angles."""
    draw.text((left, top), "Frame RDF, right-handed", fill=INK, font=font(24))
    origin = (left + 70, top + 128)
    for name, tip, label_at, text in (
        ("x", (origin[0] + 120, origin[1]), (origin[0] + 130, origin[1] - 12), "+x right"),
        ("y", (origin[0], origin[1] + 100), (origin[0] + 14, origin[1] + 82), "+y down"),
        ("z", (origin[0] + 62, origin[1] - 66), (origin[0] + 74, origin[1] - 82), "+z forward"),
    ):
        arrow(draw, origin, tip, ARROW_COLORS[name])
        draw.text(label_at, text, fill=ARROW_COLORS[name], font=font(21))
    lines = (
        ("Positive angles, in degrees:", INK),
        ("yaw: looks right", INK),
        ("pitch: looks up", INK),
        ("roll: camera turns clockwise", INK),
        ("R = Ry(yaw) Rx(pitch) Rz(roll)", INK),
        ("maps camera to reference:", INK),
        ("output(d) = input(R d)", INK),
        ("Colours: red +x, green +y, blue +z", GREY),
    )
    for row, (text, color) in enumerate(lines):
        draw.text((left, top + 262 + 27 * row), text, fill=color, font=font(19))


def draw_registrations(draw: ImageDraw.ImageDraw, left: int, top: int) -> None:
    """Where the four samples of a row of four pixels lie, for the three registrations."""
    pixel, count = 74, 4
    draw.text((left, top), "Pixel registration, axis of 4 pixels", fill=INK, font=font(24))
    rows = (
        ("center (default)", [(i + 0.5) / count for i in range(count)]),
        ("corner", [i / (count - 1) for i in range(count)]),
        ("edge", [i / count for i in range(count)]),
    )
    for row, (name, samples) in enumerate(rows):
        y = top + 66 + 118 * row
        draw.text((left, y - 24), name, fill=INK, font=font(19))
        for i in range(count):
            box = [left + i * pixel, y + 6, left + (i + 1) * pixel, y + 46]
            draw.rectangle(box, outline=GREY, fill=(240, 240, 244), width=2)
        for i, s in enumerate(samples):
            x = left + s * count * pixel
            draw.ellipse([x - 7, y + 19, x + 7, y + 33], fill=ARROW_COLORS["x"])
            draw.text((x, y + 50), str(i), fill=INK, font=font(16), anchor="mt")
    y = top + 66 + 118 * 3 - 20
    draw.text((left, y), "left border s = 0, right border s = 1;", fill=GREY, font=font(17))
    draw.text(
        (left, y + 24),
        "index = s n - 0.5, s (n - 1), s n",
        fill=GREY,
        font=font(17),
    )


def main() -> None:
    """Write the figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    default = Path(__file__).resolve().parent.parent / "docs" / "convention.png"
    parser.add_argument("output", type=Path, nargs="?", default=default)
    output: Path = parser.parse_args().output
    image = Image.new("RGB", (WIDTH, HEIGHT), PAPER)
    draw = ImageDraw.Draw(image)
    draw_panorama(image, draw)
    draw_frame(draw, 985, 52)
    draw_faces(image, draw)
    draw_registrations(draw, 985, 574)
    image.save(output, optimize=True)


if __name__ == "__main__":
    main()
