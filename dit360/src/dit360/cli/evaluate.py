"""`evaluate.py`: seams, Frechet distances and text alignment of generated panoramas."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared_pano_utils.commands import Parser, run_cli

if TYPE_CHECKING:
    from dit360.metrics.scores import Side

PACKAGES = (
    "torch",
    "torchmetrics",
    "torch-fidelity",
    "transformers",
    "numpy",
    "shared-pano-utils",
    "dit360",
)
TINY_IMAGES = 8

DESCRIPTION = """
Scores of a folder of generated panoramas as a table, report.json, report.md and a contact sheet.

metrics (--metrics; "all" leaves out what cannot be computed and says why):
  seam_ratio      step across the border at +-180 degrees over the steps beside it: 1 = no seam;
                  also per latitude band, and rolled by half a turn where there is no border
  discontinuity   discontinuity score DS (arXiv 2407.18207), and rolled
  fid             Frechet distance of Inception features of whole panoramas; and of
    fid_roll      panoramas rolled by half a turn
    fid_clip      panoramas without --clip_fraction of their rows at each pole
    fid_pole      cube faces U and D; fid_equ: cube faces F, R, B and L
    fid_omni      OmniFID: mean over U, D and the four lateral faces
    fid_horizon   8 views around the horizon; fid_crops: 20 random views of 90 degrees
    fid_seam      a view centred on the border
  kid, inception_score   of whole panoramas, with the same network
  clip_score      100 cos(image, caption)
  faed            Frechet distance of the panorama auto-encoder of PanFusion; needs --faed_weights
  frechet_random  as fid, and with the same endings, with a random network: needs no weights,
                  compares only within one run
