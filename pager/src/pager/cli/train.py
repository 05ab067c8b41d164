"""`train.py`: fine-tune PaGeR end to end on panoramas with depth and normals."""

import argparse
import dataclasses
import datetime
import json
import logging
import secrets
import shutil
from pathlib import Path
from typing import Any

from pager.cli.common import Parser, run_cli
from pager.config import TrainConfig, add_schema_flags, resolve_config
from pager.embedded import TINY_ASSETS
from pager.runinfo import RUN_NAME, STATE_FOLDER, recover_state

logger = logging.getLogger(__name__)

RUN_FLAGS = {"config", "set", "dry_run", "tiny", "overwrite", "verbose"}  # not in the schema


def build_parser() -> argparse.ArgumentParser:
    """All flags of the schema plus the ones that steer the run."""
    parser = Parser(prog="train.py", description=__doc__)
    parser.add_argument("--config", "--configs", help="YAML file (default: schema defaults)")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--dry_run", action="store_true", help="open data and models, print counts")
    parser.add_argument("--tiny", action="store_true", help="fine-tune the embedded checkpoint")
    parser.add_argument("--overwrite", action="store_true", help="start a finished --run_name anew")
    parser.add_argument("-v", "--verbose", action="store_true")
    add_schema_flags(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    args = build_parser().parse_args(argv)
    return run_cli(lambda: _train(args), verbose=args.verbose)


def _train(args: argparse.Namespace) -> int:
    flags = {key: value for key, value in vars(args).items() if key not in RUN_FLAGS}
    config = _load_config(args, flags)
    if config.enable_xformers:
        logger.warning("--enable_xformers: PyTorch attention is used instead, with RoPE as trained")
    if not config.seed:  # 0 or null: another seed every time, stored with the run
        config.seed = 1 + secrets.randbelow(2**31)
    if args.dry_run:
        return _dry_run(config)
    from pager.training.trainer import Trainer

    resume = Path(config.training.resume_path) if config.training.resume_path else None
    output = resume.parent if resume else _new_folder(config, overwrite=args.overwrite)
    Trainer(config, output).run(resume)
    print(output)
    return 0


def _new_folder(config: TrainConfig, *, overwrite: bool) -> Path:
    name = config.logging.run_name or f"{datetime.datetime.now():%Y-%m-%d-%H-%M-%S}"
    output = Path(config.logging.save_path) / name
    if (output / RUN_NAME).exists():
        if not overwrite:
            raise FileExistsError(
                f"{output} holds a run; go on with --resume_path {output / STATE_FOLDER}, choose "
                "another --run_name, or pass --overwrite"
            )
        shutil.rmtree(output)
    return output


def _load_config(args: argparse.Namespace, flags: dict[str, Any]) -> TrainConfig:
    if args.tiny and not flags.get("checkpoint_path"):
        flags["checkpoint_path"] = str(TINY_ASSETS / (flags.get("modality") or "depth"))
        if flags.get("only_train_attention_layers") is None:
            flags["only_train_attention_layers"] = False
    config = resolve_config(args.config, flags, args.set)
    if config.training.resume_path:
        resume = Path(config.training.resume_path)
        if not recover_state(resume):
            raise FileNotFoundError(
                f"--resume_path {resume} does not exist; pass the {STATE_FOLDER} folder of a run"
            )
        config = resolve_config(str(resume.parent / "config.yaml"), flags, args.set)
        config.training.resume_path = str(resume)
        return config
    if config.model.checkpoint_path:
        from pager.checkpoint import base_model_path, locate

        files = locate(config.model.checkpoint_path)
        stored = {key: getattr(files.config, key) for key in files.stored_keys}
        config = resolve_config(args.config, flags, args.set, stored)
        config.model.pretrained_path = base_model_path(files, flags.get("pretrained_path"))
    return config


def _dry_run(config: TrainConfig) -> int:
    """Open the data and the parts of the models, train nothing, print options and counts."""
    import torch
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    from pager.checkpoint import fetch, locate
    from pager.data.registry import open_dataset

    data, validation, options = config.data, config.validation, config.model
    dataset = open_dataset(data.dataset, data.data_path, "train", data.scenes)
    first = dataset[0]
    if validation.run_validation or validation.run_tiny_validation:
        _ = open_dataset(data.dataset, data.data_path, "val", data.scenes)[0]
    base = fetch(options.pretrained_path, patterns=["*/config.json", "*/*_config.json"])
    folder = locate(options.checkpoint_path).unet_dir if options.checkpoint_path else base / "unet"
    architecture: Any = UNet2DConditionModel.load_config(folder or base / "unet")
    architecture["in_channels"] = 10 if options.unet_positional_encoding == "uv" else 8
    with torch.device("meta"):
        unet: Any = UNet2DConditionModel.from_config(architecture)
        vae: Any = AutoencoderKL.load_config(base / "vae")
        _ = AutoencoderKL.from_config(vae)
    trained = _count_trained(unet, config)
    total = sum(p.numel() for p in unet.parameters())
    report = {
        "panoramas": len(dataset),
        "panorama_size": list(first["rgb"].shape[-2:]),
        "unet_parameters": total,
        "trained_parameters": trained,
        "panoramas_per_step": data.batch_size * config.training.gradient_accumulation_steps,
        "optimizer_and_weights_gib": round(
            (total * (8 if config.training.use_EMA else 4) + trained * 12) / 2**30, 2
        ),
        "options": dataclasses.asdict(config),
    }
    print(json.dumps(report, indent=2))
    return 0


def _count_trained(unet: Any, config: TrainConfig) -> int:
    """Parameters that `trainer.trainable_parameters` leaves trainable."""
    from pager.training.parameters import add_lora, trainable_names

    if config.training.lora_rank > 0:
        add_lora(unet, config.training.lora_rank)
    names = trainable_names(
        unet,
        only_attention=config.training.only_train_attention_layers,
        with_uv=config.model.unet_positional_encoding == "uv",
    )
    return sum(p.numel() for name, p in unet.named_parameters() if name in names)
