"""Join the RGB, depth and normals pictures of a finished demo into docs/demo.jpg.

python scripts/demo_figure.py ../out/demo/procedural_room docs/demo.jpg
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from shared_pano_utils.imageio import read_image, write_image

WIDTH = 640


def main() -> None:
    """Stack the three pictures side by side at `WIDTH` pixels each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="of a finished demo")
    parser.add_argument("target", type=Path, help="JPEG file to write")
    args = parser.parse_args()
    folder, target = args.folder, args.target
    source = folder.parent / f"{folder.name}.png"
    pictures = [source, folder / "depth_preview.png", folder / "normals_preview.png"]
    panels = [
        np.asarray(
            Image.fromarray(read_image(path)).resize((WIDTH, WIDTH // 2), Image.Resampling.LANCZOS)
        )
        for path in pictures
    ]
    target.parent.mkdir(parents=True, exist_ok=True)
    write_image(target, np.concatenate(panels, 1))
    print(target)


if __name__ == "__main__":
    main()
