"""Store the text embeddings of captions and prompts, so that nothing else needs the encoders."""

import argparse
from pathlib import Path

from dit360.embedded import TINY_MODEL, TINY_TEXT_LENGTH
from shared_pano_utils.commands import Parser, run_cli

MODEL = "black-forest-labs/FLUX.1-dev"
MAX_LENGTH = 512
DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
PACKAGES = ("dit360", "torch", "diffusers", "transformers", "safetensors")


def build_parser() -> argparse.ArgumentParser:
    """Flags of the command."""
    parser = Parser(prog="cache_embeddings.py", description=__doc__)
    parser.add_argument(
        "--source", nargs="+", default=[], metavar="DATA",
        help="training data: hub data set, folder, .parquet or .jsonl; its captions",
    )  # fmt: skip
    parser.add_argument("--prompt_file", type=Path, help="a prompt in each line, or jsonl (prompt)")
    parser.add_argument("--prompt", nargs="+", default=[], help="prompts; '' is the empty one")
    parser.add_argument(
        "--no_trigger", dest="trigger", action="store_false", help="take prompts as they are"
    )
    parser.add_argument("--output", type=Path, default=Path("text_cache"), metavar="DIR")
    parser.add_argument(
        "--pretrained_model_name_or_path", default=MODEL, help="default: %(default)s"
    )
    parser.add_argument("--max_sequence_length", type=int, default=MAX_LENGTH, help="default: 512")
    parser.add_argument("--batch_size", type=int, default=8, help="default: %(default)s")
    parser.add_argument(
        "--dtype", choices=("auto", *DTYPES), default="auto", help="in which the encoders run"
    )
    parser.add_argument(
        "--store_dtype", choices=tuple(DTYPES), default="bf16", help="default: %(default)s"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps")
    parser.add_argument("--token", help="of the hub, for gated models (default: your login)")
    parser.add_argument("--tiny", action="store_true", help="the embedded model")
    parser.add_argument("-v", "--verbose", action="store_true")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Encode what is missing; returns the exit code."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.tiny:
        parser.set_defaults(
            pretrained_model_name_or_path=str(TINY_MODEL), max_sequence_length=TINY_TEXT_LENGTH
        )
        args = parser.parse_args(argv)
    hint = "use a smaller --batch_size, --dtype bf16 or --device cpu"
    return run_cli(lambda: _cache(args), verbose=args.verbose, out_of_memory=hint)


def _cache(args: argparse.Namespace) -> int:
    for flag in ("batch_size", "max_sequence_length"):
        if getattr(args, flag) < 1:
            raise ValueError(f"--{flag} {getattr(args, flag)}: use 1 or more")
    prompts = _read_captions(args.source) + _read_prompts(args)
    if not prompts:
        raise ValueError("nothing to encode; pass --source, --prompt_file or --prompt")
    import torch

    from dit360.textcache import TextCache, fingerprint
    from shared_pano_utils.runinfo import write_run_info

    model = args.pretrained_model_name_or_path
    cache = TextCache(
        args.output,
        model,
        max_length=args.max_sequence_length,
        dtype=getattr(torch, DTYPES[args.store_dtype]),
    )
    write_run_info(args.output, vars(args), PACKAGES)
    encoded = 0
    if fingerprint(model) is None or cache.missing(prompts):
        encoded = cache.encode_all(_load_encoders(args), prompts, batch_size=args.batch_size)
    count, size_bytes = cache.count()
    print(
        f"{args.output}: {len(set(prompts))} prompts, {encoded} encoded now; "
        f"{count} stored, {size_bytes / 1e6:.1f} MB"
    )
    return 0


def _read_captions(sources: list[str]) -> list[str]:
    from dit360.data.rows import open_rows

    return [row.caption for source in sources for row in open_rows(source)]


def _read_prompts(args: argparse.Namespace) -> list[str]:
    """Prompts as inference.py sends them: with the trigger; the empty one stays empty."""
    from dit360.cli.inference import read_prompts
    from dit360.generate import with_trigger

    prompts = list(args.prompt)
    if args.prompt_file is not None:
        prompts += [prompt.text for prompt in read_prompts(args.prompt_file)]
    if not args.trigger:
        return prompts
    return [with_trigger(prompt) if prompt else "" for prompt in prompts]


def _load_encoders(args: argparse.Namespace):
    """A FluxPipeline with nothing but its text encoders."""
    from diffusers import FluxPipeline

    from dit360.memory import choose_device, choose_dtype

    device = choose_device(args.device)
    return FluxPipeline.from_pretrained(
        args.pretrained_model_name_or_path,
        transformer=None,
        vae=None,
        dtype=choose_dtype(args.dtype, device),
        token=args.token,
    ).to(device)
