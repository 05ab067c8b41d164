"""Examples of the demo, rendered when it starts: captioned worlds need no pictures in the tree."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from dit360.app.painting import VIEW_SIZE, Canvas, Window
from dit360.captions import (
    DIRECTIONS,
    TRIGGER,
    caption,
    random_world,
    render_photo,
    render_world,
    split_seed,
)
from shared_pano_utils.imageio import write_image

RENDER_HEIGHT = 512
PHOTO_PX = 512
PHOTO_FOV_DEG = 120.0
OBJECT_PITCH_DEG, OBJECT_FOV_DEG = -20.0, 75.0
WORLDS = (0, 3, 7)
"""Numbers in the test split: captions that the embedded model has not seen."""


class Example(NamedTuple):
    """One world as a start of each kind of edit.

    Attributes:
        prompt: its caption.
        panorama: image file.
        photo: image file, a square of `PHOTO_FOV_DEG` to the front.
        window: perspective view of its first object.
    """

    prompt: str
    panorama: str
    photo: str
    window: Window


def describe_world(number: int) -> str:
    """Caption of a world of the test split, without the trigger, which the demo adds."""
    return caption(random_world(split_seed("test", number))).removeprefix(TRIGGER).strip()


def render_examples(folder: Path) -> list[Example]:
    """Render the example worlds into a folder."""
    return [_render(number, folder / str(number)) for number in WORLDS]


def paint_example(canvas: Canvas, example: Example) -> Canvas:
    """With the view of the example's first object as the hole, so that it can be run at once."""
    hole = example.window.write_back(np.ones(VIEW_SIZE, bool), len(canvas.source))
    return Canvas(canvas.source, hole)


def _render(number: int, folder: Path) -> Example:
    world = random_world(split_seed("test", number))
    panorama, photo = folder / "panorama.png", folder / "photo.png"
    write_image(panorama, render_world(world, RENDER_HEIGHT), gpano=True)
    write_image(photo, render_photo(world, PHOTO_PX, PHOTO_FOV_DEG))
    window = Window(DIRECTIONS[world.items[0].direction], OBJECT_PITCH_DEG, OBJECT_FOV_DEG)
    return Example(describe_world(number), str(panorama), str(photo), window)
