"""`train.py`: fine-tune PaGeR end to end on panoramas with depth and normals."""

import argparse
import dataclasses
import datetime
import json
from pathlib import Path
from typing import Any

from pager.cli.common import run_cli
from pager.config import TrainConfig, add_schema_flags, resolve_config


def build_parser() -> argparse.ArgumentParser:
    """All flags of the schema plus the ones that steer the run."""
    parser = argparse.ArgumentParser(prog="train.py", description=__doc__)
    parser.add_argument("--config", "--configs", help="YAML file (default: schema defaults)")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--dry_run", action="store_true", help="check everything, train nothing")
    parser.add_argument("--tiny", action="store_true", help="fine-tune the embedded checkpoint")
    parser.add_argument("-v", "--verbose", action="store_true")
    add_schema_flags(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    args = build_parser().parse_args(argv)
    return run_cli(lambda: _train(args), verbose=args.verbose)


def _train(args: argparse.Namespace) -> int:
    flags = {
        k: v
        for k, v in vars(args).items()
        if k not in {"config", "set", "dry_run", "tiny", "verbose"}
    }
    resume = Path(flags["resume_path"]) if flags.get("resume_path") else None
    config = _load_config(args, flags, resume)
    if args.dry_run:
        return _dry_run(config)
    from pager.training.trainer import Trainer

    name = config.logging.run_name or f"{datetime.datetime.now():%Y-%m-%d-%H-%M-%S}"
    output = resume.parent if resume else Path(config.logging.save_path) / name
    Trainer(config, output).run(resume)
    print(output)
    return 0


def _load_config(
    args: argparse.Namespace, flags: dict[str, Any], resume: Path | None
) -> TrainConfig:
    if resume is not None:
        if not resume.is_dir():
            raise FileNotFoundError(
                f"--resume_path {resume} does not exist; pass the training_checkpoint folder of a run"
            )
        return resolve_config(str(resume.parent / "config.yaml"), flags, args.set)
    if args.tiny and not flags.get("checkpoint_path"):
        from pager.tiny import TINY_ASSETS, TINY_FACE_SIZE

        modality = flags.get("modality") or "depth"
        flags["checkpoint_path"] = str(TINY_ASSETS / modality)
        flags["face_size"] = flags.get("face_size") or TINY_FACE_SIZE
        if flags.get("only_train_attention_layers") is None:
            flags["only_train_attention_layers"] = False
    stored: dict[str, Any] | None = None
    if flags.get("checkpoint_path"):
        from pager.checkpoint import base_model_path, locate

        files = locate(flags["checkpoint_path"])
        stored = dataclasses.asdict(files.config)
        flags["pretrained_path"] = base_model_path(files, flags.get("pretrained_path"))
    return resolve_config(args.config, flags, args.set, stored)


def _dry_run(config: TrainConfig) -> int:
    """Open the data, build the UNet without weights, print the resolved options and counts."""
    import torch
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    from pager.checkpoint import fetch
    from pager.data.panoinfinigen import PanoInfinigen

    dataset = PanoInfinigen(config.data.data_path, "train", config.data.scenes)
    first = dataset[0]
    folder = fetch(
        config.model.checkpoint_path or config.model.pretrained_path, patterns=["unet/config.json"]
    )
    with torch.device("meta"):
        architecture: Any = UNet2DConditionModel.load_config(folder / "unet")
        unet: Any = UNet2DConditionModel.from_config(architecture)
    total = sum(p.numel() for p in unet.parameters())
    attention = sum(p.numel() for n, p in unet.named_parameters() if "transformer_blocks" in n)
    trained = attention if config.training.only_train_attention_layers else total
    report = {
        "panoramas": len(dataset),
        "panorama_size": list(first["rgb"].shape[-2:]),
        "unet_parameters": total,
        "trained_parameters": trained,
        "panoramas_per_step": config.data.batch_size * config.training.gradient_accumulation_steps,
        "optimizer_and_weights_gib": round(
            (total * (8 if config.training.use_EMA else 4) + trained * 12) / 2**30, 2
        ),
        "options": dataclasses.asdict(config),
    }
    print(json.dumps(report, indent=2))
    return 0
