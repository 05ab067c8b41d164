"""Closed walks for the loop-consistency score IECC: sampling, walking and drawing them.

A path is the list of dicts that `sample_path.py` of the original emits: `turn_angle` (degrees to the
right, >= 0, before the move), `move_distance` (frames; 0 only turns), `new_position` and `new_angle`
(see `genex_explorer.paths.to_original_path`).
"""

import itertools
import math
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image, ImageDraw

from genex_explorer.paths import Move, to_original_path
from genex_explorer.video import write_video
from shared_pano_utils.imageio import atomic_path, write_image, write_json

Step = dict[str, Any]

MAX_ERROR = 1e-5  # closing error of a loop of length 1 that counts as closed (original)
TARGET_ERROR = 1e-12
SOLVER_STEPS, DRAWS = 200, 100
MOVIE_FPS = 10
PATH_NAME, MOVIE_NAME, FRAMES_NAME = "path.json", "movement.mp4", "movements"


class Navigator(Protocol):
    """What a loop needs of `genex_explorer.explorer.Explorer`."""

    def navigate_path(
        self, path: list[Step], start_image: Image.Image, num_inference_steps: int = 50
    ) -> list[list[Image.Image]]:
        """Walk a path; lists of new panoramas, of the size of the start."""
        ...


# ---- paths --------------------------------------------------------------------------------------


def check_loop(num_frames: int, segments: int) -> None:
    """Raise ValueError unless a loop of `num_frames` frames in `segments` straight parts exists."""
    if segments < 2:
        raise ValueError(
            f"{segments} straight segment(s) never return to the start (rotation time "
            f"{segments}); use 2 or more"
        )
    if segments > num_frames:
        raise ValueError(
            f"a loop of {num_frames} frames has at most {num_frames} segments of one frame, not "
            f"{segments}; leave this pair out"
        )
    if segments == 2 and num_frames % 2:
        raise ValueError(
            f"a loop of {num_frames} frames in 2 segments goes there and back: the number of "
            "frames must be even; leave this pair out"
        )


