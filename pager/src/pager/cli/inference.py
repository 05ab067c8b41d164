"""`inference.py`: depth and surface normals of panoramas.

Photographs, folders and globs go in with ``--input``; the data sets of the original repository
with ``--data_path`` and ``--dataset``.
"""

import argparse
import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pager.cli.common import Parser, read_flag_values, run_cli
from pager.cli.inputs import Item, dataset_items, input_items
from pager.cli.outputs import DatasetOutput, InputOutput, Output
from pager.data.registry import DATASETS
from pager.embedded import TINY_ASSETS

if TYPE_CHECKING:
    from pager.pipeline import PagerPipeline

logger = logging.getLogger(__name__)

DEFAULT_CHECKPOINTS = {"depth": "prs-eth/PaGeR-depth", "normals": "prs-eth/PaGeR-normals"}


def build_parser() -> argparse.ArgumentParser:
    """Flags of the original plus ours."""
    parser = Parser(
        prog="inference.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config",
        "--configs",
        help="YAML file with values for these flags (configs/inference.yaml)",
    )
    what = parser.add_argument_group("what to read")
    what.add_argument("--input", nargs="+", help="panoramas (2:1), folders or globs")
    what.add_argument("--data_path", type=Path, help="root folder of --dataset")
    what.add_argument("--dataset", choices=tuple(DATASETS))
    what.add_argument("--scenes", choices=("indoor", "outdoor", "both"), default="both")
    what.add_argument("--split", choices=("train", "val", "test"), default="test")
    model = parser.add_argument_group("model")
    model.add_argument(
        "--modality",
        choices=("depth", "normals", "both"),
        help="default: both, or the checkpoint's",
    )
    model.add_argument(
        "--checkpoint_path", help="hub id, folder or .safetensors file (one modality)"
    )
    model.add_argument("--depth_checkpoint_path", help=f"default {DEFAULT_CHECKPOINTS['depth']}")
    model.add_argument(
        "--normals_checkpoint_path", help=f"default {DEFAULT_CHECKPOINTS['normals']}"
    )
    model.add_argument(
        "--tiny", action="store_true", help="the embedded checkpoints (CPU, seconds)"
    )
    model.add_argument("--revision", help="hub commit, tag or branch")
    model.add_argument("--pretrained_path", help="base model instead of the stored one")
    model.add_argument(
        "--max_depth", type=float, help="metres, instead of the checkpoint's range (0.01-75 m)"
    )
    model.add_argument("--face_size", type=int, help="pixels; default: the checkpoint's")
    model.add_argument(
        "--normals_frame", choices=("pager", "structured3d"),
        help="frame of a normals checkpoint that stores none (PaGeR-normals-Structured3D)",
    )  # fmt: skip
    model.add_argument("--rope", choices=("auto", "on", "off"), default="auto")
    model.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    model.add_argument(
        "--precision", choices=("auto", "float32", "bfloat16", "float16"), default="auto"
    )
    model.add_argument(
        "--enable_xformers", action="store_true", help="accepted; PyTorch attention is used"
    )
    model.add_argument(
        "--offload", action="store_true", help="networks on the device only while they run"
    )
    model.add_argument(
        "--stream_vae", action="store_true", help="VAE maps in host memory: small cards, slow"
    )
    model.add_argument(
        "--channels_last", action="store_true", help="memory layout for GPUs; slower on CPUs"
    )
    model.add_argument("--compile", action="store_true", help="torch.compile the networks")
    out = parser.add_argument_group("what to write")
    out.add_argument("--results_path", type=Path, default=Path("results"))
    out.add_argument("--points", choices=("ply", "glb", "none"), default="ply", help="point cloud")
    out.add_argument("--html", action="store_true", help="self-contained 360-degree viewer page")
    out.add_argument(
        "--generate_eval", action="store_true", help="with --dataset: write eval/<id>.npz"
    )
    out.add_argument(
        "--pred_only", action="store_true", help="with --dataset: previews without RGB"
    )
    out.add_argument(
        "--img_report_frequency", type=int, default=1, help="with --dataset: a preview every N"
    )
    out.add_argument("--overwrite", action="store_true", help="predict finished items again")
    many = parser.add_argument_group("many panoramas, many devices")
    many.add_argument("--shard", metavar="I/N", help="work on every N-th item from I")
    many.add_argument(
        "--executor", choices=("local", "ray"), default="local",
        help="ray: spread the items over a Ray cluster",
    )  # fmt: skip
    many.add_argument("--num_workers", type=int, default=2, help="Ray tasks at the same time")
    parser.add_argument("-v", "--verbose", action="store_true")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code: 0, 1 if an item failed, 2 if nothing could start."""
    parser = build_parser()
    args = parser.parse_args(argv)

    def command() -> int:
        if args.config is not None:
            parser.set_defaults(**read_flag_values(args.config, parser))
        resolved = parser.parse_args(argv)
        if resolved.executor == "ray":
            return _spread(resolved, list(sys.argv[1:] if argv is None else argv))
        return _infer(resolved)

    return run_cli(command, verbose=args.verbose)


def _spread(args: argparse.Namespace, argv: list[str]) -> int:
    """Run one shard per Ray task; the exit code is the worst of them."""
    try:
        import ray  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError("--executor ray needs Ray: pip install 'ray[default]'") from error
    if args.shard:
        raise ValueError("--executor ray makes the shards itself; leave --shard out")
    if args.num_workers < 1:
        raise ValueError(f"--num_workers is {args.num_workers}; use 1 or more")
    ray.init(ignore_reinit_error=True)
    gpus = 1 if ray.cluster_resources().get("GPU", 0) else 0
    run_shard = ray.remote(num_gpus=gpus)(main)
    flags = [*argv, "--executor", "local", "--shard"]
    tasks = [run_shard.remote([*flags, f"{i}/{args.num_workers}"]) for i in range(args.num_workers)]
    return max(ray.get(tasks))


def _infer(args: argparse.Namespace) -> int:
    shard, shards = parse_shard(args.shard) if args.shard else launched_shard(os.environ)
    if args.device == "auto" and "LOCAL_RANK" in os.environ:
        args.device = local_device(int(os.environ["LOCAL_RANK"]))
    if (args.input is None) == (args.dataset is None):
        raise ValueError("pass either --input <photo, folder, glob> or --dataset with --data_path")
    if args.enable_xformers:
        logger.warning("--enable_xformers: PyTorch attention is used instead, with RoPE as trained")
    items = (dataset_items(args) if args.dataset else input_items(args.input))[shard::shards]
    checkpoints = resolve_checkpoints(args)
    output: Output = (
        DatasetOutput(args, checkpoints) if args.dataset else InputOutput(args, checkpoints)
    )
    todo, failed = _select(items, output, overwrite=args.overwrite)
    if todo:
        pipelines = _load_pipelines(args, checkpoints)
        written = len(todo) - len(failed_now := _run(args, todo, pipelines, output))
        failed += failed_now
        print(f"{written} of {len(todo)} panoramas written to {args.results_path}")
    elif not failed:
        print(f"nothing to do: all {len(items)} panoramas are finished in {args.results_path}")
    for line in failed:
        print(f"failed: {line}", file=sys.stderr)
    return 1 if failed else 0


def _select(items: list[Item], output: Output, *, overwrite: bool) -> tuple[list[Item], list[str]]:
    """Items still to be done, and a line for each whose place holds something else."""
    if overwrite:
        return items, []
    todo, refused = [], []
    for item in items:
        try:
            if not output.is_done(item):
                todo.append(item)
        except ValueError as error:
            refused.append(str(error))
    return todo, refused


def _run(
    args: argparse.Namespace, todo: list[Item], pipelines: "list[PagerPipeline]", output: Output
) -> list[str]:
    """Predict and write every item; a bad one is reported and the rest goes on."""
    from tqdm.auto import tqdm

    from pager.pipeline import merge
    from pager.runinfo import write_run_info

    if os.environ.get("RANK", "0") == "0":
        write_run_info(args.results_path, vars(args))
    failed = []
    for number, item in enumerate(tqdm(todo, desc="panoramas")):
        try:
            rgb = item.load()
        except (ValueError, OSError) as error:
            failed.append(" ".join(str(error).split()))
            continue
        prediction = merge([pipeline(rgb) for pipeline in pipelines])
        with_picture = number % max(args.img_report_frequency, 1) == 0
        try:
            output.write(item, rgb, prediction, with_picture)
        except ValueError as error:
            failed.append(f"{item.source}: {' '.join(str(error).split())}")
        except OSError as error:
            raise OSError(
                f"cannot write the results of {item.source} below {args.results_path} ({error}); "
                "free space or choose another --results_path, then run again: finished panoramas are kept"
            ) from error
    return failed


# ---- shares of the work -----------------------------------------------------------------------


def parse_shard(text: str) -> tuple[int, int]:
    """``"I/N"`` to (I, N)."""
    index, _, count = text.partition("/")
    if not (index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise ValueError(f"--shard {text}: expected I/N with 0 <= I < N, for example 0/4")
    return int(index), int(count)


def launched_shard(environment: Mapping[str, str]) -> tuple[int, int]:
    """This process's share under ``accelerate launch`` or ``torchrun``: (rank, world size)."""
    return int(environment.get("RANK", "0")), int(environment.get("WORLD_SIZE", "1"))


