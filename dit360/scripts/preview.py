"""Draw the pictures of the README: generated panoramas beside the true places, and outpainting.

python scripts/preview.py docs
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from dit360.captions import caption, render_photo, render_world
from dit360.editing.place import place_photo
from dit360.editing.run import edit
from dit360.editing.settings import EditSettings
from dit360.embedded import (
    TINY_HEIGHT,
    TINY_LORA,
    TINY_MODEL,
    TINY_PASTE,
    TINY_STEPS,
    TINY_TEXT_LENGTH,
)
from dit360.loading import LoadOptions, open_pipeline
from dit360.quality import PHOTO_FOV_DEG, decode_erps, generate_latents, held_out_worlds
from shared_pano_utils.imageio import write_image

SHOWN, PHOTOS = 8, 4


def main() -> None:
    """Write captions.jpg (generated left, truth right) and outpainting.jpg (photo, result, truth)."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="receives the pictures")
    folder = parser.parse_args().folder
    pipeline = open_pipeline(LoadOptions(model=str(TINY_MODEL), lora=str(TINY_LORA)))
    worlds = held_out_worlds(SHOWN)
    sizes = {"height": TINY_HEIGHT, "steps": TINY_STEPS, "text_length": TINY_TEXT_LENGTH}
    tokens = next(iter(generate_latents(pipeline, worlds, **sizes)))
    generated = decode_erps(pipeline, tokens, TINY_HEIGHT, "circular")
    rows = [
        np.concatenate([picture, render_world(world, TINY_HEIGHT)], 1)
        for picture, world in zip(generated, worlds, strict=True)
    ]
    _write(folder / "captions.jpg", rows)
    rows = []
    for index, world in enumerate(worlds[:PHOTOS]):
        source, keep = place_photo(
            render_photo(world, TINY_HEIGHT, PHOTO_FOV_DEG), TINY_HEIGHT, fov_deg=PHOTO_FOV_DEG
        )
        settings = EditSettings(
            prompt=caption(world), num_inference_steps=TINY_STEPS, seed=index,
            max_sequence_length=TINY_TEXT_LENGTH, paste=TINY_PASTE,
        )  # fmt: skip
        known = np.where(keep[..., None], source, 0)
        result = edit(pipeline, source, keep, settings).image
        rows.append(np.concatenate([known, result, render_world(world, TINY_HEIGHT)], 1))
    _write(folder / "outpainting.jpg", rows)


def _write(path: Path, rows: list[np.ndarray]) -> None:
    sheet = Image.fromarray(np.concatenate(rows, 0))
    doubled = sheet.resize((2 * sheet.width, 2 * sheet.height), Image.Resampling.BICUBIC)
    write_image(path, np.array(doubled))


if __name__ == "__main__":
    main()
