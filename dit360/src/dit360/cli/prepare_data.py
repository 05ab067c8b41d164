"""Make, check and compare training data."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dit360.embedded import TINY_HEIGHT
from shared_pano_utils.commands import Parser, run_cli

if TYPE_CHECKING:
    from dit360.data.prepare import Summary

HEIGHT = 1024
PACKAGES = ("dit360", "shared-pano-utils", "numpy", "pillow", "torch")


def build_parser() -> argparse.ArgumentParser:
    """One sub-command for each job."""
    parser = Parser(prog="prepare_data.py", description=__doc__)
    jobs = parser.add_subparsers(dest="job", required=True, metavar="JOB")
    _add_perspective(jobs)
    _add_panoramas(jobs)
    _add_check(jobs)
    _add_overlap(jobs)
    _add_procedural(jobs)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run a job; 0, 1 if something is unusable (or sets overlap), 2 if nothing could start."""
    args = build_parser().parse_args(argv)
    return run_cli(lambda: args.run(args), verbose=args.verbose)


def _add(jobs, name: str, run, text: str) -> argparse.ArgumentParser:
    job = jobs.add_parser(name, help=text, description=text)
    job.set_defaults(run=run)
    job.add_argument("-v", "--verbose", action="store_true")
    return job


def _add_captions(job: argparse.ArgumentParser) -> None:
    job.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="files or folders")
    job.add_argument("--output", type=Path, required=True, metavar="DIR")
    job.add_argument(
        "--captions", type=Path, metavar="FILE|DIR",
        help=".jsonl or .csv with image (or file_name) and caption, or a folder of <image>.txt "
        "(default: metadata.jsonl, metadata.csv or <image>.txt beside the images)",
    )  # fmt: skip
    job.add_argument("--caption", metavar="TEXT", help="the same caption for all images")
    job.add_argument("--prefix", default="", metavar="TEXT", help="put before every caption")


def _add_height(job: argparse.ArgumentParser) -> None:
    job.add_argument(
        "--height",
        type=int,
        help=f"of the panorama, pixels (default: {HEIGHT}, {TINY_HEIGHT} with --tiny)",
    )
    job.add_argument("--tiny", action="store_true", help="the size of the embedded model")


def _add_perspective(jobs) -> None:
    job = _add(jobs, "perspective", _perspective, "Photos to canvas, mask and perspective.jsonl.")
    _add_captions(job)
    _add_height(job)
    job.add_argument("--fov", type=float, default=90.0, help="horizontal degrees (default: 90)")
    job.add_argument("--yaw", type=float, help="degrees to the right (default: random)")
    job.add_argument("--pitch", type=float, default=0.0, help="degrees up (default: 0)")
    job.add_argument("--roll", type=float, default=0.0, help="degrees clockwise (default: 0)")
    job.add_argument("--seed", type=int, default=0, help="of random yaws (default: 0)")
    job.add_argument(
        "--yaw_step", type=int, default=16, metavar="PX",
        help="random yaws are multiples of so many panorama pixels (default: 16, one token)",
    )  # fmt: skip
    job.add_argument(
        "--square", action=argparse.BooleanOptionalAction, default=True,
        help="cut photos to their central square first, --fov is that of the square",
    )  # fmt: skip
    job.add_argument(
        "--erode", type=int, default=0, metavar="CELLS",
        help="make the mask smaller by so many latent cells of 8 px (default: 0)",
    )  # fmt: skip
    job.add_argument(
        "--overwrite", action="store_true",
        help="make finished photos again, and drop the rows of others that --output has",
    )  # fmt: skip


def _add_panoramas(jobs) -> None:
    job = _add(jobs, "panoramas", _panoramas, "Panoramas and captions to panoramas.jsonl.")
    _add_captions(job)
    job.add_argument(
        "--overwrite", action="store_true", help="drop the rows of others that --output has"
    )


def _add_check(jobs) -> None:
    job = _add(jobs, "check", _check, "Read every row of a data set and say which are unusable.")
    job.add_argument("source", help="hub data set, folder, .parquet or .jsonl")
    job.add_argument("--perspective", action="store_true", help="every row must have a mask")
    job.add_argument("--quick", action="store_true", help="captions and files only, no pixels")
    job.add_argument("--report", type=Path, metavar="FILE", help="list all unusable rows here")
    job.add_argument("--preview", type=Path, metavar="FILE.png", help="draw a sheet of examples")
    job.add_argument("--num_workers", type=int, default=2, help="threads (default: 2)")


def _add_overlap(jobs) -> None:
    job = _add(jobs, "overlap", _overlap, "Matterport3D viewpoints that two sets share.")
    for name in ("first", "second"):
        job.add_argument(name, help="data set, folder of images, or .txt of ids or file names")
    job.add_argument("--fail", action="store_true", help="exit with 1 if they share any")
    job.add_argument("--list", action="store_true", help="print the shared ids")


def _add_procedural(jobs) -> None:
    job = _add(jobs, "procedural", _procedural, "Procedural panoramas with captions.")
    job.add_argument("--output", type=Path, required=True, metavar="DIR")
    job.add_argument("--count", type=int, default=64, help="panoramas (default: 64)")
    job.add_argument("--perspective", type=int, default=0, metavar="N", help="photos (default: 0)")
    job.add_argument("--split", choices=("train", "val", "test"), default="train")
    job.add_argument("--fov", type=float, default=90.0, help="of photos, degrees (default: 90)")
    job.add_argument("--erode", type=int, default=0, metavar="CELLS", help="as in perspective")
    _add_height(job)
    job.add_argument("--overwrite", action="store_true", help="render finished images again")


