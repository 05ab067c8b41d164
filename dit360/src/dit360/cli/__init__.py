"""Command lines; each has a thin entry point at the root of the subproject."""
