"""Files of a run's folder: `run.json` (options, versions, commit) and the state to resume from."""

import functools
from pathlib import Path

from shared_pano_utils import runinfo
from shared_pano_utils.runinfo import RUN_NAME

__all__ = [
    "OLD_SUFFIX",
    "PACKAGES",
    "RUN_NAME",
    "STATE_FOLDER",
    "recover_state",
    "write_run_info",
]

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

write_run_info = functools.partial(runinfo.write_run_info, packages=PACKAGES)


def recover_state(state: Path) -> bool:
    """Whether `state` is a saved state; puts one back that a kill left beside its place."""
    old = state.with_name(state.name + OLD_SUFFIX)
    if not state.is_dir() and old.is_dir():
        old.rename(state)
    return state.is_dir()
