"""`prepare_dataset.py`: turn the videos of GenEx-DB, or your own, into folders of frames."""

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from genex_explorer.cli.common import Parser, run_cli
from genex_explorer.embedded import TINY_FRAMES, TINY_HEIGHT, TINY_WIDTH

if TYPE_CHECKING:
    from genex_explorer.data.extract import ClipJob, ExtractOptions, Result
    from genex_explorer.data.sources import Scene, Video

SUMMARY_NAME = "prepare_summary.json"
SCENE_TYPES = ("realistic", "low_texture", "anime", "real_world")


def build_parser() -> argparse.ArgumentParser:
    """Flags of the original plus ours."""
    parser = Parser(prog="prepare_dataset.py", description=__doc__)
    parser.add_argument(
        "--dataset_path", type=Path, default=Path("Genex-DB"),
        help="holds <scene>/*.mp4, <scene>.parquet or <scene>.csv (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--output_dir", type=Path, help="default: --dataset_path")
    parser.add_argument(
        "--scene_types", nargs="+", default=list(SCENE_TYPES), metavar="SCENE",
        help="found by letters and digits: real_world is Real-World/ (default: all four)",
    )  # fmt: skip
    parser.add_argument("--frames_per_video", type=int, default=50, help="default: %(default)s")
    parser.add_argument(
        "--num_workers", type=int, default=4, help="processes (default: %(default)s)"
    )
    parser.add_argument(
        "--image_size", type=int, nargs=2, default=[1024, 576], metavar=("WIDTH", "HEIGHT"),
        help="of the frames (default: 1024 576)",
    )  # fmt: skip
    parser.add_argument(
        "--layout", choices=("seed", "flat"), default="seed",
        help="<scene>/video_00000/frame_0001.jpg, or <scene>_video0/0.png (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--on_short", choices=("skip", "keep", "error"), default="skip",
        help="videos with fewer than --frames_per_video frames (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="make finished clips again")
    parser.add_argument("--dry_run", action="store_true", help="say what would be done")
    parser.add_argument(
        "--tiny", action="store_true",
        help=f"sizes of the embedded model: {TINY_FRAMES} frames, {TINY_WIDTH} {TINY_HEIGHT}",
    )  # fmt: skip
    parser.add_argument("-v", "--verbose", action="store_true")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns 0, 1 if a video failed, 2 if nothing could start."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.tiny:
        parser.set_defaults(frames_per_video=TINY_FRAMES, image_size=[TINY_WIDTH, TINY_HEIGHT])
        args = parser.parse_args(argv)
    return run_cli(lambda: _prepare(args), verbose=args.verbose)


def _prepare(args: argparse.Namespace) -> int:
    if min(args.image_size) < 1:
        raise ValueError(f"--image_size {args.image_size}: width and height must be at least 1")
    for flag in ("frames_per_video", "num_workers"):
        if getattr(args, flag) < 1:
            raise ValueError(f"--{flag} {getattr(args, flag)}: use 1 or more")
    from genex_explorer.data.extract import ExtractOptions
    from genex_explorer.data.sources import find_scenes

    args.output_dir = args.output_dir or args.dataset_path
    options = ExtractOptions(
        frames_per_video=args.frames_per_video,
        size=tuple(args.image_size),
        layout=args.layout,
        on_short=args.on_short,
        overwrite=args.overwrite,
    )
    scenes = find_scenes(args.dataset_path, args.scene_types)
    results, todo = _plan(scenes, args.output_dir, options)
    if args.dry_run:
        return _report_plan(scenes, results, todo)
    results += _extract(todo, options, args.num_workers)
    return _report(args, scenes, results)


def _plan(
    scenes: "list[Scene]", output: Path, options: "ExtractOptions"
) -> "tuple[list[Result], list[tuple[Video, ClipJob]]]":
    """Results that are known without work, and the clips still to be made."""
    from genex_explorer.data.extract import ClipJob, clip_folder, find_finished

    results, todo = [], []
    for scene in scenes:
        for number, video in enumerate(scene.videos):
            folder = clip_folder(output, scene.name, number, options.layout)
            job = ClipJob(scene=scene.name, number=number, video=video.name, folder=folder)
            if (result := find_finished(job, options)) is not None:
                results.append(result)
            else:
                todo.append((video, job))
    return results, todo


def _extract(
    todo: "list[tuple[Video, ClipJob]]", options: "ExtractOptions", workers: int
) -> "list[Result]":
    from tqdm.auto import tqdm

    from genex_explorer.data.extract import extract_clips
    from genex_explorer.data.sources import read_sources

    sources = read_sources(video for video, _ in todo)
    jobs = zip((job for _, job in todo), sources, strict=True)
    results = extract_clips(jobs, options, min(workers, max(len(todo), 1)))
    return list(tqdm(results, total=len(todo), desc="videos", leave=False))


def _report_plan(
    scenes: "list[Scene]", results: "list[Result]", todo: "list[tuple[Video, ClipJob]]"
) -> int:
    for scene in scenes:
        jobs = [job for _, job in todo if job.scene == scene.name]
        finished = sum(r.job.scene == scene.name and r.status == "skipped" for r in results)
        where = f", the first into {jobs[0].folder}" if jobs else ""
        print(
            f"{scene.name}: {len(scene.videos)} videos in {scene.origin}, {finished} finished, "
            f"{len(jobs)} to extract{where}"
        )
    return _report_problems(results)


def _report(args: argparse.Namespace, scenes: "list[Scene]", results: "list[Result]") -> int:
    """Print and write the summary; returns the exit code."""
    from genex_explorer.data.extract import STATUSES
    from shared_pano_utils.imageio import write_json

    order = [scene.name for scene in scenes]
    results = sorted(results, key=lambda r: (order.index(r.job.scene), r.job.number))
    summary = {}
    for scene in scenes:
        here = [result for result in results if result.job.scene == scene.name]
        statuses = Counter(result.status for result in here)
        counts = {status: statuses[status] for status in STATUSES}
        print(f"{scene.name}: " + ", ".join(f"{n} {status}" for status, n in counts.items()))
        problems = [
            {
                "video": r.job.video,
                "clip": str(r.job.folder),
                "status": r.status,
                "reason": r.reason,
            }
            for r in here
            if r.reason
        ]
        origin = str(scene.origin)
        summary[scene.name] = {
            "origin": origin,
            "videos": len(here),
            **counts,
            "problems": problems,
        }
    options = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
    write_json(args.output_dir / SUMMARY_NAME, {"options": options, "scenes": summary})
    return _report_problems(results)


def _report_problems(results: "list[Result]") -> int:
    """One line on stderr for each short or failed video; returns 1 if any failed."""
    for result in results:
        if result.reason:
            print(f"{result.status}: {result.job.video}: {result.reason}", file=sys.stderr)
    return int(any(result.status == "failed" for result in results))
