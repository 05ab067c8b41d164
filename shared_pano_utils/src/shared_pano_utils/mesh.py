"""Triangle mesh of an ERP depth map, closed at +-180 degrees and at the poles.

Plain arrays in and out, for any exporter: give `vertices`, `faces` and `uv` to trimesh with the
panorama as the texture to get a textured GLB.
"""

from typing import NamedTuple

import numpy as np
import torch

from ._arrays import Array, to_torch
from ._surface import silhouette_pairs
from .depth import depth_to_points, inverse_depth


class Mesh(NamedTuple):
    """Triangles of a panorama, facing the camera (counter-clockwise when seen from it)."""

    vertices: np.ndarray
    """(V, 3) float32, RDF frame of the camera, in the unit of the depth."""
    faces: np.ndarray
    """(F, 3) int32 indices into `vertices`."""
    uv: np.ndarray
    """(V, 2) float32 texture coordinates, u right, v up, (0, 0) the lower left image corner."""


def erp_mesh(
    depth: Array,
    *,
    keep: Array | None = None,
    threshold: float = 0.01,
    reach: int = 3,
) -> Mesh:
    """Triangulate the pixel grid of an ERP distance map, cut along silhouettes.

    The vertices are the pixel centres. Column 0 appears a second time beyond the last column, with
    u > 1 by half a pixel (texture wrap mode "repeat", the default of glTF and OBJ), and each pole
    is one point with as many vertices as there are columns, so that the texture has no seam. A
    square whose four pixels are kept is split along its shorter diagonal, one with three becomes a
    triangle; no triangle spans a silhouette.

    Args:
        depth: one distance map (H, W), tensor (1, H, W) or array (H, W, 1), metres; pixels that
            are not finite and positive carry no vertex.
        keep: bool map of the shape of `depth`, False for further pixels to leave out.
        threshold: smallest silhouette, relative to the nearer depth (see `depth.edge_mask`).
        reach: a ramp of up to so many pixel steps counts as one silhouette.

    Returns:
        `Mesh` of (vertices, faces, uv); vertices without a face are left out. Turn the frame to the
        y-up frame of glTF with ``vertices * [1, -1, -1]``.

    Raises:
        ValueError: More than one map, fewer than 3 columns, or `keep` of another shape.

    >>> mesh = erp_mesh(np.full((4, 8), 2.0, np.float32))
    >>> len(mesh.faces) == 2 * 3 * 8 + 2 * 8, mesh.vertices.shape == (4 * 9 + 2 * 8, 3)
    (True, True)
    """
    distance = _single_map(depth, "depth").detach().cpu()
    height, width = distance.shape[-2:]
    if width < 3:
        raise ValueError(f"a panorama of {width} columns has no mesh: at least 3 are needed")
    inverse, kept, known = inverse_depth(distance)  # [h, w]
    if keep is not None:
        kept = kept & _single_mask(keep, kept)
    columns, rows = silhouette_pairs(inverse, known, threshold=threshold, reach=reach)
    masked = torch.where(kept, distance[0].float(), 0.0).numpy()
    points = np.asarray(depth_to_points(masked))  # [h, w, 3]

    vertices, uv = _vertices(points, inverse.numpy(), kept.numpy())
    grid = np.arange(height * (width + 1)).reshape(height, width + 1)
    # Beyond the last column column 0 follows.
    kept_grid = np.concatenate([kept.numpy(), kept.numpy()[:, :1]], axis=1)
    row_cut = np.concatenate([rows.numpy(), rows.numpy()[:, :1]], axis=1)
    column_cut = columns.numpy()[:, 1:]
    faces = np.concatenate(
        [
            _grid_faces(grid, vertices, kept_grid, column_cut, row_cut[1:-1]),
            _pole_faces(grid[0], grid.size, kept_grid[0], column_cut[0], is_north=True),
            _pole_faces(grid[-1], grid.size + width, kept_grid[-1], column_cut[-1], is_north=False),
        ]
    )
    used, compact = np.unique(faces, return_inverse=True)
    return Mesh(
        vertices[used].astype(np.float32),
        compact.reshape(-1, 3).astype(np.int32),
        uv[used].astype(np.float32),
    )


