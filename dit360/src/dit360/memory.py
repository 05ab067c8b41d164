"""Where a FLUX pipeline runs and in how much memory: device, dtype, the --memory modes, estimates.

Modes (spec 10 and 12): "full", all weights on the device; "balanced", blocks of the transformer
visit the device one after the other while it computes; "low", the same with weights stored in 8
bits; "int8" and "4bit", transformer and T5 quantised to 8-bit integers or NF4 and all on the
device. The LoRA must be fused first: with "low" an adapter that is loaded later would be stored in
8 bits too, and with "int8" the sum would be rounded twice.
"""

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers.hooks import apply_group_offloading, apply_layerwise_casting
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from torch import nn

from dit360.modulation import NORMS
from dit360.textcache import TextCache

MemoryMode = Literal["full", "balanced", "low", "int8", "4bit"]
MEMORY_MODES: tuple[MemoryMode, ...] = ("full", "balanced", "low", "int8", "4bit")
ON_DEVICE = ("full", "int8", "4bit")  # modes that do not stream weights
QUANTISERS = {"int8": "torchao", "4bit": "bitsandbytes"}
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
STORAGE = torch.float8_e4m3fn  # of "low"
NF4_BITS = 4.5  # with one float32 scale per 64 weights
INT8_ROW_BYTES = 5  # torchao keeps a float32 scale and an int8 zero point for each row
# Layers kept in full precision, by mode and quantised part: the small ones at the ends of the
# network; in "low" also `wo`, as T5 casts activations to the dtype in which that is stored.
KEPT: dict[str, dict[str, tuple[str, ...]]] = {
    "low": {
        "transformer": ("norm", "pos_embed", "embed", "^proj_out$"),
        "text_encoder_2": ("norm", "shared", "embed", r"\.wo$"),
    },
    "int8": {"transformer": ("embed", "^norm_out", "^proj_out$"), "text_encoder_2": ()},
    "4bit": {"transformer": (), "text_encoder_2": ()},
}

# Estimates of working memory, in numbers kept at the same time.
DENOISING = 28  # per token and feature: a block's MLP, queries, keys, values, rotations
DECODING = 3  # maps of the widest level that the VAE has at full resolution
STREAMED_BLOCKS = 3  # running, arriving, leaving
PANORAMA = (1024, 2048)  # height and width for which the peak is stated
TEXT_TOKENS = 512


# ---- device and dtype ---------------------------------------------------------------------------


