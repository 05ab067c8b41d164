"""Depth to geometry: which pixels are surface, coloured points, textured meshes, their files.

Points and vertices are RDF metres (x right, y down, z forward) in memory and in PLY files, and in
the y-up frame of glTF in GLB files.
"""

from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
from PIL import Image

from shared_pano_utils import depth_to_points
from shared_pano_utils.depth import edge_mask
from shared_pano_utils.imageio import atomic_path
from shared_pano_utils.mesh import Mesh, erp_mesh
from shared_pano_utils.pointcloud import write_ply

PointFormat = Literal["ply", "glb"]

MAX_POINTS = 2_000_000
RDF_TO_GLTF = np.array([1.0, -1.0, -1.0], np.float32)


# ---- pixels -------------------------------------------------------------------------------------


def surface_pixels(
    depth: np.ndarray, *, far_m: float | None = None, valid: np.ndarray | None = None
) -> np.ndarray:
    """Mask (H, W) of the pixels of a depth map (1, H, W) that show a surface.

    Args:
        depth: metres along the ray; NaN, infinity and values <= 0 are no surface.
        far_m: distance from which depth counts as sky.
        valid: (H, W) bool, False for further pixels to leave out.
    """
    mask = np.isfinite(depth[0]) & (depth[0] > 0)
    if far_m is not None:
        mask &= depth[0] < far_m
    return mask if valid is None else mask & valid


def clean_pixels(
    depth: np.ndarray,
    *,
    far_m: float | None = None,
    valid: np.ndarray | None = None,
    edge_thresh: float | None = None,
    min_cluster: int = 0,
) -> np.ndarray:
    """Mask (H, W) of the surface pixels off silhouettes, where depth mixes near and far.

    Args:
        depth: (1, H, W) metres along the ray.
        far_m: distance from which depth counts as sky.
        valid: (H, W) bool, False for further pixels to leave out.
        edge_thresh: None for the test that spares slanted surfaces at every resolution, or the
            threshold of the original's test (see `difference_edges`), which used 0.002.
        min_cluster: drop connected groups of fewer pixels, counted as at the equator.
    """
    mask = surface_pixels(depth, far_m=far_m, valid=valid)
    if edge_thresh is None:
        mask &= ~edge_mask(torch.from_numpy(depth))[0].numpy()
    else:
        mask &= ~difference_edges(depth, edge_thresh)
    return large_clusters(mask, min_cluster) if min_cluster > 0 else mask


def difference_edges(depth: np.ndarray, threshold: float) -> np.ndarray:
    """The original's edge test, with neighbours across +-180 degrees added.

    Both pixels of a horizontal or vertical pair are marked where their depths differ by more than
    `threshold` in metres and by more than `threshold` times the nearer one. The second condition
    is one on slope and resolution, too: it marks most of a flat wall.

    Returns:
        Mask (H, W) of the depth map (1, H, W), True on edges.

    >>> difference_edges(np.array([[[1, 1, 1.001, 1.01]]]), 0.002).tolist()
    [[True, False, True, True]]
    """
    marked = np.zeros(depth.shape[1:], bool)
    for axis in (0, 1):
        here, there = depth[0], np.roll(depth[0], -1, axis)
        with np.errstate(invalid="ignore"):  # sky beside sky is infinity minus infinity
            step = np.abs(here - there)
        jump = (step > threshold) & (step > threshold * np.minimum(here, there))
        if axis == 0:
            jump[-1] = False  # the rows do not wrap
        marked |= jump | np.roll(jump, 1, axis)
    return marked