def sample_lengths(num_frames: int, segments: int, rng: np.random.Generator) -> np.ndarray:
    """Draw frames per segment (k,): one each, the rest at random, none above half of the loop."""
    check_loop(num_frames, segments)
    lengths = np.ones(segments, dtype=np.int64)
    while lengths.sum() < num_frames:
        lengths[rng.choice(np.flatnonzero(lengths < num_frames // 2))] += 1
    return lengths


def sample_headings(lengths: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw headings (k,), radians, by which segments of the given lengths form a closed loop.

    Uniform headings are moved to a closed loop by damped Gauss-Newton steps on the closing error.
    The original descends the gradient of its square, up to 10 000 steps and often in vain.

    Raises:
        ValueError: the lengths form no loop.
    """
    weights = lengths / lengths.sum()
    for _ in range(DRAWS):
        angles = rng.uniform(0, 2 * math.pi, len(weights))
        for _ in range(SOLVER_STEPS):
            x, y = weights * np.cos(angles), weights * np.sin(angles)
            error = np.array([x.sum(), y.sum()])
            if np.abs(error).max() <= TARGET_ERROR:
                break
            jacobian = np.stack([-y, x])
            normal = jacobian @ jacobian.T + np.hypot(*error) * np.eye(2)
            angles = angles - jacobian.T @ np.linalg.solve(normal, error)
        closing = weights @ np.exp(1j * angles)
        if max(abs(closing.real), abs(closing.imag)) <= MAX_ERROR:
            return angles
    raise ValueError(f"segments of {lengths.tolist()} frames form no closed loop; draw others")


def construct_path(num_frames: int, segments: int, rng: np.random.Generator) -> list[Step]:
    """Draw a closed walk that ends with the heading of the start.

    Args:
        num_frames: frames walked in all (n).
        segments: straight parts (k).
        rng: decides lengths and headings.

    Returns:
        k steps and a last one that only turns back to heading 0; positions in frames.
    """
    lengths = sample_lengths(num_frames, segments, rng)
    headings = [0.0, *np.degrees(sample_headings(lengths, rng)), 0.0]
    turns = [float(after - before) % 360 for before, after in itertools.pairwise(headings)]
    frames = [*lengths.tolist(), 0]
    return to_original_path(Move(turn, n) for turn, n in zip(turns, frames, strict=True))


# ---- walking ------------------------------------------------------------------------------------


def is_complete(folder: Path, *, save_frames: bool = False) -> bool:
    """Whether `walk_loop` has finished in this folder; its path file is written last."""
    names = ["original.png", "navigated.png", MOVIE_NAME, PATH_NAME, "path.png"]
    names += [FRAMES_NAME] if save_frames else []
    return all((folder / name).exists() for name in names)


def walk_loop(
    explorer: Navigator,
    start: Image.Image,
    path: list[Step],
    folder: Path,
    *,
    num_inference_steps: int = 50,
    save_frames: bool = False,
) -> None:
    """Walk a loop and write ``original.png navigated.png movement.mp4 path.json path.png``.

    `original.png` is the start itself, which is also the first frame of the movie: the original
    stored the first frame of the walk, already turned and generated.

    Args:
        explorer: walks.
        start: panorama at the start.
        path: from `construct_path`.
        folder: of the case; also receives ``movements/frame{i}.png`` with `save_frames`.
        num_inference_steps: denoising steps per segment.
        save_frames: write every frame.

    Raises:
        ValueError: the explorer returned no frame.
    """
    segments = explorer.navigate_path(path, start, num_inference_steps=num_inference_steps)
    new = [np.asarray(frame.convert("RGB")) for segment in segments for frame in segment]
    if not new:
        raise ValueError(f"the explorer returned no frame for {folder.name}; check the model")
    frames = np.stack([np.asarray(start.convert("RGB")), *new])
    is_whole_sphere = frames.shape[2] == 2 * frames.shape[1]
    if save_frames:
        for index, frame in enumerate(frames):
            name = f"{FRAMES_NAME}/frame{index}.png"
            write_image(folder / name, frame, gpano=is_whole_sphere)
    write_video(folder / MOVIE_NAME, frames, fps=MOVIE_FPS, spherical=is_whole_sphere)
    write_image(folder / "original.png", frames[0], gpano=is_whole_sphere)
    write_image(folder / "navigated.png", frames[-1], gpano=is_whole_sphere)
    draw_path(path, folder / "path.png")
    write_json(folder / PATH_NAME, path)


# ---- drawing ------------------------------------------------------------------------------------


def draw_path(path: list[Step], save_path: Path, size_px: int = 480) -> None:
    """Draw a path from above: start as a dot, first heading up, arrows from blue to orange.

    Args:
        path: steps with positions (ahead, right).
        save_path: image file.
        size_px: side of the picture.
    """
    points = np.array([[0.0, 0.0], *(step["new_position"] for step in path)])
    scale = (size_px / 2 - 30) / max(float(np.abs(points).max()), 1.0)
    places = size_px / 2 + points[:, ::-1] * (scale, -scale)
    image = Image.new("RGB", (size_px, size_px), "white")
    draw = ImageDraw.Draw(image)
    for middle in ((0, size_px / 2, size_px, size_px / 2), (size_px / 2, 0, size_px / 2, size_px)):
        draw.line(middle, fill=(225, 225, 225))
    for index, (tail, head) in enumerate(itertools.pairwise(places)):
        part = index / max(len(path) - 2, 1)
        color = (round(40 + 200 * part), round(90 + 40 * part), round(200 - 170 * part))
        _draw_arrow(draw, tail, head, color)
    x, y = places[0]
    draw.ellipse((x - 5, y - 5, x + 5, y + 5), fill="black")
    with atomic_path(save_path) as temporary:
        image.save(temporary, format="PNG")


def _draw_arrow(
    draw: ImageDraw.ImageDraw, tail: np.ndarray, head: np.ndarray, color: tuple[int, int, int]
) -> None:
    length = float(np.hypot(*(head - tail)))
    if length == 0:
        return
    along = (head - tail) / length
    across = np.array([-along[1], along[0]])
    barb = min(12.0, length)
    corners = (head, head - barb * along + 5 * across, head - barb * along - 5 * across)
    draw.line((*tail, *(head - barb * along)), fill=color, width=3)
    draw.polygon([(float(x), float(y)) for x, y in corners], fill=color)
