"""`run.json`: the packages whose versions it names."""

import functools

from shared_pano_utils import runinfo
from shared_pano_utils.runinfo import RUN_NAME

__all__ = ["PACKAGES", "RUN_NAME", "write_run_info"]

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

write_run_info = functools.partial(runinfo.write_run_info, packages=PACKAGES)
