"""`evaluation/tiny_quality.py`: measure checkpoints on held-out procedural panoramas."""

import argparse
from pathlib import Path

from pager.cli.common import Parser, run_cli

COLUMNS = {
    "depth": ("abs_relative_difference", "rmse_linear", "delta1_acc", "wrap_ratio"),
    "normals": ("mean", "median", "delta_11.25", "delta_30"),
}


def build_parser() -> argparse.ArgumentParser:
    """Flags of the quality report."""
    parser = Parser(prog="evaluation/tiny_quality.py", description=__doc__)
    parser.add_argument("--depth_checkpoint_path", help="default: the embedded checkpoint")
    parser.add_argument("--normals_checkpoint_path", help="default: the embedded checkpoint")
    parser.add_argument(
        "--height", type=int, default=256, help="panorama height of input and truth"
    )
    parser.add_argument("--json", type=Path, help="also write every panorama's metrics")
    parser.add_argument("-v", "--verbose", action="store_true")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    args = build_parser().parse_args(argv)
    return run_cli(lambda: _report(args), verbose=args.verbose)


def _report(args: argparse.Namespace) -> int:
    import dataclasses

    from pager.embedded import TINY_ASSETS
    from pager.pipeline import PagerPipeline
    from pager.quality import evaluate_tiny, summarize
    from shared_pano_utils.imageio import write_json

    paths = [
        args.depth_checkpoint_path or TINY_ASSETS / "depth",
        args.normals_checkpoint_path or TINY_ASSETS / "normals",
    ]
    pipelines = [PagerPipeline.from_pretrained(path) for path in paths]
    table = evaluate_tiny(pipelines, (args.height, 2 * args.height))
    for modality, rows in table.items():
        columns = COLUMNS[modality]
        print(f"\n| {modality} | panoramas | " + " | ".join(columns) + " |")
        print("|---" * (len(columns) + 2) + "|")
        for name in ("model", "baseline"):
            for kind, values in summarize(rows[name]).items():
                count = sum(kind in ("all", row.kind) for row in rows[name])
                cells = " | ".join(f"{values[column]:.3f}" for column in columns)
                print(f"| {name}, {kind} | {count} | {cells} |")
    if args.json:
        write_json(
            args.json,
            {
                m: {n: [dataclasses.asdict(r) for r in rs] for n, rs in t.items()}
                for m, t in table.items()
            },
        )
    return 0
