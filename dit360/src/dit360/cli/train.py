"""`train.py` and `train_mix_staged_lora_dynamic.py`: train the panorama LoRA with Lightning."""

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import Any

from dit360.embedded import TINY_HEIGHT
from dit360.training.options import MIX_DEFAULTS, add_flags, resolve
from shared_pano_utils.commands import Parser, run_cli

TINY_WORLDS = 16
MEMORY_HINT = (
    "use --train_batch_size 1, --gradient_checkpointing, --latent_cache, a smaller --rank or "
    "--resolution, or --precision bf16-mixed"
)
INTERRUPTED = "interrupted; add --resume_from_checkpoint last to go on from the newest checkpoint\n"


def build_parser(*, mix: bool = False) -> argparse.ArgumentParser:
    """All flags of the original and ours.

    Args:
        mix: defaults of `train_mix_staged_lora_dynamic.py`.
    """
    parser = Parser(
        prog="train_mix_staged_lora_dynamic.py" if mix else "train.py",
        description=(
            "Train the LoRA on panoramas and on photos on a canvas. The original passed "
            "--padding_n 0; here 1 is the default, as in inference."
            if mix
            else "Train the LoRA on panoramas."
        ),
        allow_abbrev=False,
    )
    add_flags(parser, MIX_DEFAULTS if mix else {})
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point of `train.py`; returns the exit code."""
    return _main(argv, mix=False)


def main_mix(argv: list[str] | None = None) -> int:
    """Entry point of `train_mix_staged_lora_dynamic.py`; returns the exit code."""
    return _main(argv, mix=True)


def _main(argv: list[str] | None, *, mix: bool) -> int:
    given = vars(build_parser(mix=mix).parse_args(argv))
    return run_cli(
        lambda: _train(given, mix=mix),
        verbose=given.get("verbose", False),
        out_of_memory=MEMORY_HINT,
    )


def _made_up_worlds(given: dict[str, Any], *, mix: bool) -> dict[str, Any]:
    """Write procedural worlds below --save_dir and train on them.

    Their captions name directions, so that they are not turned.
    """
    from dit360.data.procedural import WorldOptions, write_worlds

    folder = given.get("save_dir", Path()) / "worlds"
    height = given.get("resolution", TINY_HEIGHT)
    write_worlds(folder, WorldOptions(count=TINY_WORLDS, photos=mix * TINY_WORLDS, height=height))
    made: dict[str, Any] = {"panorama_data": str(folder / "panoramas.jsonl"), "roll": "none"}
    if mix:
        made["perspective_data"] = str(folder / "perspective.jsonl")
    return made | given


def _train(given: dict[str, Any], *, mix: bool) -> int:
    if given.get("tiny") and "panorama_data" not in given:
        given = _made_up_worlds(given, mix=mix)
    options = resolve(given, MIX_DEFAULTS if mix else {})
    if mix and options.perspective_data is None:
        raise ValueError(
            "--perspective_data is missing: a jsonl of photos on a canvas with masks, see "
            "prepare_data.py; train.py needs none"
        )
    from dit360.training.run import dry_run, train

    for name in ("lightning", "lightning.pytorch"):  # which print on their own, --verbose or not
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.setLevel(logging.NOTSET)
    if options.dry_run:
        print(json.dumps(dry_run(options), indent=2))
        return 0
    try:
        print(train(options))
    except SystemExit as stop:  # Lightning makes one of Ctrl-C, with code 1
        if not isinstance(stop.__context__, KeyboardInterrupt):
            raise
        sys.stderr.write(INTERRUPTED)
        return 130
    return 0
