"""`scripts/demo.py`: one panorama to depth, normals, a point cloud and a viewer page."""

import argparse
from pathlib import Path

from pager.cli import inference
from pager.cli.common import Parser, run_cli

DEMO_SEED = 20_000_105
DEMO_SIZE = (512, 1024)


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = Parser(prog="scripts/demo.py", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("../out/demo"))
    parser.add_argument("--input", help="your own 2:1 panorama; default: a procedural room")
    args = parser.parse_args(argv)
    return run_cli(lambda: _demo(args))


def _demo(args: argparse.Namespace) -> int:
    source = args.input or str(_render_panorama(args.out))
    flags = ["--input", source, "--results_path", str(args.out), "--tiny", "--html", "--overwrite"]
    code = inference.main(flags)
    if code:
        return code
    folder = args.out / Path(source).stem
    page = _write_index(args.out, folder, source)
    print(f"open {page.resolve()} in a browser (RGB, depth, normals in 360 degrees)")
    print(f"point cloud: {(folder / 'points.ply').resolve()}")
    return 0


def _write_index(out: Path, folder: Path, source: str) -> Path:
    """Write the page of the last demo at the top of the output folder."""
    from pager.export import read_meta, write_page
    from shared_pano_utils.imageio import read_image

    previews = {"Depth": "depth_preview.png", "Normals": "normals_preview.png"}
    views = {name: read_image(folder / file) for name, file in previews.items()}
    links = {name: f"{folder.name}/{name}" for name in read_meta(folder)["files"]}
    write_page(out / "index.html", {"RGB": read_image(Path(source)), **views}, source, links)
    return out / "index.html"


def _render_panorama(folder: Path) -> Path:
    from pager.data.procedural import render_frame
    from shared_pano_utils.imageio import write_image

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "procedural_room.png"
    write_image(path, render_frame(DEMO_SEED, "room", 0, DEMO_SIZE).rgb, gpano=True)
    return path
