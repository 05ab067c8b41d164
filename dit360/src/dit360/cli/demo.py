"""`scripts/demo.py`: a panorama from words, and one around a photo."""

from pathlib import Path

from dit360.cli import editing, inference
from shared_pano_utils.commands import Parser, run_cli

DEMO_PROMPT = (
    "A blue field under an orange sky. There is a yellow box to the left and a red cone behind."
)
DEMO_WORLD = 5  # of the test split: never trained on
PHOTO_FOV_DEG = 120.0


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = Parser(prog="scripts/demo.py", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("../out/demo/dit360"))
    args = parser.parse_args(argv)
    return run_cli(lambda: _demo(args.out))


def _demo(out: Path) -> int:
    common = ["--tiny", "--overwrite", "--html"]
    code = inference.main([*common, "--prompt", DEMO_PROMPT, "--output", str(out / "text.png")])
    if code != 0:
        return code
    photo, prompt = _take_photo(out)
    flags = ["--perspective", str(photo), "--fov", str(PHOTO_FOV_DEG), "--prompt", prompt]
    code = editing.main([*common, *flags, "--output", str(out / "around_photo.png")])
    if code == 0:
        print(f"open {(out / 'text.html').resolve()} in a browser: {DEMO_PROMPT}")
        print(f"and {(out / 'around_photo.html').resolve()}: a panorama around {photo.name}")
    return code


def _take_photo(folder: Path) -> tuple[Path, str]:
    """A photo to the front of a procedural place, and the caption of that place."""
    from dit360.captions import caption, random_world, render_photo, split_seed
    from shared_pano_utils.imageio import write_image

    world = random_world(split_seed("test", DEMO_WORLD))
    path = folder / "photo.png"
    write_image(path, render_photo(world, 256, PHOTO_FOV_DEG))
    return path, caption(world)
