"""Take the LoRA weights out of a training checkpoint, for --lora of the other commands."""

import argparse
from pathlib import Path

from shared_pano_utils.commands import Parser, run_cli


def build_parser() -> argparse.ArgumentParser:
    """Positionals of the original, and what its checkpoints may lack."""
    parser = Parser(prog="get_lora_weights.py", description=__doc__)
    parser.add_argument(
        "pt_file", type=Path, metavar="PT_FILE",
        help="mp_rank_00_model_states.pt of DeepSpeed, or a .ckpt file or directory",
    )  # fmt: skip
    parser.add_argument(
        "out_dir", type=Path, nargs="?", default=Path("lora_output"), metavar="OUT_DIR",
        help="folder of the result (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--alpha", type=float, help="--lora_alpha of the training (default: as it recorded)"
    )
    parser.add_argument(
        "--padding_n", type=int, help="--padding_n of the training (default: as it recorded)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an older result")
    parser.add_argument("-v", "--verbose", action="store_true")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    args = build_parser().parse_args(argv)
    return run_cli(lambda: _extract(args), verbose=args.verbose)


def _extract(args: argparse.Namespace) -> int:
    from dit360.lora import WEIGHTS_NAME
    from dit360.training.extract import extract_lora
    from shared_pano_utils.runinfo import write_run_info

    if (args.out_dir / WEIGHTS_NAME).exists() and not args.overwrite:
        raise FileExistsError(
            f"{args.out_dir / WEIGHTS_NAME} exists; pass --overwrite or another folder"
        )
    done = extract_lora(args.pt_file, args.out_dir, alpha=args.alpha, padding_n=args.padding_n)
    write_run_info(args.out_dir, vars(args), ["dit360", "torch", "peft", "safetensors"])
    print(
        f"{done.path}: {done.tensors} tensors, rank {done.rank}, alpha {done.alpha:g} "
        f"(strength {done.alpha / done.rank:g}); use it with --lora {args.out_dir}"
    )
    return 0
