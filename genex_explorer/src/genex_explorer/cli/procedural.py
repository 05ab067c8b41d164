"""`prepare_procedural.py`: render procedural walks in the layout of the training data."""

import argparse
from pathlib import Path

from genex_explorer.cli.common import Parser, run_cli


def build_parser() -> argparse.ArgumentParser:
    """Flags of the clip generator."""
    parser = Parser(prog="prepare_procedural.py", description=__doc__)
    parser.add_argument("--output_dir", type=Path, required=True, help="<kind>/video_00000/ below")
    parser.add_argument("--split", choices=("train", "val", "test"), default="train")
    parser.add_argument("--rooms", type=int, default=16)
    parser.add_argument("--corridors", type=int, default=8)
    parser.add_argument("--outdoors", type=int, default=8)
    parser.add_argument("--frames_per_video", type=int, default=8)
    parser.add_argument("--step_m", type=float, default=0.4, help="metres per frame")
    parser.add_argument(
        "--image_size", type=int, nargs=2, default=(128, 64), metavar=("WIDTH", "HEIGHT")
    )
    parser.add_argument("--format", choices=("frames", "mp4"), default="frames")
    parser.add_argument("--num_workers", type=int, default=1, help="rendering processes")
    parser.add_argument("--overwrite", action="store_true", help="render existing clips again")
    parser.add_argument("-v", "--verbose", action="store_true")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    args = build_parser().parse_args(argv)
    return run_cli(lambda: _prepare(args), verbose=args.verbose)


def _prepare(args: argparse.Namespace) -> int:
    width, height = args.image_size
    if width != 2 * height or height < 16:
        raise ValueError(f"--image_size {width} {height}: need width = 2 * height, height >= 16")
    if min(args.rooms, args.corridors, args.outdoors) < 0 or args.frames_per_video < 1:
        raise ValueError("counts must not be negative and --frames_per_video at least 1")
    from genex_explorer.data.procedural import ClipOptions, write_clips

    count = write_clips(
        args.output_dir,
        {"room": args.rooms, "corridor": args.corridors, "outdoor": args.outdoors},
        split=args.split,
        options=ClipOptions(
            frames=args.frames_per_video,
            step_m=args.step_m,
            size=(width, height),
            file_format=args.format,
        ),
        workers=args.num_workers,
        overwrite=args.overwrite,
    )
    print(f"{count} clips rendered below {args.output_dir}")
    return 0
