"""What a run needs before its first step: text embeddings, latents, transformer, VAE."""

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from diffusers.training_utils import cast_training_params
from lightning.fabric.utilities.exceptions import MisconfigurationException
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from tqdm.auto import tqdm

from dit360.latentcache import LatentCache
from dit360.lora import lora_config, plain_state, read_lora
from dit360.textcache import TextCache
from dit360.training.datamodule import Examples, Texts
from dit360.training.extract import MODEL_PREFIX, STATE_KEYS, read_checkpoint
from dit360.training.module import DiT360Training
from dit360.training.options import TrainOptions
from dit360.training.strategy import frozen_dtype, parse_devices, uses_cuda
from dit360.vae import set_vae_wrap

logger = logging.getLogger(__name__)

TEXT_NAME = "text_cache"  # folder below --save_dir


class TextMemory(dict[str, tuple[Tensor, Tensor]]):
    """Embeddings of prompts on the CPU; `get` as in `TextCache`."""

    def get(self, prompt: str) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Embeddings (L, D) and pooled embedding (P,) of a prompt."""
        return self[prompt]


def find_devices(options: TrainOptions) -> L.Fabric:
    """What Lightning will choose: ``device`` and ``global_rank`` of this process, ``world_size``.

    Raises:
        ValueError: this machine does not have such devices.
    """
    devices: Any = parse_devices(options.devices, "cuda" if uses_cuda(options) else "cpu")
    try:
        return L.Fabric(accelerator=options.accelerator, devices=devices)
    except (MisconfigurationException, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"--accelerator {options.accelerator} --devices {options.devices} cannot be had here "
            f"({str(error).rstrip('.')}); use --accelerator auto, or fewer devices"
        ) from error


def prepare_texts(options: TrainOptions, prompts: Iterable[str]) -> Texts:
    """Encode the prompts once, on the device, and let the encoders go (D13).

    Several processes share the work and the embeddings on the disk.
    """
    needed = sorted(set(prompts))
    run = find_devices(options)
    if options.text_cache is None and run.world_size == 1:
        return _encode_in_memory(options, needed)
    cache = TextCache(
        options.text_cache or options.save_dir / TEXT_NAME,
        options.pretrained_model_name_or_path,
        max_length=options.max_sequence_length,
        dtype=_text_dtype(run.device),
    )
    try:
        is_complete = not cache.missing(needed)
    except ValueError:  # the encoders have not been downloaded yet, or tell apart several caches
        is_complete = False
    if not is_complete:
        pipeline = _text_pipeline(options)
        cache.encode_all(pipeline, needed[run.global_rank :: run.world_size])
        cache.encode_all(pipeline, needed)  # which no other process has done by now
    return cache


def _text_pipeline(options: TrainOptions) -> FluxPipeline:
    device = find_devices(options).device
    pipeline = FluxPipeline.from_pretrained(
        options.pretrained_model_name_or_path,
        transformer=None,
        vae=None,
        dtype=_text_dtype(device),
        **_source(options),
    )
    return pipeline.to(device)


def _text_dtype(device: torch.device) -> torch.dtype:
    """In which prompts are encoded and stored."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


@torch.inference_mode()
def _encode_in_memory(options: TrainOptions, prompts: list[str]) -> Texts:
    pipeline: Any = _text_pipeline(options)
    memory = TextMemory()
    for prompt in tqdm(prompts, desc="prompts", leave=False):
        embeds, pooled, _ = pipeline.encode_prompt(
            prompt, None, max_sequence_length=options.max_sequence_length
        )
        memory[prompt] = embeds[0].cpu(), pooled[0].cpu()
    size = sum(one.nbytes + two.nbytes for one, two in memory.values())
    logger.info("%d prompts take %.1f MB; --text_cache keeps them on disk", len(memory), size / 1e6)
    return memory


def build_module(options: TrainOptions, strategy: str) -> DiT360Training:
    """Load transformer and VAE and freeze what is not trained.

    Raises:
        FileNotFoundError, ValueError: the model or the weights to start from do not fit.
    """
    path, source = options.pretrained_model_name_or_path, _source(options)
    vae = AutoencoderKL.from_pretrained(path, subfolder="vae", **source)
    vae.requires_grad_(False)
    set_vae_wrap(vae, options.vae_wrap)
    dtype = frozen_dtype(options, strategy)
    transformer = FluxTransformer2DModel.from_pretrained(
        path, subfolder="transformer", dtype=dtype, **source
    )
    lora = add_adapter(transformer, options)
    if options.load_ckpt is not None:
        load_start(transformer, options)
    if options.gradient_checkpointing:
        transformer.enable_gradient_checkpointing()
    transformer.train()
    vae.train()  # it has no dropout; Lightning warns of parts in eval mode
    return DiT360Training(options, transformer, vae, lora)


