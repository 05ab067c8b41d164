"""`generate_point_cloud.py`: point clouds and meshes of depth that `inference.py` predicted.

Predictions are found by the original's layout, ``<depth_path>/<dataset>/eval/<id>.npz`` (written by
``inference.py --dataset ... --generate_eval``), or in the folders of ``inference.py --input``. The
results of ``<root>/eval/<id>.npz`` and ``<root>/<id>/depth.npz`` are
``<root>/{rgb,normals}_point_clouds/<id>.{glb,ply}`` and ``<root>/{rgb,normals}_meshes/<id>.glb``.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pager.cli.common import Parser, run_cli
from pager.cli.evaluate import at_least_one, positive
from pager.data.registry import DATASETS, SCENES, SPLITS

if TYPE_CHECKING:
    import numpy as np

    from pager.data.registry import Sample

DEFAULT_DATASET = "PanoInfinigen"


def build_parser() -> argparse.ArgumentParser:
    """Flags of the original plus ours."""
    parser = Parser(
        prog="generate_point_cloud.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_argument_group("what to read")
    what.add_argument("--input", nargs="+", help="result folders of `inference.py --input`")
    what.add_argument("--data_path", type=Path, default=Path("data"), help="root of --dataset")
    what.add_argument("--dataset", choices=tuple(DATASETS), help=f"default {DEFAULT_DATASET}")
    what.add_argument("--split", choices=SPLITS, default="test")
    what.add_argument("--scenes", choices=SCENES, default="both")
    what.add_argument(
        "--depth_path", type=Path, default=Path("data"), help="results of the depth checkpoint"
    )
    what.add_argument(
        "--normals_path", type=Path, default=Path("data"), help="results of the normals checkpoint"
    )
    surface = parser.add_argument_group("what is left out")
    surface.add_argument(
        "--max_depth",
        type=positive,
        help="range of the checkpoint in metres; what comes close to it is sky "
        "(default 75, PanoInfinigen indoor 15)",
    )
    surface.add_argument(
        "--mask",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="leave out pixels without ground truth where the data set has depth (default)",
    )
    surface.add_argument(
        "--edge_thresh",
        type=positive,
        help="the original's edge test with this threshold (its value: 0.002) instead of the one "
        "that spares slanted surfaces; points only",
    )
    surface.add_argument(
        "--min_cluster",
        type=int,
        default=0,
        metavar="N",
        help="drop groups of fewer than N connected pixels (default 0: none)",
    )
    out = parser.add_argument_group("what to write")
    out.add_argument("--color_modality", choices=("rgb", "normals"), default="rgb")
    out.add_argument(
        "--format", choices=("glb", "ply", "mesh"), default="glb", help="mesh: textured GLB"
    )
    out.add_argument(
        "--max_points",
        type=at_least_one,
        help="most points, or grid points of a mesh; default 2 million",
    )
    out.add_argument(
        "--equal_area",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="thin points towards the poles (default); --no-equal_area: as dense as the image",
    )
    out.add_argument("--overwrite", action="store_true", help="write finished items again")
    parser.add_argument("-v", "--verbose", action="store_true")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code: 0, 1 if an item failed, 2 if nothing could start."""
    args = build_parser().parse_args(argv)
    return run_cli(lambda: _generate(args), verbose=args.verbose)


def _generate(args: argparse.Namespace) -> int:
    from tqdm.auto import tqdm

    from pager.runinfo import write_run_info

    _check(args)
    items = _input_items(args) if args.input else _dataset_items(args)
    todo = [item for item in items if args.overwrite or not item.target.is_file()]
    if not todo:
        print(f"nothing to do: all {len(items)} files exist in {items[0].target.parent}")
        return 0
    missing = [path for item in todo for path in item.missing()]
    ready = [item for item in todo if not item.missing()]
    for folder in {item.target.parent for item in ready}:
        write_run_info(folder, vars(args))
    failed = []
    for item in tqdm(ready, desc="panoramas"):
        try:
            write = _prepare(item, args)
        except (ValueError, OSError) as error:
            failed.append(" ".join(str(error).split()))
            continue
        _write(write, item)
    folders = ", ".join(sorted({str(item.target.parent) for item in todo}))
    print(f"{len(ready) - len(failed)} of {len(todo)} files written to {folders}")
    for line in failed:
        print(f"failed: {line}", file=sys.stderr)
    for path in missing:
        print(f"missing: {path}", file=sys.stderr)
    if missing:
        print(f"{len(missing)} predictions are missing; run inference.py first", file=sys.stderr)
    return 1 if failed or missing else 0


def _check(args: argparse.Namespace) -> None:
    if args.input and args.dataset:
        raise ValueError("--input and --dataset exclude each other; pass one of them")
    if args.min_cluster < 0:
        raise ValueError(f"--min_cluster {args.min_cluster}: expected 0 or a number of pixels")
    if args.format == "mesh" and (args.edge_thresh is not None or not args.equal_area):
        raise ValueError(
            "--edge_thresh and --no-equal_area are for points, a mesh is cut along silhouettes; "
            "leave them out or choose --format glb or ply"
        )


# ---- panoramas ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Item:
    """One panorama.

    Predicted `depth`, and `normals` where they give the colour; the `target` file; how to `read`
    what else is known: the picture where it gives the colour, and ground truth.
    """

    depth: Path
    normals: Path | None
    target: Path
    read: "Callable[[], Sample]"

    def missing(self) -> list[Path]:
        """Predictions that are not there."""
        needed = [self.depth] if self.normals is None else [self.depth, self.normals]
        return [path for path in needed if not path.is_file()]


