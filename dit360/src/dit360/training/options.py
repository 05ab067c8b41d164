"""Options of `train.py` and `train_mix_staged_lora_dynamic.py`, in one dataclass.

Names and defaults of the original's flags are frozen. The two commands differ only in defaults;
what the paper and the two released scripts did differently (spec 6.2) is a named option each, and
`PRESETS` put them together.
"""

import argparse
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from dit360.embedded import TINY_HEIGHT, TINY_MODEL, TINY_TEXT_LENGTH

HUB_MODEL = "black-forest-labs/FLUX.1-dev"
HUB_DATA = "Insta360-Research/Matterport3D_polished"
Preset = Literal["paper", "released-panorama", "released-mix"]
Strategy = Literal["auto", "ddp", "deepspeed_stage_2", "fsdp"]
Precision = Literal["16", "bf16", "32", "16-mixed", "bf16-mixed", "32-true"]
LrSchedule = Literal["warmup", "epochs", "constant"]


@dataclass(kw_only=True)
class TrainOptions:
    """Everything a run can be told; the help of each field says what it does."""

    # -- model
    pretrained_model_name_or_path: Annotated[str, "FLUX pipeline: hub id or folder"] = HUB_MODEL
    variant: Annotated[str | None, "weight files to load, such as fp16"] = None
    revision: Annotated[str | None, "hub revision of the pipeline"] = None
    trainable: Annotated[
        Literal["lora", "all"], "train an adapter, or the whole transformer without one"
    ] = "lora"
    load_ckpt: Annotated[
        str | None, "start from these weights: LoRA (hub id, folder, file), or a state dict file"
    ] = None
    rank: Annotated[int, "rank of the LoRA"] = 64
    lora_alpha: Annotated[int, "its scale is alpha / rank"] = 64
    lora_bias: Annotated[str, "only none: a LoRA file cannot hold biases"] = "none"
    gaussian_init_lora: Annotated[bool, "draw A from a normal distribution"] = False
    lora_drop_out: Annotated[float, "dropout of the LoRA's input"] = 0.05
    padding_n: Annotated[int, "token columns wrapped around on each side; 1 as in inference"] = 1
    pad_ids: Annotated[
        Literal["source", "extended"], "position ids of these columns, source as published"
    ] = "source"
    vae_wrap: Annotated[
        Literal["circular", "none"], "padding of the VAE; none as published, has a seam"
    ] = "circular"
    gradient_checkpointing: Annotated[
        bool, "recompute activations: about 30 GB instead of 84 at full size"
    ] = True

    # -- data
    panorama_data: Annotated[
        str | None, f"panoramas: hub id, folder, parquet or jsonl; default {HUB_DATA}"
    ] = None
    perspective_data: Annotated[str | None, "photos on a canvas with masks, jsonl"] = None
    data_size: Annotated[int | None, "use only the first rows of each"] = None
    resolution: Annotated[int, "height of the panoramas in pixels, half of their width"] = 1024
    flip: Annotated[bool, "mirror half of the panoramas, unless the caption says left or right"] = (
        True
    )
    roll: Annotated[
        Literal["uniform", "original", "none"],
        "turn panoramas: full circle, 120 to 360 degrees as published, not at all",
    ] = "uniform"
    train_batch_size: Annotated[int, "samples per device and step"] = 10
    dataloader_num_workers: Annotated[int, "processes that read images"] = 24
    text_cache: Annotated[
        Path | None,
        "keep prompt embeddings in this folder, 4 MB a caption; else in memory, or on several "
        "devices in SAVE_DIR/text_cache",
    ] = None
    max_sequence_length: Annotated[int, "T5 tokens of a prompt"] = 512
    latent_cache: Annotated[
        Path | None, "encode the images once and keep their latents in this folder, 2 MB each"
    ] = None

    # -- noise
    weighting_scheme: Annotated[
        Literal["sigma_sqrt", "logit_normal", "mode", "cosmap", "none"],
        "density of noise levels and weights of the loss",
    ] = "none"
    logit_mean: Annotated[float, "of logit_normal"] = 0.0
    logit_std: Annotated[float, "of logit_normal"] = 1.0
    mode_scale: Annotated[float, "of mode"] = 1.29
    timestep_shift: Annotated[
        Literal["none", "inference"], "draw noise levels as published, or shifted as the sampler's"
    ] = "none"
    guidance_scale: Annotated[float, "guidance that the transformer is told"] = 1.0

    # -- losses
    lambda_cube: Annotated[float, "weight of the cube loss"] = 0.5
    lambda_yaw: Annotated[float, "weight of the yaw loss"] = 0.5
    aux_from_epoch: Annotated[int, "first epoch with yaw and cube loss, from 0"] = 2
    aux_until_epoch: Annotated[int | None, "first epoch without them again"] = None
    aux_grid: Annotated[
        Literal["original", "half_pixel"], "their sampling: as published, or periodic pixel centres"
    ] = "original"
    yaw_angles: Annotated[
        Literal["released", "any"], "60, 180 or 300 degrees, or any angle as the paper says"
    ] = "released"
    perspective_weight: Annotated[float, "weight of the loss of photos"] = 0.5
    perspective_reduction: Annotated[
        Literal["cells", "grid"], "mean over supervised cells, or over the whole grid"
    ] = "cells"
    perspective_start_epoch: Annotated[int, "first epoch with photos, from 0"] = 2
    perspective_decay: Annotated[float, "share of the photos then, to the power of 1, 2, .."] = 0.5

    # -- optimisation
    learning_rate: Annotated[float, "of AdamW"] = 5e-5
    lr_schedule: Annotated[
        LrSchedule, "linear warm-up in steps, in epochs (0.2 to 1), or constant"
    ] = "warmup"
    warmup_fraction: Annotated[float, "of all updates, with --lr_schedule warmup"] = 0.05
    adam_beta1: Annotated[float, "AdamW"] = 0.9
    adam_beta2: Annotated[float, "AdamW"] = 0.999
    adam_weight_decay: Annotated[float, "AdamW"] = 0.0
    adam_epsilon: Annotated[float, "AdamW"] = 1e-6
    accumulate_grad_batches: Annotated[int, "steps per update"] = 1
    max_epochs: Annotated[int, "epochs"] = 50
    max_steps: Annotated[int, "updates at most, -1 = as many as the epochs have"] = -1
    ema_decay: Annotated[float, "moving average of the trained weights, such as 0.999; 0 = off"] = (
        0.0
    )
    seed: Annotated[int, "of weights, order, augmentation and noise"] = 0

    # -- run
    accelerator: Annotated[str, "of Lightning: auto, gpu, cpu, mps"] = "auto"
    devices: Annotated[str, "count (2), list (0,1) or auto; 0 is one device"] = "0"
    strategy: Annotated[Strategy, "auto: DeepSpeed on CUDA where installed, else DDP"] = "auto"
    precision: Annotated[Precision, "of Lightning"] = "16"
    log_every_n_steps: Annotated[int, "updates between two log entries"] = 100

    # -- files
    save_dir: Annotated[Path, "receives lightning_logs/ and run.json"] = Path()
    topk: Annotated[int, "checkpoints kept, the newest; -1 = all"] = -1
    save_every_n_steps: Annotated[int | None, "also save last.ckpt after so many updates"] = None
    save_full: Annotated[bool, "checkpoints with the frozen weights, 24 GB each"] = False
    resume_from_checkpoint: Annotated[str | None, "checkpoint, or last = newest of --save_dir"] = (
        None
    )

    # -- validation
    validation_prompts: Annotated[Path | None, "file with a prompt a line"] = None
    validation_epochs: Annotated[int, "epochs between two validations"] = 1
    validation_inference_steps: Annotated[int, "sampler steps"] = 28
    validation_guidance: Annotated[float, "guidance of the images"] = 2.8

    # -- command
    preset: Annotated[
        Preset | None,
        "paper, or what a released script passed (released-mix pads 0 columns); all turn as the "
        "original, but keep --vae_wrap circular and mirror no caption that says left or right",
    ] = None
    tiny: Annotated[
        bool, "embedded checkpoint and its sizes; made-up worlds without --panorama_data"
    ] = False
    dry_run: Annotated[bool, "read all images, print options and counts, train nothing"] = False
    verbose: Annotated[bool, "show progress messages and tracebacks"] = False


