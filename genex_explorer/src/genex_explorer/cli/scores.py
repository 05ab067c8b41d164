"""`evaluate/FVD/calculate_scores.py`: FVD, LPIPS, PSNR, SSIM of generated walks, and spherical ones."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genex_explorer.cli.common import Parser, run_cli

if TYPE_CHECKING:
    import torch

METRICS = ("fvd", "ssim", "psnr", "lpips", "ws_psnr", "ws_ssim", "seam_ratio")
WEIGHT_FLAGS = {"fvd": "i3d_weights", "lpips": "lpips_weights"}


def build_parser() -> argparse.ArgumentParser:
    """Flags of the video metrics: the original's plus ours."""
    parser = Parser(
        prog="evaluate/FVD/calculate_scores.py",
        description="Scores of <case>/navigated.mp4 against <case>/original.mp4 as JSON.",
    )
    parser.add_argument(
        "--input_folder",
        type=Path,
        required=True,
        help="folder of cases: .mp4, folders of frames, or the .png of iecc_generate.py",
    )
    parser.add_argument("--device", default="cuda", help="cuda (default; cpu where absent) or cpu")
    parser.add_argument(
        "--metrics", nargs="+", choices=METRICS, help="default: all whose weights are given"
    )
    parser.add_argument(
        "--resolution",
        type=int,
        nargs="+",
        default=[1024, 576],
        metavar="PX",
        help="WIDTH HEIGHT of the compared frames: 1024 576 as in the paper (default); 64 as in "
        "the original's code",
    )
    parser.add_argument("--i3d_weights", type=Path, help="TorchScript I3D for FVD")
    parser.add_argument("--lpips_weights", type=Path, help="torchvision AlexNet for LPIPS")
    add_backbone_flag(parser)
    parser.add_argument(
        "--fvd_views", action="store_true", help="FVD also of front, right, back and left views"
    )
    parser.add_argument("--json", type=Path, help="also write the JSON to this file")
    parser.add_argument("--markdown", action="store_true", help="print a table instead of JSON")
    parser.add_argument("-v", "--verbose", action="store_true")
    return parser


def add_backbone_flag(parser: argparse.ArgumentParser) -> None:
    """The flag `--backbone` of every metric that needs a network."""
    parser.add_argument(
        "--backbone",
        choices=("weights", "random"),
        default="weights",
        help="random: seeded random networks, to try the command without weights; such numbers "
        "compare with nothing",
    )


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    args = build_parser().parse_args(argv)
    return run_cli(lambda: _scores(args), verbose=args.verbose)


def _scores(args: argparse.Namespace) -> int:
    size = _checked_size(args.resolution)
    metrics, notes = _chosen_metrics(args)
    from genex_explorer.metrics.evaluation import Evaluation, markdown
    from genex_explorer.metrics.frames import find_cases
    from shared_pano_utils.imageio import write_json

    cases = find_cases(args.input_folder)
    device = choose_device(args.device)
    evaluation = Evaluation(
        metrics,
        size=size,
        device=device,
        views=args.fvd_views,
        networks=_load_networks(args, metrics, device),
        is_random=args.backbone == "random",
    )
    report = evaluation.run(cases)
    report["notes"] = notes + report["notes"]
    for note in report["notes"]:
        print(f"note: {note}", file=sys.stderr)
    if args.json:
        write_json(args.json, report)
    print(markdown(report) if args.markdown else json.dumps(report, indent=4))
    return 0


def _load_networks(
    args: argparse.Namespace, metrics: list[str], device: "torch.device"
) -> dict[str, Any]:
    """Network of every metric that needs one, on the device."""
    from genex_explorer.metrics import fvd, perceptual

    networks: dict[str, Any] = {}
    if "lpips" in metrics:
        weights = None if args.backbone == "random" else args.lpips_weights
        networks["lpips"] = perceptual.load_lpips(weights, device)
    if "fvd" in metrics and args.backbone == "random":
        networks["fvd"] = fvd.RandomVideoNetwork().to(device).eval()
    elif "fvd" in metrics:
        networks["fvd"] = fvd.load_i3d(args.i3d_weights, device)
    return networks


def _checked_size(resolution: list[int]) -> tuple[int, int]:
    width, height = resolution * 2 if len(resolution) == 1 else resolution[:2]
    if len(resolution) > 2 or min(width, height) < 16 or width % 2:
        raise ValueError(
            f"--resolution {' '.join(map(str, resolution))}: give one number, or an even width and "
            "a height, of 16 pixels or more"
        )
    return width, height


def _chosen_metrics(args: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Metrics that can be computed, and notes on those left out for lack of weights."""
    metrics: list[str] = list(args.metrics or METRICS)
    notes: list[str] = []
    for name, flag in WEIGHT_FLAGS.items():
        if name not in metrics or getattr(args, flag) or args.backbone == "random":
            continue
        need = f"{name} needs --{flag} FILE (or --backbone random to try the command)"
        if args.metrics:
            raise ValueError(need)
        metrics.remove(name)
        notes.append(f"left out: {need}")
    if args.fvd_views and "fvd" not in metrics:
        raise ValueError("--fvd_views needs fvd among the metrics; give --i3d_weights FILE")
    return metrics, notes


def choose_device(name: str) -> "torch.device":
    """The device of `--device`; as in the original, CUDA gives way to the CPU where absent.

    Raises:
        ValueError: neither cpu nor cuda; the metrics work in float64, which mps lacks.
    """
    import torch

    if name.split(":")[0] not in ("cuda", "cpu"):
        raise ValueError(f"--device {name} is not offered; use cuda, cuda:1 or cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        print("note: no CUDA device, working on the CPU", file=sys.stderr)
        return torch.device("cpu")
    return torch.device(name)
