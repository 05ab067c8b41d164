"""`scripts/demo.py`: forward, turn, forward, from one panorama."""

import argparse
from pathlib import Path

from genex_explorer.cli import explore
from genex_explorer.cli.common import Parser, run_cli
from genex_explorer.embedded import TINY_HEIGHT, TINY_WIDTH

DEMO_PLACE = ("outdoor", 3)  # of the split `test`: never trained on
DEMO_PATH = "forward 7, left 90, forward 5"


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = Parser(prog="scripts/demo.py", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("../out/demo/genex_explorer"))
    parser.add_argument("--input", help="your own 2:1 panorama; default: a procedural place")
    args = parser.parse_args(argv)
    return run_cli(lambda: _demo(args))


def _demo(args: argparse.Namespace) -> int:
    source = args.input or str(_render_start(args.out))
    flags = ["--tiny", "--image", source, "--path", DEMO_PATH, "--output_dir", str(args.out)]
    flags += ["--save_mp4", "--save_gif", "--html", "--fps", "5", "--overwrite"]
    flags += ["--output_size", "512", "256"]
    code = explore.main(flags)
    if code == 0:
        print(
            f"open {(args.out / 'walk.html').resolve()} in a browser: {DEMO_PATH}, in 360 degrees"
        )
        print(f"video: {(args.out / 'walk.mp4').resolve()}")
    return code


def _render_start(folder: Path) -> Path:
    from genex_explorer.data.procedural import ClipOptions, find_walk, render_erp
    from shared_pano_utils.imageio import write_image

    options = ClipOptions(frames=8, size=(2 * TINY_WIDTH, 2 * TINY_HEIGHT))
    scene, poses = find_walk("test", *DEMO_PLACE, options)
    path = folder / "start.png"
    write_image(path, render_erp(scene, poses[0], options), gpano=True)
    return path
