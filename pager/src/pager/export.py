"""Write predictions: npz, 16-bit PNG with its scale, previews, point cloud, mesh, viewer page.

A panorama's files lie in one folder; ``meta.json`` is written last and lists them, so a folder
with a ``meta.json`` is complete.
"""

import json
from pathlib import Path
from typing import Any, Literal

import cv2
import matplotlib
import numpy as np
import torch

from pager.geometry import pager_to_rdf
from pager.pipeline import Prediction
from shared_pano_utils import depth_to_points
from shared_pano_utils.depth import edge_mask
from shared_pano_utils.imageio import atomic_path, write_image, write_json, write_png16
from shared_pano_utils.pointcloud import write_ply
from shared_pano_utils.viewer import write_viewer

PointFormat = Literal["ply", "glb"]

META_NAME = "meta.json"
PNG16_MAX = 65_535
PREVIEW_QUANTILE = 0.99
PREVIEW_COLORMAP = "Spectral"
MAX_POINTS = 2_000_000
RDF_TO_GLTF = np.array([1.0, -1.0, -1.0], np.float32)


# ---- pictures -----------------------------------------------------------------------------------


def depth_preview(depth: np.ndarray) -> np.ndarray:
    """Colour a depth map (1, H, W) in metres: log depth, near red to far blue, (H, W, 3) uint8."""
    value = np.log(np.clip(depth[0], 1e-6, None))
    low, high = value.min(), np.quantile(value, PREVIEW_QUANTILE)
    unit = np.clip((value - low) / max(high - low, 1e-6), 0, 1)
    colors = matplotlib.colormaps[PREVIEW_COLORMAP](unit)[..., :3]
    return (colors * 255).round().astype(np.uint8)


def normals_preview(normals: np.ndarray) -> np.ndarray:
    """Colour unit normals (3, H, W) as ``(n + 1) / 2``, (H, W, 3) uint8."""
    return ((np.moveaxis(normals, 0, -1).clip(-1, 1) + 1) * 127.5).round().astype(np.uint8)


# ---- points -------------------------------------------------------------------------------------


