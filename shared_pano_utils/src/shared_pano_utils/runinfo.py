"""`run.json`: what made the files of a folder (options, versions, commit)."""

import importlib.metadata
import platform
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from shared_pano_utils.imageio import write_json

RUN_NAME = "run.json"


def write_run_info(folder: Path, options: dict[str, Any], packages: Iterable[str]) -> None:
    """Write ``<folder>/run.json`` before the first step of a command; secrets are left out.

    Args:
        folder: of the results; made if missing.
        options: resolved options; those whose name ends in "token" are left out.
        packages: distributions whose versions matter, the project's own among them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shown = {
        key: str(value) if isinstance(value, Path) else value
        for key, value in options.items()
        if not key.endswith("token")
    }
    write_json(
        folder / RUN_NAME,
        {
            "command": _without_tokens(sys.argv),
            "options": shown,
            "python": platform.python_version(),
            "versions": {name: _version(name) for name in packages},
            "commit": _commit(),
        },
    )


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _without_tokens(command: list[str]) -> list[str]:
    kept, hidden = [], False
    for part in command:
        flag, _, value = part.partition("=")
        is_token = flag.startswith("--") and flag.endswith("token")
        if not hidden and not is_token:
            kept.append(part)
        hidden = is_token and not value
    return kept


def _commit() -> str | None:
    """The commit of the workspace, where this package is installed from a checkout."""
    try:
        result = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return None  # installed from an archive, or git is missing
    return result.stdout.strip()
