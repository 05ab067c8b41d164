"""`inference.py`: depth and surface normals of panoramas.

Photographs, folders and globs go in with ``--input``; the data sets of the original repository
with ``--data_path`` and ``--dataset``.
"""

import argparse
import collections
import glob
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pager.cli.common import run_cli
from pager.data.registry import DATASETS, open_dataset
from pager.embedded import TINY_ASSETS

if TYPE_CHECKING:
    import numpy as np

    from pager.pipeline import PagerPipeline, Prediction

logger = logging.getLogger(__name__)

DEFAULT_CHECKPOINTS = {"depth": "prs-eth/PaGeR-depth", "normals": "prs-eth/PaGeR-normals"}
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp"}


def build_parser() -> argparse.ArgumentParser:
    """Flags of the original plus ours."""
    parser = argparse.ArgumentParser(
        prog="inference.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
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
    out.add_argument("--shard", default="0/1", metavar="I/N", help="work on every N-th item from I")
    out.add_argument("--overwrite", action="store_true", help="predict finished items again")
    parser.add_argument("-v", "--verbose", action="store_true")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code: 0, 1 if an item failed, 2 if nothing could start."""
    args = build_parser().parse_args(argv)
    return run_cli(lambda: _infer(args), verbose=args.verbose)


@dataclass(frozen=True)
class Item:
    """One panorama to predict: its output name, what to call it in messages, how to read it."""

    id: str
    source: str
    load: "Callable[[], np.ndarray]"


def _infer(args: argparse.Namespace) -> int:
    shard, shards = parse_shard(args.shard)
    if (args.input is None) == (args.dataset is None):
        raise ValueError("pass either --input <photo, folder, glob> or --dataset with --data_path")
    if args.enable_xformers:
        logger.warning("--enable_xformers: PyTorch attention is used instead, with RoPE as trained")
    items = (_dataset_items(args) if args.dataset else _input_items(args.input))[shard::shards]
    checkpoints = resolve_checkpoints(args)
    output: Output = (
        _DatasetOutput(args, checkpoints) if args.dataset else _InputOutput(args, checkpoints)
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


def _select(
    items: list[Item], output: "Output", *, overwrite: bool
) -> tuple[list[Item], list[str]]:
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
    args: argparse.Namespace, todo: list[Item], pipelines: "list[PagerPipeline]", output: "Output"
) -> list[str]:
    """Predict and write every item; a bad one is reported and the rest goes on."""
    from tqdm.auto import tqdm

    from pager.pipeline import merge
    from pager.runinfo import write_run_info

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


# ---- inputs -------------------------------------------------------------------------------------


def parse_shard(text: str) -> tuple[int, int]:
    """``"I/N"`` to (I, N)."""
    index, _, count = text.partition("/")
    if not (index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise ValueError(f"--shard {text}: expected I/N with 0 <= I < N, for example 0/4")
    return int(index), int(count)


def _input_items(patterns: list[str]) -> list[Item]:
    """Expand files, folders and globs; equal stems get their parent folder's name in front."""
    from shared_pano_utils.imageio import read_erp

    paths: list[Path] = []
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            found = sorted(p for p in path.iterdir() if _is_image(p))
        elif path.exists():
            found = [path]
        else:
            matches = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 (absolute patterns)
            found = [path for path in map(Path, matches) if path.is_file()]
        if not found:
            raise FileNotFoundError(
                f"--input {pattern}: no such file, folder with images or glob match; check the path"
            )
        paths += [p for p in found if p not in paths]
    ids = unique_names(paths)
    return [Item(name, str(p), partial(read_erp, p)) for name, p in zip(ids, paths, strict=True)]


def _is_image(path: Path) -> bool:
    """Whether the suffix is an image's; hidden files are what a killed writer left."""
    is_hidden = path.name.startswith(".")
    return path.suffix.lower() in IMAGE_SUFFIXES and not is_hidden and path.is_file()


def unique_names(paths: list[Path]) -> list[str]:
    """Stems, preceded where they are equal by as many folder names as tell the files apart.

    >>> unique_names([Path("a/p/x.png"), Path("b/p/x.png"), Path("b/y.png")])
    ['a_p_x', 'b_p_x', 'y']
    """
    twins = collections.Counter((p.parent, p.stem) for p in paths)  # x.png beside x.jpg
    leaves = [p.stem if twins[p.parent, p.stem] == 1 else f"{p.stem}_{p.suffix[1:]}" for p in paths]
    names = leaves
    parts = [(*p.resolve().parent.parts[1:], leaf) for p, leaf in zip(paths, leaves, strict=True)]
    for depth in range(2, max(map(len, parts), default=1) + 1):
        counts = collections.Counter(names)
        names = [
            "_".join(part[-depth:]) if counts[name] > 1 else name
            for name, part in zip(names, parts, strict=True)
        ]
    return names


def _dataset_items(args: argparse.Namespace) -> list[Item]:
    if args.data_path is None:
        raise ValueError("--dataset needs --data_path, the folder that holds the data set")
    dataset = open_dataset(args.dataset, args.data_path, args.split, args.scenes)

    def load(index: int) -> "np.ndarray":
        return dataset[index]["rgb"].movedim(0, -1).numpy()

    return [Item(view.id, view.id, partial(load, i)) for i, view in enumerate(dataset.views)]


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
            compile_backend="inductor" if args.compile else None,
            max_depth=args.max_depth,
            face_size=args.face_size,
        )
        if pipeline.modality != modality:
            raise ValueError(
                f"{path} predicts {pipeline.modality}, not {modality}; "
                f"pass it as --{pipeline.modality}_checkpoint_path"
            )
        pipelines.append(pipeline)
    return pipelines


