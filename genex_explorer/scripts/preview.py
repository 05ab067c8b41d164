"""Draw the pictures of the README: walks of the embedded checkpoint beside the true frames.

python scripts/preview.py docs
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from genex_explorer.data.procedural import ClipOptions, SceneKind, find_walk, render_erp
from genex_explorer.embedded import TINY_ASSETS, TINY_FRAMES, TINY_HEIGHT, TINY_WIDTH
from genex_explorer.explorer import TINY_SETTINGS, open_pipeline
from genex_explorer.paths import Move
from genex_explorer.video import write_gif
from genex_explorer.walk import WalkSettings, resize_erp, walk
from shared_pano_utils.imageio import write_image

# Clips of the split `test`: the checkpoint has not seen them.
PLACES: tuple[tuple[SceneKind, int], ...] = (("room", 4), ("corridor", 1), ("outdoor", 3))
SIZE = (TINY_WIDTH, TINY_HEIGHT)
SCALE, SHOWN = 3, (0, 2, 4, 7)


def main() -> None:
    """Write preview.gif (generated left, truth right) and preview.jpg (frames below each other)."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="receives the pictures")
    folder = parser.parse_args().folder
    pairs = [_walk_pair(*place) for place in PLACES]  # [(F, H, W, 3) generated, true]
    rows = [np.concatenate([walked, truth], 2) for walked, truth in pairs]
    movie = np.concatenate(rows, 1)
    write_gif(folder / "preview.gif", [_enlarge(frame) for frame in movie], fps=3)
    sheet = [np.concatenate([clip[list(SHOWN)].swapaxes(0, 1).reshape(SIZE[1], -1, 3)
                             for clip in pair]) for pair in pairs]  # fmt: skip
    picture = Image.fromarray(_enlarge(np.concatenate(sheet)))
    draw = ImageDraw.Draw(picture)
    for row in range(2 * len(PLACES)):
        label = "true" if row % 2 else "generated"
        draw.text((4, row * SIZE[1] * SCALE + 2), label, fill="white", stroke_width=1,
                  stroke_fill="black")  # fmt: skip
    write_image(folder / "preview.jpg", np.asarray(picture))


def _walk_pair(kind: SceneKind, index: int) -> tuple[np.ndarray, np.ndarray]:
    options = ClipOptions(frames=TINY_FRAMES, size=(2 * TINY_WIDTH, 2 * TINY_HEIGHT))
    scene, poses = find_walk("test", kind, index, options)
    truth = np.stack([resize_erp(render_erp(scene, pose, options), SIZE) for pose in poses])
    pipeline: Any = open_pipeline(str(TINY_ASSETS))
    pipeline.set_progress_bar_config(disable=True)
    settings = WalkSettings(**TINY_SETTINGS)
    result = walk(pipeline, truth[0], [Move(0.0, TINY_FRAMES - 1)], settings)
    return result.frames(SIZE), truth


def _enlarge(frame: np.ndarray) -> np.ndarray:
    image = Image.fromarray(frame)
    size = (image.width * SCALE, image.height * SCALE)
    return np.asarray(image.resize(size, Image.Resampling.BICUBIC))


if __name__ == "__main__":
    main()
