"""Checkpoints of a run: ``checkpoint-<step>/`` to resume from, and the final pipeline.

Weights are stored as in the original (``unet/``, with EMA ``unet_ema/``), beside Accelerate's
optimizer, scheduler and random states; with `--save_trainable_only` just the trained tensors.
"""

import re
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from shared_pano_utils.imageio import atomic_path

TRAINED_NAME, TRAINED_EMA_NAME = "trained.safetensors", "trained_ema.safetensors"
WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"


RESULTS = (
    "run.json", "log.jsonl", "model_index.json", "checkpoint-*", ".checkpoint-*.partial", "best",
    "lora", "validation_images", "unet", "vae", "image_encoder", "feature_extractor", "scheduler",
)  # fmt: skip
"""What a run writes into its folder."""


def holds_results(output: Path) -> bool:
    """Whether a run left anything of worth here: a checkpoint or a pipeline."""
    return (output / "model_index.json").exists() or bool(list_checkpoints(output))


def clear_run(output: Path) -> None:
    """Delete what an earlier run wrote, and nothing else that may lie in the folder."""
    if (output / "run.json").exists():
        for path in (found for pattern in RESULTS for found in output.glob(pattern)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def step_of(folder: Path) -> int:
    """Updates done at ``checkpoint-<step>``, -1 for another name."""
    match = re.fullmatch(r"checkpoint-(\d+)", folder.name)
    return int(match[1]) if match else -1


def list_checkpoints(output: Path) -> list[Path]:
    """Complete checkpoints of a run, the oldest first."""
    return sorted((p for p in output.glob("checkpoint-*") if step_of(p) >= 0), key=step_of)


def find_checkpoint(output: Path, wanted: str) -> Path:
    """The checkpoint that ``--resume_from_checkpoint`` means: a path, a name, or ``latest``.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the folder is not a checkpoint.
    """
    found = list_checkpoints(output)
    if wanted == "latest":
        if not found:
            raise FileNotFoundError(f"{output} holds no checkpoint to resume from")
        return found[-1]
    for path in (Path(wanted), output / Path(wanted).name):
        if path.is_dir():
            if step_of(path) < 0:
                raise ValueError(
                    f"--resume_from_checkpoint {path}: pass a folder checkpoint-<step>, or latest"
                )
            return path
    names = ", ".join(path.name for path in found) or "none"
    raise FileNotFoundError(f"--resume_from_checkpoint {wanted} does not exist; there are: {names}")


def rotate(output: Path, limit: int | None) -> None:
    """Delete the oldest checkpoints beyond `limit`; called when the newest is complete."""
    if limit is not None:
        for old in list_checkpoints(output)[:-limit]:
            shutil.rmtree(old)


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a safetensors file atomically, from any device."""
    with atomic_path(path) as temporary:
        contiguous = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        save_file(contiguous, temporary, metadata={"format": "pt"})


def write_unet(folder: Path, unet: Any, state: dict[str, Tensor]) -> None:
    """Write a UNet folder (config and one safetensors file) with given weights."""
    unet.save_config(folder)
    write_tensors(folder / WEIGHTS_NAME, state)


def read_trained(folder: Path, names: list[str], *, ema: bool) -> dict[str, Tensor]:
    """Trained tensors of a checkpoint, whichever way it was saved.

    Raises:
        FileNotFoundError: the checkpoint has no such weights.
        ValueError: it belongs to another model or another `--trainable`.
    """
    small = folder / (TRAINED_EMA_NAME if ema else TRAINED_NAME)
    whole = folder / ("unet_ema" if ema else "unet") / WEIGHTS_NAME
    path = small if small.is_file() else whole
    if not path.is_file():
        kind = "EMA weights (was --use_ema given?)" if ema else "weights"
        raise FileNotFoundError(f"{folder} has no {kind}; resume with the options of the first run")
    state = load_file(path)
    missing = [name for name in names if name not in state]
    if missing:
        raise ValueError(
            f"{path} lacks {len(missing)} trained tensors, e.g. {missing[0]}; resume with the model "
            "and the --trainable of the first run"
        )
    return {name: state[name] for name in names}
