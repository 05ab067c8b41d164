"""`prepare_procedural.py`: render a procedural data set in PanoInfinigen's layout."""

import argparse
from pathlib import Path

from pager.cli.common import Parser, run_cli


def build_parser() -> argparse.ArgumentParser:
    """Flags of the data generator."""
    parser = Parser(prog="prepare_procedural.py", description=__doc__)
    parser.add_argument("--data_path", type=Path, required=True, help="PanoInfinigen/ is made here")
    parser.add_argument("--split", choices=("train", "val", "test"), default="train")
    parser.add_argument("--rooms", type=int, default=24)
    parser.add_argument("--corridors", type=int, default=8)
    parser.add_argument("--outdoors", type=int, default=8)
    parser.add_argument("--views", type=int, default=1, help="panoramas per scene")
    parser.add_argument("--height", type=int, default=128, help="panorama height; width is twice")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1, help="rendering processes")
    parser.add_argument("--overwrite", action="store_true", help="render existing splits again")
    parser.add_argument("-v", "--verbose", action="store_true")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    args = build_parser().parse_args(argv)
    return run_cli(lambda: _prepare(args), verbose=args.verbose)


def _prepare(args: argparse.Namespace) -> int:
    if args.height < 16 or min(args.rooms, args.corridors, args.outdoors) < 0 or args.views < 1:
        raise ValueError(
            f"height {args.height}, views {args.views}: need height >= 16, at least one view, "
            "and no negative count"
        )
    from pager.data.procedural import write_procedural

    count = write_procedural(
        args.data_path,
        split=args.split,
        scenes_per_kind={"room": args.rooms, "corridor": args.corridors, "outdoor": args.outdoors},
        views=args.views,
        size=(args.height, 2 * args.height),
        seed=args.seed,
        workers=args.workers,
        overwrite=args.overwrite,
    )
    print(f"{count} panoramas written below {args.data_path / 'PanoInfinigen'}")
    return 0
