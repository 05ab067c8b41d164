"""`evaluation/*_evaluation.py`: scores of prediction folders against a data set's ground truth."""

import argparse
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pager.cli.common import Parser, run_cli
from pager.data.registry import DATASETS, SCENES, SPLITS

if TYPE_CHECKING:
    from pager.depth import DepthRange
    from pager.evaluation.loop import Report
    from pager.evaluation.tasks import DepthTask, EdgesTask, NormalsTask, SeamsTask
    from pager.metrics.depth import Weighting

Kind = Literal["depth", "normals", "edge", "seam"]

ALIGNMENTS = ("metric", "scale", "scale_and_shift", "log_scale", "median")
WEIGHTS: dict[str, "Weighting"] = {"uniform": "uniform", "coslat": "area"}
LISTED = 10
DESCRIPTIONS = {
    "depth": "Errors of predicted depth after an alignment.",
    "normals": "Angular errors of predicted normals.",
    "edge": "Position and completeness of the edges of predicted depth.",
    "seam": "Seams of predictions: at +-180 degrees, at the poles, along the cube edges.",
}


def build_parser(kind: Kind) -> argparse.ArgumentParser:
    """Flags of one of the scripts: the original's plus ours."""
    parser = Parser(prog=f"evaluation/{kind}_evaluation.py", description=DESCRIPTIONS[kind])
    parser.add_argument("--data_path", type=Path, default=Path("data"), help="default data")
    parser.add_argument("--dataset", choices=tuple(DATASETS), default="PanoInfinigen")
    parser.add_argument("--split", choices=SPLITS, default="test")
    parser.add_argument("--scenes", choices=SCENES, default="both")
    parser.add_argument(
        "--pred_path",
        type=Path,
        required=True,
        help="folder of one checkpoint's results: <pred_path>/<dataset>/eval/<id>.npz, "
        "<pred_path>/<id>/depth.npz, or <pred_path>/<id>.{npz,npy,png,exr}",
    )
    parser.add_argument(
        "--max_depth",
        type=positive,
        help="metres; true depth from 0.99 of it is left out (default 75, PanoInfinigen indoor 15)",
    )
    add_flags = {
        "depth": _depth_flags,
        "normals": _normals_flags,
        "edge": _edge_flags,
        "seam": _seam_flags,
    }
    add_flags[kind](parser)
    if kind != "seam":
        parser.add_argument(
            "--save_error_maps",
            action="store_true",
            help="write error_maps/<id>.png, and the worst panoramas to worst/",
        )
        parser.add_argument(
            "--error_maps_saving_frequency",
            type=at_least_one,
            default=1,
            metavar="N",
            help="an error map of every N-th panorama (default 1: all)",
        )
        parser.add_argument(
            "--worst", type=at_least_one, default=8, metavar="N", help="panels in worst/, default 8"
        )
    parser.add_argument("-v", "--verbose", action="store_true")
    return parser


def _depth_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--alignment_type",
        choices=ALIGNMENTS,
        default="scale",
        help="fit of every prediction to its truth (default scale; metric: none)",
    )
    _weights_flag(parser)


def _normals_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--pred_frame",
        choices=("pager", "structured3d"),
        default="pager",
        help="axes of the predictions: forward, up, left (default) or right, up, backward",
    )
    _weights_flag(parser)


def _edge_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--edge_convention",
        choices=("original", "sphere"),
        default="original",
        help="sphere: wrap around, and no edges to pixels without truth",
    )
    parser.add_argument(
        "--edge_cap_px", type=positive, default=75.0, help="longest distance, pixels, default 75"
    )


def _seam_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--modality", choices=("depth", "normals"), default="depth")


def _weights_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--weights",
        choices=tuple(WEIGHTS),
        default="uniform",
        help="of pixels: uniform as in the original (default), or coslat, by solid angle",
    )


def positive(text: str) -> float:
    """A finite number above zero of a command line."""
    value = float(text)
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def at_least_one(text: str) -> int:
    """A count of a command line."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value


def main(kind: Kind, argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code: 0, 1 if a panorama was skipped, 2 if none could be read."""
    args = build_parser(kind).parse_args(argv)
    return run_cli(lambda: _evaluate(kind, args), verbose=args.verbose)


