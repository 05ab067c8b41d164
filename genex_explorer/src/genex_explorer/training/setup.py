"""What a run needs before its first step: model, windows of clips, optimizer."""

import logging
import math
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from genex_explorer.checkpointing import enable_checkpointing
from genex_explorer.data.cache import LatentCache, build_cache, fingerprint
from genex_explorer.data.clips import Clip, find_clips
from genex_explorer.data.windows import ClipWindows
from genex_explorer.loading import load_pipeline
from genex_explorer.parameters import add_adapter, select_trainable
from genex_explorer.pipeline import GenexPipeline
from genex_explorer.training.options import TrainOptions

logger = logging.getLogger(__name__)

DOCUMENTED_FRAMES = 50  # of a clip of GenEx-DB


def build_pipeline(
    options: TrainOptions, accelerator: Accelerator
) -> tuple[GenexPipeline, list[str]]:
    """Load the pipeline on the device of the process and freeze what is not trained.

    Returns:
        The pipeline, and the names of the trained UNet parameters.
    """
    assert options.pretrained_model_name_or_path is not None
    pipeline = load_pipeline(
        options.pretrained_model_name_or_path,
        unet_path=options.pretrain_unet,
        revision=options.revision,
        unet_revision=options.non_ema_revision,
    )
    unet: Any = pipeline.unet
    if options.trainable == "lora":
        add_adapter(unet, options.lora_rank)
    if options.gradient_checkpointing:
        enable_checkpointing(unet, options.checkpoint_scope)
    names = [name for name, _ in select_trainable(unet, options.trainable)]
    for part in (pipeline.vae, pipeline.image_encoder):
        part.requires_grad_(False).to(accelerator.device)
        if accelerator.mixed_precision == "bf16":  # with the range of float32; fp16 would overflow
            part.to(torch.bfloat16)
    if options.cast_frozen:
        low = {"bf16": torch.bfloat16, "fp16": torch.float16}[accelerator.mixed_precision]
        for parameter in unet.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(low)
    if options.scl_loss and options.scl_mode != "latent":
        pipeline.vae.enable_gradient_checkpointing()  # its maps are 300 GiB at the official size
    unet.to(accelerator.device)
    pipeline.seam_mode = "vae" if options.vae_wrap else "none"
    pipeline.wrap_columns = options.vae_wrap
    pipeline.set_progress_bar_config(disable=True)
    return pipeline, names


def build_windows(
    options: TrainOptions, accelerator: Accelerator, pipeline: GenexPipeline, seed: int
) -> tuple[ClipWindows, int]:
    """Open the clips, with their latent cache if one is given.

    Returns:
        The windows of the whole run, and the number of its updates.
    """
    assert options.base_folder is not None
    span = (options.num_frames - 1) * options.frame_stride + 1
    clips = find_clips(options.base_folder, span, options.strict_frames)
    odd = [clip for clip in clips if len(clip.frames) != DOCUMENTED_FRAMES]
    if odd and not options.tiny:
        logger.warning(
            "%d of %d clips have not the documented %d frames, e.g. %s has %d; --strict_frames %d "
            "refuses them", len(odd), len(clips), DOCUMENTED_FRAMES, odd[0].id,
            len(odd[0].frames), DOCUMENTED_FRAMES,
        )  # fmt: skip
    cache = None
    if options.latent_cache is not None:
        cache = _open_cache(options.latent_cache, options, accelerator, pipeline, clips)
    per_update = options.per_gpu_batch_size * options.gradient_accumulation_steps
    per_update *= accelerator.num_processes
    updates = options.max_train_steps or options.num_train_epochs * math.ceil(
        options.samples_per_epoch / per_update
    )
    windows = ClipWindows(
        clips,
        num_frames=options.num_frames,
        size=(options.width, options.height),
        stride=options.frame_stride,
        samples=updates * per_update,
        seed=seed,
        cache=cache,
        with_pixels=options.scl_loss and options.scl_mode != "latent",
        mirror=options.mirror,
    )
    logger.info("%d clips, %d windows per update", len(clips), per_update)
    return windows, updates


def _open_cache(
    folder: Path,
    options: TrainOptions,
    accelerator: Accelerator,
    pipeline: GenexPipeline,
    clips: list[Clip],
) -> LatentCache:
    size, wrap = (options.width, options.height), options.vae_wrap
    if options.build_latent_cache:
        share = clips[accelerator.process_index :: accelerator.num_processes]
        build_cache(folder, share, pipeline, size=size, chunk=options.vae_chunk, wrap=wrap)
    accelerator.wait_for_everyone()
    cache = LatentCache(folder, fingerprint(pipeline.vae, pipeline.image_encoder, size, wrap))
    missing = [clip.id for clip in clips if not cache.holds(clip)]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} clips, e.g. {missing[0]}, are not in the latent cache {folder} as they "
            "are now; add --build_latent_cache"
        )
    return cache


def build_optimizer(
    options: TrainOptions, parameters: list[torch.nn.Parameter], processes: int
) -> torch.optim.Optimizer:
    """AdamW, or its 8-bit form, over the trained parameters."""
    rate = options.learning_rate
    if options.scale_lr:
        rate *= options.per_gpu_batch_size * options.gradient_accumulation_steps * processes
    kind: Any = torch.optim.AdamW
    if options.use_8bit_adam:
        try:
            import bitsandbytes  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ImportError(
                "--use_8bit_adam needs bitsandbytes: pip install bitsandbytes"
            ) from error
        kind = bitsandbytes.optim.AdamW8bit
    return kind(
        parameters,
        lr=rate,
        betas=(options.adam_beta1, options.adam_beta2),
        weight_decay=options.adam_weight_decay,
        eps=options.adam_epsilon,
    )
