"""`evaluate/tiny_quality.py`: measure a tiny pipeline on held-out procedural places."""

import argparse
from pathlib import Path

from genex_explorer.cli.common import Parser, run_cli

CLIP_COLUMNS = (
    "psnr", "copy_first", "true_depth", "vae_ceiling", "seam_ratio", "seam_ratio_truth"
)  # fmt: skip
LOOP_COLUMNS = ("psnr", "turned", "closing")


def build_parser() -> argparse.ArgumentParser:
    """Flags of the quality report."""
    parser = Parser(prog="evaluate/tiny_quality.py", description=__doc__)
    parser.add_argument("--model", help="folder of a pipeline (default: the embedded one)")
    parser.add_argument("--num_inference_steps", type=int, help="denoising steps (default: 3)")
    parser.add_argument("--seam_mode", choices=("none", "decode", "vae"), default="vae")
    parser.add_argument("--json", type=Path, help="also write the numbers of every clip and loop")
    parser.add_argument("-v", "--verbose", action="store_true")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    args = build_parser().parse_args(argv)
    return run_cli(lambda: _report(args), verbose=args.verbose)


def _report(args: argparse.Namespace) -> int:
    import dataclasses

    from genex_explorer.embedded import TINY_ASSETS
    from genex_explorer.explorer import TINY_SETTINGS, open_pipeline
    from genex_explorer.quality import evaluate_clips, evaluate_loops, summarize
    from genex_explorer.walk import WalkSettings
    from shared_pano_utils.imageio import write_json

    pipeline = open_pipeline(args.model or str(TINY_ASSETS), seam_mode=args.seam_mode)
    pipeline.set_progress_bar_config(disable=True)
    settings = WalkSettings(**TINY_SETTINGS)
    if args.num_inference_steps is not None:
        settings = dataclasses.replace(settings, num_inference_steps=args.num_inference_steps)
    tables = {
        "clips": (evaluate_clips(pipeline, settings), CLIP_COLUMNS),
        "loops": (evaluate_loops(pipeline, settings), LOOP_COLUMNS),
    }
    for name, (rows, columns) in tables.items():
        print(f"\n| {name} | count | " + " | ".join(columns) + " |")
        print("|---" * (len(columns) + 2) + "|")
        for group, values in summarize(rows).items():
            cells = " | ".join(f"{values[column]:.2f}" for column in columns)
            print(f"| {group} | {values['count']:.0f} | {cells} |")
    if args.json:
        write_json(
            args.json,
            {name: [dataclasses.asdict(row) for row in rows] for name, (rows, _) in tables.items()},
        )
    return 0