def choose_device(name: str = "auto") -> torch.device:
    """Resolve "auto" to cuda, mps or cpu; a named device that is absent is a ValueError."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"--device {name} is unknown; use auto, cpu, cuda, cuda:1, mps") from error
    if device.type not in ("cpu", "cuda", "mps"):
        raise ValueError(f"--device {name} is not supported; use auto, cpu, cuda, cuda:1 or mps")
    backend = {"cuda": torch.cuda, "mps": torch.backends.mps}.get(device.type)
    if backend is not None and not backend.is_available():
        raise ValueError(f"--device {name} is not available on this machine; use --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"--device {name}: there are {torch.cuda.device_count()} CUDA devices")
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """Resolve "auto": bfloat16 where the device computes in it, float32 on the CPU.

    Raises:
        ValueError: an unknown name, or float16 on the CPU.
    """
    if name == "auto":
        if device.type == "cpu":
            return torch.float32
        old = device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.float16 if old else torch.bfloat16
    if name not in DTYPES:
        raise ValueError(f"--dtype {name} is unknown; use one of auto, {', '.join(DTYPES)}")
    if device.type == "cpu" and name == "fp16":
        raise ValueError("--dtype fp16 is not for the CPU; use fp32 or bf16")
    return DTYPES[name]


def check_memory_mode(mode: str, device: torch.device, dtype: torch.dtype) -> None:
    """Refuse what this machine cannot run, before anything is loaded.

    Raises:
        ValueError: an unknown mode, or one for another device or dtype.
        ImportError: a package is missing.
    """
    if mode not in MEMORY_MODES:
        raise ValueError(f"--memory {mode} is unknown; use one of {', '.join(MEMORY_MODES)}")
    if mode in ("balanced", "4bit") and device.type != "cuda":
        raise ValueError(
            f"--memory {mode} needs a CUDA device, the device is {device.type}; use full"
            + (", low or int8" if device.type == "cpu" else "")
        )
    if mode == "low" and device.type == "mps":
        raise ValueError("--memory low stores 8-bit floats, which mps lacks; use full")
    if mode == "int8" and device.type == "mps":
        raise ValueError("--memory int8 is for CUDA devices and the CPU, not for mps; use full")
    if mode == "int8" and dtype == torch.float16:
        # torchao multiplies by the integers first and by their scale afterwards.
        raise ValueError("--memory int8 overflows in fp16; use --dtype bf16, or --memory low")
    package = QUANTISERS.get(mode)
    if package is not None and importlib.util.find_spec(package) is None:
        raise ImportError(f'--memory {mode} needs {package}; pip install -e "dit360[quant]"')


# ---- placing ------------------------------------------------------------------------------------


def quantization(mode: MemoryMode, dtype: torch.dtype) -> Any:
    """`quantization_config` of `from_pretrained` for "4bit", None for the other modes."""
    if mode != "4bit":
        return None
    import transformers
    from diffusers.quantizers import PipelineQuantizationConfig
    from diffusers.quantizers.quantization_config import BitsAndBytesConfig

    options: dict[str, Any] = {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_compute_dtype": dtype,
    }
    mapping: dict[str, Any] = {
        "transformer": BitsAndBytesConfig(**options),
        "text_encoder_2": transformers.BitsAndBytesConfig(**options),
    }
    return PipelineQuantizationConfig(quant_mapping=mapping)


def place(pipeline: Any, mode: MemoryMode, device: torch.device, dtype: torch.dtype) -> None:
    """Put a loaded pipeline where the mode wants it; the last step but compilation.

    Args:
        pipeline: FLUX pipeline on the CPU with its LoRA fused; text encoders may be None.
        mode: see `check_memory_mode`.
        device: where it runs.
        dtype: in which it computes.
    """
    if mode == "low":
        store_in_8_bits(pipeline, dtype)
    if mode == "int8":
        quantise_to_int8(pipeline, device)
    if mode in ON_DEVICE or device.type == "cpu":
        pipeline.to(device)
        return
    stream_weights(pipeline, device)


def store_in_8_bits(pipeline: Any, dtype: torch.dtype) -> None:
    """Keep transformer and T5 as float8; a layer is cast to `dtype` while it computes."""
    for part, kept in KEPT["low"].items():
        module = getattr(pipeline, part)
        if module is not None:
            apply_layerwise_casting(module, STORAGE, dtype, kept)


def quantise_to_int8(pipeline: Any, device: torch.device) -> None:
    """Round the weights of transformer and T5 to integers in -128..127, one scale for each row.

    A layer moves to the device before it is rounded, so that the device never holds all of them
    in full precision. Modulation layers that a `ModulationPlan` took out stay as they are.
    """
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    config = Int8WeightOnlyConfig(set_inductor_config=False)  # which would hold for the process
    for part in KEPT["int8"]:
        module = getattr(pipeline, part)
        if module is not None:
            chosen = _shrunk_layers(part, module, "int8")
            quantize_(module, config, lambda _, name, chosen=chosen: name in chosen, device)


def stream_weights(pipeline: Any, device: torch.device) -> None:
    """Keep transformer and text encoders in main memory; what computes visits the device.

    The next block of the transformer arrives while one computes. Text encoders come layer by layer
    and without pinned copies, as they run once per prompt. The VAE is small and stays.
    """
    streams = device.type == "cuda"
    pipeline.transformer.enable_group_offload(
        device,
        offload_type="block_level",
        num_blocks_per_group=1,
        use_stream=streams,
        record_stream=streams,
    )
    for encoder in (pipeline.text_encoder, pipeline.text_encoder_2):
        if encoder is not None:
            apply_group_offloading(encoder, device, offload_type="leaf_level")
    pipeline.vae.to(device)


class CachedText:
    """`encode_prompt` of a pipeline whose text encoders were not loaded.

    Args:
        pipeline: FLUX pipeline.
        folder: see `dit360.textcache.TextCache`.
        model: whose embeddings are meant.
    """

    def __init__(self, pipeline: Any, folder: Path, model: str) -> None:
        self._encode = pipeline.encode_prompt
        self._transformer = pipeline.transformer
        self._folder, self._model = folder, model

    def __call__(
        self,
        prompt: str | list[str] | None = None,
        prompt_2: str | list[str] | None = None,
        device: torch.device | None = None,
        num_images_per_prompt: int = 1,
        prompt_embeds: torch.Tensor | None = None,
        pooled_prompt_embeds: torch.Tensor | None = None,
        max_sequence_length: int = 512,
        lora_scale: float | None = None,
    ) -> Any:
        """As the stock method; a prompt that is not in the cache is a ValueError."""
        del prompt_2, lora_scale  # one text for both encoders, and none of them to scale
        if prompt_embeds is None and prompt is not None:
            cache = TextCache(self._folder, self._model, max_length=max_sequence_length)
            found = [cache.get(one) for one in ([prompt] if isinstance(prompt, str) else prompt)]
            prompt_embeds, pooled_prompt_embeds = (
                torch.stack(parts)
                .to(device, self._transformer.dtype)
                .repeat_interleave(num_images_per_prompt, dim=0)
                for parts in zip(*found, strict=True)
            )
        return self._encode(
            prompt=None,
            prompt_2=None,
            device=device,
            prompt_embeds=prompt_embeds,
            pooled_prompt_embeds=pooled_prompt_embeds,
        )


# ---- estimates ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Bytes of a pipeline, counted from its configuration.

    Attributes:
        device: weights that stay on the device.
        host: weights in main memory.
        peak: of the device while it generates one panorama of 1024 x 2048, an estimate.
    """

    device: int
    host: int
    peak: int

    def describe(self, mode: str, device: torch.device) -> str:
        """One line for users."""
        where = "in main memory" if device.type == "cpu" else f"on {device}"
        host = f", {_gb(self.host)} in main memory" if self.host and device.type != "cpu" else ""
        height, width = PANORAMA
        return (
            f"memory {mode}: weights {_gb(self.device)} {where}{host}; peak about "
            f"{_gb(self.peak)} at {height} x {width}"
        )


