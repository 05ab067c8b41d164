"""Closed walks: the latent MSE of IECC, and the comparison with the true place.

IECC (paper: IELC) asks only whether a walk returns to where it began; a model that never moves is
perfect. On a procedural scene the true panorama of every pose is known, so frames on the way count
too, beside a baseline that turns the start panorama and walks nowhere.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from genex_explorer.metrics.frames import Case, psnr, read_frames_of, ws_psnr
from shared_pano_utils import rotate_erp
from shared_pano_utils.geometry import rotation_matrix
from shared_pano_utils.imageio import read_image
from shared_pano_utils.synthetic import Pose, Scene
from shared_pano_utils.synthetic.paths import free_distance

SETTING = re.compile(r"^n_(\d+)_k_(\d+)$")
CLEARANCE_M = 0.05  # nearer to a surface, a panorama shows the surface and nothing else
CLOSED_M, CLOSED_DEG = 0.05, 1.0
Distance = Callable[[np.ndarray, np.ndarray], float]


# ---- IECC ---------------------------------------------------------------------------------------


def loop_setting(root: Path, case: Case) -> str:
    """``n_20_k_4`` (frames, segments) if a folder of the case is called so, otherwise ``other``."""
    parts = (*root.resolve().parts, *Path(case.id).parts)
    return next((part for part in reversed(parts) if SETTING.match(part)), "other")


def score_loops(root: Path, cases: list[Case], distance: Distance) -> dict[str, Any]:
    """Average a distance between the first and the last image of loops.

    Args:
        root: folder of the evaluation.
        cases: its pairs, at least one.
        distance: of two images (H, W, 3) uint8.

    Returns:
        ``average``, ``pairs``, ``settings`` (name -> average and pairs), ``cases`` (id -> value).
    """
    values: dict[str, float] = {}
    groups: dict[str, list[float]] = {}
    for case in cases:
        original, navigated = read_frames_of(case.original)[0], read_frames_of(case.navigated)[0]
        values[case.id] = distance(navigated, original)
        groups.setdefault(loop_setting(root, case), []).append(values[case.id])
    return {
        "average": float(np.mean(list(values.values()))),
        "pairs": len(values),
        "settings": {
            name: {"average": float(np.mean(group)), "pairs": len(group)}
            for name, group in groups.items()
        },
        "cases": values,
    }


# ---- true panoramas -----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class LoggedPose:
    """Where a generated frame claims to be, in the frame of the start pose.

    Attributes:
        frame: number in the file name of the frame.
        x_m: metres to the right of the start.
        z_m: metres ahead of it.
        heading_deg: degrees to the right of the first heading.
    """

    frame: int
    x_m: float
    z_m: float
    heading_deg: float


@dataclass(frozen=True, kw_only=True)
class Place:
    """Procedural scene of a clip and where its walk starts.

    Attributes:
        scene: rendered as ground truth.
        start: camera to world.
        aa: rays per pixel and axis, as the clip was rendered.
    """

    scene: Scene
    start: Pose
    aa: int


def read_poses(path: Path) -> list[LoggedPose]:
    """Read ``{"poses": [{"frame", "x_m", "z_m", "heading_deg"}, ...]}``; other keys are ignored.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a JSON file, or without a pose.
    """
    try:
        poses = [
            LoggedPose(
                frame=int(row["frame"]),
                **{key: float(row[key]) for key in ("x_m", "z_m", "heading_deg")},
            )
            for row in _read_json(path)["poses"]
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is not a pose log ({type(error).__name__}: {error}); expected "
            '{"poses": [{"frame": 0, "x_m": 0, "z_m": 0, "heading_deg": 0}, ...]}'
        ) from error
    if not poses:
        raise ValueError(f"{path} holds no pose; explore at least one step")
    return poses


def read_place(path: Path) -> Place:
    """Read the ``clip.json`` of a procedural clip.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not the record of a procedural clip.
    """
    try:
        record = _read_json(path)
        start = Pose(*(torch.tensor(record["start"][key]).float() for key in ("R", "t")))
        scene = Scene.random(int(record["seed"]), record["kind"])
        return Place(scene=scene, start=start, aa=int(record["aa"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is not the record of a procedural clip ({type(error).__name__}: {error}); "
            "use clip.json of prepare_procedural.py"
        ) from error


def true_pose(place: Place, pose: LoggedPose) -> Pose:
    """World pose (camera to world) of a logged one."""
    offset = torch.tensor([pose.x_m, 0.0, pose.z_m])
    turn = rotation_matrix(yaw=pose.heading_deg).float()
    return Pose(R=place.start.R @ turn, t=place.start.t + place.start.R @ offset)


def true_panorama(place: Place, pose: LoggedPose, size: tuple[int, int]) -> Tensor:
    """Render (3, H, W) float32 in [0, 1], multiples of 1/255, at a logged pose; size is (H, W)."""
    view = true_pose(place, pose)
    rgb = place.scene.render(view, size, outputs=("rgb",), aa=place.aa).rgb
    assert rgb is not None
    return (rgb * 255).round() / 255


def score_exploration(exploration: Path, clip: Path) -> dict[str, Any]:
    """Compare an exploration of a procedural clip with the true panoramas of its poses.

    Frames whose pose lies in or at an obstacle are listed as ``blocked`` and left out of the means,
    as the paper discards blocked paths.

    Args:
        exploration: folder with ``poses.json`` and ``frames/frame_0000.png`` ...
        clip: ``clip.json`` of the clip whose first frame was the start.

    Returns:
        ``frames`` (a row each), ``mean`` over the free ones, ``closure`` of the last pose.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is unreadable, the frames differ in size, or no pose is free.
    """
    poses, place = read_poses(exploration / "poses.json"), read_place(clip)
    files = [exploration / "frames" / f"frame_{pose.frame:04d}.png" for pose in poses]
    size = read_image(files[0]).shape[:2]
    origin = LoggedPose(frame=0, x_m=0.0, z_m=0.0, heading_deg=0.0)
    start = true_panorama(place, origin, size)
    rows = []
    for pose, file in zip(poses, files, strict=True):
        image = read_image(file)
        if image.shape[:2] != size:
            raise ValueError(
                f"{file} is {image.shape[1]}x{image.shape[0]}, the first frame "
                f"{size[1]}x{size[0]}; write all frames at one size"
            )
        frame = torch.from_numpy(image).movedim(-1, 0) / 255
        rows.append(_row(place, pose, frame, start))
    free = [row for row in rows if not row["is_blocked"]]
    if not free:
        raise ValueError(f"all {len(rows)} poses lie in obstacles of the scene; walk elsewhere")
    keys = ("psnr", "ws_psnr", "baseline_psnr", "baseline_ws_psnr")
    return {
        "mean": {key: float(np.mean([row[key] for row in free])) for key in keys},
        "closure": _closure(poses[-1], rows[-1]),
        "blocked": len(rows) - len(free),
        "frames": rows,
    }


def _row(place: Place, pose: LoggedPose, frame: Tensor, start: Tensor) -> dict[str, Any]:
    """PSNR of a frame (3, H, W) in [0, 1], and of the start panorama turned to its heading."""
    truth = true_panorama(place, pose, (frame.shape[-2], frame.shape[-1]))
    turned = cast(Tensor, rotate_erp(start, yaw=pose.heading_deg))
    position = true_pose(place, pose).t.double().numpy()[None]
    row: dict[str, Any] = {
        "frame": pose.frame,
        "is_blocked": bool(free_distance(place.scene, position)[0] < CLEARANCE_M),
    }
    for prefix, image in (("", frame), ("baseline_", turned)):
        for name, metric in (("psnr", psnr), ("ws_psnr", ws_psnr)):
            row[prefix + name] = float(metric(image[None], truth[None]))
    return row


def _closure(last: LoggedPose, row: dict[str, Any]) -> dict[str, Any]:
    """The row of the last frame, and whether its pose is the start again."""
    distance_m = float(np.hypot(last.x_m, last.z_m))
    heading_deg = (last.heading_deg + 180) % 360 - 180
    is_closed = distance_m <= CLOSED_M and abs(heading_deg) <= CLOSED_DEG
    return {
        "is_closed": is_closed,
        "distance_m": distance_m,
        "heading_deg": heading_deg,
        **row,
    }


def _read_json(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    return json.loads(path.read_text(encoding="utf-8"))
