"""Take the LoRA out of a training checkpoint: DeepSpeed's of the original, or Lightning's of ours.

Checkpoints are pickles that may come from anyone: only tensors and plain containers are read, every
other object becomes an inert placeholder, and no code of the file runs.
"""

import logging
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from dit360.lora import EXTRA_OPTIONS, lora_config, plain_state, save_lora

logger = logging.getLogger(__name__)

DEEPSPEED_NAME = Path("checkpoint") / "mp_rank_00_model_states.pt"  # inside a .ckpt directory
HPARAMS_NAME = "hparams.yaml"
STATE_KEYS = ("module", "state_dict")  # DeepSpeed's, Lightning's
MODEL_PREFIX = "flux_transformer."


@dataclass(frozen=True, kw_only=True)
class Extracted:
    """What `extract_lora` wrote."""

    path: Path
    tensors: int
    rank: int
    alpha: float


class Inert:
    """Stands for an object of any class: keeps what the pickle says of it and does nothing."""

    def __init__(self, *args: Any) -> None:
        """Keep the arguments of the constructor."""
        self.content: Any = list(args)

    def __setstate__(self, state: Any) -> None:
        """Keep the attributes, a dict for ordinary classes."""
        self.content = state


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a training checkpoint without running anything in it; tensors stay on the disk (mmap).

    Args:
        path: `mp_rank_00_model_states.pt`, a Lightning `.ckpt` file, or the `.ckpt` directory that
            DeepSpeed writes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no checkpoint, is truncated, or wants to call system functions.
    """
    path = Path(path)
    if path.is_dir():
        path /= DEEPSPEED_NAME
    if not path.is_file():
        raise FileNotFoundError(
            f"checkpoint {path} does not exist; pass mp_rank_00_model_states.pt or a .ckpt"
        )
    foreign: list[str] = []
    try:
        foreign = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
        with torch.serialization.safe_globals([(Inert, name) for name in foreign]):
            checkpoint = torch.load(str(path), map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than tensors and options, which is refused because it could run "
            f"code ({', '.join(sorted(foreign)[:3])})"
        ) from error
    except (RuntimeError, ValueError, EOFError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{path} is not a training checkpoint that can be read, or it is truncated ({reason}); "
            "copy it again"
        ) from error
    if not isinstance(checkpoint, dict):
        raise ValueError(
            f"{path} holds a {type(checkpoint).__name__}, expected a dict with one of "
            f"{', '.join(STATE_KEYS)}"
        )
    return checkpoint


def lora_state(checkpoint: dict[str, Any], name: str = "the checkpoint") -> dict[str, Tensor]:
    """Pick the LoRA tensors of a checkpoint, named as in LoRA files (see `dit360.lora`).

    Raises:
        ValueError: there is none.
    """
    for key in STATE_KEYS:
        state = checkpoint.get(key)
        if isinstance(state, dict):
            found = plain_state(state, MODEL_PREFIX)
            if found:
                return found
            raise ValueError(
                f"{name} has no LoRA tensors ({MODEL_PREFIX}<module>.lora_A.default.weight) among "
                f"its {len(state)}; it is not a checkpoint of DiT360 training"
            )
    raise ValueError(f"{name} has neither {' nor '.join(STATE_KEYS)}; it is no training checkpoint")


def extract_lora(
    checkpoint_path: str | Path,
    folder: str | Path,
    *,
    alpha: float | None = None,
    padding_n: int | None = None,
) -> Extracted:
    """Write the LoRA of a training checkpoint as `adapter_model.safetensors` with its strength.

    The rank is that of the tensors. Alpha and padding come from the arguments, else from the hyper
    parameters in the checkpoint, else from the nearest `hparams.yaml` above it.

    Args:
        checkpoint_path: see `read_checkpoint`.
        folder: of the result.
        alpha: overrides what the training recorded.
        padding_n: wrap columns a side of the training, likewise.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: it is damaged or holds no LoRA, or nothing tells alpha.
    """
    checkpoint = read_checkpoint(checkpoint_path)
    state = lora_state(checkpoint, str(checkpoint_path))
    rank = next(t.shape[0] for key, t in state.items() if ".lora_A." in key)
    recorded = _recorded(checkpoint, Path(checkpoint_path))
    if alpha is None:
        alpha = recorded.get("lora_alpha")
    if alpha is None:
        raise ValueError(
            f"{checkpoint_path} does not record lora_alpha and there is no {HPARAMS_NAME} above "
            "it; pass --alpha, the --lora_alpha of the training"
        )
    if recorded.get("rank", rank) != rank:
        logger.warning("the options say rank %s, the tensors have %d", recorded["rank"], rank)
    if padding_n is not None:
        recorded["padding_n"] = padding_n
    extra = {name: recorded[name] for name in EXTRA_OPTIONS if name in recorded}
    if _has_average(checkpoint):
        logger.warning(
            "%s was trained with --ema_decay: these are the weights themselves, the averages are "
            "in the folder lora beside it",
            checkpoint_path,
        )
    config = lora_config(rank, float(alpha), recorded.get("lora_drop_out", 0.0), False)
    path = save_lora(folder, state, config, extra)
    return Extracted(path=path, tensors=len(state), rank=rank, alpha=float(alpha))


def _has_average(checkpoint: dict[str, Any]) -> bool:
    """Whether `dit360.training.checkpoint.Average` was among the callbacks."""
    callbacks = checkpoint.get("callbacks")
    states = callbacks.values() if isinstance(callbacks, dict) else ()
    return any(isinstance(s, dict) and {"updates", "weights"} <= s.keys() for s in states)


# ---- recorded options ---------------------------------------------------------------------------


def _recorded(checkpoint: dict[str, Any], path: Path) -> dict[str, Any]:
    """Training options by name: of the checkpoint, then of `hparams.yaml` for those missing."""
    options = _flatten(checkpoint.get("hyper_parameters"))
    hparams = next((p / HPARAMS_NAME for p in path.parents if (p / HPARAMS_NAME).is_file()), None)
    if "lora_alpha" not in options and hparams is not None:
        logger.info("reading %s", hparams)
        options = _flatten(_read_yaml(hparams)) | options
    return options


def _flatten(value: Any) -> dict[str, Any]:
    """Scalars of nested dicts and placeholders by their own name; outer ones win."""
    if isinstance(value, Inert):
        value = value.content
    if not isinstance(value, dict):
        return {}
    flat: dict[str, Any] = {}
    for inner in value.values():
        flat = _flatten(inner) | flat
    return flat | {k: v for k, v in value.items() if isinstance(v, int | float | str)}


class _PlainLoader(yaml.SafeLoader):
    """Reads `!!python/object` tags, which Lightning writes, as what they contain."""


def _construct_plain(loader: _PlainLoader, suffix: str, node: yaml.Node) -> Any:
    del suffix  # the class that is not made
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return node.value


_PlainLoader.add_multi_constructor("tag:yaml.org,2002:python/", _construct_plain)


def _read_yaml(path: Path) -> Any:
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _PlainLoader)  # noqa: S506  # safe
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not readable YAML ({error}); pass --alpha") from error
