"""Render the panoramas that app.py offers as examples.

python scripts/make_examples.py examples
"""

import argparse
from pathlib import Path

from pager.data.procedural import SceneKind, render_frame
from shared_pano_utils.imageio import write_image

SIZE = (256, 512)
# Scenes of the test split: the embedded checkpoints have not seen them.
SCENES: dict[SceneKind, int] = {"room": 20_000_003, "corridor": 21_000_002, "outdoor": 22_000_001}


def main() -> None:
    """Write one JPEG a kind of scene into the folder given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="receives the pictures")
    folder = parser.parse_args().folder
    for kind, seed in SCENES.items():
        path = folder / f"{kind}.jpg"
        write_image(path, render_frame(seed, kind, 0, SIZE).rgb, gpano=True)
        print(path)


if __name__ == "__main__":
    main()
