"""Render the panoramas that app.py offers as examples.

python scripts/make_examples.py examples
"""

import argparse
from pathlib import Path

from genex_explorer.data.procedural import ClipOptions, SceneKind, find_walk, render_erp
from genex_explorer.embedded import TINY_FRAMES
from shared_pano_utils.imageio import write_image

# Starts of clips of the split `test`: the embedded checkpoint has not seen them.
PLACES: dict[SceneKind, int] = {"room": 4, "corridor": 1, "outdoor": 3}


def main() -> None:
    """Write one JPEG a kind of place into the folder given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="receives the pictures")
    folder = parser.parse_args().folder
    options = ClipOptions(frames=TINY_FRAMES, size=(512, 256))
    for kind, index in PLACES.items():
        scene, poses = find_walk("test", kind, index, options)
        path = folder / f"{kind}.jpg"
        write_image(path, render_erp(scene, poses[0], options), gpano=True)
        print(path)


if __name__ == "__main__":
    main()
