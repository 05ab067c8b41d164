"""Files of a run's folder: `run.json` (options, versions, commit) and the state to resume from."""

import importlib.metadata
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from shared_pano_utils.imageio import write_json

RUN_NAME = "run.json"
STATE_FOLDER = "training_checkpoint"
OLD_SUFFIX = ".old"

PACKAGES = (
    "torch",
    "diffusers",
    "transformers",
    "accelerate",
    "numpy",
    "shared-pano-utils",
    "pager",
)


def write_run_info(folder: Path, options: dict[str, Any]) -> None:
    """Write ``<folder>/run.json`` before the first step of a command."""
    folder.mkdir(parents=True, exist_ok=True)
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    write_json(
        folder / RUN_NAME,
        {
            "command": sys.argv,
            "options": {k: str(v) if isinstance(v, Path) else v for k, v in options.items()},
            "python": platform.python_version(),
            "versions": versions,
            "commit": _commit(),
        },
    )


def recover_state(state: Path) -> bool:
    """Whether `state` is a saved state; puts one back that a kill left beside its place."""
    old = state.with_name(state.name + OLD_SUFFIX)
    if not state.is_dir() and old.is_dir():
        old.rename(state)
    return state.is_dir()


def _commit() -> str | None:
    try:
        result = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return None  # installed from an archive, or git is missing
    return result.stdout.strip()