def _single_map(array: Array, name: str) -> torch.Tensor:
    tensor, _ = to_torch(array, name=name)
    if tensor.ndim != 3 or tensor.shape[0] != 1:
        raise ValueError(
            f"{name} has shape {tuple(array.shape)}: expected one map of one channel, (H, W); "
            "mesh the maps of a batch one by one"
        )
    return tensor


def _single_mask(keep: Array, like: torch.Tensor) -> torch.Tensor:
    mask = _single_map(keep, "keep")[0].cpu().bool()
    if mask.shape != like.shape:
        raise ValueError(
            f"keep has shape {tuple(keep.shape)}: expected that of the depth, {tuple(like.shape)}"
        )
    return mask


def _vertices(
    points: np.ndarray, inverse: np.ndarray, kept: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Vertices and uv: the H x (W + 1) grid, then W of the north and W of the south pole."""
    height, width = kept.shape
    grid = np.concatenate([points, points[:, :1]], axis=1).reshape(-1, 3)
    u, v = np.meshgrid((np.arange(width + 1) + 0.5) / width, 1 - (np.arange(height) + 0.5) / height)
    poles = []
    for row, down, pole_v in ((0, -1.0, 1.0), (-1, 1.0, 0.0)):
        level = inverse[row][kept[row]]
        # On a plane the mean inverse distance of a parallel is the pole's, times its sine.
        distance = np.cos(np.pi / (2 * height)) / level.mean() if level.size else 0.0
        poles.append((np.tile([0.0, down * distance, 0.0], (width, 1)), pole_v))
    pole_u = (np.arange(width) + 1.0) / width
    vertices = np.concatenate([grid, *(position for position, _ in poles)])
    uv = np.concatenate(
        [
            np.stack([u, v], -1).reshape(-1, 2),
            *(np.stack([pole_u, np.full(width, pole_v)], -1) for _, pole_v in poles),
        ]
    )
    return vertices, uv


def _grid_faces(
    grid: np.ndarray,
    vertices: np.ndarray,
    kept: np.ndarray,
    column_cut: np.ndarray,
    row_cut: np.ndarray,
) -> np.ndarray:
    """Triangles (F, 3) between the rows of the grid, each of one side, one edge and a diagonal."""
    corners = {
        "tl": np.s_[:-1, :-1],
        "tr": np.s_[:-1, 1:],
        "bl": np.s_[1:, :-1],
        "br": np.s_[1:, 1:],
    }
    index = {name: grid[at] for name, at in corners.items()}
    exists = {name: kept[at] for name, at in corners.items()}
    whole = {
        "top": ~column_cut[:-1],
        "bottom": ~column_cut[1:],
        "left": ~row_cut[:, :-1],
        "right": ~row_cut[:, 1:],
    }
    length = {
        pair: np.linalg.norm(vertices[index[pair[:2]]] - vertices[index[pair[2:]]], axis=-1)
        for pair in ("tlbr", "trbl")
    }
    all_four = np.logical_and.reduce(list(exists.values()))
    falling = np.where(all_four, length["tlbr"] <= length["trbl"], exists["tl"] & exists["br"])

    triangles = []
    for names, sides, is_split in (
        (("tl", "bl", "br"), ("left", "bottom"), falling),
        (("tl", "br", "tr"), ("top", "right"), falling),
        (("tl", "bl", "tr"), ("top", "left"), ~falling),
        (("tr", "bl", "br"), ("bottom", "right"), ~falling),
    ):
        present = np.logical_and.reduce([exists[name] for name in names])
        chosen = is_split & present & whole[sides[0]] & whole[sides[1]]
        triangles.append(np.stack([index[name][chosen] for name in names], -1))
    return np.concatenate(triangles)


def _pole_faces(
    row: np.ndarray, first_pole: int, kept: np.ndarray, column_cut: np.ndarray, *, is_north: bool
) -> np.ndarray:
    """Fan (F, 3) between the outermost row (W + 1 vertex indices) and its pole vertices."""
    chosen = kept[:-1] & kept[1:] & ~column_cut
    pole = first_pole + np.arange(len(row) - 1)
    sides = (row[:-1], row[1:]) if is_north else (row[1:], row[:-1])
    return np.stack([pole, *sides], -1)[chosen]
