"""Editing of panoramas: paint around a kept region, or paint a hole in it (spec 5.8)."""

from dit360.editing.edit import EditResult, edit
from dit360.editing.settings import EditSettings

__all__ = ["EditResult", "EditSettings", "edit"]
