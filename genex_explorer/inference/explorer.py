"""The original's module path of `Explorer`; the code is in `genex_explorer.explorer`."""

from genex_explorer.explorer import Explorer

__all__ = ["Explorer"]