MIX_DEFAULTS: dict[str, Any] = {
    "learning_rate": 2e-5,
    "adam_weight_decay": 1e-2,
    "guidance_scale": 3.5,
    "rank": 256,
    "lambda_cube": 0.0,
    "lambda_yaw": 0.0,
    "aux_from_epoch": 0,
    "aux_until_epoch": 3,
    "lr_schedule": "epochs",
    "log_every_n_steps": 500,
}
"""Where the mix script's defaults differ; its padding_n of 0 is not among them (D3)."""

_PANORAMA_SCRIPT: dict[str, Any] = {
    "learning_rate": 5e-5,
    "lr_schedule": "warmup",
    "adam_weight_decay": 1e-5,
    "guidance_scale": 1.0,
    "rank": 64,
    "lora_alpha": 64,
    "gaussian_init_lora": True,
    "lora_drop_out": 0.05,
    "padding_n": 1,
    "roll": "original",
    "train_batch_size": 1,
    "dataloader_num_workers": 25,
    "accumulate_grad_batches": 4,
    "max_epochs": 25,
    "precision": "16-mixed",
    "lambda_cube": 0.5,
    "lambda_yaw": 0.5,
    "aux_from_epoch": 2,
    "aux_until_epoch": None,
}
PRESETS: dict[str, dict[str, Any]] = {
    "released-panorama": _PANORAMA_SCRIPT,
    "released-mix": _PANORAMA_SCRIPT
    | {
        "lr_schedule": "epochs",
        "padding_n": 0,
        "accumulate_grad_batches": 5,
        "lambda_cube": 0.0,
        "lambda_yaw": 0.0,
        "aux_from_epoch": 0,
        "aux_until_epoch": 3,
        "log_every_n_steps": 500,
    },
    "paper": _PANORAMA_SCRIPT
    | {
        "learning_rate": 2e-5,
        "lr_schedule": "constant",
        "accumulate_grad_batches": 3,
        "max_epochs": 20,
        "aux_from_epoch": 0,
        "yaw_angles": "any",
        "perspective_start_epoch": 0,
        "perspective_decay": 1.0,
        "perspective_weight": 1.0,
        "perspective_reduction": "grid",
    },
}
TINY_DEFAULTS: dict[str, Any] = {
    "pretrained_model_name_or_path": str(TINY_MODEL),
    "resolution": TINY_HEIGHT,
    "max_sequence_length": TINY_TEXT_LENGTH,
    "rank": 4,
    "lora_alpha": 4,
    "train_batch_size": 4,
    "dataloader_num_workers": 0,
    "precision": "32",
    "log_every_n_steps": 1,
}
POSITIVE = (
    "rank", "lora_alpha", "resolution", "train_batch_size", "max_sequence_length", "mode_scale",
    "logit_std", "perspective_decay", "learning_rate", "adam_epsilon", "accumulate_grad_batches",
    "max_epochs", "log_every_n_steps", "validation_epochs", "validation_inference_steps",
    "data_size", "save_every_n_steps",
)  # fmt: skip
NOT_NEGATIVE = (
    "padding_n", "dataloader_num_workers", "lambda_cube", "lambda_yaw", "aux_from_epoch",
    "perspective_weight", "perspective_start_epoch", "warmup_fraction", "adam_weight_decay", "seed",
)  # fmt: skip
BELOW_ONE = ("lora_drop_out", "ema_decay", "adam_beta1", "adam_beta2", "warmup_fraction")


