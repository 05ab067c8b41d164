"""LoRA files of FLUX transformers: reading with the right strength, checking, loading, saving.

A file holds `transformer.<module>.lora_{A,B}.weight`. diffusers takes alpha = rank when the header
says nothing, which is four times too strong for r=256, alpha=64; here alpha comes from the header,
else from `adapter_config.json`.
"""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HFValidationError, RepositoryNotFoundError
from peft import LoraConfig
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dit360.wrap import PadIds
from shared_pano_utils.imageio import atomic_path, write_json

logger = logging.getLogger(__name__)

WEIGHTS_NAME = "adapter_model.safetensors"
CONFIG_NAME = "adapter_config.json"
FILE_NAMES = (WEIGHTS_NAME, "pytorch_lora_weights.safetensors")  # ours and peft's, diffusers'
PREFIX = "transformer."
EXTRA_KEY = "dit360"  # of the header: how it was trained
EXTRA_OPTIONS = ("padding_n", "pad_ids")  # there, by the names of the training's options
TARGETS = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0")  # suffixes of module names
UNSUPPORTED = ("use_rslora", "use_dora", "rank_pattern", "alpha_pattern")


@dataclass(frozen=True, kw_only=True)
class LoraWeights:
    """A LoRA file in memory.

    Attributes:
        name: hub id or path, for messages.
        state: `transformer.<module>.lora_A.weight` (rank, in), `...lora_B.weight` (out, rank).
        rank: of all modules.
        alpha: the update is multiplied by alpha / rank.
        padding_n: wrap columns a side with which it was trained, None if the file does not say.
        pad_ids: position ids of these columns, likewise.
    """

    name: str
    state: dict[str, Tensor]
    rank: int
    alpha: float
    padding_n: int | None = None
    pad_ids: PadIds | None = None

    @property
    def modules(self) -> list[str]:
        """Names of the adapted modules inside the transformer."""
        return sorted({_split(key)[0] for key in self.state})


def lora_config(
    rank: int, alpha: float, dropout: float, gaussian_init: bool, bias: str = "none"
) -> LoraConfig:
    """Configure the adapter of DiT360: the attention of the image stream, 190 modules of FLUX.1.

    Args:
        rank: of the update.
        alpha: its strength times the rank.
        dropout: on the input of the update, while training.
        gaussian_init: A ~ N(0, 1/rank) instead of peft's uniform start; B is zero either way.
        bias: only "none" can be stored in a LoRA file.

    Raises:
        ValueError: rank or alpha below what makes sense, or a bias.

    Source: specification of the original training, rank 64, alpha 64, dropout 0.05.
    """
    if rank < 1 or alpha <= 0:
        raise ValueError(f"LoRA rank is {rank} and alpha {alpha}; both must be positive")
    if bias != "none":
        raise ValueError(
            f"LoRA bias is {bias!r}, which trains biases of the base model that a LoRA file cannot "
            "hold; use none"
        )
    return LoraConfig(
        r=rank,
        lora_alpha=alpha,  # pyright: ignore[reportArgumentType]  # peft divides it, any number is fine
        lora_dropout=dropout,
        init_lora_weights="gaussian" if gaussian_init else True,
        target_modules=list(TARGETS),
    )


# ---- reading ------------------------------------------------------------------------------------


def read_lora(source: str | Path, token: str | None = None) -> LoraWeights:
    """Read a LoRA from a file, a folder or the hub (its cache when offline).

    Args:
        source: `.safetensors` file, folder such as `lora_output`, or hub id.
        token: of the hub, for private repositories.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is damaged, or its keys are of another scheme.
    """
    weights_path, config_path = _locate(str(source), token)
    try:
        with safe_open(weights_path, framework="pt") as file:
            header = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{weights_path} is not a readable safetensors file ({error})") from error
    rank = _check_state(state, str(source))
    alpha = _alpha(header, config_path, rank, str(source))
    stated = json.loads(header.get(EXTRA_KEY, "{}"))
    extra = {name: stated.get(name) for name in EXTRA_OPTIONS}
    return LoraWeights(name=str(source), state=state, rank=rank, alpha=alpha, **extra)


