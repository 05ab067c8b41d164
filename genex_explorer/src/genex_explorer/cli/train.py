"""`train_world_explorer.py`: tune Stable Video Diffusion to walk forward into a panorama."""

import argparse
import dataclasses
import importlib.util
import logging
import math
import secrets
from pathlib import Path
from typing import Any

from genex_explorer.cli.common import Parser, run_cli
from genex_explorer.embedded import TINY_ASSETS, TINY_FRAMES, TINY_HEIGHT, TINY_STEPS, TINY_WIDTH
from genex_explorer.training.options import TrainOptions, add_flags

logger = logging.getLogger(__name__)

TINY_DEFAULTS: dict[str, Any] = {
    "pretrained_model_name_or_path": str(TINY_ASSETS),
    "width": TINY_WIDTH,
    "height": TINY_HEIGHT,
    "num_frames": TINY_FRAMES,
    "num_workers": 0,
    "vae_wrap": 4,
    "validation_inference_steps": TINY_STEPS,
    "validation_guidance": 1.0,
}
POSITIVE = (
    "num_frames",
    "frame_stride",
    "width",
    "height",
    "samples_per_epoch",
    "lora_rank",
    "vae_chunk",
    "num_scl_samples",
    "scl_frames",
    "per_gpu_batch_size",
    "gradient_accumulation_steps",
    "num_train_epochs",
    "max_train_steps",
    "learning_rate",
    "checkpointing_steps",
    "checkpoints_total_limit",
    "validation_steps",
    "num_validation_images",
    "validation_inference_steps",
    "num_val_videos",
)