# ---- outputs ------------------------------------------------------------------------------------


class Output(Protocol):
    """Where the results of a run go."""

    def is_done(self, item: Item) -> bool:
        """Whether everything asked for is there already."""
        ...

    def write(
        self, item: Item, rgb: "np.ndarray", prediction: "Prediction", with_picture: bool
    ) -> None:
        """Write one item; `with_picture` asks for an example image where those are sparse."""
        ...


class _InputOutput:
    """``<results>/<id>/`` with every format."""

    def __init__(self, args: argparse.Namespace, checkpoints: dict[str, str]) -> None:
        self.args = args
        self.points = None if args.points == "none" else args.points
        options = {name: getattr(args, name) for name in ("max_depth", "face_size", "rope")}
        self.made_with = {
            modality: {"checkpoint": path, "revision": args.revision, **options}
            for modality, path in checkpoints.items()
        }

    def is_done(self, item: Item) -> bool:
        from pager.export import is_complete

        return is_complete(
            self.args.results_path / item.id,
            source=item.source,
            made_with=self.made_with,
            html=self.args.html,
            points=self.points,
        )

    def write(
        self,
        item: Item,
        rgb: "np.ndarray",
        prediction: "Prediction",
        with_picture: bool,  # noqa: ARG002 (every item has its preview)
    ) -> None:
        from pager.export import write_prediction

        write_prediction(
            self.args.results_path / item.id,
            rgb,
            prediction,
            source=item.source,
            made_with=self.made_with,
            points=self.points,
            html=self.args.html,
        )


def result_folders(checkpoints: dict[str, str]) -> dict[str, str]:
    """Name of the results of each modality: the last part of its checkpoint.

    Folders of our trainings end alike ("checkpoint-last"), so they keep the run's name in front.
    """
    names = {}
    for modality, checkpoint in checkpoints.items():
        path = Path(checkpoint)
        generic = path.is_dir() and path.name.startswith(("checkpoint-", "original", "EMA"))
        names[modality] = f"{path.resolve().parent.name}_{path.name}" if generic else path.name
    if len(set(names.values())) < len(names):
        names = {modality: f"{name}_{modality}" for modality, name in names.items()}
    return names


class _DatasetOutput:
    """The original's tree: ``<results>/<checkpoint>/<dataset>/{eval,example_images}/<id>``."""

    def __init__(self, args: argparse.Namespace, checkpoints: dict[str, str]) -> None:
        self.args = args
        self.folders = {
            modality: args.results_path / name / args.dataset
            for modality, name in result_folders(checkpoints).items()
        }

    def is_done(self, item: Item) -> bool:
        files = [folder / "eval" / f"{item.id}.npz" for folder in self.folders.values()]
        return self.args.generate_eval and all(path.is_file() for path in files)

    def write(
        self, item: Item, rgb: "np.ndarray", prediction: "Prediction", with_picture: bool
    ) -> None:
        import numpy as np

        from pager import export
        from shared_pano_utils.imageio import write_image

        for modality, folder in self.folders.items():
            values = getattr(prediction, modality)
            if with_picture:
                preview = getattr(export, f"{modality}_preview")(values)
                picture = preview if self.args.pred_only else np.concatenate([rgb, preview])
                path = folder / "example_images" / f"{item.id}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                write_image(path, picture, gpano=self.args.pred_only)  # a mosaic is no panorama
            if self.args.generate_eval:
                path = folder / "eval" / f"{item.id}.npz"
                path.parent.mkdir(parents=True, exist_ok=True)
                export.write_npz(path, values)
