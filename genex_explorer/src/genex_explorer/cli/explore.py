"""`explore.py`: walk through panoramas along paths of turns and forward steps."""

import argparse
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genex_explorer.cli.common import Parser, find_inputs, run_cli
from genex_explorer.embedded import TINY_ASSETS

if TYPE_CHECKING:
    from genex_explorer.outputs import Formats
    from genex_explorer.paths import Move
    from genex_explorer.pipeline import GenexPipeline
    from genex_explorer.walk import WalkSettings

MODEL = "genex-world/GenEx-World-Explorer"
# What the result does not depend on.
INCIDENTAL = {
    "image", "path", "branches", "output_dir", "shard", "batch_size", "overwrite", "verbose",
    "tiny", "device", "offload", "compile", "shortcut",
}  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One walk: its panorama, its moves and the folder of its results."""

    image: Path
    moves: "list[Move]"
    folder: Path
    made_with: dict[str, Any]


def build_parser() -> argparse.ArgumentParser:
    """Flags of exploration."""
    parser = Parser(prog="explore.py", description=__doc__)
    what = parser.add_argument_group("where to walk")
    what.add_argument(
        "--image", nargs="+", required=True,
        help="panoramas (2:1, or of the model's size) or folders of them",
    )  # fmt: skip
    what.add_argument(
        "--path", "--actions", action="append", required=True, metavar="PATH",
        help="'forward 25, left 60, forward 4m', or a JSON file; several times for several walks",
    )  # fmt: skip
    what.add_argument(
        "--branches", metavar="DEGREES",
        help="walk each path once for every first turn to the right, such as -60,0,60",
    )  # fmt: skip
    _add_model_flags(parser)
    _add_output_flags(parser)
    many = parser.add_argument_group("many walks")
    many.add_argument(
        "--batch_size", type=int, default=4, help="walks generated at a time (default: %(default)s)"
    )
    many.add_argument("--shard", metavar="I/N", help="work on every N-th image from I")
    parser.add_argument("-v", "--verbose", action="store_true")
    return parser


def _add_model_flags(parser: argparse.ArgumentParser) -> None:
    model = parser.add_argument_group("model")
    model.add_argument("--model", default=MODEL, help="hub id or folder (default: %(default)s)")
    model.add_argument("--unet", help="hub id or folder whose unet/ replaces the model's")
    model.add_argument("--lora", help="folder of adapters, written by --trainable lora")
    model.add_argument("--revision", help="hub revision of --model")
    model.add_argument(
        "--tiny", action="store_true", help="the embedded model with its sizes and steps, on a CPU"
    )
    for name, kind, default, text in (
        ("width", int, 1024, "of generated frames"),
        ("height", int, 576, "of generated frames"),
        ("num_frames", int, None, "of a clip, the start included (default: the model's)"),
        ("num_inference_steps", int, 30, "denoising steps of a clip"),
        ("min_guidance", float, 1.0, "guidance of the first frame of a clip"),
        ("max_guidance", float, 3.0, "guidance of its last frame"),
        ("noise_aug_strength", float, 0.02, "noise on its start"),
        ("fps_id", float, 6.0, "first added number; the original explored with 6, trained with 7"),
        ("motion_bucket_id", int, 127, "second added number"),
        ("seed", int, 0, "of the noise"),
        ("wrap_columns", int, 4, "latent columns that the VAE sees around the seam"),
        ("decode_chunk", int, 8, "frames decoded at a time"),
    ):  # fmt: skip
        shown = text if default is None else f"{text} (default: {default})"
        model.add_argument(f"--{name}", type=kind, default=default, help=shown)
    model.add_argument(
        "--seam_mode", choices=("none", "decode", "vae"), default="vae",
        help="which half of the VAE looks around the seam (default: %(default)s, both)",
    )  # fmt: skip
    model.add_argument(
        "--offload", choices=("none", "model", "sequential", "group"), default="none",
        help="keep weights in host memory",
    )  # fmt: skip
    model.add_argument(
        "--dtype", choices=("auto", "float32", "float16", "bfloat16"), default="auto"
    )
    model.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    model.add_argument("--compile", action="store_true", help="torch.compile the UNet")
    model.add_argument(
        "--shortcut", action="store_true", help="cross-attention by its value alone; exact"
    )


def _add_output_flags(parser: argparse.ArgumentParser) -> None:
    out = parser.add_argument_group("what to write (default: --save_mp4 --save_frames)")
    out.add_argument("--output_dir", type=Path, default=Path("exploration"))
    out.add_argument("--save_mp4", action="store_true", help="walk.mp4")
    out.add_argument("--save_gif", action="store_true", help="walk.gif")
    out.add_argument("--save_frames", action="store_true", help="frames/frame_0000.png ...")
    out.add_argument(
        "--export_views", default="", metavar="NAMES",
        help="view_<name>.mp4 of front,right,back,left,up,down, relative to the walk",
    )  # fmt: skip
    out.add_argument("--cubemap", action="store_true", help="cubemap.png of the last panorama")
    out.add_argument("--html", action="store_true", help="walk.html, a 360-degree viewer")
    out.add_argument("--fps", type=float, default=10.0, help="of videos (default: %(default)s)")
    out.add_argument(
        "--output_size", type=int, nargs=2, metavar=("WIDTH", "HEIGHT"),
        help="of the panoramas (default: as wide as generated, 2:1)",
    )  # fmt: skip
    out.add_argument("--overwrite", action="store_true", help="walk finished paths again")


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns 0, 1 if a panorama failed, 2 if nothing could start."""
    parser = build_parser()
    argv = _join_branches(list(sys.argv[1:] if argv is None else argv))
    args = parser.parse_args(argv)
    if args.tiny:
        from genex_explorer.explorer import TINY_SETTINGS

        parser.set_defaults(model=str(TINY_ASSETS), **TINY_SETTINGS)
        args = parser.parse_args(argv)
    return run_cli(lambda: _explore(args), verbose=args.verbose)


