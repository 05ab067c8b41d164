"""Write predictions: npz, 16-bit PNG with its scale, previews, point cloud, viewer page.

A panorama's files lie in one folder; ``meta.json`` is written last and lists them, so a folder
with a ``meta.json`` is complete.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import matplotlib
import numpy as np
import torch

from pager.cloud import PointFormat, point_cloud, write_points
from pager.geometry import pager_to_rdf
from pager.pipeline import Prediction
from shared_pano_utils.imageio import atomic_path, write_image, write_json, write_png16
from shared_pano_utils.viewer import write_viewer

META_NAME = "meta.json"
PNG16_MAX = 65_535
PREVIEW_QUANTILE = 0.99
PREVIEW_COLORMAP = "Spectral"


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
    made_with: dict[str, dict[str, Any]] | None = None,
    points: PointFormat | None = "ply",
    html: bool = False,
) -> list[Path]:
    """Write every output of one panorama into `folder`, all or nothing.

    The files are made beside it and moved there, ``meta.json`` last. What another modality left
    there before, for the same `source`, stays and stays listed.

    Args:
        folder: created if needed.
        rgb: (H, W, 3) uint8 input.
        prediction: maps of the same size.
        source: the input's path, recorded in the metadata.
        made_with: modality to checkpoint and options, recorded in the metadata.
        points: point-cloud format, None for no cloud.
        html: also write ``index.html``, a self-contained 360-degree viewer.

    Returns:
        The files written.
    """
    before = read_meta(folder)
    meta: dict[str, Any] = before if before.get("source") == source else {"source": source}
    meta["size"] = list(rgb.shape[:2])
    meta["made_with"] = {**meta.get("made_with", {}), **(made_with or {})}
    staging = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        names = _write_files(staging, rgb, prediction, meta, points=points, html=html)
        meta["files"] = sorted({*names, *meta.get("files", [])})
        write_json(staging / META_NAME, meta)
        folder.mkdir(exist_ok=True)
        (folder / META_NAME).unlink(missing_ok=True)  # not complete while files change
        for name in (*names, META_NAME):
            (staging / name).replace(folder / name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return [folder / name for name in (*names, META_NAME)]


def _write_files(
    folder: Path,
    rgb: np.ndarray,
    prediction: Prediction,
    meta: dict[str, Any],
    *,
    points: PointFormat | None,
    html: bool,
) -> list[str]:
    """Write all files but the metadata, which is completed; their names."""
    names: list[str] = []
    views: dict[str, np.ndarray] = {"RGB": rgb}
    if prediction.depth is not None:
        names += _write_depth(folder, prediction, meta)
        views["Depth"] = depth_preview(prediction.depth)
        write_image(folder / "depth_preview.png", views["Depth"], gpano=True)
        names.append("depth_preview.png")
        if points is not None:
            cloud = point_cloud(prediction.depth, rgb, far_m=prediction.far_m)
            write_points(folder / f"points.{points}", *cloud, points)
            names.append(f"points.{points}")
    if prediction.normals is not None:
        names += _write_normals(folder, prediction.normals, meta)
        views["Normals"] = normals_preview(prediction.normals)
        write_image(folder / "normals_preview.png", views["Normals"], gpano=True)
        names.append("normals_preview.png")
    if html:
        write_page(folder / "index.html", views, meta["source"], {name: name for name in names})
        names.append("index.html")
    return names


def write_page(
    path: Path, views: dict[str, np.ndarray], source: str, links: dict[str, str]
) -> None:
    """Write the viewer page of one panorama: pictures (H, W, 3) uint8 by caption, links by name."""
    write_viewer(path, views, title=f"PaGeR: {Path(source).name}", links=links)


def _write_depth(folder: Path, prediction: Prediction, meta: dict[str, Any]) -> list[str]:
    assert prediction.depth is not None
    depth = prediction.depth
    write_npz(folder / "depth.npz", depth)
    scale = float(depth.max()) / PNG16_MAX
    write_png16(folder / "depth.png", (depth[0] / scale).round().astype(np.uint16), gpano=True)
    info = {
        "metres_per_unit": scale,
        "kind": "euclidean distance along the ray",
        "is_metric": prediction.is_metric,
        "note": "metres" if prediction.is_metric else "metres up to one unknown factor",
        "min": float(depth.min()),
        "max": float(depth.max()),
        "far_m": prediction.far_m,
    }
    write_json(folder / "depth.json", info)
    meta["depth"] = info
    return ["depth.npz", "depth.png", "depth.json"]


def _write_normals(folder: Path, normals: np.ndarray, meta: dict[str, Any]) -> list[str]:
    write_npz(folder / "normals.npz", normals)
    rdf = pager_to_rdf(torch.from_numpy(normals)).movedim(0, -1).numpy()
    encoded = ((rdf.clip(-1, 1) + 1) / 2 * PNG16_MAX).round().astype(np.uint16)
    _write_png16_color(folder / "normals.png", encoded)
    meta["normals"] = {
        "npz_frame": "x forward, y up, z left",
        "png_frame": "x right, y down, z forward; value = (n + 1) / 2 * 65535",
    }
    return ["normals.npz", "normals.png"]


def _write_png16_color(path: Path, rgb: np.ndarray) -> None:
    ok, data = cv2.imencode(".png", np.ascontiguousarray(rgb[..., ::-1]))
    if not ok:
        raise ValueError(f"{path}: OpenCV could not encode {rgb.shape} {rgb.dtype} as PNG")
    with atomic_path(path) as temporary:
        temporary.write_bytes(data.tobytes())


def read_meta(folder: Path) -> dict[str, Any]:
    """The ``meta.json`` of a result folder; empty if there is none, or none of ours."""
    try:
        meta = json.loads((folder / META_NAME).read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    return meta if isinstance(meta, dict) else {}


def _differing(item: Any, other: Any) -> str:
    """`item` as text; of options, only those that `other` has not."""
    if not (isinstance(item, dict) and isinstance(other, dict)):
        return str(item)
    return ", ".join(f"{k}={v}" for k, v in item.items() if k not in other or other[k] != v)


def is_complete(
    folder: Path,
    *,
    source: str,
    made_with: dict[str, dict[str, Any]],
    html: bool,
    points: str | None,
) -> bool:
    """Whether `folder` already holds everything that is asked for.

    Raises:
        ValueError: it holds the results of another input, checkpoint or option.
    """
    meta = read_meta(folder)
    if not meta:
        return False
    found = {"source": meta.get("source")} | meta.get("made_with", {})
    for key, value in {"source": source, **made_with}.items():
        if key in found and found[key] != value:
            was, now = (_differing(item, other) for item, other in
                        ((found[key], value), (value, found[key])))  # fmt: skip
            raise ValueError(
                f"{folder} holds results made with {key} {was}, not {now}; choose another "
                "--results_path or pass --overwrite"
            )
    files = meta.get("files", [])
    wanted = made_with.keys() <= meta.keys()
    wanted &= not html or "index.html" in files
    wanted &= points is None or "depth" not in made_with or f"points.{points}" in files
    return wanted and all((folder / name).is_file() for name in files)