def point_cloud(
    depth: np.ndarray, rgb: np.ndarray, *, max_points: int = MAX_POINTS, far_m: float | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Coloured points of a depth map, silhouettes and the far limit (sky) removed.

    Args:
        depth: (1, H, W) metres.
        rgb: (H, W, 3) uint8 of the same size.
        max_points: rows near the poles are thinned by the cosine of the latitude first, then all
            points evenly to this number.
        far_m: drop points beyond this distance.

    Returns:
        Points (N, 3) float32 RDF metres and colours (N, 3) uint8.
    """
    tensor = torch.from_numpy(depth)
    keep = ~edge_mask(tensor)[0].numpy() & np.isfinite(depth[0]) & (depth[0] > 0)
    if far_m is not None:
        keep &= depth[0] < far_m
    keep &= _equal_area_pixels(*depth.shape[1:])
    chosen = np.flatnonzero(keep)
    if len(chosen) > max_points:
        chosen = chosen[np.linspace(0, len(chosen) - 1, max_points).astype(int)]
    points = depth_to_points(tensor).flatten(1).T.numpy()
    return points[chosen], rgb.reshape(-1, 3)[chosen]


def _equal_area_pixels(height: int, width: int) -> np.ndarray:
    """Mask (H, W) that keeps about ``W cos(latitude)`` evenly spaced pixels of every row."""
    latitude = (0.5 - (np.arange(height) + 0.5) / height) * np.pi
    count = np.ceil(width * np.cos(latitude))[:, None]
    column = np.arange(width)
    return np.floor((column + 1) * count / width) > np.floor(column * count / width)


def write_points(
    path: Path, points: np.ndarray, colors: np.ndarray, file_format: PointFormat
) -> None:
    """Write a PLY (RDF frame) or a GLB (glTF frame, y up) point cloud, atomically."""
    if file_format == "ply":
        write_ply(path, points, colors)
        return
    import trimesh

    rgba = np.concatenate([colors, np.full((len(colors), 1), 255, np.uint8)], 1)
    scene = trimesh.Scene(trimesh.PointCloud(points * RDF_TO_GLTF, rgba))
    data: Any = scene.export(file_type="glb")
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


# ---- one panorama -------------------------------------------------------------------------------


def write_npz(path: Path, array: np.ndarray) -> None:
    """Write an array under the key ``arr_0``, as the evaluation scripts expect."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, array)


def write_prediction(
    folder: Path,
    rgb: np.ndarray,
    prediction: Prediction,
    *,
    source: str,
    points: PointFormat | None = "ply",
    html: bool = False,
    far_m: float | None = None,
) -> list[Path]:
    """Write every output of one panorama into `folder`; ``meta.json`` comes last.

    Args:
        folder: created if needed.
        rgb: (H, W, 3) uint8 input.
        prediction: maps of the same size.
        source: the input's path, recorded in the metadata.
        points: point-cloud format, None for no cloud.
        html: also write ``index.html``, a self-contained 360-degree viewer.
        far_m: distance from which depth counts as sky in the cloud.

    Returns:
        The files written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files: list[Path] = []
    meta: dict[str, Any] = {"source": source, "size": list(rgb.shape[:2])}
    views: dict[str, np.ndarray] = {"RGB": rgb}
    if prediction.depth is not None:
        files += _write_depth(folder, prediction, meta)
        views["Depth"] = depth_preview(prediction.depth)
        write_image(folder / "depth_preview.png", views["Depth"], gpano=True)
        files.append(folder / "depth_preview.png")
        if points is not None:
            cloud = folder / f"points.{points}"
            write_points(cloud, *point_cloud(prediction.depth, rgb, far_m=far_m), points)
            files.append(cloud)
    if prediction.normals is not None:
        files += _write_normals(folder, prediction.normals, meta)
        views["Normals"] = normals_preview(prediction.normals)
        write_image(folder / "normals_preview.png", views["Normals"], gpano=True)
        files.append(folder / "normals_preview.png")
    if html:
        page = folder / "index.html"
        links = {path.name: path.name for path in files}
        write_viewer(page, views, title=f"PaGeR: {Path(source).name}", links=links)
        files.append(page)
    meta["files"] = [path.name for path in files]
    write_json(folder / META_NAME, meta)
    return [*files, folder / META_NAME]


def _write_depth(folder: Path, prediction: Prediction, meta: dict[str, Any]) -> list[Path]:
    assert prediction.depth is not None
    depth = prediction.depth
    write_npz(folder / "depth.npz", depth)
    scale = float(depth.max()) / PNG16_MAX
    write_png16(folder / "depth.png", (depth[0] / scale).round().astype(np.uint16))
    info = {
        "metres_per_unit": scale,
        "kind": "euclidean distance along the ray",
        "is_metric": prediction.is_metric,
        "note": "metres" if prediction.is_metric else "metres up to one unknown factor",
        "min": float(depth.min()),
        "max": float(depth.max()),
    }
    write_json(folder / "depth.json", info)
    meta["depth"] = info
    return [folder / name for name in ("depth.npz", "depth.png", "depth.json")]


def _write_normals(folder: Path, normals: np.ndarray, meta: dict[str, Any]) -> list[Path]:
    write_npz(folder / "normals.npz", normals)
    rdf = pager_to_rdf(torch.from_numpy(normals)).movedim(0, -1).numpy()
    encoded = ((rdf.clip(-1, 1) + 1) / 2 * PNG16_MAX).round().astype(np.uint16)
    _write_png16_color(folder / "normals.png", encoded)
    meta["normals"] = {
        "npz_frame": "x forward, y up, z left",
        "png_frame": "x right, y down, z forward; value = (n + 1) / 2 * 65535",
    }
    return [folder / "normals.npz", folder / "normals.png"]


def _write_png16_color(path: Path, rgb: np.ndarray) -> None:
    ok, data = cv2.imencode(".png", np.ascontiguousarray(rgb[..., ::-1]))
    if not ok:
        raise ValueError(f"{path}: OpenCV could not encode {rgb.shape} {rgb.dtype} as PNG")
    with atomic_path(path) as temporary:
        temporary.write_bytes(data.tobytes())


def is_complete(folder: Path, *, modalities: set[str], html: bool, points: str | None) -> bool:
    """Whether `folder` already holds everything that is asked for."""
    path = folder / META_NAME
    if not path.is_file():
        return False
    try:
        meta = json.loads(path.read_text())
    except ValueError:
        return False  # not written by us; predicted again
    wanted = modalities <= meta.keys()
    wanted &= not html or "index.html" in meta.get("files", [])
    wanted &= points is None or "depth" not in modalities or f"points.{points}" in meta["files"]
    return wanted and all((folder / name).is_file() for name in meta.get("files", []))
