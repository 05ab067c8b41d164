"""Options of `train_world_explorer.py`: the original's 44 flags and ours, in one dataclass.

Names and defaults of the original are frozen; `tests/assets/flags_train.txt` lists them.
"""

import argparse
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

OFFICIAL_SVD = "stabilityai/stable-video-diffusion-img2vid-xt-1-1"
Trainable = Literal["temporal_transformer", "temporal_all", "temporal+io+norm", "all", "lora"]
LrScheduler = Literal[
    "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup"
]
SclMode = Literal["pixel", "pixel_strip", "latent"]
SclSchedule = Literal["released", "paper"]
Tracker = Literal["tensorboard", "wandb", "trackio", "none"]


@dataclass(kw_only=True)
class TrainOptions:
    """Everything a run can be told; the help of each field says what it does."""

    # -- data
    base_folder: Annotated[Path | None, "folder with clips, one or two levels deep"] = None
    num_frames: Annotated[int, "frames F of a training window"] = 25
    frame_stride: Annotated[int, "clip frames between two window frames"] = 1
    strict_frames: Annotated[int | None, "frames that every clip must have"] = None
    width: Annotated[int, "training width in pixels"] = 1024
    height: Annotated[int, "training height in pixels"] = 576
    num_workers: Annotated[int, "processes that read images"] = 8
    samples_per_epoch: Annotated[int, "windows that make an epoch, as in the original"] = 100_000
    mirror: Annotated[bool, "mirror half of the windows left-right; not with a latent cache"] = (
        False
    )
    latent_cache: Annotated[Path | None, "folder with encoded clips"] = None
    build_latent_cache: Annotated[bool, "encode the clips into --latent_cache first"] = False

    # -- model
    pretrained_model_name_or_path: Annotated[str | None, "SVD pipeline, hub id or folder"] = None
    revision: Annotated[str | None, "hub revision of the pipeline"] = None
    non_ema_revision: Annotated[str | None, "hub revision of the UNet alone"] = None
    pretrain_unet: Annotated[str | None, "folder whose unet/ replaces the pipeline's"] = None
    trainable: Annotated[Trainable, "what is trained"] = "temporal_transformer"
    cast_frozen: Annotated[bool, "keep frozen UNet weights in the autocast type: 2 GiB less"] = (
        False
    )
    lora_rank: Annotated[int, "rank of the adapters with --trainable lora"] = 16
    gradient_checkpointing: Annotated[bool, "recompute activations in the backward pass"] = False
    checkpoint_scope: Annotated[
        Literal["full", "stock"],
        "what is recomputed: all, or all but the trained blocks as in diffusers",
    ] = "full"
    enable_xformers_memory_efficient_attention: Annotated[
        bool, "accepted as in the original; PyTorch's attention is as frugal"
    ] = False

    # -- noise and conditions
    conditioning_dropout_prob: Annotated[float, "p of the three dropout regions"] = 0.1
    p_mean: Annotated[float, "mean of ln sigma"] = 0.7
    p_std: Annotated[float, "deviation of ln sigma"] = 1.6
    noise_aug_mean: Annotated[float, "mean of ln of the noise on the first frame"] = -3.0
    noise_aug_std: Annotated[float, "its deviation"] = 0.5
    fps_id: Annotated[float, "first added number; the stock pipeline feeds fps - 1"] = 7
    motion_bucket_id: Annotated[float, "second added number"] = 127
    vae_chunk: Annotated[int, "frames encoded at a time; exact"] = 5
    vae_wrap: Annotated[int, "latent columns that the VAE sees around the seam; 0 as published"] = 0

    # -- spherical-consistent learning
    scl_loss: Annotated[bool, "add the spherical-consistent loss"] = False
    num_scl_samples: Annotated[int, "rotations per step"] = 1
    scl_mode: Annotated[
        SclMode, "pixel as published; pixel_strip and latent only near the seam"
    ] = "pixel"
    scl_schedule: Annotated[
        SclSchedule, "weight: released rises from 0.05 to 1 at half-time; paper is constant"
    ] = "released"
    scl_max_weight: Annotated[float, "largest weight of the loss, the constant one with paper"] = (
        1.0
    )
    scl_frames: Annotated[int | None, "frames decoded at a time for the loss"] = None

    # -- optimisation
    per_gpu_batch_size: Annotated[int, "windows per process and micro-step"] = 1
    gradient_accumulation_steps: Annotated[int, "micro-steps per update"] = 1
    num_train_epochs: Annotated[int, "used only without --max_train_steps"] = 1
    max_train_steps: Annotated[int | None, "updates"] = None
    learning_rate: Annotated[float, "peak"] = 1e-4
    scale_lr: Annotated[bool, "multiply the rate by accumulation, batch size and processes"] = False
    lr_scheduler: Annotated[LrScheduler, "schedule of the rate"] = "constant"
    lr_warmup_steps: Annotated[int, "updates; `constant` has no warm-up"] = 500
    use_8bit_adam: Annotated[bool, "8-bit moments (pip install bitsandbytes)"] = False
    adam_beta1: Annotated[float, "AdamW"] = 0.9
    adam_beta2: Annotated[float, "AdamW"] = 0.999
    adam_weight_decay: Annotated[float, "AdamW"] = 1e-2
    adam_epsilon: Annotated[float, "AdamW"] = 1e-8
    max_grad_norm: Annotated[float, "clip the gradient's norm; 0 = never"] = 1.0
    use_ema: Annotated[bool, "average the trained weights"] = False
    ema_decay: Annotated[float, "largest decay of the average"] = 0.9999
    mixed_precision: Annotated[
        Literal["no", "fp16", "bf16"] | None, "autocast; default: the launcher's"
    ] = None
    allow_tf32: Annotated[bool, "faster float32 products on Ampere and newer"] = False
    seed: Annotated[int | None, "of windows, noise and adapters; drawn when absent"] = None
    local_rank: Annotated[int, "set by old launchers; the environment decides"] = -1

    # -- files
    output_dir: Annotated[Path, "receives everything"] = Path("./outputs")
    overwrite: Annotated[bool, "start anew in a folder that holds a run"] = False
    logging_dir: Annotated[str, "tracker files, below --output_dir"] = "logs"
    report_to: Annotated[Tracker, "tracker"] = "tensorboard"
    checkpointing_steps: Annotated[int, "updates between two checkpoints"] = 500
    checkpoints_total_limit: Annotated[int | None, "checkpoints kept"] = 2
    save_trainable_only: Annotated[bool, "checkpoints hold only what is trained"] = False
    resume_from_checkpoint: Annotated[str | None, "checkpoint folder, or latest"] = None
    push_to_hub: Annotated[bool, "upload the final pipeline"] = False
    hub_token: Annotated[str | None, "else the token of `hf auth login`"] = None
    hub_model_id: Annotated[str | None, "default: name of --output_dir"] = None

    # -- validation
    validation_steps: Annotated[int, "updates between two validations; also after the first"] = 500
    validation_images_folder: Annotated[Path | None, "panoramas to walk into"] = None
    num_validation_images: Annotated[int, "how many of them"] = 1
    validation_format: Annotated[Literal["mp4", "gif"], "of their videos"] = "mp4"
    validation_inference_steps: Annotated[int, "denoising steps"] = 25
    validation_guidance: Annotated[float, "guidance of the last frame; 1 = none"] = 3.0
    val_folder_videos: Annotated[Path | None, "held-out clips for numbers"] = None
    num_val_videos: Annotated[int, "how many of them"] = 8
    lpips_weights: Annotated[Path | None, "AlexNet weights, adds LPIPS"] = None

    # -- run
    tiny: Annotated[bool, "embedded checkpoint and its sizes, where no flag says otherwise"] = False
    dry_run: Annotated[bool, "open data and models, print counts, train nothing"] = False
    verbose: Annotated[bool, "show progress messages and tracebacks"] = False


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add a flag for every field; an absent flag stays out of the namespace."""
    hints = get_type_hints(TrainOptions, include_extras=True)
    for option in fields(TrainOptions):
        annotated, text = get_args(hints[option.name])
        kinds = [kind for kind in get_args(annotated) or (annotated,) if kind is not type(None)]
        common: dict[str, Any] = {"default": argparse.SUPPRESS, "help": text}
        if annotated is bool:
            parser.add_argument(f"--{option.name}", action="store_true", **common)
            continue
        if option.default is not None:
            common["help"] += f" (default {option.default})"
        choices = _choices(annotated, kinds)
        kind = str if choices else kinds[0]
        parser.add_argument(f"--{option.name}", type=kind, choices=choices, **common)


def _choices(annotated: Any, kinds: list[Any]) -> tuple[Any, ...] | None:
    """Values of a `Literal`, optional or not."""
    for kind in (annotated, *kinds):
        if get_origin(kind) is Literal:
            return get_args(kind)
    return None