def meta_parts(model: str, *, with_text: bool = True, **hub: Any) -> dict[str, nn.Module]:
    """Build the parts of a pipeline without weights, from its configuration files.

    Args:
        model: folder or hub id.
        with_text: the text encoders too.
        hub: revision and token.

    Raises:
        OSError: a configuration is missing or cannot be downloaded.
    """
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    network: Any = FluxTransformer2DModel.load_config(model, subfolder="transformer", **hub)
    vae: Any = AutoencoderKL.load_config(model, subfolder="vae", **hub)
    with torch.device("meta"):
        parts: dict[str, Any] = {
            "transformer": FluxTransformer2DModel.from_config(network),
            "vae": AutoencoderKL.from_config(vae),
        }
        if with_text:
            clip = CLIPTextConfig.from_pretrained(model, subfolder="text_encoder", **hub)
            t5 = T5Config.from_pretrained(model, subfolder="text_encoder_2", **hub)
            parts |= {"text_encoder": CLIPTextModel(clip), "text_encoder_2": T5EncoderModel(t5)}
    return parts


def estimate(
    parts: dict[str, nn.Module], mode: MemoryMode, dtype: torch.dtype, *, planned: bool, cpu: bool
) -> Footprint:
    """Count the bytes of weights on device and host, and estimate the peak (spec 12.2).

    Args:
        parts: see `meta_parts`.
        mode: of --memory.
        dtype: of the weights that are not quantised.
        planned: modulation layers stay in main memory, see `dit360.modulation`.
        cpu: the device is the CPU, so that device and host are one.
    """
    sizes = {name: _sizes(name, part, mode, dtype, planned) for name, part in parts.items()}
    modulation = sum(b for key, b in sizes["transformer"].items() if _is_modulation(key))
    total = sum(sum(one.values()) for one in sizes.values())
    away = modulation if planned else 0
    network = _blocks(sizes["transformer"], without_modulation=planned)
    working, decoding = _working_bytes(parts, dtype)
    if cpu or mode in ON_DEVICE:
        device = total if cpu else total - away
        return Footprint(device=device, host=total - device, peak=device + max(working, decoding))
    vae = sum(sizes["vae"].values())
    blocks = sorted((b for key, b in network.items() if key), reverse=True)
    visiting = network[""] + sum(blocks[:STREAMED_BLOCKS])
    peak = vae + max(visiting + working, decoding)
    return Footprint(device=vae, host=total - vae, peak=peak)


