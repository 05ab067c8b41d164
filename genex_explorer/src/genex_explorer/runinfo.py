"""`run.json`: what made the files of a folder (options, versions, commit)."""

import importlib.metadata
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from shared_pano_utils.imageio import write_json

RUN_NAME = "run.json"
PACKAGES = (
    "torch",
    "diffusers",
    "transformers",
    "accelerate",
    "av",
    "numpy",
    "shared-pano-utils",
    "genex-explorer",
)


def write_run_info(folder: Path, options: dict[str, Any]) -> None:
    """Write ``<folder>/run.json`` before the first step of a command; secrets are left out."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    shown = {
        key: str(value) if isinstance(value, Path) else value
        for key, value in options.items()
        if not key.endswith("token")
    }
    write_json(
        folder / RUN_NAME,
        {
            "command": _without_token(sys.argv),
            "options": shown,
            "python": platform.python_version(),
            "versions": versions,
            "commit": _commit(),
        },
    )


def _without_token(command: list[str]) -> list[str]:
    hidden = {i + 1 for i, part in enumerate(command) if part == "--hub_token"}
    return [
        part
        for i, part in enumerate(command)
        if i not in hidden and not part.startswith("--hub_token=")
    ]


def _commit() -> str | None:
    try:
        result = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return None  # installed from an archive, or git is missing
    return result.stdout.strip()