def _join_branches(argv: list[str]) -> list[str]:
    """Write ``--branches -60,0`` as ``--branches=-60,0``: argparse takes ``-60,0`` for a flag."""
    if "--branches" not in argv[:-1]:
        return argv
    at = argv.index("--branches")
    return [*argv[:at], f"--branches={argv[at + 1]}", *argv[at + 2 :]]


def _explore(args: argparse.Namespace) -> int:
    if args.batch_size < 1:
        raise ValueError(f"--batch_size is {args.batch_size}; use 1 or more")
    if not (args.save_mp4 or args.save_gif or args.save_frames or args.export_views
            or args.cubemap or args.html):  # fmt: skip
        args.save_mp4 = args.save_frames = True
    args.output_size = tuple(args.output_size or (args.width, args.width // 2))
    settings, formats = _settings(args), _formats(args)
    jobs = plan_jobs(args)
    todo, failed = _select(jobs, (args.width, args.height), overwrite=args.overwrite)
    if todo:
        _walk(args, todo, settings, formats)
        print(f"{len(todo)} of {len(jobs)} walks written to {args.output_dir}")
    elif not failed:
        print(f"nothing to do: {args.output_dir} holds the finished walks, {len(jobs)} of them")
    elif len(failed) == len(jobs) == 1:
        raise ValueError(failed[0])
    for line in failed:
        print(f"failed: {line}", file=sys.stderr)
    return 1 if failed else 0


def _walk(
    args: argparse.Namespace, todo: list[Job], settings: "WalkSettings", formats: "Formats"
) -> None:
    from tqdm.auto import tqdm

    from genex_explorer.outputs import write_walk
    from genex_explorer.paths import format_actions
    from genex_explorer.runinfo import write_run_info
    from genex_explorer.walk import plan_segments, walk_together
    from shared_pano_utils.imageio import read_image

    write_run_info(args.output_dir, vars(args))
    pipeline = _load(args)
    plans = [plan_segments(pipeline, job.moves, settings) for job in todo]
    clips = sum(bool(move.frames) for plan in plans for move in plan)
    with tqdm(total=clips, desc="clips", disable=None) as bar:
        for at in range(0, len(todo), args.batch_size):
            batch = todo[at : at + args.batch_size]
            starts = [read_image(job.image) for job in batch]
            paths = [job.moves for job in batch]
            walks = walk_together(pipeline, starts, paths, settings, on_clips=bar.update)
            for job, walk in zip(batch, walks, strict=True):
                title = f"{job.image.name}: {format_actions(job.moves)}"
                write_walk(job.folder, walk, formats, title=title, made_with=job.made_with)


# ---- what to do ---------------------------------------------------------------------------------


def plan_jobs(args: argparse.Namespace) -> list[Job]:
    """One job for each image of this shard, path and branch, in this order.

    Results go to ``--output_dir`` itself; several images have a folder each there, called like
    the image, and several walks from one image ``branch_0``, ``branch_1`` ... below.
    """
    from genex_explorer.paths import Move, format_actions, read_path_argument

    images = find_inputs(args.image)
    several = len(images) > 1 or Path(args.image[0]).is_dir()
    paths = [read_path_argument(path) for path in args.path]
    branches = [
        [Move(moves[0].turn_deg + angle, moves[0].frames), *moves[1:]]
        for moves in paths
        for angle in parse_branches(args.branches)
    ]
    shard, shards = parse_shard(args.shard or "0/1")
    options = {key: value for key, value in vars(args).items() if key not in INCIDENTAL}
    jobs = []
    for image in images[shard::shards]:
        folder = args.output_dir / image.stem if several else args.output_dir
        for number, moves in enumerate(branches):
            place = folder / f"branch_{number}" if len(branches) > 1 else folder
            made_with = {"image": str(image), "path": format_actions(moves), **options}
            jobs.append(Job(image, moves, place, made_with))
    return jobs


def parse_branches(text: str | None) -> list[float]:
    """First turns in degrees from ``-60,0,60``; one of 0 without the flag."""
    try:
        return [0.0] if text is None else [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(
            f"--branches {text}: expected degrees with commas between, such as -60,0,60"
        ) from error


def parse_shard(text: str) -> tuple[int, int]:
    """``"I/N"`` to (I, N)."""
    index, _, count = text.partition("/")
    if not (index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise ValueError(f"--shard {text}: expected I/N with 0 <= I < N, for example 0/4")
    return int(index), int(count)


def _select(
    jobs: list[Job], model_size: tuple[int, int], *, overwrite: bool
) -> tuple[list[Job], list[str]]:
    """Jobs still to be done, and a line for each that cannot be.

    Panoramas are looked at before the model is loaded, which takes minutes.
    """
    from genex_explorer.legacy import check_panorama
    from genex_explorer.outputs import is_finished
    from shared_pano_utils.imageio import read_image

    todo, failed = [], []
    for job in jobs:
        try:
            if not overwrite and is_finished(job.folder, job.made_with):
                continue
            height, width = read_image(job.image).shape[:2]
        except (ValueError, OSError) as error:
            failed.append(str(error))
            continue
        try:
            check_panorama((width, height), squeezed=model_size)
        except ValueError as error:
            failed.append(f"{job.image}: {error}")
            continue
        todo.append(job)
    return todo, failed


# ---- options ------------------------------------------------------------------------------------


def _settings(args: argparse.Namespace) -> "WalkSettings":
    from genex_explorer.walk import WalkSettings

    return WalkSettings(**{field.name: getattr(args, field.name) for field in fields(WalkSettings)})


def _formats(args: argparse.Namespace) -> "Formats":
    from genex_explorer.outputs import Formats

    return Formats(
        size=args.output_size,
        fps=args.fps,
        mp4=args.save_mp4,
        gif=args.save_gif,
        frames=args.save_frames,
        views=tuple(name.strip() for name in args.export_views.split(",") if name.strip()),
        cubemap=args.cubemap,
        html=args.html,
    )


def _load(args: argparse.Namespace) -> "GenexPipeline":
    from genex_explorer.explorer import open_pipeline

    pipeline = open_pipeline(
        args.model,
        unet=args.unet,
        lora=args.lora,
        revision=args.revision,
        device=args.device,
        dtype=args.dtype,
        offload=args.offload,
        compile=args.compile,
        shortcut=args.shortcut,
        seam_mode=args.seam_mode,
        wrap_columns=args.wrap_columns,
    )
    pipeline.set_progress_bar_config(desc="denoising", leave=False, disable=None)
    return pipeline