def add_flags(parser: argparse.ArgumentParser, defaults: dict[str, Any]) -> None:
    """Add a flag for every field; an absent flag stays out of the namespace.

    Args:
        parser: receives the flags.
        defaults: of the command, where they differ from the dataclass; only shown.
    """
    hints = get_type_hints(TrainOptions, include_extras=True)
    for option in fields(TrainOptions):
        annotated, text = get_args(hints[option.name])
        default = defaults.get(option.name, option.default)
        if default is not None:
            text = f"{text} (default {default})"
        common: dict[str, Any] = {"default": argparse.SUPPRESS, "help": text}
        if annotated is bool:
            action = argparse.BooleanOptionalAction
            names = ["-v"] if option.name == "verbose" else []
            parser.add_argument(*names, f"--{option.name}", action=action, **common)
            continue
        choices = _choices(annotated)
        kind = str if choices else _plain(annotated)
        parser.add_argument(f"--{option.name}", type=kind, choices=choices, **common)


def resolve(given: dict[str, Any], defaults: dict[str, Any]) -> TrainOptions:
    """Options of a command, checked: flags before --tiny before --preset before defaults.

    Raises:
        ValueError: a value is out of range, or two options exclude each other.
    """
    values = dict(defaults)
    if given.get("preset"):
        values |= PRESETS[given["preset"]]
    if given.get("tiny"):
        values |= TINY_DEFAULTS
    options = TrainOptions(**(values | given))
    for name in POSITIVE:
        value = getattr(options, name)
        if value is not None and not value > 0:
            raise ValueError(f"--{name} is {value}, it must be positive")
    for name in NOT_NEGATIVE:
        if getattr(options, name) < 0:
            raise ValueError(f"--{name} is {getattr(options, name)}, it must not be negative")
    for name in BELOW_ONE:
        if not 0 <= getattr(options, name) < 1:
            raise ValueError(f"--{name} is {getattr(options, name)}, use 0 or more and less than 1")
    _check_together(options)
    return options


