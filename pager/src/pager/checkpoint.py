"""Read and write PaGeR checkpoints: the hub layout, flat diffusers folders, single files.

A checkpoint is a UNet plus the `model:` section of a ``config.yaml``; the VAE, scheduler and text
encoder come from the base model that section names (`pretrained_path`).
"""

import dataclasses
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.utils import logging as diffusers_logging
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from yaml import YAMLError

from pager.depth import INDOOR_MAX_DEPTH_M
from pager.model import ModelConfig, PagerModel, extend_conv_in
from shared_pano_utils.imageio import atomic_path, write_json

logger = logging.getLogger(__name__)

CONFIG_NAME = "config.yaml"
UNET_WEIGHTS = "diffusion_pytorch_model.safetensors"
EMPTY_PROMPT = "empty_prompt.safetensors"
PROMPT_CACHE = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "pager"
CONFIG_SEARCH_LEVELS = 3
# `vae_use_RoPE` is compared with a string upstream, so it never had an effect; `enable_xformers`
# (in older files) chooses an attention back-end.
IGNORED_MODEL_KEYS = {"vae_use_RoPE", "enable_xformers"}

DA3_MESSAGE = (
    "{path} holds a Depth-Anything-3 version of PaGeR (one model.safetensors, no unet/ folder); "
    "this project runs the diffusion version: pass its commit with --revision, or a local folder "
    "with config.yaml and unet/"
)


@dataclass(frozen=True, kw_only=True)
class CheckpointFiles:
    """Where the parts of a checkpoint lie, and its parsed options."""

    root: Path
    config: ModelConfig
    stored_keys: frozenset[str]  # of `config`, the ones that are not mere defaults
    unet_dir: Path | None  # a diffusers folder
    unet_file: Path | None  # or a lone state dict


# ---- locating -----------------------------------------------------------------------------------