def _dataset_items(args: argparse.Namespace) -> list[Item]:
    """The original's tree: ``<depth_path>/<dataset>/eval/<id>.npz``."""
    from pager.data.registry import open_dataset

    name = args.dataset or DEFAULT_DATASET
    root, normals_root = args.depth_path / name, args.normals_path / name
    with_normals = args.color_modality == "normals"
    if not (root / "eval").is_dir():
        raise FileNotFoundError(
            f"--depth_path {args.depth_path}: no folder {root / 'eval'}; pass the results of one "
            "checkpoint, for example results/PaGeR-depth, made with --generate_eval"
        )
    dataset = open_dataset(name, args.data_path, args.split, args.scenes)
    return [
        Item(
            depth=root / "eval" / f"{view.id}.npz",
            normals=normals_root / "eval" / f"{view.id}.npz" if with_normals else None,
            target=_target(root, view.id, args),
            read=partial(dataset.__getitem__, index),
        )
        for index, view in enumerate(dataset.views)
    ]


def _input_items(args: argparse.Namespace) -> list[Item]:
    """Folders of ``inference.py --input``, or one panorama's folder in them."""
    from pager.export import META_NAME

    with_normals = args.color_modality == "normals"
    items = []
    for path in map(Path, args.input):
        is_one = (path / META_NAME).is_file()
        found = [path / META_NAME] if is_one else sorted(path.glob(f"*/{META_NAME}"))
        if not found:
            raise FileNotFoundError(
                f"--input {path}: no folder with a {META_NAME} in it; pass the --results_path of "
                "`inference.py --input`, or one folder below it"
            )
        items += [
            Item(
                depth=folder / "depth.npz",
                normals=folder / "normals.npz" if with_normals else None,
                target=_target(folder.parent, folder.name, args),
                read=dict if with_normals else partial(_read_source, folder),
            )
            for folder in (meta.resolve().parent for meta in found)
        ]
    return items


def _target(root: Path, name: str, args: argparse.Namespace) -> Path:
    kind, suffix = ("meshes", "glb") if args.format == "mesh" else ("point_clouds", args.format)
    return root / f"{args.color_modality}_{kind}" / f"{name}.{suffix}"


def _read_source(folder: Path) -> "Sample":
    """The picture that was predicted, by its path in the metadata."""
    import torch

    from pager.export import META_NAME, read_meta
    from shared_pano_utils.imageio import read_erp

    source = read_meta(folder).get("source")
    if not source or not Path(source).is_file():
        raise FileNotFoundError(
            f"{folder / META_NAME}: its source picture {source} is not there; run in the folder "
            "where inference ran, or use --color_modality normals"
        )
    return {"rgb": torch.from_numpy(read_erp(source)).movedim(-1, 0)}


# ---- geometry -----------------------------------------------------------------------------------


def _prepare(item: Item, args: argparse.Namespace) -> Callable[[], None]:
    """Read a panorama and make its geometry; the result writes it."""
    from pager.cloud import MAX_POINTS, depth_mesh, point_cloud, write_mesh, write_points
    from pager.data.files import resize_rgb
    from pager.depth import FAR_FRACTION
    from pager.evaluation.predictions import read_map

    depth = read_map(item.depth, "depth").numpy()
    sample = item.read()
    colors = _colors(item, sample)
    options: dict[str, Any] = {
        "max_points": args.max_points or MAX_POINTS,
        "far_m": FAR_FRACTION * _max_depth(args),
        "valid": _valid(args, sample, depth.shape[1:]),
        "min_cluster": args.min_cluster,
    }
    if args.format == "mesh":
        mesh = depth_mesh(depth, **options)
        _insist(len(mesh.faces), "triangle", item)
        return partial(write_mesh, item.target, mesh, colors)
    options |= {"edge_thresh": args.edge_thresh, "equal_area": args.equal_area}
    points, colors = point_cloud(depth, resize_rgb(colors, depth.shape[1:]), **options)
    _insist(len(points), "point", item)
    return partial(write_points, item.target, points, colors, args.format)


def _colors(item: Item, sample: "Sample") -> "np.ndarray":
    """The picture (H, W, 3) uint8 that colours the geometry."""
    if item.normals is None:
        return sample["rgb"].movedim(0, -1).contiguous().numpy()
    from pager.evaluation.predictions import read_map
    from pager.export import normals_preview

    return normals_preview(read_map(item.normals, "normals").numpy())


def _max_depth(args: argparse.Namespace) -> float:
    """The range that inference assumes for the same data set and scenes, in metres."""
    from pager.depth import INDOOR_MAX_DEPTH_M, MAX_DEPTH_M

    if args.max_depth is not None:
        return args.max_depth
    is_panoinfinigen = not args.input and args.dataset in (None, DEFAULT_DATASET)
    return INDOOR_MAX_DEPTH_M if is_panoinfinigen and args.scenes == "indoor" else MAX_DEPTH_M


def _valid(
    args: argparse.Namespace, sample: "Sample", size: tuple[int, int]
) -> "np.ndarray | None":
    """Pixels (H, W) with ground truth, None where all count."""
    from pager.data.files import resize_nearest
    from pager.depth import DepthRange

    if not args.mask or "depth" not in sample:
        return None
    valid = DepthRange(max_m=_max_depth(args)).valid(sample["depth"])[0]
    return resize_nearest(valid.numpy(), size)


def _write(write: Callable[[], None], item: Item) -> None:
    try:
        write()
    except OSError as error:
        raise OSError(
            f"cannot write {item.target} ({error}); free space, then run again: finished files are "
            "kept"
        ) from error


def _insist(count: int, what: str, item: Item) -> None:
    if count == 0:
        raise ValueError(
            f"{item.depth}: no {what} is left; raise --max_depth, or pass --no-mask and no "
            "--min_cluster"
        )