def local_device(rank: int) -> str:
    """The GPU of a launched process, or "auto" without one."""
    import torch

    return f"cuda:{rank % torch.cuda.device_count()}" if torch.cuda.is_available() else "auto"


# ---- models -------------------------------------------------------------------------------------


def resolve_checkpoints(args: argparse.Namespace) -> dict[str, str]:
    """Modality to checkpoint, in the order they run."""
    if args.checkpoint_path is not None:
        from pager.checkpoint import locate

        modality = locate(args.checkpoint_path, args.revision).config.modality
        if args.modality not in (None, modality):
            raise ValueError(
                f"--checkpoint_path {args.checkpoint_path} predicts {modality}, but --modality is "
                f"{args.modality}; pass --depth_checkpoint_path and --normals_checkpoint_path"
            )
        return {modality: args.checkpoint_path}
    wanted = ("depth", "normals") if args.modality in (None, "both") else (args.modality,)
    given = {"depth": args.depth_checkpoint_path, "normals": args.normals_checkpoint_path}
    defaults = DEFAULT_CHECKPOINTS
    if args.tiny:
        defaults = {modality: str(TINY_ASSETS / modality) for modality in defaults}
    return {modality: given[modality] or defaults[modality] for modality in wanted}


def _load_pipelines(args: argparse.Namespace, checkpoints: dict[str, str]) -> "list[PagerPipeline]":
    from pager.pipeline import PagerPipeline

    pipelines = []
    for modality, path in checkpoints.items():
        pipeline = PagerPipeline.from_pretrained(
            path,
            revision=args.revision,
            pretrained_path=args.pretrained_path,
            device=args.device,
            precision=args.precision,
            rope=args.rope,
            offload=args.offload,
            stream_vae=args.stream_vae,
            channels_last=args.channels_last,
            compile_backend="inductor" if args.compile else None,
            max_depth=args.max_depth,
            face_size=args.face_size,
            normals_frame=args.normals_frame,
        )
        if pipeline.modality != modality:
            raise ValueError(
                f"{path} predicts {pipeline.modality}, not {modality}; "
                f"pass it as --{pipeline.modality}_checkpoint_path"
            )
        pipelines.append(pipeline)
    return pipelines
