"""`scripts/demo.py`: a panorama from words, and one around a photo."""

import argparse
from pathlib import Path

from dit360.cli import editing, inference
from shared_pano_utils.commands import Parser, run_cli

DEMO_PROMPT = (
    "A blue field under an orange sky. There is a yellow box to the left and a red cone behind."
)
DEMO_WORLD = 5  # of the test split: never trained on
PHOTO_FOV_DEG = 120.0
PHOTO_PX = 256


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = Parser(prog="scripts/demo.py", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("../out/demo/dit360"))
    parser.add_argument(
        "--input", type=Path,
        help=f"your own 2:1 panorama; its front {PHOTO_FOV_DEG:g} degrees become the photo "
        "(default: a procedural place)",
    )  # fmt: skip
    args = parser.parse_args(argv)
    return run_cli(lambda: _demo(args))


def _demo(args: argparse.Namespace) -> int:
    out: Path = args.out
    photo, prompt = _take_photo(out, args.input)
    common = ["--tiny", "--overwrite", "--html"]
    code = inference.main([*common, "--prompt", DEMO_PROMPT, "--output", str(out / "text.png")])
    if code != 0:
        return code
    flags = ["--perspective", str(photo), "--fov", str(PHOTO_FOV_DEG), "--prompt", prompt]
    code = editing.main([*common, *flags, "--output", str(out / "around_photo.png")])
    if code == 0:
        print(f"open {(out / 'text.html').resolve()} in a browser: {DEMO_PROMPT}")
        print(f"and {(out / 'around_photo.html').resolve()}: a panorama around {photo.name}")
    return code


def _take_photo(folder: Path, panorama: Path | None) -> tuple[Path, str]:
    """A photo to the front of a panorama or a procedural place, and what to paint around it."""
    import numpy as np

    from shared_pano_utils.imageio import read_erp, write_image

    path = folder / "photo.png"
    if panorama is not None:
        from shared_pano_utils import erp_to_perspective

        size = (PHOTO_PX, PHOTO_PX)
        view = erp_to_perspective(read_erp(panorama), size=size, fov=PHOTO_FOV_DEG, antialias=True)
        write_image(path, np.asarray(view))
        return path, DEMO_PROMPT  # the tiny model knows only the words of procedural places
    from dit360.captions import caption, random_world, render_photo, split_seed

    world = random_world(split_seed("test", DEMO_WORLD))
    write_image(path, render_photo(world, PHOTO_PX, PHOTO_FOV_DEG))
    return path, caption(world)
