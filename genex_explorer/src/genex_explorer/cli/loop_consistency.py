"""`evaluate/loop_consistency.py`: explored frames against the true panoramas of their poses."""

import argparse
import json
import sys
from pathlib import Path

from genex_explorer.cli.common import Parser, run_cli


def build_parser() -> argparse.ArgumentParser:
    """Flags of the comparison with the true place."""
    parser = Parser(
        prog="evaluate/loop_consistency.py",
        description="PSNR of the frames of an exploration against the true panoramas of a "
        "procedural scene, beside the start panorama that is only turned.",
    )
    parser.add_argument(
        "--exploration", type=Path, required=True, help="folder with poses.json and frames/"
    )
    parser.add_argument(
        "--clip", type=Path, required=True, help="clip.json of the clip it started from"
    )
    parser.add_argument("--json", type=Path, help="write the scores of every frame to this file")
    parser.add_argument("-v", "--verbose", action="store_true")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    args = build_parser().parse_args(argv)
    return run_cli(lambda: _compare(args), verbose=args.verbose)


def _compare(args: argparse.Namespace) -> int:
    from genex_explorer.metrics.loop import score_exploration
    from shared_pano_utils.imageio import write_json

    scores = score_exploration(args.exploration, args.clip)
    if args.json:
        write_json(args.json, scores)
    if scores["blocked"]:
        print(
            f"note: {scores['blocked']} of {len(scores['frames'])} poses lie in obstacles and are "
            "left out of the means",
            file=sys.stderr,
        )
    print(json.dumps(scores, indent=2))
    return 0
