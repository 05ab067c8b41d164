"""From command-line flags to a pipeline that is ready to run.

The order is the only one that works for every --memory mode (spec 10): load the LoRA, fuse it,
forget the adapter, store the weights smaller, move them, compile.
"""

import argparse
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dit360.embedded import TINY_LORA, TINY_MODEL
from dit360.notices import quiet_hub

if TYPE_CHECKING:
    import torch

    from dit360.lora import LoraWeights

logger = logging.getLogger(__name__)

MODEL = "black-forest-labs/FLUX.1-dev"
LORA = "Insta360-Research/DiT360-Panorama-Image-Generation"
# Attention of torch itself, and therefore on every device.
PORTABLE_ATTENTION = ("native", "_native_math", "flex")
FILL_CHANNELS, PLAIN_CHANNELS = 384, 64  # of the transformer's input


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """What to load and how to run it; see the flags of `add_load_flags`.

    Attributes:
        model: folder or hub id of a FLUX.1 pipeline.
        lora: file, folder or hub id; None for the base model alone.
        lora_scale: strength of the LoRA, 1 as trained.
        dtype: "auto", "bf16", "fp16" or "fp32".
        device: "auto", "cpu", "cuda", "cuda:1" or "mps".
        memory: one of `dit360.memory.MEMORY_MODES`.
        precompute_modulation: see `dit360.modulation`; None where it saves memory.
        vae_wrap: "circular" for seamless decoding, "none" as in the original.
        padding_n: wrap columns a side, 0 for none.
        pad_ids: "source" as trained, or "extended".
        tile_columns: latent columns decoded at a time, None for all.
        attention: name of a back-end of diffusers, None for its default.
        compile: compile the repeated blocks; the first call takes minutes.
        cache: "first_block" skips steps that would change little, "none" skips nothing.
        cache_threshold: relative change below which a step is skipped.
        text_cache: folder of `cache_embeddings.py`; the text encoders are not loaded then.
        token: of the hub.
        revision: of the model on the hub.
        variant: of its weight files, such as "fp16".
    """

    model: str = MODEL
    lora: str | None = LORA
    lora_scale: float = 1.0
    dtype: str = "auto"
    device: str = "auto"
    memory: str = "full"
    precompute_modulation: bool | None = None
    vae_wrap: str = "circular"
    padding_n: int = 1
    pad_ids: str = "source"
    tile_columns: int | None = None
    attention: str | None = None
    compile: bool = False
    cache: str = "none"
    cache_threshold: float = 0.08
    text_cache: Path | None = None
    token: str | None = None
    revision: str | None = None
    variant: str | None = None


# ---- flags --------------------------------------------------------------------------------------