def large_clusters(mask: np.ndarray, min_cluster: int) -> np.ndarray:
    """Keep the connected groups of at least `min_cluster` pixels of a panorama's mask (H, W).

    Pixels connect to their eight neighbours, across +-180 degrees and the poles too, and count by
    the cosine of their latitude: at a pole thousands of them are one spot.
    """
    height, width = mask.shape
    count, found = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    labels = np.asarray(found, np.intp)
    left, right = labels[:, 0], labels[:, -1]
    seam = [(left, right), (left[1:], right[:-1]), (left[:-1], right[1:])]
    poles = [(labels[row], np.roll(labels[row], width // 2)) for row in (0, -1)]
    pairs = np.concatenate([np.stack(pair) for pair in (*seam, *poles)], axis=1)
    first, second = pairs[:, (pairs > 0).all(0)]
    # Every label takes the smallest one it touches, until none changes.
    root = np.arange(count)
    while (root[first] != root[second]).any():
        smallest = np.minimum(root[first], root[second])
        np.minimum.at(root, root[first], smallest)
        np.minimum.at(root, root[second], smallest)
        root = root[root]
    labels = root[labels]
    weight = np.broadcast_to(np.cos(_latitudes(height))[:, None], mask.shape)
    size = np.bincount(labels.ravel(), weight.ravel(), minlength=count)
    return mask & (size[labels] >= min_cluster)


def _latitudes(height: int) -> np.ndarray:
    return (0.5 - (np.arange(height) + 0.5) / height) * np.pi


def _equal_area_pixels(height: int, width: int) -> np.ndarray:
    """Mask (H, W) that keeps about ``W cos(latitude)`` evenly spaced pixels of every row."""
    count = np.ceil(width * np.cos(_latitudes(height)))[:, None]
    column = np.arange(width)
    return np.floor((column + 1) * count / width) > np.floor(column * count / width)


# ---- points -------------------------------------------------------------------------------------


def point_cloud(
    depth: np.ndarray,
    rgb: np.ndarray,
    *,
    max_points: int = MAX_POINTS,
    far_m: float | None = None,
    valid: np.ndarray | None = None,
    edge_thresh: float | None = None,
    min_cluster: int = 0,
    equal_area: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """Coloured points of a depth map, silhouettes and the far limit (sky) removed.

    Args:
        depth: (1, H, W) metres.
        rgb: (H, W, 3) uint8 of the same size.
        max_points: rows near the poles are thinned by the cosine of the latitude first, then all
            points evenly to this number.
        far_m: drop points from this distance on.
        valid: (H, W) bool, False for further pixels to leave out.
        edge_thresh: see `clean_pixels`.
        min_cluster: see `clean_pixels`.
        equal_area: False keeps the rows near the poles as dense as the image.

    Returns:
        Points (N, 3) float32 RDF metres and colours (N, 3) uint8.
    """
    keep = clean_pixels(
        depth, far_m=far_m, valid=valid, edge_thresh=edge_thresh, min_cluster=min_cluster
    )
    if equal_area:
        keep &= _equal_area_pixels(*depth.shape[1:])
    chosen = np.flatnonzero(keep)
    if len(chosen) > max_points:
        chosen = chosen[np.linspace(0, len(chosen) - 1, max_points).astype(int)]
    points = depth_to_points(torch.from_numpy(depth)).flatten(1).T.numpy()
    return points[chosen], rgb.reshape(-1, 3)[chosen]


def write_points(
    path: Path, points: np.ndarray, colors: np.ndarray, file_format: PointFormat
) -> None:
    """Write a PLY (RDF frame) or a GLB (glTF frame, y up) point cloud, atomically.

    Raises:
        ValueError: no points, which only PLY can hold.
    """
    if file_format == "ply":
        write_ply(path, points, colors)
        return
    import trimesh

    if len(points) == 0:
        raise ValueError(f"{path}: there are 0 points, GLB holds 1 or more; write PLY instead")
    rgba = np.concatenate([colors, np.full((len(colors), 1), 255, np.uint8)], 1)
    scene = trimesh.Scene(trimesh.PointCloud(points * RDF_TO_GLTF, rgba))
    data: Any = scene.export(file_type="glb")
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


# ---- meshes -------------------------------------------------------------------------------------


def depth_mesh(
    depth: np.ndarray,
    *,
    max_points: int = MAX_POINTS,
    far_m: float | None = None,
    valid: np.ndarray | None = None,
    min_cluster: int = 0,
) -> Mesh:
    """Triangles of a depth map, cut along silhouettes, closed at +-180 degrees and the poles.

    Args:
        depth: (1, H, W) metres.
        max_points: larger grids are averaged down to at most this number of pixels first.
        far_m: leave out what is this far or farther.
        valid: (H, W) bool, False for further pixels to leave out.
        min_cluster: drop what stands alone in the point cloud (see `clean_pixels`).

    Returns:
        `Mesh` in the RDF frame, with texture coordinates of the whole panorama.
    """
    keep = surface_pixels(depth, far_m=far_m, valid=valid)
    if min_cluster > 0:
        # The mesh is cut between the two sides of a silhouette and needs the pixels of both; each
        # belongs to the cluster that it touches.
        clean = clean_pixels(depth, far_m=far_m, valid=valid, min_cluster=min_cluster)
        keep &= _dilated(clean)
    distance = depth[0]
    if keep.size > max_points:
        distance, keep = _averaged(distance, keep, max_points)
    return erp_mesh(distance, keep=keep)


def _dilated(mask: np.ndarray) -> np.ndarray:
    """Grow a panorama's mask (H, W) by one pixel, across +-180 degrees too."""
    wrapped = np.pad(mask.astype(np.uint8), ((0, 0), (1, 1)), mode="wrap")
    return cv2.dilate(wrapped, np.ones((3, 3), np.uint8))[:, 1:-1] > 0


def _averaged(
    distance: np.ndarray, keep: np.ndarray, max_points: int
) -> tuple[np.ndarray, np.ndarray]:
    """Shrink a distance map (H, W) and its mask to at most `max_points` pixels.

    Inverse distance is averaged, which is linear on planes. A mean across a silhouette becomes a
    step of a ramp, which `erp_mesh` cuts out.
    """
    height, width = distance.shape
    factor = (max_points / distance.size) ** 0.5
    size = (max(3, int(width * factor)), max(2, int(height * factor)))
    inverse = np.where(keep, 1 / np.where(keep, distance, 1), 0).astype(np.float32)
    total, share = (
        cv2.resize(array, size, interpolation=cv2.INTER_AREA)
        for array in (inverse, keep.astype(np.float32))
    )
    kept = share > 0.5
    return np.where(kept, share / np.where(kept, total, 1), 0).astype(np.float32), kept


def write_mesh(path: Path, mesh: Mesh, texture: np.ndarray) -> None:
    """Write a GLB (glTF frame, y up) with the panorama (H, W, 3) uint8 inside, atomically.

    The material is unlit where the viewer knows how: a photograph carries its light.

    Raises:
        ValueError: the mesh has no triangles.
    """
    import trimesh
    from trimesh.visual import TextureVisuals
    from trimesh.visual.material import PBRMaterial

    if len(mesh.faces) == 0:
        raise ValueError(f"{path}: there are 0 triangles, GLB holds 1 or more; check the depth")
    material = PBRMaterial(
        baseColorTexture=Image.fromarray(texture), metallicFactor=0.0, roughnessFactor=1.0
    )
    visual = TextureVisuals(uv=mesh.uv, material=material)
    # Unprocessed: no search for equal vertices, the order stays.
    surface = trimesh.Trimesh(mesh.vertices * RDF_TO_GLTF, mesh.faces, visual=visual, process=False)
    scene = trimesh.Scene(surface)
    data: Any = scene.export(file_type="glb", tree_postprocessor=_make_unlit)
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def _make_unlit(tree: dict[str, Any]) -> None:
    tree["extensionsUsed"] = [*tree.get("extensionsUsed", []), "KHR_materials_unlit"]
    for material in tree.get("materials", []):
        material["extensions"] = {"KHR_materials_unlit": {}}
