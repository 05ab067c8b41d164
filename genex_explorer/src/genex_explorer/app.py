"""The demo in the browser: stand in a panorama, turn, walk on, look around, take the walk away.

A visitor's walk lives in the session of the page and is made as `walk` makes it: the same moves
give the same frames as `explore.py`. Nothing is fetched by the page, and all uploads and results
lie in one folder that the caller owns.
"""

import html
import logging
import math
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from genex_explorer.legacy import check_panorama
from genex_explorer.outputs import PATH_NAME, POSES_NAME, VIDEO_NAME, Formats, write_walk
from genex_explorer.paths import STEP_M, Move, Pose, format_actions
from genex_explorer.walk import Segment, View, Walk, WalkSettings, check_size, resize_erp, walk
from shared_pano_utils.imageio import read_image
from shared_pano_utils.viewer import write_viewer

try:
    import gradio as gr
    from gradio.data_classes import ImageData
except ImportError as error:
    raise ImportError(
        "the demo in the browser needs gradio: pip install 'genex-explorer[app]'"
    ) from error

logger = logging.getLogger(__name__)

EXAMPLES = Path(__file__).parents[2] / "examples"
VIEWER_HEIGHT_PX = 480
MAX_CLIPS = 32
"""Clips that a walk may have: one of 24 new frames holds 42 MB until the visitor leaves."""
START_DEG = 30
NO_START = "there is no panorama yet; upload one or choose an example"

INTRODUCTION = """# GenEx-Explorer: walk through a panorama
Upload a full 360-degree panorama (width = 2 x height) or take an example, then turn and walk. The
model walks straight ahead, {step:g} m a frame; a walk is kept for {minutes} minutes after its last
move."""


# ---- one visitor --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Visit:
    """Where one visitor stands and how they came there; a move makes a new one.

    As in a path of `explore.py`, turns before a walk add up and belong to it.

    Attributes:
        start: (H, W, 3) uint8, any size.
        moves: single turns and walks, one for each button pressed.
        walked: what each of the walks added.
    """

    start: np.ndarray
    moves: tuple[Move, ...] = ()
    walked: tuple[Segment, ...] = ()

    def view(self) -> View:
        """What the visitor sees: the start or the last frame, and the turns since then."""
        erp = self.walked[-1].frames[-1] if self.walked else self.start
        turns_deg = 0.0
        for move in self.moves:
            turns_deg = 0.0 if move.frames else turns_deg + move.turn_deg
        return View(erp, turns_deg)

    def walk(self) -> Walk:
        """The walk so far; turns since the last walk add one turned panorama."""
        view = self.view()
        turned = (Segment(Move(view.yaw_deg, 0), view.render()[None]),) if view.yaw_deg else ()
        return Walk(self.start, (*self.walked, *turned))

    def turned(self, turn_deg: float) -> "Visit":
        """After a turn to the right."""
        return replace(self, moves=(*self.moves, Move(turn_deg, 0)))

    def forward(self, pipeline: Any, frames: int, settings: WalkSettings) -> "Visit":
        """After a walk that fits into one clip."""
        view = self.view()
        move = Move(view.yaw_deg, frames)
        result = walk(pipeline, view.erp, [move], settings, first_number=len(self.walked))
        return Visit(self.start, (*self.moves, Move(0.0, frames)), self.walked + result.segments)

    def undone(self) -> "Visit":
        """Before the last move."""
        if not self.moves:
            raise ValueError("there is no move to undo; this is the start")
        walked = self.walked[:-1] if self.moves[-1].frames else self.walked
        return Visit(self.start, self.moves[:-1], walked)


# ---- what the page shows ------------------------------------------------------------------------