def _locate(source: str, token: str | None) -> tuple[Path, Path | None]:
    path = Path(source).expanduser()
    if path.is_dir():
        return _locate_in_folder(path)
    if path.is_file():
        config = path.parent / CONFIG_NAME
        return path, config if config.is_file() else None
    if source.startswith((".", "/", "~")) or source.endswith(".safetensors"):
        raise FileNotFoundError(f"LoRA {source} does not exist; pass a file, a folder or a hub id")
    for name in FILE_NAMES:
        found = _download(source, name, token)
        if found:
            return found, _download(source, CONFIG_NAME, token)
    raise FileNotFoundError(
        f"LoRA {source} is neither a folder here nor a hub id with {' or '.join(FILE_NAMES)} "
        f"(is the machine offline?); download it with `hf download {source}` or pass a folder"
    )


def _locate_in_folder(folder: Path) -> tuple[Path, Path | None]:
    config = folder / CONFIG_NAME
    named = [folder / name for name in FILE_NAMES if (folder / name).is_file()]
    weights = named or sorted(folder.glob("*.safetensors"))
    if not named and len(weights) != 1:
        found = ", ".join(file.name for file in weights) or "no safetensors file"
        raise FileNotFoundError(
            f"LoRA folder {folder} has {found}; expected {WEIGHTS_NAME}, or pass the file itself"
        )
    return weights[0], config if config.is_file() else None


def _download(repository: str, name: str, token: str | None) -> Path | None:
    try:
        return Path(hf_hub_download(repository, name, token=token))
    except EntryNotFoundError:  # also when offline and not in the cache
        return None
    except HFValidationError as error:
        raise FileNotFoundError(f"LoRA {repository} is neither a folder nor a hub id") from error
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"LoRA {repository} does not exist on the hub, or is private; log in with "
            "`hf auth login` or pass --token"
        ) from error


def _check_state(state: dict[str, Tensor], name: str) -> int:
    """Refuse other key schemes, which diffusers would guess by substrings; return the rank."""
    for key in state:
        if not key.startswith(PREFIX) or not key.endswith((".lora_A.weight", ".lora_B.weight")):
            raise ValueError(
                f"LoRA {name} has the key {key!r}; expected {PREFIX}<module>.lora_A.weight and "
                "lora_B.weight only: convert it with diffusers (load_lora_weights, then "
                "save_lora_weights)"
            )
    halves = {side: {_split(k)[0] for k in state if _split(k)[1] == side} for side in "AB"}
    alone = halves["A"] ^ halves["B"]
    if alone or not state:
        raise ValueError(f"LoRA {name} is damaged: {min(alone, default='no key')} lacks A or B")
    ranks = {t.shape[0 if _split(k)[1] == "A" else 1] for k, t in state.items()}
    if len(ranks) > 1:
        raise ValueError(
            f"LoRA {name} mixes the ranks {sorted(ranks)}; one rank for all modules is supported"
        )
    return ranks.pop()


def _split(key: str) -> tuple[str, str]:
    """`transformer.<module>.lora_A.weight` -> (<module>, "A")."""
    module, _, rest = key.removeprefix(PREFIX).rpartition(".lora_")
    return module, rest[0]


