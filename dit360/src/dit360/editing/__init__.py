"""Editing of panoramas: paint around a kept region, or paint a hole in it (spec 5.8).

Public names are loaded on first use, so that a command's ``--help`` does not import torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dit360.editing.run import EditResult as EditResult
    from dit360.editing.run import edit as edit
    from dit360.editing.settings import EditSettings as EditSettings

_HOME = {"EditResult": "run", "edit": "run", "EditSettings": "settings"}

__all__ = ["EditResult", "EditSettings", "edit"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
