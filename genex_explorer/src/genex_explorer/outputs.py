"""What exploration writes: video, frames, views, cubemap, page, and the log of poses.

``poses.json`` is written last, so that a folder which has it is complete.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from genex_explorer.legacy import cubemap_cross, perspective_view
from genex_explorer.paths import STEP_M, format_actions, to_original_path
from genex_explorer.video import write_gif, write_video
from genex_explorer.walk import Walk
from shared_pano_utils.imageio import write_image, write_json
from shared_pano_utils.viewer import write_viewer

POSES_NAME, PATH_NAME = "poses.json", "path.json"
VIDEO_NAME, GIF_NAME = "walk.mp4", "walk.gif"
CUBEMAP_NAME, PAGE_NAME, FRAMES_NAME = "cubemap.png", "walk.html", "frames"
VIEW_FOV_DEG = 90.0
VIEW_ANGLES = {
    "front": (0.0, 0.0),
    "right": (90.0, 0.0),
    "back": (180.0, 0.0),
    "left": (-90.0, 0.0),
    "up": (0.0, -90.0),
    "down": (0.0, 90.0),
}
"""Yaw to the right and pitch down in degrees, from the direction of walking."""


@dataclass(frozen=True, kw_only=True)
class Formats:
    """What to write beside ``path.json`` and ``poses.json``.

    Attributes:
        size: (width, height) of the panoramas in pixels.
        fps: of videos and GIF.
        mp4: the walk as a video.
        gif: the walk as an animated GIF.
        frames: every panorama as PNG.
        views: names of `VIEW_ANGLES`, a square video each.
        cubemap: the 4 x 3 cross of the last panorama.
        html: a page with a 360-degree viewer of the start and the end of every segment.
    """

    size: tuple[int, int]
    fps: float = 10
    mp4: bool = False
    gif: bool = False
    frames: bool = False
    views: tuple[str, ...] = ()
    cubemap: bool = False
    html: bool = False

    def __post_init__(self) -> None:
        if min(self.size) < 1:
            raise ValueError(f"output size is {self.size[0]}x{self.size[1]}; use 1 or more")
        if not 0 < self.fps <= 1000:
            raise ValueError(f"fps is {self.fps}; use more than 0, up to 1000")
        for view in self.views:
            if view not in VIEW_ANGLES:
                raise ValueError(f"view {view!r} is unknown; use some of {', '.join(VIEW_ANGLES)}")


def is_finished(folder: Path, made_with: dict[str, Any]) -> bool:
    """Whether `folder` holds a complete walk.

    Args:
        folder: of one walk.
        made_with: everything the result depends on, as it would be written now.

    Raises:
        ValueError: it holds a walk that was made otherwise.
    """
    path = folder / POSES_NAME
    if not path.is_file():
        return False
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["made_with"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not a log of poses; choose another --output_dir or pass --overwrite"
        ) from error
    wanted = json.loads(json.dumps(made_with))  # tuples become lists, as in the file
    for key in sorted({*found, *wanted}):
        if found.get(key) != wanted.get(key):
            raise ValueError(
                f"{folder} holds a walk made with {key} {found.get(key)}, not {wanted.get(key)}; "
                "choose another --output_dir or pass --overwrite"
            )
    return True


def write_walk(
    folder: Path, walk: Walk, formats: Formats, *, title: str, made_with: dict[str, Any]
) -> None:
    """Write a walk; what an earlier one left in the folder is removed first.

    Args:
        folder: receives the files.
        walk: with its start.
        formats: what to write.
        title: of the page.
        made_with: see `is_finished`.
    """
    _clear(folder)
    frames = walk.frames(formats.size)
    spherical = formats.size[0] == 2 * formats.size[1]
    if formats.mp4:
        write_video(folder / VIDEO_NAME, frames, fps=formats.fps, spherical=spherical)
    if formats.gif:
        write_gif(folder / GIF_NAME, frames, fps=formats.fps)
    if formats.frames:
        for index, frame in enumerate(frames):
            write_image(folder / FRAMES_NAME / f"frame_{index:04d}.png", frame, gpano=spherical)
    for name in formats.views:
        view = crop_view(frames, name)
        write_video(folder / f"view_{name}.mp4", view, fps=formats.fps, spherical=False)
    if formats.cubemap:
        write_image(folder / CUBEMAP_NAME, cubemap_cross(frames[-1])[0])
    if formats.html:
        write_page(folder / PAGE_NAME, walk, frames, title)
    moves = [segment.move for segment in walk.segments]
    write_json(folder / PATH_NAME, to_original_path(moves))
    write_json(folder / POSES_NAME, describe_poses(walk) | {"made_with": made_with})


def crop_view(frames: np.ndarray, name: str) -> np.ndarray:
    """Look out of panoramas (N, H, W, 3) uint8 to one side of a cube: (N, H, H, 3) uint8."""
    yaw, pitch_down = VIEW_ANGLES[name]
    side = frames.shape[1]
    crops = (
        perspective_view(erp, VIEW_FOV_DEG, VIEW_FOV_DEG, yaw, pitch_down, 0.0, (side, side))
        for erp in frames
    )
    return np.stack(list(crops))


def describe_poses(walk: Walk) -> dict[str, Any]:
    """The log of poses: metres right of and ahead of the start, degrees to the right.

    Rounded to micrometres and microdegrees, where dead reckoning leaves noise.
    """
    rows = [
        {
            "frame": index,
            "x_m": round(pose.x_m, 6) + 0.0,  # no -0.0
            "z_m": round(pose.z_m, 6) + 0.0,
            "heading_deg": round(pose.heading_deg, 6),
        }
        for index, pose in enumerate(walk.poses())
    ]
    return {"metres_per_frame": STEP_M, "poses": rows}


def write_page(path: Path, walk: Walk, frames: np.ndarray, title: str) -> None:
    """Write the page with the start and the last panorama of each segment; it opens offline."""
    panoramas = {"start": frames[0]}
    for number, (segment, last) in enumerate(
        zip(walk.segments, walk.last_frames(), strict=True), 1
    ):
        panoramas[f"{number}: {format_actions([segment.move])}"] = frames[last]
    write_viewer(path, panoramas, title=title)


def _clear(folder: Path) -> None:
    """Remove the files of an earlier walk, the sign of its completeness first."""
    names = (POSES_NAME, PATH_NAME, VIDEO_NAME, GIF_NAME, CUBEMAP_NAME, PAGE_NAME)
    views = [f"view_{name}.mp4" for name in VIEW_ANGLES]
    for name in (*names, *views):
        (folder / name).unlink(missing_ok=True)
    for frame in folder.glob(f"{FRAMES_NAME}/frame_*.png"):
        frame.unlink()
