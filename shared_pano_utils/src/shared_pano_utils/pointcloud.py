"""Coloured point clouds as binary PLY, the format every 3D viewer reads."""

from pathlib import Path

import numpy as np

from .imageio import atomic_path


def write_ply(path: str | Path, points: np.ndarray, colors: np.ndarray | None = None) -> None:
    """Write a point cloud as binary little-endian PLY.

    Args:
        path: file name, usually *.ply; missing folders are made and the write is atomic.
        points: (N, 3) finite floats, metres; written as float32 x y z in the given order of axes.
        colors: (N, 3) uint8 RGB, or None for points without colour.

    Raises:
        TypeError: `points` are not floats, or `colors` not uint8.
        ValueError: wrong shapes, or points that are not finite.
    """
    if points.dtype.kind != "f":
        raise TypeError(f"points are {points.dtype}, expected float32; convert them with .astype")
    if points.ndim != 2 or points.shape[1] != 3:
        raise ValueError(f"points have shape {points.shape}, expected (N, 3); reshape them")
    n_bad = int((~np.isfinite(points).all(1)).sum())
    if n_bad:
        raise ValueError(
            f"{n_bad} of {len(points)} points are not finite; keep only those with a valid depth"
        )
    fields = [("x", "<f4"), ("y", "<f4"), ("z", "<f4")]
    if colors is not None:
        if colors.dtype != np.uint8:
            raise TypeError(f"colors are {colors.dtype}, expected uint8 in 0..255")
        if colors.shape != points.shape:
            raise ValueError(
                f"colors have shape {colors.shape}, expected {points.shape} as the points"
            )
        fields += [("red", "u1"), ("green", "u1"), ("blue", "u1")]
    vertices = np.empty(len(points), dtype=fields)
    columns = [*points.T] if colors is None else [*points.T, *colors.T]
    for (name, _), column in zip(fields, columns, strict=True):
        vertices[name] = column
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(_header(len(points), has_color=colors is not None).encode("ascii"))
        file.write(vertices.tobytes())


def _header(n_points: int, *, has_color: bool) -> str:
    lines = ["ply", "format binary_little_endian 1.0", f"element vertex {n_points}"]
    lines += [f"property float {axis}" for axis in "xyz"]
    if has_color:
        lines += [f"property uchar {channel}" for channel in ("red", "green", "blue")]
    return "\n".join([*lines, "end_header", ""])