Not offered: BRISQUE, NIQE and Q-Align (they need pyiqa, which is no dependency here), and the
Places365 variant of the Inception score in the paper's table.
"""


def build_parser() -> argparse.ArgumentParser:
    """Flags of the evaluation; all of them are ours."""
    parser = Parser(
        prog="evaluate.py",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sets = parser.add_argument_group("sets")
    sets.add_argument("--generated", type=Path, help="folder of generated panoramas (2:1)")
    sets.add_argument("--reference", type=Path, help="folder of as many real ones")
    sets.add_argument(
        "--captions",
        type=Path,
        help=".jsonl with image and caption, or .txt with one line per generated image (default: "
        "the prompts that inference.py stored in them)",
    )
    sets.add_argument("--limit", type=int, help="use the first images of each set only")
    sets.add_argument(
        "--train_source",
        help="training data (data set, folder, or .txt of ids): name the Matterport3D viewpoints "
        "of the sets that it contains",
    )
    sets.add_argument(
        "--tiny",
        action="store_true",
        help="metrics without weights; procedural worlds stand in for a set that is not given",
    )
    metrics = parser.add_argument_group("metrics")
    metrics.add_argument("--metrics", nargs="+", default=["all"], metavar="NAME", help="see above")
    metrics.add_argument(
        "--clip_fraction",
        type=float,
        default=0.125,
        help="of the height, at each pole (%(default)s)",
    )
    metrics.add_argument("--seed", type=int, default=0, help="of fid_crops and of KID's subsets")
    metrics.add_argument(
        "--inception_weights", type=Path, help="file of torch-fidelity (default: its cache)"
    )
    metrics.add_argument(
        "--clip_model",
        default="openai/clip-vit-base-patch16",
        help="folder or hub id (%(default)s)",
    )
    metrics.add_argument("--faed_weights", type=Path, help="faed.ckpt of PanFusion")
    metrics.add_argument(
        "--faed_height", type=int, default=512, help="at which FAED encodes (%(default)s)"
    )
    run = parser.add_argument_group("run")
    run.add_argument("--out", type=Path, default=Path("report"), help="folder (%(default)s)")
    run.add_argument("--overwrite", action="store_true", help="replace a report in --out")
    run.add_argument(
        "--gallery",
        type=int,
        default=24,
        help="images on the contact sheet, the worst seams first; 0 = no sheet (%(default)s)",
    )
    run.add_argument("--html", action="store_true", help="also a page to look around in them")
    run.add_argument("--batch_size", type=int, default=8, help="images at a time (%(default)s)")
    run.add_argument("--device", default="auto", help="auto (CUDA where present), cuda:1, cpu")
    run.add_argument("-v", "--verbose", action="store_true")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    args = build_parser().parse_args(argv)
    return run_cli(
        lambda: _evaluate(args),
        verbose=args.verbose,
        out_of_memory="use a smaller --batch_size or --device cpu",
    )


def _evaluate(args: argparse.Namespace) -> int:
    _check(args)
    from dit360.metrics.evaluation import evaluate
    from dit360.metrics.images import (
        check_counts,
        check_held_out,
        find_images,
        read_captions,
        stored_captions,
    )
    from dit360.metrics.report import Report, table, write_report
    from shared_pano_utils.runinfo import write_run_info

    settings = _settings(args)
    folders = _folders(args)
    sets: dict[Side, list[Path]] = {
        side: find_images(folder, f"--{side}", args.limit) for side, folder in folders.items()
    }
    generated, reference = sets["generated"], sets.get("reference", [])
    if reference:
        check_counts(generated, reference)
    if args.captions:
        captions = read_captions(args.captions, generated)
    else:
        captions = stored_captions(generated) if "clip_score" in settings.metrics else []
    held_out = check_held_out(args.train_source, folders) if args.train_source else {}
    write_run_info(args.out, vars(args), PACKAGES)
    report = Report(
        evaluation=evaluate(generated, reference, captions, settings),
        sets={side: len(images) for side, images in sets.items()},
        settings={
            "metrics": list(settings.metrics),
            "clip_fraction": args.clip_fraction,
            "seed": args.seed,
            "faed_height": args.faed_height,
            "clip_model": args.clip_model,
        },
        train_source=args.train_source,
        held_out=held_out,
    )
    paths = write_report(args.out, report, gallery=args.gallery, html=args.html)
    print(table(report.evaluation.scores))
    for name, reason in report.evaluation.skipped.items():
        print(f"left out: {name}: {reason}", file=sys.stderr)
    for note in report.notes:
        print(f"note: {note}", file=sys.stderr)
    print(paths[-1])
    return 0


def _check(args: argparse.Namespace) -> None:
    """Errors that need nothing to be imported.

    Raises:
        FileNotFoundError: weights that were named are not there.
        ValueError: options that make no sense.
    """
    if args.generated is None and not args.tiny:
        raise ValueError("--generated is missing; give a folder of panoramas, or try --tiny")
    for flag in ("limit", "batch_size"):
        value = getattr(args, flag)
        if value is not None and value < 1:
            raise ValueError(f"--{flag} is {value}; use 1 or more")
    if args.gallery < 0:
        raise ValueError(f"--gallery is {args.gallery}; use 0 for no contact sheet, or more")
    for flag in ("inception_weights", "faed_weights"):
        path = getattr(args, flag)
        if path is not None and not path.is_file():
            raise FileNotFoundError(f"--{flag} {path} does not exist")
    for flag in ("generated", "reference"):
        folder = getattr(args, flag)
        if folder is not None and folder.resolve() == args.out.resolve():
            raise ValueError(
                f"--out {args.out} is the folder of --{flag}, where the contact sheet would count "
                "as a panorama; give another one"
            )
    if (args.out / "report.json").exists() and not args.overwrite:
        raise ValueError(f"{args.out} holds a report; give another --out, or --overwrite")


def _settings(args: argparse.Namespace) -> Any:
    from huggingface_hub.constants import HF_HUB_OFFLINE

    from dit360.metrics.evaluation import METRICS, WITHOUT_WEIGHTS, Settings
    from dit360.metrics.views import ViewOptions

    is_all = "all" in args.metrics
    unknown = [name for name in args.metrics if name not in ("all", *METRICS)]
    if unknown:
        raise ValueError(f"--metrics {unknown[0]} is unknown; use all, or {', '.join(METRICS)}")
    every = WITHOUT_WEIGHTS if args.tiny else METRICS
    return Settings(
        metrics=every if is_all else tuple(args.metrics),
        is_strict=not is_all,
        views=ViewOptions(clip_fraction=args.clip_fraction, seed=args.seed),
        batch_size=args.batch_size,
        device=_device(args.device),
        inception_weights=args.inception_weights,
        offline=HF_HUB_OFFLINE,
        clip_model=args.clip_model,
        faed_weights=args.faed_weights,
        faed_height=args.faed_height,
    )


def _device(name: str) -> str:
    from dit360.memory import choose_device

    device = choose_device(name)
    if device.type != "mps":
        return str(device)
    if name == "auto":
        return "cpu"
    raise ValueError("--device mps has no float64, in which seams are measured; use cpu")


def _folders(args: argparse.Namespace) -> "dict[Side, Path]":
    """Folders of the sets; with --tiny, procedural worlds for those that are not given."""
    folders: dict[Side, Path] = {}
    if args.generated is not None:
        folders["generated"] = args.generated
    elif args.tiny:
        folders["generated"] = _write_worlds(args.out / "worlds_test", "test", TINY_IMAGES)
    if args.reference is not None:
        folders["reference"] = args.reference
    elif args.tiny:
        from dit360.metrics.images import find_images

        count = len(find_images(folders["generated"], "--generated", args.limit))
        folders["reference"] = _write_worlds(args.out / "worlds_val", "val", count)
    return folders


def _write_worlds(folder: Path, split: Any, count: int) -> Path:
    """Render procedural worlds, ``000.png`` and so on; those of a longer earlier run go."""
    from dit360.captions import random_world, render_world, split_seed
    from dit360.embedded import TINY_HEIGHT
    from shared_pano_utils.imageio import write_image

    for index in range(count):
        world = random_world(split_seed(split, index))
        write_image(folder / f"{index:03d}.png", render_world(world, TINY_HEIGHT), gpano=True)
    for path in folder.glob("*.png"):
        if path.stem.isdigit() and int(path.stem) >= count:
            path.unlink()
    return folder
