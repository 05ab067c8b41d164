"""`evaluate/IECC/iecc_score.py`: latent MSE between the ends of closed loops."""

import argparse
from pathlib import Path
from typing import Any

from genex_explorer.cli.common import Parser, run_cli
from genex_explorer.cli.scores import add_backbone_flag, choose_device


def build_parser() -> argparse.ArgumentParser:
    """Flags of the loop score: the original's plus ours."""
    parser = Parser(
        prog="evaluate/IECC/iecc_score.py",
        description="Mean squared difference of Inception-v4 features of original.png and "
        "navigated.png (IECC; IELC in the paper), lower is better.",
    )
    parser.add_argument("folder_path", type=Path, help="output of iecc_generate.py or part of it")
    parser.add_argument("--weights", type=Path, help="timm inception_v4, .safetensors or .pth")
    add_backbone_flag(parser)
    parser.add_argument(
        "--resolution",
        type=int,
        default=500,
        help="side of the square images: 500 as in the paper (default), 299 as in its code",
    )
    parser.add_argument("--device", default="cuda", help="cuda (default; cpu where absent) or cpu")
    parser.add_argument("--json", type=Path, help="also write the scores to this file")
    parser.add_argument("-v", "--verbose", action="store_true")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    args = build_parser().parse_args(argv)
    return run_cli(lambda: _score(args), verbose=args.verbose)


def _score(args: argparse.Namespace) -> int:
    if args.backbone == "weights" and args.weights is None:
        raise ValueError(
            "latent MSE needs --weights FILE, the state dict of timm's inception_v4 (or --backbone "
            "random to try the command)"
        )
    if args.resolution < 75:
        raise ValueError(f"--resolution {args.resolution}: Inception-v4 needs 75 pixels or more")
    from genex_explorer.metrics.frames import find_cases
    from genex_explorer.metrics.loop import score_loops
    from genex_explorer.metrics.perceptual import (
        LATENT_RESOLUTIONS,
        NOT_COMPARABLE,
        latent_mse,
        load_inception,
    )
    from shared_pano_utils.imageio import write_json

    cases = find_cases(args.folder_path, images_only=True)
    is_random = args.backbone == "random"
    network = load_inception(None if is_random else args.weights, choose_device(args.device))
    scores = score_loops(
        args.folder_path, cases, lambda a, b: latent_mse(network, a, b, args.resolution)
    )
    scores["regime"] = LATENT_RESOLUTIONS.get(args.resolution, "custom")
    scores["resolution"] = args.resolution
    if is_random:
        scores["backbone"] = NOT_COMPARABLE
    if args.json:
        write_json(args.json, scores)
    print(_text(scores))
    return 0


def _text(scores: dict[str, Any]) -> str:
    lines = ["| setting | pairs | latent MSE |", "|---|---|---|"]
    for name, group in scores["settings"].items():
        lines.append(f"| {name} | {group['pairs']} | {group['average']:.4g} |")
    suffix = f" ({scores['backbone']})" if "backbone" in scores else ""
    lines.append(f"Average Latent MSE across all image pairs: {scores['average']}{suffix}")
    return "\n".join(lines)
