"""Render `example/`: a panorama, the masks of the original, a photo, prompts.

python scripts/make_examples.py
"""

import sys
from pathlib import Path

import numpy as np

from dit360.captions import caption, random_world, render_photo, render_world, split_seed
from dit360.editing.place import place_photo
from shared_pano_utils.imageio import atomic_path, write_image

EXAMPLES = Path(__file__).parents[1] / "example"
HEIGHT = 512
WORLD, PHOTO_WORLD, PROMPTS = 2, 7, range(20, 28)  # of the test split


def main() -> int:
    """Write every file of the folder."""
    world = random_world(split_seed("test", WORLD))
    write_image(EXAMPLES / "example.png", render_world(world, HEIGHT), gpano=True)
    (EXAMPLES / "masks").mkdir(exist_ok=True)
    white = np.full((64, 64, 3), 255, np.uint8)
    for index, yaw in enumerate((0, 90, 180, -90)):  # faces F, R, B, L, as the original's masks
        _, keep = place_photo(white, HEIGHT, yaw_deg=yaw)
        write_image(EXAMPLES / "masks" / f"mask{index}.png", keep.astype(np.uint8) * 255)
    hole = np.zeros((HEIGHT, 2 * HEIGHT), np.uint8)
    hole[HEIGHT // 2 : HEIGHT * 3 // 4, HEIGHT * 3 // 4 : HEIGHT * 5 // 4] = 255
    write_image(EXAMPLES / "masks" / "hole.png", hole)
    photo_of = random_world(split_seed("test", PHOTO_WORLD))
    write_image(EXAMPLES / "photo.png", render_photo(photo_of, 256, 120.0))
    lines = [caption(random_world(split_seed("test", index))) for index in PROMPTS]
    with atomic_path(EXAMPLES / "prompts.txt") as path:
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{EXAMPLES}: the photo shows: {caption(photo_of)} The panorama: {caption(world)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