def _check_together(options: TrainOptions) -> None:
    if options.resolution % 16:
        raise ValueError(
            f"--resolution is {options.resolution}, use a multiple of 16 (a token is 16 x 16 px)"
        )
    if options.lora_bias != "none":
        raise ValueError(
            f"--lora_bias is {options.lora_bias}, which trains biases of the base model that a LoRA "
            "file cannot hold; use none"
        )
    if options.perspective_decay > 1:
        raise ValueError(f"--perspective_decay is {options.perspective_decay}, use 1 or less")
    if options.max_steps < -1 or options.max_steps == 0:
        raise ValueError(f"--max_steps is {options.max_steps}, use 1 or more, or -1 for no limit")
    if options.topk < -1:
        raise ValueError(f"--topk is {options.topk}, use 0 or more, or -1 to keep all checkpoints")
    if options.ema_decay and options.strategy in ("deepspeed_stage_2", "fsdp"):
        raise ValueError(
            f"--ema_decay needs whole float32 weights on every process, which --strategy "
            f"{options.strategy} does not keep; use --strategy ddp"
        )
    if options.validation_prompts is not None and options.strategy == "fsdp":
        raise ValueError("--validation_prompts needs whole weights, which FSDP splits; use ddp")
    if options.load_ckpt is not None and options.resume_from_checkpoint is not None:
        raise ValueError("--load_ckpt starts a run and --resume_from_checkpoint goes on; give one")
    if options.latent_cache is not None:
        _check_turns_of_latents(options)


def _check_turns_of_latents(options: TrainOptions) -> None:
    """Turning cached latents must be the same as encoding a turned image."""
    if options.roll == "original":
        raise ValueError(
            "--latent_cache turns whole latent columns of 8 px, --roll is original and turns by any "
            "number of pixels; use --roll uniform or none"
        )
    if options.roll != "none" and options.vae_wrap == "none":
        raise ValueError(
            f"--latent_cache with --roll {options.roll} needs a VAE that knows no seam, --vae_wrap "
            "is none; use --vae_wrap circular or --roll none"
        )


def _choices(annotated: Any) -> tuple[Any, ...] | None:
    """Values of a `Literal`, optional or not."""
    for kind in (annotated, *get_args(annotated)):
        if get_origin(kind) is Literal:
            return get_args(kind)
    return None


def _plain(annotated: Any) -> Any:
    """The type itself, without None."""
    return next(kind for kind in (*get_args(annotated), annotated) if kind is not type(None))
