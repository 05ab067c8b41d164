"""Typed training options: one schema behind the YAML files, the flat flags and ``--set``.

Precedence: schema defaults < ``--config`` YAML < flags < ``--set section.key=value``; what a
checkpoint stores about its own outputs (`LOCKED`) cannot be overridden. Flags carry the leaf names
of the original repository.
"""

import argparse
import dataclasses
import difflib
import logging
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from pager.data.registry import DATASETS

logger = logging.getLogger(__name__)


@dataclass
class Training:
    """How long and what is trained."""

    num_train_epochs: int = 10
    max_train_steps: int | None = None
    gradient_accumulation_steps: int = 1
    only_train_attention_layers: bool = True
    gradient_checkpointing: bool = True
    resume_path: str | None = None
    use_EMA: bool = True
    EMA_decay: float = 0.9999
    lora_rank: int = 0
    mixed_precision: str = "no"
    num_workers: int = 2


@dataclass
class Model:
    """What is predicted and where training starts; stored in checkpoints."""

    modality: str = "depth"
    pretrained_path: str = "GonzaloMG/marigold-e2e-ft-depth"
    checkpoint_path: str | None = None
    unet_positional_encoding: str = "RoPE"
    vae_use_RoPE: bool = True
    metric_depth: bool = False
    log_scale: bool = True
    min_depth: float = 0.01
    max_depth: float = 75.0
    face_size: int = 768


@dataclass
class Data:
    """Data set and batches."""

    data_path: str = "data"
    dataset: str = "PanoInfinigen"
    scenes: str = "both"
    batch_size: int = 1
    use_data_augmentation: bool = True


@dataclass
class Optimization:
    """AdamW and the learning-rate schedule."""

    learning_rate: float = 3e-4
    lr_exp_warmup_steps: float = 0.03
    lr_exp_final_ratio: float = 0.01
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_weight_decay: float = 1e-2
    adam_epsilon: float = 1e-8
    clip_grad_norm: bool = True
    max_grad_norm: float = 1.0


@dataclass
class Loss:
    """Weights of the depth losses."""

    l1_loss_weight: float = 1.0
    grad_loss_weight: float = 0.0
    normals_consistency_loss_weight: float = 0.0
    invalid_mask_weight: float = 0.0


@dataclass
class Validation:
    """Full validation per epoch, thinned validation every few steps."""

    run_validation: bool = True
    run_tiny_validation: bool = True
    tiny_val_frequency: int = 200


@dataclass
class Logging:
    """Where and how often a run writes."""

    save_path: str = "checkpoints"
    run_name: str | None = None
    save_frequency: int = 1
    save_steps: int = 500
    loss_report_frequency: int = 1
    img_report_frequency: int = 200
    report_to: str = "tensorboard"
    tracker_project_name: str = "Pager"
    logging_path: str = "logs"


@dataclass
class TrainConfig:
    """All options of `train.py`."""

    debug: bool = False
    seed: int | None = 42
    enable_xformers: bool = False
    training: Training = field(default_factory=Training)
    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    optimization: Optimization = field(default_factory=Optimization)
    loss: Loss = field(default_factory=Loss)
    validation: Validation = field(default_factory=Validation)
    logging: Logging = field(default_factory=Logging)


CHOICES: dict[str, tuple[str, ...]] = {
    "modality": ("depth", "normals"),
    "unet_positional_encoding": ("uv", "RoPE", "none"),
    "dataset": tuple(DATASETS),
    "scenes": ("indoor", "outdoor", "both"),
    "mixed_precision": ("no", "bf16"),
    "report_to": ("tensorboard", "wandb", "none"),
}
MODEL_KEYS = {item.name for item in dataclasses.fields(Model)} - {
    "pretrained_path",
    "checkpoint_path",
}
LOCKED = {
    "modality", "unet_positional_encoding", "metric_depth", "log_scale", "min_depth", "max_depth"
}  # fmt: skip
AT_LEAST_ONE = {
    "num_train_epochs", "max_train_steps", "gradient_accumulation_steps", "batch_size",
    "save_frequency", "save_steps", "loss_report_frequency", "img_report_frequency",
    "tiny_val_frequency", "face_size",
}  # fmt: skip
# Keys of YAML files of the original repository, and where their values live here.
ALIASES = {
    "logging.wandb.run_name": "logging.run_name",
    "logging.tensorboard.log_path": "logging.logging_path",
    "logging.model_save_frequency": "logging.save_frequency",
    "model.enable_xformers": "enable_xformers",
}


def add_schema_flags(parser: argparse.ArgumentParser, schema: Any = TrainConfig) -> None:
    """Add one flat flag per leaf of the schema; absent flags stay None."""
    hints = typing.get_type_hints(schema)
    for item in dataclasses.fields(schema):
        kind = hints[item.name]
        if dataclasses.is_dataclass(kind):
            group: Any = parser.add_argument_group(item.name)
            add_schema_flags(group, kind)
            continue
        kind = _without_none(kind)
        default = "none" if item.default is None else item.default
        if kind is bool:
            parser.add_argument(
                f"--{item.name}", nargs="?", const=True, type=parse_bool, metavar="BOOL",
                help=f"true or false (default {str(default).lower()})",
            )  # fmt: skip
            parser.add_argument(
                f"--no-{item.name}", dest=item.name, action="store_false", default=None,
                help=argparse.SUPPRESS,
            )  # fmt: skip
        else:
            parser.add_argument(
                f"--{item.name}", type=kind, choices=CHOICES.get(item.name),
                help=f"default {default}",
            )  # fmt: skip


