"""`evaluate/IECC/iecc_generate.py`: walk closed loops; `sample_path.py`: draw one."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from genex_explorer.cli.common import Parser, run_cli

if TYPE_CHECKING:
    from PIL import Image

    from genex_explorer.loops import Navigator

SVD = "stabilityai/stable-video-diffusion-img2vid-xt-1-1"
INPUT_DIR = Path("validation")


def build_parser() -> argparse.ArgumentParser:
    """Flags of the loop generator: the original's plus ours."""
    parser = Parser(
        prog="evaluate/IECC/iecc_generate.py",
        description="Walk closed loops from every start panorama, for iecc_score.py.",
    )
    parser.add_argument("--unet_path", help="hub id or folder of a trained model")
    parser.add_argument("--svd_path", default=SVD, help=f"rest of the pipeline (default {SVD})")
    parser.add_argument("--model", help="one whole pipeline instead of --unet_path and --svd_path")
    parser.add_argument("--tiny", action="store_true", help="the embedded tiny model, on any CPU")
    parser.add_argument(
        "--navigation_distances", type=int, nargs="+", required=True, help="frames per loop (n)"
    )
    parser.add_argument(
        "--rotation_times", type=int, nargs="+", required=True, help="straight segments (k >= 2)"
    )
    parser.add_argument("--num_data", type=int, required=True, help="number of start panoramas")
    parser.add_argument("--save_frames", action="store_true", help="write movements/frame{i}.png")
    parser.add_argument(
        "--input_dir",
        type=Path,
        default=INPUT_DIR,
        help="start panoramas (default validation; with --tiny and without that folder: "
        "procedural ones)",
    )
    parser.add_argument("--output_dir", type=Path, default=Path("consistency"))
    parser.add_argument("--num_inference_steps", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="of the loops")
    parser.add_argument("--device", default="auto")
    parser.add_argument("-v", "--verbose", action="store_true")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    args = build_parser().parse_args(argv)
    return run_cli(lambda: _generate(args), verbose=args.verbose)


def _generate(args: argparse.Namespace) -> int:
    if not (args.unet_path or args.model or args.tiny):
        raise ValueError("no model: give --unet_path, --model or --tiny")
    if args.num_data < 1 or args.num_inference_steps < 1:
        raise ValueError("--num_data and --num_inference_steps must be 1 or more")
    from genex_explorer.loops import check_loop
    from genex_explorer.runinfo import write_run_info

    settings = [(n, k) for n in args.navigation_distances for k in args.rotation_times]
    for n, k in settings:
        check_loop(n, k)
    starts = _start_images(args)
    from genex_explorer.explorer import load_explorer

    explorer = load_explorer(
        unet_path=args.unet_path or args.model,
        svd_path=args.model or args.svd_path,
        tiny=args.tiny,
        device=args.device,
    )
    write_run_info(args.output_dir, vars(args))
    count = generate_loops(explorer, starts, settings, args)
    print(f"{count} loops walked, {len(settings) * len(starts)} in {args.output_dir}")
    return 0


def _start_images(args: argparse.Namespace) -> "dict[str, Image.Image]":
    """Name -> start panorama, in natural order of the file names."""
    from PIL import Image

    from genex_explorer.data.clips import find_images
    from shared_pano_utils.imageio import read_image

    if args.tiny and args.input_dir == INPUT_DIR and not args.input_dir.is_dir():
        return _procedural_starts(args.num_data)
    if not args.input_dir.is_dir():
        raise FileNotFoundError(f"--input_dir {args.input_dir} does not exist")
    files = find_images(args.input_dir)[: args.num_data]
    if not files:
        raise FileNotFoundError(f"--input_dir {args.input_dir} holds no image")
    if len(files) < args.num_data:
        print(f"note: --num_data {args.num_data}, but {args.input_dir} holds {len(files)} images",
              file=sys.stderr)  # fmt: skip
    starts = {file.stem: Image.fromarray(read_image(file)) for file in files}
    if len(starts) < len(files):
        raise ValueError(f"two images of {args.input_dir} differ in the suffix only; rename one")
    return starts


def _procedural_starts(count: int) -> "dict[str, Image.Image]":
    from PIL import Image

    from genex_explorer.data.procedural import KINDS, ClipOptions, find_walk, render_erp
    from genex_explorer.embedded import TINY_HEIGHT, TINY_WIDTH

    options = ClipOptions(frames=1, size=(TINY_WIDTH, TINY_HEIGHT))
    starts = {}
    for i in range(count):
        kind, index = KINDS[i % len(KINDS)], i // len(KINDS)
        scene, poses = find_walk("test", kind, index, options)
        starts[f"{kind}_{index:05d}"] = Image.fromarray(render_erp(scene, poses[0], options))
    return starts


def generate_loops(
    explorer: "Navigator",
    starts: "dict[str, Image.Image]",
    settings: list[tuple[int, int]],
    args: argparse.Namespace,
) -> int:
    """Walk a loop per setting (n, k) and start into ``<output_dir>/n_{n}_k_{k}/<name>/``.

    The loop of a case depends on seed, n, k and name only, and complete cases are passed over: an
    interrupted run goes on to the same result.

    Returns:
        Number of loops walked now.
    """
    import numpy as np
    from tqdm.auto import tqdm

    from genex_explorer.data.clips import stable_hash
    from genex_explorer.loops import construct_path, is_complete, walk_loop

    count = 0
    cases = [(n, k, name) for n, k in settings for name in starts]
    for n, k, name in tqdm(cases, desc="loops", disable=None):
        folder = args.output_dir / f"n_{n}_k_{k}" / name
        if is_complete(folder, save_frames=args.save_frames):
            continue
        rng = np.random.default_rng(stable_hash(args.seed, n, k, name))
        walk_loop(
            explorer,
            starts[name],
            construct_path(n, k, rng),
            folder,
            num_inference_steps=args.num_inference_steps,
            save_frames=args.save_frames,
        )
        count += 1
    return count


# ---- sample_path.py -----------------------------------------------------------------------------


def sample_path_main(argv: list[str] | None = None) -> int:
    """Entry point of `sample_path.py`; returns the exit code."""
    parser = Parser(
        prog="evaluate/IECC/sample_path.py", description="Draw a closed path, print it as JSON."
    )
    parser.add_argument("--navigation_distance", type=int, required=True, help="frames (n)")
    parser.add_argument("--rotation_times", type=int, required=True, help="segments (k >= 2)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--picture", type=Path, help="write a top view to this .png")
    args = parser.parse_args(argv)

    def command() -> int:
        import numpy as np

        from genex_explorer.loops import construct_path, draw_path

        rng = np.random.default_rng(args.seed)
        path = construct_path(args.navigation_distance, args.rotation_times, rng)
        if args.picture:
            draw_path(path, args.picture)
        print(json.dumps(path, indent=2))
        return 0

    return run_cli(command)