# ---- jobs ---------------------------------------------------------------------------------------


def _perspective(args: argparse.Namespace) -> int:
    height = _height(args)
    _check_erode(args, height)
    if args.yaw_step < 1:
        raise ValueError(f"--yaw_step {args.yaw_step}: use 1 pixel or more")
    from dit360.data.photos import Camera
    from dit360.data.prepare import PhotoOptions, prepare_photos, random_cameras

    camera = Camera(
        fov_deg=args.fov, yaw_deg=args.yaw or 0.0, pitch_deg=args.pitch, roll_deg=args.roll
    )
    photos, captions = _captioned(args)
    if args.yaw is None:
        cameras = random_cameras(photos, camera, height, args.seed, args.yaw_step)
    else:
        cameras = [camera] * len(photos)
    _write_run_info(args)
    options = PhotoOptions(height=height, square=args.square, erode_cells=args.erode)
    summary = prepare_photos(
        photos,
        captions,
        cameras,
        args.output,
        options,
        overwrite=args.overwrite,
        merge=True,
    )
    return _report([summary])


def _panoramas(args: argparse.Namespace) -> int:
    from dit360.data.prepare import prepare_panoramas

    images, captions = _captioned(args)
    merge = not args.overwrite
    return _report([prepare_panoramas(images, captions, args.output, merge=merge)])


def _check(args: argparse.Namespace) -> int:
    if args.num_workers < 1:
        raise ValueError(f"--num_workers {args.num_workers}: use 1 or more")
    from dit360.data.check import find_problems, preview_sheet
    from dit360.data.rows import scan_rows, summarize, write_report
    from shared_pano_utils.imageio import write_image

    rows, problems = scan_rows(args.source, need_mask=args.perspective)
    if not args.quick:
        problems += find_problems(rows, workers=args.num_workers)
    bad = {problem.where for problem in problems}
    good = [row for row in rows if row.where not in bad]
    if args.preview is not None and good:
        write_image(args.preview, preview_sheet(good))
        print(args.preview)
    print(f"{args.source}: {len(good)} usable rows, {len(problems)} unusable")
    if problems:
        if args.report is not None:
            write_report(args.report, problems)
        print(f"error: {summarize(problems, args.report)}", file=sys.stderr)
    return int(bool(problems) or not good)


def _overlap(args: argparse.Namespace) -> int:
    from dit360.data.overlap import find_overlap

    overlap = find_overlap(args.first, args.second)
    for source, names in ((args.first, overlap.first), (args.second, overlap.second)):
        print(f"{source}: {names.total} images, {len(names.uuids)} viewpoints")
    print(f"shared: {len(overlap.shared)}")
    if args.list:
        print("\n".join(overlap.shared))
    return int(args.fail and bool(overlap.shared))


def _procedural(args: argparse.Namespace) -> int:
    height = _height(args)
    _check_erode(args, height)
    if args.count < 1 or args.perspective < 0:
        raise ValueError("--count must be at least 1, --perspective at least 0")
    from dit360.data.procedural import WorldOptions, write_worlds

    _write_run_info(args)
    options = WorldOptions(
        count=args.count,
        photos=args.perspective,
        height=height,
        split=args.split,
        fov_deg=args.fov,
        erode_cells=args.erode,
    )
    return _report(write_worlds(args.output, options, overwrite=args.overwrite))


def _height(args: argparse.Namespace) -> int:
    height = args.height
    if height is None:
        height = TINY_HEIGHT if args.tiny else HEIGHT
    if height < 16 or height % 16:
        raise ValueError(f"--height {height}: use a multiple of 16, such as {HEIGHT}")
    return height


def _check_erode(args: argparse.Namespace, height: int) -> None:
    most = height // 16 - 1  # more reach from pole to pole, so that nothing would be left
    if not 0 <= args.erode <= most:
        raise ValueError(f"--erode {args.erode}: use 0 to {most} cells of 8 px at height {height}")


def _captioned(args: argparse.Namespace) -> tuple[list[Path], list[str]]:
    from dit360.data.sidecars import find_captions, find_images

    images = find_images(args.images)
    captions = find_captions(images, args.captions, args.caption)
    return images, [f"{args.prefix} {caption}".strip() for caption in captions]


def _write_run_info(args: argparse.Namespace) -> None:
    from shared_pano_utils.runinfo import write_run_info

    shown = vars(args) | {"images": [str(image) for image in getattr(args, "images", [])]}
    write_run_info(args.output, {k: v for k, v in shown.items() if k != "run"}, PACKAGES)


def _report(summaries: "Sequence[Summary]") -> int:
    """One line for each result and each failure; returns the exit code."""
    for summary in summaries:
        failed = f", {len(summary.problems)} failed" if summary.problems else ""
        kept = f", {summary.kept} rows of other images kept" if summary.kept else ""
        print(f"{summary.rows}: {summary.made} made, {summary.skipped} skipped{failed}{kept}")
        for problem in summary.problems:
            print(f"failed: {problem}", file=sys.stderr)
    return int(any(summary.problems for summary in summaries))