def add_load_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `LoadOptions` to a command, and --tiny."""
    model = parser.add_argument_group("model")
    model.add_argument(
        "--tiny", action="store_true", help="the embedded model and LoRA, for small sizes on a CPU"
    )
    model.add_argument(
        "--pretrained_model_name_or_path", metavar="MODEL",
        help=f"folder or hub id of a FLUX.1 pipeline (default: {MODEL})",
    )  # fmt: skip
    model.add_argument("--lora", help=f"folder, file, hub id, or none (default: {LORA})")
    model.add_argument("--lora_scale", type=float, default=1.0, help="strength (default: 1)")
    model.add_argument(
        "--padding_n", type=int, default=1, help="wrap columns of tokens a side (default: 1)"
    )
    model.add_argument(
        "--pad_ids", choices=("source", "extended"), default="source",
        help="positions of these columns: of their sources, as trained (default), or beyond the edge",
    )  # fmt: skip
    model.add_argument(
        "--vae_wrap", choices=("circular", "none"), default="circular",
        help="decode across the left and right edge (default), or as the original",
    )  # fmt: skip
    model.add_argument(
        "--text_cache", type=Path, metavar="DIR",
        help="embeddings of cache_embeddings.py, instead of loading the text encoders",
    )  # fmt: skip
    model.add_argument("--revision", help="hub revision of the model")
    model.add_argument("--variant", help="variant of its weight files, such as fp16")
    model.add_argument("--token", help="of the hub, for gated models (default: your login)")
    _add_run_flags(parser)


def _add_run_flags(parser: argparse.ArgumentParser) -> None:
    run = parser.add_argument_group("memory and speed")
    run.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1, mps")
    run.add_argument(
        "--dtype", choices=("auto", "bf16", "fp16", "fp32"), default="auto",
        help="default: bf16 on accelerators that have it, fp32 on the CPU",
    )  # fmt: skip
    run.add_argument(
        "--memory", choices=("full", "balanced", "low", "int8", "4bit"), default="full",
        help="full: all on the device (37 GB); balanced: blocks visit the device (5 GB, 34 GB in "
        "main memory); low: the same in 8 bits (21 GB in main memory); int8: all on the device as "
        "integers (20 GB); 4bit: NF4 (13 GB)",
    )  # fmt: skip
    run.add_argument(
        "--precompute_modulation", action=argparse.BooleanOptionalAction, default=None,
        help="leave 27%% of the weights in main memory; exact (default: with balanced and low)",
    )  # fmt: skip
    run.add_argument(
        "--tile_columns", type=int, metavar="N",
        help="latent columns that the VAE decodes at a time, such as 64 (default: all)",
    )  # fmt: skip
    run.add_argument(
        "--attention", help="attention back-end of diffusers: native, flash, sage, xformers, ..."
    )
    run.add_argument(
        "--compile", action="store_true", help="compile the blocks; the first image takes minutes"
    )
    run.add_argument(
        "--cache", choices=("none", "first_block"), default="none",
        help="first_block: skip the steps that change little, 1.4-2 times faster, not exact",
    )  # fmt: skip
    run.add_argument(
        "--cache_threshold", type=float, default=0.08, metavar="T",
        help="of first_block; 0.05 is careful, 0.12 fast (default: %(default)s)",
    )  # fmt: skip


def load_options(args: argparse.Namespace) -> LoadOptions:
    """Options of parsed flags; with --tiny the embedded model and LoRA are the defaults."""
    lora = args.lora or (str(TINY_LORA) if args.tiny else LORA)
    model = args.pretrained_model_name_or_path or (str(TINY_MODEL) if args.tiny else MODEL)
    same = set(LoadOptions.__dataclass_fields__) - {"model", "lora"}
    options = {name: getattr(args, name) for name in same}
    return LoadOptions(model=model, lora=None if lora == "none" else lora, **options)


# ---- loading ------------------------------------------------------------------------------------


def open_pipeline(
    options: LoadOptions,
    pipeline_class: Any = None,
    report: Callable[[str], object] = logger.info,
) -> Any:
    """Load a pipeline with its LoRA and put it on its device.

    Args:
        options: see `LoadOptions`.
        pipeline_class: any FLUX.1 pipeline of diffusers; `DiT360Pipeline` by default.
        report: is told the estimated memory before the weights are loaded; commands pass `print`.

    Returns:
        The pipeline; its text encoders are None with `text_cache`.

    Raises:
        FileNotFoundError: model or LoRA are neither here nor on the hub.
        ValueError: they are of another architecture, or this machine cannot run the options.
        ImportError: a package that an option needs is missing.
    """
    from dit360.memory import check_memory_mode, choose_device, choose_dtype, place
    from dit360.modulation import precompute_modulation
    from dit360.pipeline import DiT360Pipeline

    device = choose_device(options.device)
    dtype = choose_dtype(options.dtype, device)
    check_memory_mode(options.memory, device, dtype)
    _check(options, device)
    pipeline_class = pipeline_class or DiT360Pipeline
    _check_model(options, pipeline_class)
    lora = _read_lora(options)
    planned = _is_planned(options)
    _report_memory(options, device, dtype, planned, report)
    pipeline = _load(options, pipeline_class, dtype)
    if lora is not None:
        _add_lora(options, pipeline, lora)
    _set_panorama(options, pipeline)
    if planned:
        precompute_modulation(pipeline)
    if options.attention is not None:
        _set_attention(pipeline.transformer, options.attention)
    place(pipeline, options.memory, device, dtype)  # pyright: ignore[reportArgumentType]
    if options.cache == "first_block":
        from diffusers.hooks import FirstBlockCacheConfig

        pipeline.transformer.enable_cache(FirstBlockCacheConfig(options.cache_threshold))
    if options.compile:
        pipeline.transformer.compile_repeated_blocks()
    return pipeline


def _check(options: LoadOptions, device: "torch.device") -> None:
    """Refuse combinations and values before anything is read."""
    from dit360.vae import MIN_TILE_COLUMNS

    if options.padding_n < 0:
        raise ValueError(f"--padding_n is {options.padding_n}; use 0 or more, 1 as trained")
    if options.tile_columns is not None and options.tile_columns < MIN_TILE_COLUMNS:
        raise ValueError(
            f"--tile_columns is {options.tile_columns}; use {MIN_TILE_COLUMNS} or more, or leave "
            "it out"
        )
    if options.cache_threshold <= 0:
        raise ValueError(f"--cache_threshold is {options.cache_threshold}; use 0.05 to 0.12")
    if options.precompute_modulation and options.memory == "4bit":
        raise ValueError("--precompute_modulation is not for --memory 4bit; drop one of them")
    if options.attention is None:
        return
    from diffusers.models.attention_dispatch import AttentionBackendName

    known = [backend.value for backend in AttentionBackendName]
    if options.attention not in known:
        raise ValueError(
            f"--attention {options.attention} is unknown; use one of {', '.join(known)}"
        )
    if device.type != "cuda" and options.attention not in PORTABLE_ATTENTION:
        raise ValueError(
            f"--attention {options.attention} needs a CUDA device, the device is {device.type}; use "
            f"one of {', '.join(PORTABLE_ATTENTION)}"
        )


def _is_planned(options: LoadOptions) -> bool:
    if options.precompute_modulation is None:
        return options.memory in ("balanced", "low")
    return options.precompute_modulation


def _hub(options: LoadOptions) -> dict[str, Any]:
    return {"revision": options.revision, "token": options.token}


def _check_model(options: LoadOptions, pipeline_class: Any) -> None:
    """Find the model and refuse other architectures, from its configuration files alone."""
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

    model = options.model
    folder = Path(model).expanduser()
    if model.startswith((".", "/", "~")) and not folder.is_dir():
        raise FileNotFoundError(f"model folder {model} does not exist; pass a folder or a hub id")
    if folder.is_dir() and not (folder / "transformer" / "config.json").is_file():
        raise FileNotFoundError(
            f"{model} has no transformer/config.json; pass the folder of a FLUX.1 pipeline (with "
            "transformer/, vae/, text_encoder/, text_encoder_2/, scheduler/)"
        )
    try:
        with quiet_hub():
            config: Any = FluxTransformer2DModel.load_config(
                model, subfolder="transformer", **_hub(options)
            )
    except OSError as error:
        raise FileNotFoundError(_not_found(model, error)) from error
    kind = config.get("_class_name")
    if kind != "FluxTransformer2DModel":
        raise ValueError(
            f"{model} is a {kind}, DiT360 needs a FLUX.1 model (FluxTransformer2DModel)"
        )
    expected = FILL_CHANNELS if "Fill" in pipeline_class.__name__ else PLAIN_CHANNELS
    if config["in_channels"] != expected:
        raise ValueError(
            f"the transformer of {model} takes {config['in_channels']} channels, "
            f"{pipeline_class.__name__} needs {expected}: FLUX.1-Fill has {FILL_CHANNELS}, "
            f"FLUX.1-dev {PLAIN_CHANNELS}"
        )


def _not_found(model: str, error: OSError) -> str:
    if Path(model).expanduser().is_dir():
        return f"model folder {model} is incomplete: {error}"
    return (
        f"model {model} is neither a folder here nor in the hub cache, and cannot be downloaded "
        "(offline, unknown, or gated): accept its licence on its hub page, run `hf auth login` and "
        f"`hf download {model}`, or pass a folder; --tiny runs without any download"
    )


def _report_memory(
    options: LoadOptions,
    device: "torch.device",
    dtype: "torch.dtype",
    planned: bool,
    report: Callable[[str], object],
) -> None:
    from dit360.memory import estimate, meta_parts

    try:
        with quiet_hub():
            parts = meta_parts(options.model, with_text=options.text_cache is None, **_hub(options))
    except OSError as error:
        raise FileNotFoundError(_not_found(options.model, error)) from error
    mode: Any = options.memory
    footprint = estimate(parts, mode, dtype, planned=planned, cpu=device.type == "cpu")
    report(footprint.describe(mode, device))


def _load(options: LoadOptions, pipeline_class: Any, dtype: "torch.dtype") -> Any:
    from dit360.memory import CachedText, quantization

    given: dict[str, Any] = {"dtype": dtype, "variant": options.variant, **_hub(options)}
    if options.text_cache is not None:
        text = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
        given |= dict.fromkeys(text, None)
    config = quantization(options.memory, dtype)  # pyright: ignore[reportArgumentType]
    if config is not None:
        given["quantization_config"] = config
    try:
        pipeline = pipeline_class.from_pretrained(options.model, **given)
    except OSError as error:
        raise FileNotFoundError(_not_found(options.model, error)) from error
    except (TypeError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"{options.model} cannot be loaded as {pipeline_class.__name__}: {error}"
        ) from error
    if options.text_cache is not None:
        pipeline.encode_prompt = CachedText(pipeline, options.text_cache, options.model)
    return pipeline


def _read_lora(options: LoadOptions) -> "LoraWeights | None":
    """Read the LoRA before the base, which is a hundred times larger."""
    from dit360.lora import read_lora

    if options.lora is None or options.lora_scale == 0:
        return None
    with quiet_hub():
        weights = read_lora(options.lora, options.token)
    if weights.padding_n is not None and weights.padding_n != options.padding_n:
        logger.warning(
            "LoRA %s was trained with --padding_n %d, this is %d; seams may show",
            weights.name, weights.padding_n, options.padding_n,
        )  # fmt: skip
    if weights.pad_ids is not None and options.padding_n and weights.pad_ids != options.pad_ids:
        logger.warning(
            "LoRA %s was trained with --pad_ids %s, this is %s; seams may show",
            weights.name, weights.pad_ids, options.pad_ids,
        )  # fmt: skip
    return weights


def _add_lora(options: LoadOptions, pipeline: Any, weights: "LoraWeights") -> None:
    """Apply the LoRA and, except into 4-bit weights, add it to the weights for good."""
    from dit360.lora import load_lora

    load_lora(pipeline, weights, options.lora_scale)
    if options.memory != "4bit":
        pipeline.transformer.fuse_lora()
        pipeline.transformer.unload_lora()


def _set_panorama(options: LoadOptions, pipeline: Any) -> None:
    """What makes a FLUX pipeline one for panoramas."""
    from dit360.vae import set_vae_wrap

    set_vae_wrap(pipeline.vae, options.vae_wrap)  # pyright: ignore[reportArgumentType]
    if hasattr(pipeline, "padding_n"):
        pipeline.padding_n = options.padding_n
        pipeline.pad_ids = options.pad_ids  # pyright: ignore[reportAttributeAccessIssue]
        pipeline.tile_columns = options.tile_columns


def _set_attention(transformer: Any, name: str) -> None:
    try:
        transformer.set_attention_backend(name)
    except (ImportError, RuntimeError, ValueError) as error:
        raise ValueError(f"--attention {name} cannot run here: {error}") from error