def depth_main(argv: list[str] | None = None) -> int:
    """`evaluation/depth_evaluation.py`."""
    return main("depth", argv)


def normals_main(argv: list[str] | None = None) -> int:
    """`evaluation/normals_evaluation.py`, and its other name `normals_estimation.py`."""
    return main("normals", argv)


def edge_main(argv: list[str] | None = None) -> int:
    """`evaluation/edge_evaluation.py`, and its other name `edge_estimation.py`."""
    return main("edge", argv)


def seam_main(argv: list[str] | None = None) -> int:
    """`evaluation/seam_evaluation.py`."""
    return main("seam", argv)


def _evaluate(kind: Kind, args: argparse.Namespace) -> int:
    from pager.data.registry import open_dataset
    from pager.evaluation.loop import evaluate
    from pager.evaluation.predictions import PredictionFolder
    from pager.evaluation.report import write_error_maps, write_report
    from pager.evaluation.tasks import SeamsTask
    from pager.runinfo import write_run_info

    _check_truth(kind, args.dataset)
    task = _task(kind, args)
    predictions = PredictionFolder(args.pred_path, args.dataset, task.modality)
    dataset = open_dataset(args.dataset, args.data_path, args.split, args.scenes)
    folder = args.pred_path / args.dataset / task.folder
    write_run_info(folder, vars(args))
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
    settings["title"] = f"{task.folder}: {args.pred_path.resolve().name} on {args.dataset}"
    report = evaluate(task, dataset, predictions, settings)
    write_report(folder, report)
    if not isinstance(task, SeamsTask) and args.save_error_maps:
        frequency = args.error_maps_saving_frequency
        write_error_maps(
            folder, report, task, dataset, predictions, frequency=frequency, worst=args.worst
        )
    return _conclude(report, folder)


def _check_truth(kind: Kind, name: str) -> None:
    if not _has_truth(kind, name):
        usable = [other for other in DATASETS if _has_truth(kind, other)]
        raise ValueError(
            f"--dataset {name} has no ground truth for this evaluation; use {', '.join(usable)}"
        )


def _has_truth(kind: Kind, name: str) -> bool:
    if kind == "seam":  # measured on the prediction alone
        return True
    return DATASETS[name].has_normals if kind == "normals" else DATASETS[name].has_depth


def _task(
    kind: Kind, args: argparse.Namespace
) -> "DepthTask | EdgesTask | NormalsTask | SeamsTask":
    from pager.evaluation.tasks import DepthTask, EdgesTask, NormalsTask, SeamsTask

    depth_range = _depth_range(args)
    if kind == "depth":
        weighting = WEIGHTS[args.weights]
        return DepthTask(
            depth_range=depth_range, alignment=args.alignment_type, weighting=weighting
        )
    if kind == "normals":
        weighting = WEIGHTS[args.weights]
        return NormalsTask(depth_range=depth_range, frame=args.pred_frame, weighting=weighting)
    if kind == "edge":
        return EdgesTask(
            depth_range=depth_range, convention=args.edge_convention, cap_px=args.edge_cap_px
        )
    return SeamsTask(depth_range=depth_range, modality=args.modality)


def _depth_range(args: argparse.Namespace) -> "DepthRange":
    """The range that inference and training assume for the same data set and scenes."""
    from pager.depth import INDOOR_MAX_DEPTH_M, MAX_DEPTH_M, DepthRange

    is_indoor = args.dataset == "PanoInfinigen" and args.scenes == "indoor"
    return DepthRange(max_m=args.max_depth or (INDOOR_MAX_DEPTH_M if is_indoor else MAX_DEPTH_M))


def _conclude(report: "Report", folder: Path) -> int:
    """Print the means, what was skipped and where the files are; return the exit code."""
    from pager.evaluation.report import text_lines

    print(text_lines(report), end="")
    print(f"written to {folder}")
    for item in report.skipped[:LISTED]:
        print(f"skipped: {item.id}: {item.kind}: {item.reason}", file=sys.stderr)
    if len(report.skipped) > LISTED:
        rest = len(report.skipped) - LISTED
        print(f"skipped: and {rest} more, see evaluation_metrics.json", file=sys.stderr)
    print(report.summary(), file=sys.stderr if report.skipped else sys.stdout)
    return 1 if report.skipped else 0