def viewer_frame(folder: Path, erp: np.ndarray, title: str) -> str:
    """HTML of a frame that holds a 360-degree viewer; `folder` holds the page for a moment."""
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        path = Path(temporary) / "viewer.html"
        write_viewer(path, {"view": erp}, title=title)
        page = path.read_text(encoding="utf-8")
    # Without allow-same-origin the page cannot reach the app.
    return (
        '<iframe title="360-degree view" sandbox="allow-scripts" allowfullscreen '
        f'style="width: 100%; height: {VIEWER_HEIGHT_PX}px; border: 0" '
        f'srcdoc="{html.escape(page)}"></iframe>'
    )


def draw_map(poses: Sequence[Pose]) -> str:
    """SVG of a walk from above: a dot for each frame, a triangle where the visitor looks.

    Up is the centre of the first panorama. A unit of the drawing is a metre.
    """
    xs, ys = [pose.x_m for pose in poses], [0.0 - pose.z_m for pose in poses]
    span = 1.5 * max(max(xs) - min(xs), max(ys) - min(ys), 4 * STEP_M)
    left, top = (min(xs) + max(xs) - span) / 2, (min(ys) + max(ys) - span) / 2
    square = 10.0 ** math.floor(math.log10(span / 2))
    points = [(f"{x:.3f}", f"{y:.3f}") for x, y in zip(xs, ys, strict=True)]
    line = " ".join(f"{x},{y}" for x, y in points)
    dots = "".join(f'<circle cx="{x}" cy="{y}" r="{span / 100:.4f}"/>' for x, y in points)
    size = span / 25
    # SVG turns clockwise, as headings do.
    arrow = (
        f'<path d="M 0 {-1.6 * size:.4f} L {size:.4f} {size:.4f} L {-size:.4f} {size:.4f} Z" '
        f'transform="translate({" ".join(points[-1])}) rotate({poses[-1].heading_deg:.3f})"/>'
    )
    return f"""<figure style="margin: 0"><svg role="img" aria-label="map of the walk"
viewBox="{left:.3f} {top:.3f} {span:.3f} {span:.3f}" style="width: 100%; max-height: 320px">
<pattern id="squares" width="{square:g}" height="{square:g}" patternUnits="userSpaceOnUse">
<path d="M {square:g} 0 L 0 0 0 {square:g}" fill="none" stroke="gray"
stroke-width="{span / 400:.4f}" opacity="0.5"/></pattern>
<rect x="{left:.3f}" y="{top:.3f}" width="{span:.3f}" height="{span:.3f}" fill="url(#squares)"/>
<polyline points="{line}" fill="none" stroke="currentColor" stroke-width="{span / 200:.4f}"/>
<g fill="currentColor">{dots}</g><g fill="orangered">{arrow}</g></svg>
<figcaption>Squares of {square:g} m; up is the first view's centre.</figcaption></figure>"""


def describe(visited: Walk) -> str:
    """One line: how far, and where by dead reckoning."""
    frames = sum(segment.move.frames for segment in visited.segments)
    pose = visited.poses()[-1]
    x_m, z_m = round(pose.x_m, 2), round(pose.z_m, 2)
    return (
        f"{frames} frames, {frames * STEP_M:.1f} m walked; now {abs(z_m):.2f} m "
        f"{'behind' if z_m < 0 else 'ahead of'} and {abs(x_m):.2f} m to the "
        f"{'left' if x_m < 0 else 'right'} of the start, heading {pose.heading_deg:.1f} degrees"
    )