def fetch(name: str | Path, revision: str | None = None, patterns: list[str] | None = None) -> Path:
    """Local folder or file `name`, else a hub snapshot of the files matching `patterns`.

    Raises:
        FileNotFoundError: neither exists nor can be reached, in one line.
    """
    path = Path(name)
    if path.exists():
        return path
    try:
        return Path(snapshot_download(str(name), revision=revision, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise FileNotFoundError(
            f"{name} is not a local folder and could not be fetched from the hub ({reason}); "
            "pass a folder, check --revision and the network, or use --tiny"
        ) from error


def locate(checkpoint: str | Path, revision: str | None = None) -> CheckpointFiles:
    """Find the UNet and the options of a checkpoint in any of the layouts of this module.

    Raises:
        FileNotFoundError: nothing there, or no ``config.yaml`` within three levels.
        ValueError: a Depth-Anything-3 checkpoint, or an unreadable config.
    """
    root = fetch(
        checkpoint, revision, [CONFIG_NAME, "unet/*", "base/*", UNET_WEIGHTS, "config.json"]
    )
    if root.is_file():
        if root.suffix != ".safetensors":
            raise ValueError(f"{root} is not a .safetensors file; convert it or pass a folder")
        config, keys = read_model_config(root, checkpoint)
        return CheckpointFiles(
            root=root, config=config, stored_keys=keys, unet_dir=None, unet_file=root
        )
    unet_dir = root / "unet" if (root / "unet").is_dir() else root
    if (unet_dir / "config.json").exists() and (unet_dir / UNET_WEIGHTS).exists():
        config, keys = read_model_config(root, checkpoint)
        return CheckpointFiles(
            root=root, config=config, stored_keys=keys, unet_dir=unet_dir, unet_file=None
        )
    if (root / "model.safetensors").exists() or (Path(checkpoint) != root and not _has_unet(root)):
        raise ValueError(DA3_MESSAGE.format(path=checkpoint))
    singles = sorted(root.glob("*.safetensors"))
    if len(singles) == 1:
        return locate(singles[0])
    raise FileNotFoundError(
        f"{checkpoint} holds no UNet: expected unet/config.json with unet/{UNET_WEIGHTS}, "
        "the same two files directly, or one .safetensors file"
    )


def _has_unet(root: Path) -> bool:
    return any(root.rglob(UNET_WEIGHTS))


def read_model_config(root: Path, name: str | Path = "") -> tuple[ModelConfig, frozenset[str]]:
    """Parse the `model:` section of the ``config.yaml`` in `root` or up to three levels above.

    Returns:
        The options, and the names of those that are not mere defaults.
    """
    folder = root if root.is_dir() else root.parent
    candidates = [folder, *folder.resolve().parents[:CONFIG_SEARCH_LEVELS]]
    path = next((c / CONFIG_NAME for c in candidates if (c / CONFIG_NAME).exists()), None)
    if path is None:
        raise FileNotFoundError(
            f"no {CONFIG_NAME} in {folder} or the {CONFIG_SEARCH_LEVELS} folders above; "
            "put the config.yaml of the training run beside the weights"
        )
    try:
        loaded = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except (YAMLError, OmegaConfBaseException) as error:
        raise ValueError(f"{path} is not a readable YAML file ({error})") from error
    section = loaded.get("model") if isinstance(loaded, dict) else None
    if not isinstance(section, dict):
        raise ValueError(
            f"{path} has no `model:` section; it is not the config of a PaGeR checkpoint"
        )
    config = parse_model_section(section, source=path, name=str(name or root))
    names = {field.name for field in dataclasses.fields(ModelConfig)}
    inferred = {name for name in names if getattr(config, name) != getattr(ModelConfig(), name)}
    return config, frozenset(section.keys() & names | inferred)


def parse_model_section(section: dict[str, Any], *, source: Path, name: str) -> ModelConfig:
    """Build `ModelConfig` from a stored section; unknown keys are errors, absent ones defaults."""
    known = {field.name for field in dataclasses.fields(ModelConfig)}
    unknown = set(section) - known - IGNORED_MODEL_KEYS
    if unknown:
        raise ValueError(
            f"{source}: unknown model keys {sorted(unknown)}; known are {sorted(known)}"
        )
    values = {key: value for key, value in section.items() if key in known}
    values["unet_positional_encoding"] = values.get("unet_positional_encoding") or "none"
    if "max_depth" not in values and name.rstrip("/").endswith("-indoor"):
        values["max_depth"] = INDOOR_MAX_DEPTH_M
        logger.warning(
            "%s stores no depth range; assuming the indoor range up to %g m (override: --max_depth)",
            name,
            INDOOR_MAX_DEPTH_M,
        )
    return ModelConfig(**values)


def base_model_path(files: CheckpointFiles, override: str | None = None) -> str:
    """The base model of a checkpoint: `override`, else the stored path or hub id.

    A stored relative path is looked up beside the checkpoint first.
    """
    stored = override or files.config.pretrained_path
    folder = files.root if files.root.is_dir() else files.root.parent
    beside = folder / stored
    return str(beside) if override is None and beside.is_dir() else stored


# ---- loading ------------------------------------------------------------------------------------


def load_model(
    checkpoint: str | Path,
    *,
    revision: str | None = None,
    pretrained_path: str | None = None,
    rope: Literal["auto", "on", "off"] = "auto",
    dtype: torch.dtype = torch.float32,
    overrides: dict[str, Any] | None = None,
) -> PagerModel:
    """Load a trained checkpoint with its base model, in evaluation mode on the CPU.

    Args:
        checkpoint: hub id, folder or .safetensors file (layouts of this module).
        revision: hub commit, tag or branch.
        pretrained_path: base model instead of the stored one.
        rope: see `PagerModel`.
        dtype: of the weights.
        overrides: `ModelConfig` fields to replace (for example `max_depth`, `face_size`).
    """
    files = locate(checkpoint, revision)
    config = dataclasses.replace(files.config, **(overrides or {}))
    base = base_model_path(files, pretrained_path)
    if files.unet_dir is not None:
        unet = _load_unet(files.unet_dir, dtype)
    else:
        assert files.unet_file is not None
        unet = _load_single_file(files.unet_file, base, config.in_channels, dtype)
    return assemble(unet, base, config, rope=rope, dtype=dtype).eval()


def load_base_model(config: ModelConfig, *, dtype: torch.dtype = torch.float32) -> PagerModel:
    """Start of a training: the base model's own UNet, its `conv_in` extended for "uv"."""
    base = fetch(config.pretrained_path)
    unet = _load_unet(base / "unet", dtype)
    extend_conv_in(unet, config.in_channels)
    return assemble(unet, str(base), config, dtype=dtype)


def assemble(
    unet: UNet2DConditionModel,
    base: str,
    config: ModelConfig,
    *,
    rope: Literal["auto", "on", "off"] = "auto",
    dtype: torch.dtype = torch.float32,
) -> PagerModel:
    """Join a UNet with the VAE, scheduler constant and empty-prompt embedding of `base`."""
    folder = fetch(base, patterns=["scheduler/*", "vae/*", EMPTY_PROMPT])
    vae = AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=dtype)
    # Zero terminal SNR is forced, as in the released code: the last step carries no signal.
    scheduler: Any = DDPMScheduler.from_pretrained(
        folder / "scheduler", rescale_betas_zero_snr=True
    )
    prediction = scheduler.config["prediction_type"]
    if prediction != "v_prediction":
        raise ValueError(
            f"{base} predicts {prediction!r}; PaGeR needs a v_prediction base model "
            "such as GonzaloMG/marigold-e2e-ft-depth"
        )
    return PagerModel(
        unet,
        vae,
        empty_prompt_embedding(base, folder).to(dtype),
        config,
        last_alpha_bar=float(scheduler.alphas_cumprod[-1]),
        last_timestep=scheduler.config["num_train_timesteps"] - 1,
        rope=rope,
    )


def empty_prompt_embedding(base: str, folder: Path) -> Tensor:
    """Text embedding (1, tokens, width) of the empty prompt, the only one the network ever sees.

    It is read from the file of that name in `folder`, or for hub snapshots from the user's cache,
    where it is kept: the text encoder (1.4 GB) is downloaded and run once.

    Args:
        base: folder or hub id.
        folder: where its files lie.
    """
    is_snapshot = folder.parent.name == "snapshots"
    cached = PROMPT_CACHE / f"{folder.name}.safetensors" if is_snapshot else folder / EMPTY_PROMPT
    for path in (folder / EMPTY_PROMPT, cached):
        if path.exists():
            return _read_safetensors(path)["embedding"]
    embedding = encode_empty_prompt(fetch(base, patterns=["tokenizer/*", "text_encoder/*"]))
    if is_snapshot:
        try:
            PROMPT_CACHE.mkdir(parents=True, exist_ok=True)
            with atomic_path(cached) as path:
                save_file({"embedding": embedding}, path)
        except OSError as error:
            logger.warning("the empty-prompt embedding is not kept in %s (%s)", cached, error)
    return embedding


def encode_empty_prompt(base: Path) -> Tensor:
    """Run the text encoder of a base model on the empty prompt: (1, tokens, width)."""
    from transformers import CLIPTextModel, CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(base / "tokenizer")
    encoder = CLIPTextModel.from_pretrained(base / "text_encoder")
    length = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
    tokens = tokenizer("", padding="max_length", max_length=length, return_tensors="pt").input_ids
    with torch.no_grad():
        return encoder(tokens).last_hidden_state


def _load_unet(folder: Path, dtype: torch.dtype) -> UNet2DConditionModel:
    verbosity = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error()  # what does not fit is reported below, in one line
    try:
        loaded: Any = UNet2DConditionModel.from_pretrained(
            folder,
            torch_dtype=dtype,
            output_loading_info=True,
            low_cpu_mem_usage=False,
            ignore_mismatched_sizes=True,
        )
    finally:
        diffusers_logging.set_verbosity(verbosity)
    unet, report = loaded
    _check_keys(folder, report["missing_keys"], report["unexpected_keys"])
    _check_shapes(folder, report["mismatched_keys"])
    return unet


def _load_single_file(
    path: Path, base: str, in_channels: int, dtype: torch.dtype
) -> UNet2DConditionModel:
    """A re-saved state dict (possibly half precision); its architecture is the base model's."""
    folder = fetch(base, patterns=["unet/config.json"]) / "unet"
    config: Any = UNet2DConditionModel.load_config(folder)
    unet: Any = UNet2DConditionModel.from_config({**config, "in_channels": in_channels})
    state = {key.removeprefix("unet."): value for key, value in _read_safetensors(path).items()}
    shapes = {key: value.shape for key, value in unet.state_dict().items()}
    _check_keys(path, shapes.keys() - state.keys(), state.keys() - shapes.keys())
    found = [(key, value.shape, shapes[key]) for key, value in state.items()]
    _check_shapes(path, [item for item in found if item[1] != item[2]])
    unet.load_state_dict(state)
    return unet.to(dtype)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); copy or download it again") from error