def _alpha(header: dict[str, str], config_path: Path | None, rank: int, name: str) -> float:
    if LORA_ADAPTER_METADATA_KEY in header:
        packed = json.loads(header[LORA_ADAPTER_METADATA_KEY])
        config = {key.removeprefix(PREFIX): value for key, value in packed.items()}
        return _configured_alpha(config, rank, f"the header of LoRA {name}")
    if config_path is not None:
        try:
            config = json.loads(config_path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{config_path} is not JSON ({error}); remove or mend it") from error
        return _configured_alpha(config, rank, str(config_path))
    logger.info("LoRA %s does not state alpha; using alpha = rank = %d", name, rank)
    return float(rank)


def _configured_alpha(config: dict[str, Any], rank: int, where: str) -> float:
    used = [key for key in UNSUPPORTED if config.get(key)]
    if used:
        raise ValueError(f"{where} asks for {', '.join(used)}, which is not supported")
    if config.get("r") != rank or "lora_alpha" not in config:
        # The original extractor wrote r=4, alpha=4 when it did not find the training options.
        logger.warning(
            "%s states rank %s, the tensors have %d; ignoring it and using alpha = rank",
            where, config.get("r"), rank,
        )  # fmt: skip
        return float(rank)
    return float(config["lora_alpha"])


# ---- loading ------------------------------------------------------------------------------------


def load_lora(
    pipeline: Any, source: "str | Path | LoraWeights", scale: float = 1.0, token: str | None = None
) -> LoraWeights:
    """Add a LoRA to the transformer of a pipeline; it is active afterwards, not fused.

    Args:
        pipeline: any FLUX.1 pipeline of diffusers (dev, Fill, Kontext).
        source: see `read_lora`, or what it returned.
        scale: strength, 1 as trained, 0 without effect.
        token: of the hub.

    Raises:
        FileNotFoundError: there is no such LoRA.
        ValueError: it is damaged, or was trained for another base model.
    """
    weights = source if isinstance(source, LoraWeights) else read_lora(source, token)
    transformer = pipeline.transformer
    _check_base(transformer, weights)
    metadata = {
        f"{PREFIX}r": weights.rank,
        f"{PREFIX}lora_alpha": weights.alpha * scale,
        f"{PREFIX}target_modules": weights.modules,
    }
    state = {key: tensor.to(transformer.dtype) for key, tensor in weights.state.items()}
    transformer.load_lora_adapter(state, metadata=metadata)
    logger.info(
        "LoRA %s: rank %d, strength %g on %d modules",
        weights.name, weights.rank, weights.alpha / weights.rank * scale, len(weights.modules),
    )  # fmt: skip
    return weights


def _check_base(transformer: torch.nn.Module, weights: LoraWeights) -> None:
    """Name the first module that the base model lacks or has in another size."""
    modules = dict(transformer.named_modules())
    for name in weights.modules:
        a, b = (weights.state[f"{PREFIX}{name}.lora_{side}.weight"] for side in "AB")
        wanted = (a.shape[1], b.shape[0])
        module = modules.get(name)
        if module is None:
            raise ValueError(
                f"LoRA {weights.name} does not fit the base model, which has no {name}; it was "
                "trained for another one"
            )
        found = (getattr(module, "in_features", None), getattr(module, "out_features", None))
        if found != wanted:
            raise ValueError(
                f"LoRA {weights.name} does not fit the base model: {name} maps "
                f"{found[0]} -> {found[1]} numbers there, {wanted[0]} -> {wanted[1]} in the LoRA; "
                "it was trained for another one"
            )


# ---- saving -------------------------------------------------------------------------------------


def plain_state(state: dict[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """Pick the LoRA tensors of a state dict and name them as LoRA files do.

    Args:
        state: of a transformer with an adapter, `<prefix><module>.lora_A[.<adapter>].weight`.
        prefix: what precedes the module names, "flux_transformer." in training checkpoints.

    Returns:
        `transformer.<module>.lora_A.weight` and B, sorted; empty if there is none.
    """
    plain = {}
    for key, tensor in state.items():
        module, found, rest = key.removeprefix(prefix).rpartition(".lora_")
        if found and key.startswith(prefix) and rest[0] in "AB" and rest.endswith(".weight"):
            name = module.removeprefix(PREFIX)
            plain[f"{PREFIX}{name}.lora_{rest[0]}.weight"] = tensor
    return dict(sorted(plain.items()))


def save_lora(
    folder: str | Path, state: dict[str, Tensor], config: LoraConfig, extra: dict[str, Any]
) -> Path:
    """Write `adapter_model.safetensors` and `adapter_config.json`, which `read_lora` takes.

    diffusers finds the strength in the header of the former, peft in the latter.

    Args:
        folder: made if missing; files in it are replaced.
        state: of a transformer with an adapter, or already as in LoRA files.
        config: of the adapter; its rank must be that of the tensors.
        extra: how it was trained, kept in the header; EXTRA_OPTIONS are compared when loading.

    Returns:
        Path of the weights.

    Raises:
        ValueError: there is no LoRA tensor, or the rank is another.
    """
    folder = Path(folder)
    tensors = {
        key: tensor.detach().cpu().contiguous() for key, tensor in plain_state(state).items()
    }
    rank = _check_state(tensors, str(folder))
    if rank != config.r:
        raise ValueError(f"the tensors have rank {rank}, the configuration says {config.r}")
    options = {k: sorted(v) if isinstance(v, set) else v for k, v in config.to_dict().items()}
    header = {
        "format": "pt",
        LORA_ADAPTER_METADATA_KEY: json.dumps({f"{PREFIX}{k}": v for k, v in options.items()}),
        EXTRA_KEY: json.dumps(extra),
    }
    path = folder / WEIGHTS_NAME
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata=header)
    write_json(folder / CONFIG_NAME, options)
    return path
