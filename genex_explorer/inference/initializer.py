"""The original's module path of the initializer; the code is in `genex_explorer.initializer`."""

from genex_explorer.initializer import GenExWorldInitializerPipeline

__all__ = ["GenExWorldInitializerPipeline"]
