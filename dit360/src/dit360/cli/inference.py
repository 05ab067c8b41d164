"""Generate seamless 360-degree panoramas from text.

One prompt makes one file, ``--output``. Several seeds or a file of prompts make a folder of that
name without its suffix. Finished panoramas are skipped, so that the same command goes on after an
interruption.
"""

import argparse
import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dit360.embedded import TINY_HEIGHT, TINY_STEPS, TINY_TEXT_LENGTH
from shared_pano_utils.commands import Parser, run_cli

if TYPE_CHECKING:
    from dit360.generate import Job, Settings
    from dit360.loading import LoadOptions

PROMPT = (
    "This is a panorama. A stone castle with slender towers stands on a wooded hill in autumn; "
    "red and golden maples surround it, a winding path covered with fallen leaves leads to the "
    "gate, and soft evening light falls through thin clouds."
)
PACKAGES = ("dit360", "torch", "diffusers", "transformers", "peft", "accelerate")
MAX_SEED = 2**63 - 1


class Prompt(NamedTuple):
    """One line of a prompt file."""

    text: str
    seed: int | None
    name: str


class Plan(NamedTuple):
    """All panoramas of a command, those of other shards included."""

    folder: Path
    jobs: "list[Job]"
    page: Path


def build_parser() -> argparse.ArgumentParser:
    """Flags of generation."""
    from dit360.loading import add_load_flags

    parser = Parser(
        prog="inference.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_argument_group("what to generate")
    what.add_argument("--prompt", default=PROMPT, help="default: a castle in autumn")
    what.add_argument(
        "--prompt_file", type=Path,
        help=".txt with a prompt in each line, or .jsonl: {\"prompt\", \"seed\"?, \"name\"?}",
    )  # fmt: skip
    trigger = what.add_mutually_exclusive_group()
    trigger.add_argument(
        "--trigger", action="store_true", default=True,
        help="begin prompts with the words of the training, This is a panorama. (default)",
    )  # fmt: skip
    trigger.add_argument(
        "--no_trigger", action="store_false", dest="trigger", help="prompts as they are"
    )
    what.add_argument("--seed", type=int, default=0, help="of the noise (default: %(default)s)")
    what.add_argument(
        "--num_images", type=int, default=1,
        help="for each prompt, with the seeds seed, seed + 1 ... (default: %(default)s)",
    )  # fmt: skip
    what.add_argument("--shard", metavar="I/N", help="work on every N-th panorama from I")
    _add_sampling_flags(parser)
    out = parser.add_argument_group("what to write")
    out.add_argument(
        "--output", type=Path, default=Path("result.png"),
        help=".png or .jpg, or a folder (default: %(default)s)",
    )  # fmt: skip
    out.add_argument("--html", action="store_true", help="a page with a 360-degree viewer too")
    out.add_argument("--overwrite", action="store_true", help="make finished panoramas again")
    add_load_flags(parser)
    parser.add_argument("-v", "--verbose", action="store_true")
    return parser


def _add_sampling_flags(parser: argparse.ArgumentParser) -> None:
    how = parser.add_argument_group("sampling")
    for name, kind, default, text in (
        ("height", int, 1024, "pixels; the released LoRA was trained for 1024 alone"),
        ("num_inference_steps", int, 28, "denoising steps"),
        ("guidance_scale", float, 2.8, "distilled guidance; the paper used 3.0"),
        ("true_cfg_scale", float, 1.0, "above 1: guidance away from --negative_prompt, twice the time"),
        ("max_sequence_length", int, 512, "T5 tokens of a prompt"),
    ):  # fmt: skip
        how.add_argument(
            f"--{name}", type=kind, default=default, help=f"{text} (default: {default})"
        )
    how.add_argument("--width", type=int, help="pixels (default: 2 x height)")
    how.add_argument("--any_aspect", action="store_true", help="allow other sizes than 2:1")
    how.add_argument("--negative_prompt", default="", help="what to keep away from")


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns 0, 1 if a panorama was refused, 2 if nothing could start."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.tiny:
        from dit360.captions import caption, random_world, split_seed

        parser.set_defaults(
            prompt=caption(random_world(split_seed("test", 0))),
            height=TINY_HEIGHT,
            num_inference_steps=TINY_STEPS,
            max_sequence_length=TINY_TEXT_LENGTH,
        )
        args = parser.parse_args(argv)
    hint = "use --memory balanced, low, int8 or 4bit, or --tile_columns 64"
    return run_cli(lambda: _infer(args), verbose=args.verbose, out_of_memory=hint)


def _infer(args: argparse.Namespace) -> int:
    from dit360.loading import load_options

    settings, options = _settings(args), load_options(args)
    shard, shards = parse_shard(args.shard or "0/1")
    plan = plan_jobs(args, options)
    mine = plan.jobs[shard::shards]
    todo, refused = _select(plan.folder, mine, settings, overwrite=args.overwrite)
    if todo:
        _generate(args, plan.folder, todo, settings, options)
    elif not mine:
        print(f"nothing to do: --shard {args.shard} has none of the {len(plan.jobs)} panoramas")
    elif not refused:
        print(f"nothing to do: {plan.folder} holds the finished panoramas, {len(mine)} of them")
    elif len(refused) == len(plan.jobs) == 1:
        raise ValueError(refused[0])
    if args.html:
        _write_page(plan)
    for line in refused:
        print(f"refused: {line}", file=sys.stderr)
    return 1 if refused else 0


def _generate(
    args: argparse.Namespace,
    folder: Path,
    todo: "list[Job]",
    settings: "Settings",
    options: "LoadOptions",
) -> None:
    from tqdm.auto import tqdm

    from dit360.generate import generate
    from dit360.loading import open_pipeline
    from shared_pano_utils.runinfo import write_run_info

    write_run_info(folder, vars(args), PACKAGES)
    pipeline = open_pipeline(options, report=print)
    pipeline.set_progress_bar_config(desc="steps", leave=False, disable=None)
    disable = None if len(todo) > 1 else True
    with tqdm(total=len(todo), desc="panoramas", disable=disable) as bar:
        for result in generate(pipeline, todo, settings, folder):
            bar.write(f"{result.path}: seam ratio {result.seam_ratio:.2f}, {result.seconds:.1f} s")
            bar.update()


# ---- what to do ---------------------------------------------------------------------------------


def plan_jobs(args: argparse.Namespace, options: "LoadOptions") -> Plan:
    """The panoramas of a command, their folder, and the name of the page.

    One panorama is ``--output`` itself if that is an image file. Otherwise the folder holds
    ``<name>.png`` for each line of a prompt file, ``seed<seed>.png`` for one prompt, and
    ``<name>_seed<seed>.png`` where both vary.

    Raises:
        ValueError: a number is out of range, the format of --output cannot hold the description,
            the prompt is empty, or the prompt file is broken.
    """
    from dit360.generate import Job, check_suffix, describe_model, with_trigger
    from shared_pano_utils.imageio import IMAGE_SUFFIXES

    if args.num_images < 1:
        raise ValueError(f"--num_images is {args.num_images}; use 1 or more")
    output: Path = args.output
    is_file = output.suffix.lower() in IMAGE_SUFFIXES
    if is_file:
        check_suffix(output)
    if not args.prompt.strip():
        raise ValueError("--prompt is empty; describe the panorama")
    prompts = [Prompt(args.prompt, None, "")]
    if args.prompt_file is not None:
        prompts = read_prompts(args.prompt_file)
    is_one = is_file and args.num_images == 1 and args.prompt_file is None
    suffix = output.suffix if is_file else ".png"
    made_with = describe_model(options)
    jobs = []
    for prompt in prompts:
        first = args.seed if prompt.seed is None else prompt.seed
        if not 0 <= first <= MAX_SEED - args.num_images:
            raise ValueError(f"--seed is {first}; use 0 to {MAX_SEED - args.num_images}")
        for seed in range(first, first + args.num_images):
            parts = [prompt.name] if prompt.name else []
            if args.num_images > 1 or not prompt.name:
                parts.append(f"seed{seed}")
            name = output.name if is_one else "_".join(parts) + suffix
            text = with_trigger(prompt.text) if args.trigger else prompt.text
            jobs.append(Job(prompt=text, seed=seed, name=name, made_with=made_with))
    if is_one:
        return Plan(output.parent, jobs, output.with_suffix(".html"))
    folder = output.with_suffix("") if is_file else output
    return Plan(folder, jobs, folder / "index.html")


def read_prompts(path: Path) -> list[Prompt]:
    """Prompts of a file: one a line, or objects with ``prompt``, ``seed`` and ``name`` in jsonl.

    Without a name, a prompt is called by its number in the file, from 0001; empty lines do not
    count.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no prompt, or lines that are none, all of which are named.
    """
    from dit360.data.rows import read_jsonl

    if not path.is_file():
        raise FileNotFoundError(f"--prompt_file {path} does not exist")
    try:
        if path.suffix.lower() == ".jsonl":
            rows = [(where, values) for where, values, _ in read_jsonl(path)]
        else:
            lines = enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1)
            rows = [(f"{path.name} line {n}", {"prompt": x.strip()}) for n, x in lines if x.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"--prompt_file {path} is not UTF-8 text ({error.reason})") from error
    if not rows:
        raise ValueError(f"--prompt_file {path} holds no prompt; write one in each line")
    prompts, broken, seen = [], [], {}
    for number, (where, values) in enumerate(rows, 1):
        mistake = values if isinstance(values, str) else _find_mistake(values)
        if isinstance(values, str) or mistake:
            broken.append(f"{where}: {mistake}")
            continue
        prompt = Prompt(values["prompt"], values.get("seed"), values.get("name", f"{number:04d}"))
        if prompt.name in seen:
            broken.append(f"{where}: the name {prompt.name!r} is that of {seen[prompt.name]}")
        seen[prompt.name] = where
        prompts.append(prompt)
    if broken:
        raise ValueError("; ".join(broken))
    return prompts