def _sizes(
    part: str, module: nn.Module, mode: MemoryMode, dtype: torch.dtype, planned: bool
) -> dict[str, int]:
    """Bytes of every parameter of a part as the mode stores it."""
    shrunk = _shrunk_layers(part, module, mode)
    sizes = {}
    for name, parameter in module.named_parameters():
        owner, _, kind = name.rpartition(".")
        bits: float = 8 * dtype.itemsize
        if part == "text_encoder_2" and dtype == torch.float16 and owner.endswith(".wo"):
            bits = 32  # transformers keeps these in float32, float16 overflows there
        if owner in shrunk and not (planned and _is_modulation(name)):
            if mode == "low":
                bits = 8
            elif kind == "weight":
                bits = NF4_BITS if mode == "4bit" else 8 * (1 + INT8_ROW_BYTES / parameter.shape[1])
        sizes[name] = round(parameter.numel() * bits / 8)
    return sizes


def _shrunk_layers(part: str, module: nn.Module, mode: MemoryMode) -> set[str]:
    """Names of the layers that the mode stores in fewer bits."""
    kept = KEPT.get(mode, {}).get(part)
    if kept is None:
        return set()
    # What layerwise casting takes, or a quantiser.
    kinds = (nn.Linear, nn.Embedding, nn.Conv2d) if mode == "low" else nn.Linear
    return {
        name
        for name, layer in module.named_modules()
        if isinstance(layer, kinds) and not any(re.search(pattern, name) for pattern in kept)
    }


def _is_modulation(parameter: str) -> bool:
    parents = parameter.split(".")[:-1]
    return len(parents) > 1 and parents[-1] == "linear" and parents[-2] in NORMS


def _blocks(sizes: dict[str, int], *, without_modulation: bool) -> dict[str, int]:
    """Bytes by block of the transformer; what is in none counts as the block ""."""
    blocks = {"": 0}
    for name, size in sizes.items():
        if not (without_modulation and _is_modulation(name)):
            first, second, *_ = name.split(".")
            block = f"{first}.{second}" if first.endswith("transformer_blocks") else ""
            blocks[block] = blocks.get(block, 0) + size
    return blocks


def _working_bytes(parts: dict[str, nn.Module], dtype: torch.dtype) -> tuple[int, int]:
    """Estimated activations of a denoising step and of decoding, for one panorama."""
    transformer: Any = parts["transformer"]
    vae: Any = parts["vae"]
    height, width = PANORAMA
    tokens = height // 16 * (width // 16 + 2) + TEXT_TOKENS
    denoising = DENOISING * tokens * transformer.inner_dim * dtype.itemsize
    decoding = DECODING * vae.config.block_out_channels[1] * height * width * dtype.itemsize
    return denoising, decoding


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