def parse_bool(text: str) -> bool:
    """``true``/``false`` (also yes/no, 1/0) of a command line."""
    value = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}.get(
        text.lower()
    )
    if value is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not true or false")
    return value


def _without_none(kind: Any) -> Any:
    if isinstance(kind, types.UnionType):
        return next(t for t in typing.get_args(kind) if t is not type(None))
    return kind


def resolve_config(
    yaml_path: str | None,
    flags: dict[str, Any],
    assignments: list[str],
    stored_model: dict[str, Any] | None = None,
) -> TrainConfig:
    """Merge all sources (see the module docstring) into a checked `TrainConfig`.

    A value that a locked one replaces is named in a warning, if the command line asked for it.

    Args:
        yaml_path: file with the tree of `TrainConfig`, or None.
        flags: leaf name to value; None values are ignored.
        assignments: ``section.key=value`` strings.
        stored_model: keys that the checkpoint training starts from holds.

    Raises:
        FileNotFoundError: `yaml_path` does not exist.
        ValueError: an unknown key (with the closest known one), or a value of the wrong type.
    """
    config = OmegaConf.structured(TrainConfig)
    layers: list[tuple[str, Any]] = []
    if yaml_path is not None:
        if not Path(yaml_path).is_file():
            raise FileNotFoundError(f"config {yaml_path} does not exist; see configs/base.yaml")
        layers.append((yaml_path, _load_yaml(yaml_path)))
    stored = {key: value for key, value in (stored_model or {}).items() if key in MODEL_KEYS}
    layers.append(("checkpoint", {"model": stored}))
    layers.append(("command line", _nest_flags(flags)))
    layers.append(("--set", OmegaConf.from_dotlist(assignments)))
    layers.append(("checkpoint", {"model": {k: v for k, v in stored.items() if k in LOCKED}}))
    for source, layer in layers:
        try:
            config = OmegaConf.merge(config, layer)
        except OmegaConfBaseException as error:
            raise ValueError(f"{source}: {_explain(error)}") from error
    _warn_of_locked(stored, flags, assignments)
    result = OmegaConf.to_object(config)
    assert isinstance(result, TrainConfig)
    _check_choices(result)
    return result


def _warn_of_locked(stored: dict[str, Any], flags: dict[str, Any], assignments: list[str]) -> None:
    asked = {key: value for key, value in flags.items() if value is not None}
    assigned: Any = OmegaConf.to_container(OmegaConf.from_dotlist(assignments))
    asked |= assigned.get("model", {})
    for key in sorted(LOCKED & stored.keys() & asked.keys()):
        if asked[key] != stored[key]:
            logger.warning(
                "%s=%s is ignored: the checkpoint was made with %s", key, asked[key], stored[key]
            )


def _load_yaml(path: str) -> Any:
    """Read a YAML file, moving the original's keys to ours (`ALIASES`)."""
    try:
        tree: Any = OmegaConf.load(path)
    except (YAMLError, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a readable YAML file ({error})") from error
    for old, new in ALIASES.items():
        section, _, key = old.rpartition(".")
        holder = OmegaConf.select(tree, section)
        if OmegaConf.is_dict(holder) and key in holder:
            OmegaConf.update(tree, new, holder.pop(key))
            parent, _, child = section.rpartition(".")
            if parent and not holder:
                OmegaConf.select(tree, parent).pop(child)
    return tree


def _nest_flags(flags: dict[str, Any]) -> dict[str, Any]:
    """Leaf names are unique in the schema, so a flat flag belongs to one section."""
    tree: dict[str, Any] = {}
    for section, kind in typing.get_type_hints(TrainConfig).items():
        if not dataclasses.is_dataclass(kind):
            if flags.get(section) is not None:
                tree[section] = flags[section]
            continue
        values = {
            f.name: flags[f.name] for f in dataclasses.fields(kind) if flags.get(f.name) is not None
        }
        if values:
            tree[section] = values
    return tree


def _explain(error: OmegaConfBaseException) -> str:
    key = str(getattr(error, "key", "") or "")
    known = [leaf for leaf, _ in leaves()]
    close = difflib.get_close_matches(key, known, 1)
    hint = f"; did you mean {close[0]}?" if close and close[0] != key else ""
    return str(error).splitlines()[0] + f" (key {error.full_key or key}){hint}"


def leaves() -> list[tuple[str, str]]:
    """(leaf name, section) of every option."""
    result = []
    for section, kind in typing.get_type_hints(TrainConfig).items():
        if dataclasses.is_dataclass(kind):
            result += [(item.name, section) for item in dataclasses.fields(kind)]
        else:
            result.append((section, ""))
    return result


def _check_choices(config: TrainConfig) -> None:
    for leaf, section in leaves():
        value = getattr(getattr(config, section) if section else config, leaf)
        if leaf in CHOICES and value not in CHOICES[leaf]:
            raise ValueError(
                f"{section}.{leaf} is {value!r}; use one of {', '.join(CHOICES[leaf])}"
            )
        if leaf in AT_LEAST_ONE and value is not None and value < 1:
            raise ValueError(f"{section}.{leaf} is {value}; use 1 or more")