def _check_keys(source: Path, missing: Any, unexpected: Any) -> None:
    if missing or unexpected:
        raise ValueError(
            f"{source} is the checkpoint of another model: {len(missing)} keys missing "
            f"(e.g. {min(missing, default='none')}), {len(unexpected)} unexpected "
            f"(e.g. {min(unexpected, default='none')})"
        )


def _check_shapes(source: Path, mismatched: list[tuple[str, Any, Any]]) -> None:
    """Refuse entries (key, shape in the file, shape in the network)."""
    if mismatched:
        key, found, expected = mismatched[0]
        raise ValueError(
            f"{source} is the checkpoint of another model: {key} has shape {tuple(found)}, "
            f"expected {tuple(expected)}"
        )


# ---- saving -------------------------------------------------------------------------------------


def save_checkpoint(
    folder: Path,
    unet: UNet2DConditionModel,
    config: ModelConfig,
    *,
    state: dict[str, Tensor] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write the hub layout: ``config.yaml``, ``unet/config.json`` and the weights, atomically.

    Args:
        folder: created if needed.
        unet: weights to store.
        config: stored as the `model:` section.
        state: weights to store instead of `unet`'s own.
        dtype: of the stored weights (None keeps them).
    """
    unet_dir = folder / "unet"
    unet_dir.mkdir(parents=True, exist_ok=True)
    stored = {
        key: value.detach().to("cpu", dtype or value.dtype).contiguous()
        for key, value in (unet.state_dict() if state is None else state).items()
    }
    with atomic_path(unet_dir / UNET_WEIGHTS) as path:
        save_file(stored, path, metadata={"format": "pt"})
    write_network_config(unet, unet_dir / "config.json")
    with atomic_path(folder / CONFIG_NAME) as path:
        OmegaConf.save(OmegaConf.create({"model": dataclasses.asdict(config)}), path)


def write_network_config(network: Any, path: Path) -> None:
    """Write the ``config.json`` of a diffusers network without the folder it was loaded from."""
    config = json.loads(network.to_json_string())
    config.pop("_name_or_path", None)
    write_json(path, config)