@contextmanager
def shown_to_user(folder: Path) -> Iterator[None]:
    """Turn what a user can mend into a message on the page, without the paths below `folder`."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        message = "out of memory; start app.py with --offload model or --device cpu"
        logger.warning("%s (%s)", message, error)
        raise gr.Error(message, print_exception=False) from error
    except (ValueError, OSError, FloatingPointError) as error:
        private = re.escape(str(folder)) + r"[\\/]\w+[\\/]"
        message = re.sub(private, "", " ".join(str(error).split()))
        logger.warning("%s", message)
        # gradio renders the message as HTML.
        raise gr.Error(html.escape(message, quote=False), print_exception=False) from error


# What every move changes on the page: session, view, status, path, map, files.
Shown = tuple[Visit, str, str, str, str, None]


class Guide:
    """The functions behind the buttons; what they know of a visitor is the `Visit` they get."""

    def __init__(self, pipeline: Any, settings: WalkSettings, folder: Path) -> None:
        """Refuse a size that the model cannot generate.

        Args:
            pipeline: `GenexPipeline` or the stock class, where it shall run.
            settings: of all clips.
            folder: where results go, the same as the environment's ``GRADIO_TEMP_DIR``.
        """
        check_size(pipeline, settings)
        self.pipeline, self.settings, self.folder = pipeline, settings, folder
        # The first frame of a clip repeats the view.
        self.max_frames: int = (settings.num_frames or pipeline.unet.config.num_frames) - 1
        self.size = (settings.width, settings.width // 2)

    def start(self, path: str | None) -> Shown:
        """Begin anew from a file: a panorama, 2:1 or of the model's size."""
        if path is None:
            raise ValueError(NO_START)
        erp = read_image(path)
        height, width = erp.shape[:2]
        check_panorama((width, height), (self.settings.width, self.settings.height))
        return self._show(Visit(erp))

    def forward(
        self,
        visit: Visit | None,
        frames: int,
        progress: gr.Progress = gr.Progress(track_tqdm=True),  # noqa: ARG002, B008 (by its default)
    ) -> Shown:
        """Walk `frames` frames to the centre of the view."""
        visit = _started(visit)
        if len(visit.walked) >= MAX_CLIPS:
            raise ValueError(
                f"the walk has {MAX_CLIPS} clips, no more are kept here; undo or reset, or walk "
                "this path with explore.py"
            )
        return self._show(visit.forward(self.pipeline, frames, self.settings))

    def turn(self, visit: Visit | None, degrees: float) -> Shown:
        """Turn on the spot, to the right."""
        return self._show(_started(visit).turned(degrees))

    def turn_left(self, visit: Visit | None, degrees: float) -> Shown:
        """Turn on the spot, to the left."""
        return self.turn(visit, -degrees)

    def undo(self, visit: Visit | None) -> Shown:
        """Take the last move back."""
        return self._show(_started(visit).undone())

    def reset(self, visit: Visit | None) -> Shown:
        """Go back to the start."""
        return self._show(Visit(_started(visit).start))

    def save(self, visit: Visit | None) -> list[str]:
        """Write video, path and poses, in a new folder that is whole or gone."""
        visited = _started(visit).walk()
        if not visited.segments:
            raise ValueError("there is no walk to save yet; turn or walk first")
        folder = self.folder / secrets.token_hex(16)
        try:
            formats = Formats(size=self.size, mp4=True)
            write_walk(folder, visited, formats, title="", made_with=asdict(self.settings))
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return [str(folder / name) for name in (VIDEO_NAME, PATH_NAME, POSES_NAME)]

    def _show(self, visit: Visit) -> Shown:
        visited = visit.walk()
        path = format_actions(segment.move for segment in visited.segments)
        erp = visited.segments[-1].frames[-1] if visited.segments else visited.start
        frame = viewer_frame(self.folder, resize_erp(erp, self.size), path or "start")
        return visit, frame, describe(visited), path, draw_map(visited.poses()), None


def _started(visit: Visit | None) -> Visit:
    if visit is None:
        raise ValueError(NO_START)
    return visit


# ---- page ---------------------------------------------------------------------------------------