def _find_mistake(row: Mapping[str, Any]) -> str | None:
    """What is wrong with a line of a prompt file."""
    unknown = sorted(row.keys() - {"prompt", "seed", "name"})
    if unknown:
        return f"unknown key {unknown[0]!r}, allowed are prompt, seed and name"
    if not isinstance(row.get("prompt"), str) or not row["prompt"].strip():
        return "prompt must be a text"
    seed, name = row.get("seed", 0), row.get("name", "x")
    if type(seed) is not int or not 0 <= seed <= MAX_SEED:
        return f"seed is {seed!r}, expected a whole number from 0"
    if not isinstance(name, str) or not name or name != Path(name).name or name.startswith("."):
        return f"name is {name!r}, expected a file name without folder and suffix"
    return None


def parse_shard(text: str) -> tuple[int, int]:
    """``"I/N"`` to (I, N)."""
    index, _, count = text.partition("/")
    if not (index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise ValueError(f"--shard {text}: expected I/N with 0 <= I < N, for example 0/4")
    return int(index), int(count)


def _select(
    folder: Path, jobs: "list[Job]", settings: "Settings", *, overwrite: bool
) -> "tuple[list[Job], list[str]]":
    """Jobs still to be done, and a line for each whose place holds something else."""
    from dit360.generate import describe, is_finished

    if overwrite:
        return jobs, []
    todo, refused = [], []
    for job in jobs:
        try:
            if not is_finished(folder / job.name, describe(job, settings)):
                todo.append(job)
        except ValueError as error:
            refused.append(str(error))
    return todo, refused


# ---- options ------------------------------------------------------------------------------------


def _settings(args: argparse.Namespace) -> "Settings":
    from dit360.generate import Settings

    if args.width is None:
        args.width = 2 * args.height
    if args.width != 2 * args.height and not args.any_aspect:
        raise ValueError(
            f"--width {args.width} is not twice --height {args.height}; leave --width out, or pass "
            "--any_aspect for pictures that are no panoramas"
        )
    if args.width != 2 * args.height and args.html:
        raise ValueError("--html shows full spheres only; leave it or --any_aspect out")
    names = [field.name for field in dataclasses.fields(Settings)]
    return Settings(**{name: getattr(args, name) for name in names})


def _write_page(plan: Plan) -> None:
    """A page with all panoramas that are there, those of other shards and earlier runs too."""
    from shared_pano_utils.viewer import write_viewer

    found = {Path(job.name).stem: job for job in plan.jobs if (plan.folder / job.name).is_file()}
    if not found:  # more shards than panoramas
        return
    prompts = {job.prompt for job in found.values()}
    write_viewer(
        plan.page,
        {label: plan.folder / job.name for label, job in found.items()},
        title=plan.page.stem if len(found) == 1 else f"{len(found)} panoramas",
        description=prompts.pop() if len(prompts) == 1 else "",
    )
    print(plan.page)
