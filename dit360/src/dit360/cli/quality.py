"""`scripts/tiny_quality.py`: measure a tiny pipeline on held-out procedural worlds."""

import argparse
from pathlib import Path

from dit360.embedded import TINY_HEIGHT, TINY_LORA, TINY_MODEL, TINY_STEPS, TINY_TEXT_LENGTH
from shared_pano_utils.commands import Parser, run_cli

COLUMNS = ("all", "wall", "sky", "floor", "object_color", "object_direction", "seam", "seam_plain")


def build_parser() -> argparse.ArgumentParser:
    """Flags of the quality report."""
    parser = Parser(prog="scripts/tiny_quality.py", description=__doc__)
    parser.add_argument("--model", type=Path, default=TINY_MODEL, help="folder of the base")
    parser.add_argument("--lora", type=Path, default=TINY_LORA, help="directory of its LoRA")
    parser.add_argument("--num_inference_steps", type=int, default=TINY_STEPS)
    parser.add_argument("--captions", type=int, default=128, help="captions to draw")
    parser.add_argument("--photos", type=int, default=32, help="photos to paint around")
    parser.add_argument("--json", type=Path, help="also write the numbers")
    parser.add_argument("-v", "--verbose", action="store_true")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    args = build_parser().parse_args(argv)
    return run_cli(lambda: _report(args), verbose=args.verbose)


def _report(args: argparse.Namespace) -> int:
    from dit360.loading import LoadOptions, open_pipeline
    from dit360.quality import (
        evaluate_captions,
        evaluate_outpainting,
        held_out_worlds,
        vae_psnr,
    )
    from shared_pano_utils.imageio import write_json

    sizes = {
        "height": TINY_HEIGHT,
        "steps": args.num_inference_steps,
        "text_length": TINY_TEXT_LENGTH,
    }
    worlds = held_out_worlds(args.captions)
    rows = {}
    base = open_pipeline(LoadOptions(model=str(args.model), lora=None, padding_n=0))
    base.set_progress_bar_config(disable=True)
    rows["base alone"] = evaluate_captions(base, worlds, **sizes)["generated"]
    pipeline = open_pipeline(LoadOptions(model=str(args.model), lora=str(args.lora)))
    pipeline.set_progress_bar_config(disable=True)
    rows |= evaluate_captions(pipeline, worlds, **sizes)
    _print_table("captions", rows, COLUMNS)
    outpainting = evaluate_outpainting(pipeline, worlds[: args.photos], **sizes)
    _print_table("outpainting", {"photos": outpainting}, tuple(outpainting))
    ceiling = vae_psnr(pipeline, worlds[: args.photos], TINY_HEIGHT)
    print(f"\nVAE: {ceiling:.1f} dB")
    if args.json:
        write_json(args.json, rows | {"outpainting": outpainting, "vae_db": ceiling})
    return 0


def _print_table(title: str, rows: dict[str, dict[str, float]], columns: tuple[str, ...]) -> None:
    print(f"\n| {title} | " + " | ".join(columns) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for name, values in rows.items():
        cells = (f"{values[key]:.2f}" if key in values else "-" for key in columns)
        print(f"| {name} | " + " | ".join(cells) + " |")