def build_parser() -> argparse.ArgumentParser:
    """All flags of the original and ours."""
    parser = Parser(prog="train_world_explorer.py", description=__doc__, allow_abbrev=False)
    add_flags(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    given = vars(build_parser().parse_args(argv))
    return run_cli(lambda: _train(given), verbose=given.get("verbose", False))


def resolve(given: dict[str, Any]) -> TrainOptions:
    """Options from the flags that were given, checked.

    Raises:
        ValueError: a value is out of range, or two options exclude each other.
    """
    options = TrainOptions(**({**TINY_DEFAULTS, **given} if given.get("tiny") else given))
    for name in ("base_folder", "pretrained_model_name_or_path"):
        if getattr(options, name) is None:
            raise ValueError(f"--{name} is missing; --tiny uses the embedded checkpoint")
    for name in POSITIVE:
        value = getattr(options, name)
        if value is not None and not value > 0:
            raise ValueError(f"--{name} is {value}, it must be positive")
    if options.width % 8 or options.height % 8:
        raise ValueError(
            f"--width {options.width} --height {options.height}: both must be multiples of 8"
        )
    if not 0 <= options.conditioning_dropout_prob <= 1 / 3:
        raise ValueError(
            f"--conditioning_dropout_prob is {options.conditioning_dropout_prob}, three regions of "
            "this size must fit into 1: use 0 to 0.333"
        )
    if not 0 <= options.scl_max_weight <= 1 or not math.isfinite(options.max_grad_norm):
        raise ValueError("--scl_max_weight must lie in 0 to 1 and --max_grad_norm be finite")
    if options.scl_loss and options.scl_mode != "pixel" and options.scl_max_weight == 1:
        raise ValueError(
            f"--scl_mode {options.scl_mode} sees only the seam, and with weight 1 nothing else is "
            "trained; give --scl_max_weight below 1, such as 0.1"
        )
    if options.num_workers < 0:
        raise ValueError(f"--num_workers is {options.num_workers}, it must not be negative")
    if options.use_8bit_adam and importlib.util.find_spec("bitsandbytes") is None:
        raise ImportError("--use_8bit_adam needs bitsandbytes: pip install bitsandbytes")
    if options.scl_loss and options.scl_mode == "latent" and options.num_scl_samples > 1:
        raise ValueError("--scl_mode latent turns nothing; leave --num_scl_samples at 1")
    if options.cast_frozen and options.mixed_precision not in ("fp16", "bf16"):
        raise ValueError("--cast_frozen needs --mixed_precision fp16 or bf16")
    if options.build_latent_cache and options.latent_cache is None:
        raise ValueError("--build_latent_cache needs a --latent_cache folder")
    if options.mirror and options.latent_cache is not None:
        raise ValueError("--mirror needs the images; leave out --latent_cache")
    return options


def _train(given: dict[str, Any]) -> int:
    options = resolve(given)
    if options.seed is None:  # the original crashed; drawn here, and stored with the run
        options.seed = secrets.randbelow(2**31)
    if options.enable_xformers_memory_efficient_attention:
        logger.warning("xformers: PyTorch's attention is used instead, it needs as little memory")
    if options.dry_run:
        return _dry_run(options)
    resume = None
    if options.resume_from_checkpoint is not None:
        from genex_explorer.training.checkpoints import find_checkpoint

        resume = find_checkpoint(options.output_dir, options.resume_from_checkpoint)
        _keep_seed(options, given, resume.parent)
    else:
        _claim(options)
    from genex_explorer.training.trainer import Trainer

    Trainer(options).run(resume)
    print(options.output_dir)
    return 0


def _claim(options: TrainOptions) -> None:
    """Refuse a folder that holds results of a run, unless they may be replaced."""
    from genex_explorer.training.checkpoints import holds_results

    output = options.output_dir
    for name in ("pretrained_model_name_or_path", "pretrain_unet"):
        if Path(getattr(options, name) or "").resolve() == output.resolve():
            raise ValueError(f"--output_dir {output} is the --{name}; write to another folder")
    if holds_results(output) and not options.overwrite:
        raise FileExistsError(
            f"{output} holds a run; go on with --resume_from_checkpoint latest, choose another "
            "--output_dir, or pass --overwrite"
        )


def _keep_seed(options: TrainOptions, given: dict[str, Any], run: Path) -> None:
    """A resumed run keeps the seed of its first part unless told otherwise."""
    import json

    from genex_explorer.runinfo import RUN_NAME

    record = run / RUN_NAME
    if "seed" not in given and record.is_file():
        options.seed = json.loads(record.read_text(encoding="utf-8"))["options"]["seed"]


def _dry_run(options: TrainOptions) -> int:
    """Open the data and the shapes of the models, train nothing, print options and counts."""
    import json

    import torch
    from diffusers.models.unets.unet_spatio_temporal_condition import (
        UNetSpatioTemporalConditionModel,
    )

    from genex_explorer.data.clips import find_clips, read_clip
    from genex_explorer.parameters import add_adapter, select_trainable
    from genex_explorer.training.validation import Validator

    assert options.base_folder is not None
    clips = find_clips(
        options.base_folder,
        (options.num_frames - 1) * options.frame_stride + 1,
        options.strict_frames,
    )
    first = read_clip(clips[0].frames[:1])[0]
    Validator(options)
    path: Any = options.pretrain_unet or options.pretrained_model_name_or_path
    try:
        config: Any = UNetSpatioTemporalConditionModel.load_config(
            path, subfolder="unet", revision=None if options.pretrain_unet else options.revision
        )
    except OSError as error:
        raise FileNotFoundError(f"{path} has no unet/config.json") from error
    with torch.device("meta"):
        unet: Any = UNetSpatioTemporalConditionModel.from_config(config)
    if options.trainable == "lora":
        add_adapter(unet, options.lora_rank)
    trained = sum(p.numel() for _, p in select_trainable(unet, options.trainable))
    total = sum(p.numel() for p in unet.parameters())
    frozen_bytes = (2 if options.cast_frozen else 4) * (total - trained)
    per_trained = 4 + 4 + (2 if options.use_8bit_adam else 8) + (4 if options.use_ema else 0)
    report = {
        "clips": len(clips),
        "frame_size": [first.shape[1], first.shape[0]],
        "unet_parameters": total,
        "trained_parameters": trained,
        "windows_per_update_and_process": options.per_gpu_batch_size
        * options.gradient_accumulation_steps,
        "weights_gradients_moments_gib": round((frozen_bytes + per_trained * trained) / 2**30, 2),
        "options": {
            name: str(value) if isinstance(value, Path) else value
            for name, value in dataclasses.asdict(options).items()
            if name != "hub_token"
        },
    }
    print(json.dumps(report, indent=2))
    return 0