def build_interface(guide: Guide, *, max_waiting: int, delete_cache: tuple[int, int]) -> gr.Blocks:
    """Build the page; the caller launches it.

    Args:
        guide: the model and where results go.
        max_waiting: requests that may queue; further ones are refused.
        delete_cache: seconds between two cleanings, and the age from which a file or a walk is
            deleted.
    """
    guard = shown_to_user(guide.folder)
    start = guard(guide.start)
    pictures = sorted(str(picture) for picture in EXAMPLES.glob("*.jpg"))
    with gr.Blocks(
        title="GenEx-Explorer", analytics_enabled=False, delete_cache=delete_cache
    ) as page:
        gr.Markdown(INTRODUCTION.format(step=STEP_M, minutes=delete_cache[1] // 60))
        visit = gr.State(time_to_live=delete_cache[1])
        viewer = gr.HTML(label="View", elem_id="viewer", render=False)
        status = gr.Markdown(label="Status", elem_id="status", render=False)
        path = gr.Textbox(
            label="Path", info="as explore.py --path takes it", placeholder="no move yet", lines=2,
            interactive=False, buttons=["copy"], elem_id="path", render=False,
        )  # fmt: skip
        plan = gr.HTML(label="Map", elem_id="map", render=False)
        files = gr.File(label="Files", file_count="multiple", interactive=False, render=False)
        shown = [visit, viewer, status, path, plan, files]
        with gr.Row():
            with gr.Column(scale=2):
                image = gr.Image(label="Start", sources=["upload", "clipboard"])
                # Unopened: our checks explain better than gradio what is wrong with a file.
                image.preprocess = partial(_upload_path, guide.folder)
                image.upload(start, image, shown, api_name="start")
                # Not gr.Examples, which makes the image anew, with gradio's own checks.
                examples = gr.Dataset(
                    components=[image], samples=[[path] for path in pictures], type="index",
                    label="Examples", visible=bool(pictures),
                )  # fmt: skip
                examples.click(
                    lambda index: (pictures[index], *start(pictures[index])),
                    examples, [image, *shown], api_visibility="private",
                )  # fmt: skip
                plan.render()
            with gr.Column(scale=3):
                viewer.render()
                status.render()
                _place_moves(guide, guard, shown)
                path.render()
                save = gr.Button("Save the walk")
                save.click(guard(guide.save), visit, files, api_name="save")
                files.render()
    page.queue(max_size=max_waiting)
    return page


def _place_moves(guide: Guide, guard: Callable[..., Any], shown: list[Any]) -> None:
    """The sliders and buttons of the moves."""
    visit, viewer = shown[:2]
    with gr.Row(equal_height=True):
        # The model makes a whole clip each time: fewer frames take as long.
        frames = gr.Slider(
            1, guide.max_frames, guide.max_frames, step=1, precision=0, label="Frames", scale=4
        )
        metres = gr.Markdown(f"{guide.max_frames * STEP_M:.1f} m", elem_id="metres", min_width=60)
        forward = gr.Button("Forward", variant="primary", scale=4)
    with gr.Row(equal_height=True):
        degrees = gr.Slider(1, 180, START_DEG, step=1, label="Degrees", scale=2)
        left, right = gr.Button("Left"), gr.Button("Right")
    with gr.Row():
        undo, reset = gr.Button("Undo"), gr.Button("Reset")
    frames.change(None, frames, metres, js=f"n => ({STEP_M} * n).toFixed(1) + ' m'")
    # One at a time: a pipeline keeps the steps of its schedule in itself.
    forward.click(
        guard(guide.forward), [visit, frames], shown,
        api_name="forward", concurrency_limit=1, show_progress_on=viewer,
    )  # fmt: skip
    # For programs: one signed number, of which the slider would refuse all that turn left.
    signed = gr.Number(START_DEG, label="Degrees to the right", visible=False)
    signed.submit(guard(guide.turn), [visit, signed], shown, api_name="turn")
    left.click(guard(guide.turn_left), [visit, degrees], shown, api_visibility="private")
    right.click(guard(guide.turn), [visit, degrees], shown, api_visibility="private")
    undo.click(guard(guide.undo), visit, shown, api_name="undo")
    reset.click(guard(guide.reset), visit, shown, api_name="reset")


def _upload_path(folder: Path, payload: ImageData | None) -> str | None:
    """The uploaded file; gradio refuses other paths only in a payload that calls itself a file."""
    if payload is None:
        return None
    if not Path(payload.path or "").resolve().is_relative_to(folder.resolve()):
        raise gr.Error("that is not an uploaded file; upload it first", print_exception=False)
    return payload.path
