"""An analytic room, and a writer for the layout of every data set, independent of the loaders.

Room coordinates: right, up, forward, camera at the origin. Everything is float64 and written with
`struct`, NumPy and OpenCV; the loaders read with Pillow and their own code.
"""

import io
import struct
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

LOW, HIGH = np.array([-2.0, -1.5, -3.0]), np.array([2.5, 1.2, 4.0])


class Room(NamedTuple):
    """A panorama: rgb (H, W, 3) uint8, distance along the ray (H, W) m, normals (H, W, 3)."""

    rgb: np.ndarray
    depth: np.ndarray
    normals: np.ndarray
    directions: np.ndarray

    @property
    def pager_normals(self) -> np.ndarray:
        """Forward, up, left: (3, H, W)."""
        right, up, forward = np.moveaxis(self.normals, -1, 0)
        return np.stack([forward, up, -right])


def box_room(height: int, width: int | None = None, scale: float = 1.0) -> Room:
    """Ray-cast an empty box seen from inside, by the textbook formula for pixel centres."""
    width = width or 2 * height
    lon = 2 * np.pi * (np.arange(width) + 0.5) / width - np.pi
    lat = (0.5 - (np.arange(height) + 0.5) / height) * np.pi
    lon, lat = np.meshgrid(lon, lat)
    directions = np.stack(
        [np.cos(lat) * np.sin(lon), np.sin(lat), np.cos(lat) * np.cos(lon)], axis=-1
    )
    bounds = np.where(directions > 0, HIGH, LOW) * scale
    distances = np.full_like(bounds, np.inf)
    np.divide(bounds, directions, out=distances, where=directions != 0)
    axis = distances.argmin(-1)
    normals = -np.eye(3)[axis] * np.sign(np.take_along_axis(directions, axis[..., None], -1))
    depth = distances.min(-1)
    points = directions * depth[..., None]
    rgb = np.clip((points - LOW * scale) / ((HIGH - LOW) * scale), 0, 1)
    return Room((255 * rgb).round().astype(np.uint8), depth, normals, directions)


# ---- files --------------------------------------------------------------------------------------


def write_rgb(path: Path, rgb: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(path.suffix, rgb[..., ::-1]))


def write_png16(path: Path, units: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(".png", units.round().astype(np.uint16)))


def encode(suffix: str, image: np.ndarray) -> bytes:
    """Bytes of an image file; colour in OpenCV's order (blue, green, red)."""
    options = [cv2.IMWRITE_JPEG_QUALITY, 100, cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
               cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]  # fmt: skip
    done, data = cv2.imencode(
        suffix, np.ascontiguousarray(image), options if suffix == ".jpg" else []
    )
    assert done
    return data.tobytes()


def encode_npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def write_dpt(path: Path, depth: np.ndarray) -> None:
    """``PIEH``, width, height, then rows of float32, all little-endian."""
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = depth.shape
    values = depth.astype(np.float64).ravel().tolist()
    path.write_bytes(b"PIEH" + struct.pack(f"<ii{len(values)}f", width, height, *values))


# ---- layouts ------------------------------------------------------------------------------------


def write_matterport(root: Path, split: str, scene: str, key: str, room: Room, part="p1") -> Path:
    """Write one panorama and put its scene into the list; returns the folder of the files."""
    base = root / "Matterport3D360"
    folder = base / part / "data" / scene
    write_rgb(folder / f"{key}_rgb.png", room.rgb)
    write_dpt(folder / f"{key}_depth.dpt", room.depth)
    write_rgb(folder / f"{key}_depth_vis.png", room.rgb)
    with (base / f"scenes_{split}.txt").open("a") as file:
        file.write(scene + "\n")
    return folder


def write_stanford(root: Path, area: str, name: str, room: Room) -> Path:
    folder = root / "Stanford2D3DS" / area / "pano"
    stem = f"{name}_frame_equirectangular_domain"
    write_rgb(folder / "rgb" / f"{stem}_rgb.png", room.rgb)
    units = np.where(np.isfinite(room.depth), room.depth * 512, 65535)
    write_png16(folder / "depth" / f"{stem}_depth.png", units)
    return folder


def write_scannetpp(root: Path, split: str, scene: str, stem: str, room: Room) -> Path:
    folder = root / "ScannetPP/data" / scene / "panocam"
    write_rgb(folder / "resized_images" / f"{stem}.jpg", room.rgb)
    write_png16(folder / "resized_depth" / f"{stem}.png", room.depth * 1000)
    listed = root / "ScannetPP/splits" / f"nvs_sem_{split}.txt"
    listed.parent.mkdir(exist_ok=True)
    listed.write_text((listed.read_text() if listed.exists() else "") + scene + "\n")
    return folder


def write_structured3d(
    root: Path, scene: int, name: str, room: Room, normals_name="normal.png"
) -> Path:
    folder = root / f"Structured3D/scene_{scene:05d}/2D_rendering/{name}/panorama/full"
    write_rgb(folder / "rgb_rawlight.png", room.rgb)
    write_png16(folder / "depth.png", room.depth * 1000)
    backward = room.normals * [1, 1, -1]  # right, up, backward
    write_rgb(folder / normals_name, ((backward + 1) * 128).round().clip(0, 255).astype(np.uint8))
    return folder


def write_replica(root: Path, scene: str, number: str, room: Room, mask: np.ndarray) -> Path:
    folder = root / "Replica360_4K" / scene
    write_rgb(folder / f"{number}_rgb_pano.jpg", room.rgb)
    write_dpt(folder / f"{number}_depth_pano.dpt", room.depth)
    (folder / f"{number}_mask_pano.png").write_bytes(encode(".png", mask.astype(np.uint8) * 255))
    return folder


def hub_row(room: Room, *, kind: str, max_depth_m: float) -> dict:
    """A row of the published PanoInfinigen: `kind` "npy" (first layout) or "image" (current)."""
    normals = np.moveaxis(room.pager_normals, 0, -1)
    if kind == "npy":
        return {
            "image": {"bytes": encode(".png", room.rgb[..., ::-1]), "path": None},
            "depth": encode_npy(room.depth.astype(np.float32)),
            "normals": encode_npy(normals.astype(np.float16)),
        }
    depth = (room.depth / max_depth_m * 65535).round().astype(np.uint16)
    coloured = ((normals + 1) * 127.5).round().astype(np.uint8)
    values = {
        "image": encode(".jpg", room.rgb[..., ::-1]),
        "depth": encode(".png", depth),
        "depth_viz": encode(".jpg", room.rgb[..., ::-1]),
        "normals": encode(".jpg", coloured[..., ::-1]),
    }
    return {name: {"bytes": data, "path": None} for name, data in values.items()}
