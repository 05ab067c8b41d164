"""`run.json`: what ran, with which options, versions and commit."""

import importlib.metadata
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from shared_pano_utils.imageio import write_json

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
        folder / "run.json",
        {
            "command": sys.argv,
            "options": {k: str(v) if isinstance(v, Path) else v for k, v in options.items()},
            "python": platform.python_version(),
            "versions": versions,
            "commit": _commit(),
        },
    )


def _commit() -> str | None:
    try:
        result = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return None  # installed from an archive, or git is missing
    return result.stdout.strip()