def prepare_latents(options: TrainOptions, vae: Any, examples: Examples) -> None:
    """Encode the images once, on the device; the encoder goes and the examples become latents.

    Raises:
        FileNotFoundError, ValueError: an image cannot be read or encoded.
    """
    assert options.latent_cache is not None
    cache = LatentCache(options.latent_cache, vae, options.resolution, examples.rows)
    may_flip = [examples.may_flip(index) for index in range(len(examples))]
    if cache.missing(may_flip):
        vae.to(find_devices(options).device)
        cache.encode_all(vae, may_flip)  # processes share the work
        vae.to("cpu")
    count, size = cache.count(may_flip)
    logger.info("%d latents take %.1f MB in %s", count, size / 1e6, cache.place)
    files, folders = cache.count_unused(may_flip)
    if files or folders:
        logger.info(
            "%d files there are of other images, or of what an image was before, and %d folders "
            "beside it of another VAE, size or wrap: this run does not read them",
            files,
            folders,
        )
    del vae.encoder
    examples.latents = cache


def add_adapter(transformer: Any, options: TrainOptions) -> dict[str, Any] | None:
    """Freeze the transformer and add a trainable LoRA in float32, or make all of it trainable.

    Returns:
        The adapter's configuration as plain values, None without one.
    """
    transformer.requires_grad_(options.trainable == "all")
    if options.trainable == "all":
        return None
    config = lora_config(
        options.rank,
        options.lora_alpha,
        options.lora_drop_out,
        options.gaussian_init_lora,
        options.lora_bias,
    )
    transformer.add_adapter(config)
    cast_training_params(transformer, torch.float32)
    # Plain values: the checkpoint must load without unpickling objects.
    return json.loads(json.dumps(config.to_dict(), default=sorted))


def load_start(transformer: Any, options: TrainOptions) -> None:
    """Load the weights that --load_ckpt names; every trained tensor must be among them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, or tensors are missing, unknown or of another shape.
    """
    assert options.load_ckpt is not None
    state = _start_state(options.load_ckpt, options)
    own = transformer.state_dict()
    unknown = [name for name in state if name not in own]
    trained = [name for name, p in transformer.named_parameters() if p.requires_grad]
    missing = [name for name in trained if name not in state]
    if unknown or missing:
        which, names = ("lacks", missing) if missing else ("has unknown", unknown)
        raise ValueError(
            f"--load_ckpt {options.load_ckpt} {which} {len(names)} tensors, the first is "
            f"{names[0]}; it was made for another model or another --trainable"
        )
    for name, value in state.items():
        if own[name].shape != value.shape:
            raise ValueError(
                f"--load_ckpt {options.load_ckpt}: {name} is {tuple(value.shape)} there and "
                f"{tuple(own[name].shape)} here; pass the --rank with which it was trained"
            )
    transformer.load_state_dict(state, strict=False)


def _start_state(source: str, options: TrainOptions) -> dict[str, Tensor]:
    """Tensors of a checkpoint, a state dict or a LoRA, with the transformer's own names."""
    path = Path(source)
    if path.suffix in (".ckpt", ".pt", ".pth", ".bin"):
        checkpoint = read_checkpoint(path)
        state = next((checkpoint[key] for key in STATE_KEYS if key in checkpoint), checkpoint)
        inside = [name for name in state if name.startswith(MODEL_PREFIX)]
        return {name.removeprefix(MODEL_PREFIX): state[name] for name in inside} or state
    try:
        if path.is_file() and not plain_state(state := load_file(path)):
            return state  # of a whole transformer
    except SafetensorError as error:
        raise ValueError(
            f"--load_ckpt {source} is no safetensors file, or damaged ({error}); pass a LoRA, a "
            "state dict or a .ckpt"
        ) from error
    weights = read_lora(source)
    if options.trainable == "lora" and weights.alpha / weights.rank != (
        options.lora_alpha / options.rank
    ):
        raise ValueError(
            f"--load_ckpt {source} has rank {weights.rank} and alpha {weights.alpha:g}; pass "
            f"--rank {weights.rank} --lora_alpha {weights.alpha:g}"
        )
    return {
        name.removeprefix("transformer.").replace(".weight", ".default.weight"): value
        for name, value in weights.state.items()
    }


def _source(options: TrainOptions) -> dict[str, Any]:
    given = {"revision": options.revision, "variant": options.variant}
    return {name: value for name, value in given.items() if value is not None}
