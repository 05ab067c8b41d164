"""`validate_dataset.py`: open every panorama of a data set and name the bad ones."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pager.cli.common import Parser, run_cli
from pager.data.registry import DATASETS, SCENES, SPLITS, dataset_entry, open_dataset

if TYPE_CHECKING:
    from pager.data.registry import Entry, HasId, PanoramaDataset, Sample


def build_parser() -> argparse.ArgumentParser:
    """Flags of the check."""
    parser = Parser(prog="validate_dataset.py", description=__doc__)
    parser.add_argument("--data_path", type=Path, required=True, help="root folder of --dataset")
    parser.add_argument("--dataset", required=True, choices=tuple(DATASETS))
    parser.add_argument("--split", choices=SPLITS, help="default: every split that is there")
    parser.add_argument("--scenes", choices=SCENES, default="both")
    parser.add_argument("--json", type=Path, help="write the report here, too")
    parser.add_argument("-v", "--verbose", action="store_true")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code: 0, 1 if a panorama is bad, 2 if nothing could start."""
    args = build_parser().parse_args(argv)
    return run_cli(lambda: _validate(args), verbose=args.verbose)


def _validate(args: argparse.Namespace) -> int:
    entry = dataset_entry(args.dataset)
    datasets = _open_splits(args, entry)
    reports = {split: _check_split(dataset, split, entry) for split, dataset in datasets.items()}
    for split, report in reports.items():
        for item in report["bad"]:
            print(f"bad: {split} {item['id']}: {item['problem']}", file=sys.stderr)
        print(f"{args.dataset} {split}: {report['panoramas']} panoramas, {len(report['bad'])} bad")
    if args.json is not None:
        from shared_pano_utils.imageio import write_json

        write_json(args.json, {
            "dataset": args.dataset, "data_path": str(args.data_path), "scenes": args.scenes,
            "splits": reports,
        })  # fmt: skip
    return 1 if any(report["bad"] for report in reports.values()) else 0


def _open_splits(args: argparse.Namespace, entry: "Entry") -> "dict[str, PanoramaDataset]":
    """The split asked for, or all that are on disk."""
    wanted = entry.splits if args.split is None else (args.split,)
    datasets, missing = {}, []
    for split in wanted:
        try:
            datasets[split] = open_dataset(args.dataset, args.data_path, split, args.scenes)
        except FileNotFoundError as error:
            missing.append(error)
    if not datasets:
        raise missing[0]
    return datasets


def _check_split(dataset: "PanoramaDataset", split: str, entry: "Entry") -> dict[str, Any]:
    """Open and check every item.

    Returns:
        `panoramas`; `bad`, a list of {id, problem}; `sizes`, "WxH" -> count; `depth_m`, the least
        and the greatest measured distance and the mean measured fraction, where there is depth.
    """
    from tqdm.auto import tqdm

    from pager.data.checks import check_sample

    bad: list[dict[str, str]] = []
    sizes: dict[str, int] = {}
    ranges: list[tuple[float, float, float]] = []
    for index, view in enumerate(tqdm(dataset.views, desc=split)):
        try:
            sample = dataset[index]
        except (ValueError, OSError, EOFError) as error:
            problem, shard = " ".join(str(error).split()), str(getattr(view, "shard", ""))
            named = problem if problem.startswith(shard) else f"{shard}: {problem}"
            bad.append({"id": view.id, "problem": named})
            continue
        problems = check_sample(sample, entry)
        if problems:
            named = [f"{_source(view, name)}: {text}" for name, text in problems.items()]
            bad.append({"id": view.id, "problem": "; ".join(named)})
        height, width = sample["rgb"].shape[1:]
        sizes[f"{width}x{height}"] = sizes.get(f"{width}x{height}", 0) + 1
        ranges += _depth_range(sample)
    report: dict[str, Any] = {"panoramas": len(dataset), "bad": bad, "sizes": sizes}
    if ranges:
        low, high, fraction = zip(*ranges, strict=True)
        report["depth_m"] = {
            "min": min(low), "max": max(high), "measured": sum(fraction) / len(fraction)
        }  # fmt: skip
    return report


def _source(view: "HasId", name: str) -> str:
    """The file a map of a panorama came from, as far as its entry tells."""
    for attribute in (name, "row", "shard"):
        if (value := getattr(view, attribute, None)) is not None:
            return str(value)
    return name


def _depth_range(sample: "Sample") -> list[tuple[float, float, float]]:
    """(least, greatest, measured fraction) of the depth, or nothing without depth."""
    from pager.data.checks import measured

    if "depth" not in sample or not (valid := measured(sample["depth"])).any():
        return []
    values = sample["depth"][valid]
    return [(float(values.min()), float(values.max()), float(valid.float().mean()))]
