"""Render twelve procedural scenes side by side, as a picture for the documentation.

Run from the package folder: `python scripts/contact_sheet.py docs/contact_sheet.jpg`.
"""

import argparse
import io
import time
from pathlib import Path

import numpy as np
from PIL import Image

from shared_pano_utils.imageio import atomic_path
from shared_pano_utils.synthetic import Scene

# (kind, style, seed), four rows of three.
SCENES = (
    ("room", "living", 23),
    ("room", "bedroom", 20),
    ("room", "dining", 20),
    ("room", "storage", 23),
    ("corridor", "office", 24),
    ("corridor", "hotel", 24),
    ("corridor", "basement", 21),
    ("outdoor", "street", 23),
    ("outdoor", "park", 21),
    ("outdoor", "plaza", 23),
    ("outdoor", "street", 22),
    ("room", "bedroom", 24),
)
COLUMNS = 3
GAP_PX = 6


def render_tile(kind: str, style: str, seed: int, size: tuple[int, int]) -> np.ndarray:
    """Return one scene as (H, W, 3) uint8."""
    scene = Scene.random(seed, kind, n_objects=(10, 14), style=style)
    rgb = scene.render(size=size, shadows=True, outputs=("rgb",)).rgb
    assert rgb is not None
    return (rgb.permute(1, 2, 0).numpy() * 255 + 0.5).astype(np.uint8)


def encode_below(image: Image.Image, limit_bytes: int) -> bytes:
    """Encode as JPEG with the best quality whose file is at most `limit_bytes` long."""
    for quality in range(92, 20, -4):
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality, optimize=True)
        if buffer.tell() <= limit_bytes:
            return buffer.getvalue()
    raise ValueError(f"no JPEG quality fits {image.size} into {limit_bytes} bytes; use --height")


def main() -> None:
    """Write the sheet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, help="JPEG file to write")
    parser.add_argument("--height", type=int, default=256, help="pixels per scene, width is twice")
    parser.add_argument("--max_kb", type=int, default=450, help="largest file size in kB")
    args = parser.parse_args()
    height, width = args.height, 2 * args.height
    rows = -(-len(SCENES) // COLUMNS)
    sheet = Image.new(
        "RGB",
        (COLUMNS * (width + GAP_PX) - GAP_PX, rows * (height + GAP_PX) - GAP_PX),
        "white",
    )
    start = time.perf_counter()
    for k, (kind, style, seed) in enumerate(SCENES):
        tile = Image.fromarray(render_tile(kind, style, seed, (height, width)))
        sheet.paste(tile, (k % COLUMNS * (width + GAP_PX), k // COLUMNS * (height + GAP_PX)))
    seconds = time.perf_counter() - start
    with atomic_path(args.output) as path:
        path.write_bytes(encode_below(sheet, args.max_kb * 1000))
    size_kb = args.output.stat().st_size / 1000
    print(f"{args.output}: {len(SCENES)} scenes, {size_kb:.0f} kB, {seconds:.1f} s")


if __name__ == "__main__":
    main()
