"""The functions behind the buttons of the demo."""

import html
import logging
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import torch

from dit360.app.examples import Example, paint_example
from dit360.app.painting import Canvas, Window
from dit360.editing import EditSettings, edit
from dit360.editing.masks import check_height, read_source, resize_keep, token_keep
from dit360.editing.place import PHOTO_ERODE, place_photo
from dit360.generate import Settings, generate_image, with_trigger, write_panorama
from shared_pano_utils.imageio import read_image
from shared_pano_utils.metrics import seam_error
from shared_pano_utils.viewer import write_viewer

logger = logging.getLogger(__name__)

VIEWER_HEIGHT_PX = 480
FILE_NAME = "panorama.png"
HOLE_ERODE = 1
"""Latent cells by which the kept part is smaller than what was not painted: every token that a
hole touches is new."""
NO_PANORAMA = "there is no panorama yet; upload one or choose an example"
NO_PHOTO = "there is no photo yet; upload one or choose an example"

# What every run changes on the page: viewer, flat image, file, prompt as sent, numbers.
Shown = tuple[str, str, str, str, str]
Drawn = tuple[Canvas | None, np.ndarray | None, np.ndarray | None]
"""What every stroke changes: the session's canvas, the editor's background, the overview."""


@contextmanager
def shown_to_user(folder: Path) -> Iterator[None]:
    """Turn what a user can mend into a message on the page, without the paths below `folder`."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        message = "out of memory; start app.py with --memory balanced or low"
        logger.warning("%s (%s)", message, error)
        raise gr.Error(message, print_exception=False) from error
    except (ValueError, OSError, FloatingPointError) as error:
        private = re.escape(str(folder)) + r"[\\/](?:\w+[\\/])*"
        message = re.sub(private, "", " ".join(str(error).split()))
        logger.warning("%s", message)
        # gradio renders the message as HTML.
        raise gr.Error(html.escape(message, quote=False), print_exception=False) from error


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


@dataclass(frozen=True)
class Studio:
    """One open pipeline and what does not change from job to job.

    Attributes:
        pipeline: `DiT360Pipeline`, ready to run.
        sampling: of text; its height is that of all results.
        editing: of inpainting and outpainting; the prompt is replaced.
        folder: where results go, the same as the environment's ``GRADIO_TEMP_DIR``.
    """

    pipeline: Any
    sampling: Settings
    editing: EditSettings
    folder: Path

    def __post_init__(self) -> None:
        check_height(self.sampling.height)

    # ---- text -----------------------------------------------------------------------------------

    def generate(
        self,
        prompt: str,
        seed: int | None,
        steps: int,
        guidance: float,
        progress: gr.Progress = gr.Progress(track_tqdm=True),  # noqa: ARG002, B008 (by its default)
    ) -> Shown:
        """Make a panorama from text."""
        started = time.perf_counter()
        text, number = _full_prompt(prompt), _checked_seed(seed)
        settings = replace(self.sampling, num_inference_steps=steps, guidance_scale=guidance)
        erp = generate_image(self.pipeline, text, number, settings)
        return self._show(erp, {"prompt": text, "seed": number, **vars(settings)}, "", started)

    # ---- inpainting -----------------------------------------------------------------------------

    def open_panorama(self, path: str | None) -> Drawn:
        """Begin with a panorama file, 2:1, and no hole."""
        return _draw(self._read(path))

    def open_example(self, example: Example) -> Drawn:
        """Begin with an example and its hole."""
        return _draw(paint_example(self._read(example.panorama), example))

    def paint(
        self,
        canvas: Canvas | None,
        strokes: np.ndarray | None,
        in_view: bool,
        yaw_deg: float,
        pitch_deg: float,
        fov_deg: float,
    ) -> Drawn:
        """Add the editor's strokes to the hole, then show the panorama in the wanted way."""
        window = Window(yaw_deg, pitch_deg, fov_deg) if in_view else None
        return _draw(_started(canvas).painted(strokes).seen_through(window))

    def clear(self, canvas: Canvas | None) -> Drawn:
        """Take the hole away, and strokes not yet added with it."""
        return _draw(_started(canvas).cleared())

    def inpaint(
        self,
        canvas: Canvas | None,
        strokes: np.ndarray | None,
        prompt: str,
        tau: float,
        seed: int | None,
        steps: int,
        guidance: float,
        progress: gr.Progress = gr.Progress(track_tqdm=True),  # noqa: ARG002, B008
    ) -> Shown:
        """Fill the hole; strokes not yet added count."""
        canvas = _started(canvas).painted(strokes)
        if not canvas.hole.any():
            raise ValueError("the mask is empty; paint over what shall become new")
        advice = "the hole covers nearly everything; clear the mask and paint a smaller one"
        keep = _checked_keep(~canvas.hole, HOLE_ERODE, advice)
        return self._edit(canvas.source, keep, prompt, tau, seed, steps, guidance)

    # ---- outpainting ----------------------------------------------------------------------------

    def preview_photo(
        self, path: str | None, fov_deg: float, yaw_deg: float, pitch_deg: float, roll_deg: float
    ) -> np.ndarray | None:
        """Show where a photo lies: its surroundings, still unknown, are dark."""
        if path is None:
            return None
        erp, seen = self._place(path, fov_deg, yaw_deg, pitch_deg, roll_deg)
        return np.where(seen[..., None], erp, erp // 4)

    def outpaint(
        self,
        path: str | None,
        fov_deg: float,
        yaw_deg: float,
        pitch_deg: float,
        roll_deg: float,
        prompt: str,
        tau: float,
        seed: int | None,
        steps: int,
        guidance: float,
        progress: gr.Progress = gr.Progress(track_tqdm=True),  # noqa: ARG002, B008
    ) -> Shown:
        """Make the panorama around a photo."""
        if path is None:
            raise ValueError(NO_PHOTO)
        erp, seen = self._place(path, fov_deg, yaw_deg, pitch_deg, roll_deg)
        advice = (
            f"a photo of {fov_deg:g} degrees is too small in a panorama of "
            f"{2 * self.sampling.height}x{self.sampling.height}; use a larger field of view"
        )
        keep = _checked_keep(seen, PHOTO_ERODE, advice)
        return self._edit(erp, keep, prompt, tau, seed, steps, guidance)

    # ---- shared ---------------------------------------------------------------------------------

    def _read(self, path: str | None) -> Canvas:
        if path is None:
            raise ValueError(NO_PANORAMA)
        return Canvas.start(read_source(Path(path), self.sampling.height))

    def _place(
        self, path: str, fov_deg: float, yaw_deg: float, pitch_deg: float, roll_deg: float
    ) -> tuple[np.ndarray, np.ndarray]:
        return place_photo(
            read_image(path), self.sampling.height,
            fov_deg=fov_deg, yaw_deg=yaw_deg, pitch_deg=pitch_deg, roll_deg=roll_deg,
        )  # fmt: skip

    def _edit(
        self,
        source: np.ndarray,
        keep: np.ndarray,
        prompt: str,
        tau: float,
        seed: int | None,
        steps: int,
        guidance: float,
    ) -> Shown:
        started = time.perf_counter()
        settings = replace(
            self.editing, prompt=_full_prompt(prompt), tau=tau, seed=_checked_seed(seed),
            num_inference_steps=steps, guidance_scale=guidance,
        )  # fmt: skip
        result = edit(self.pipeline, source, keep, settings)
        numbers = (
            f"kept region {result.kept_psnr_db:.1f} dB ({result.model_psnr_db:.1f} dB before the "
            f"source was laid over it), border step {result.border_step:.2f} (1 = invisible), "
        )
        return self._show(result.image, dict(vars(settings)), numbers, started)

    def _show(
        self, erp: np.ndarray, made_with: dict[str, Any], numbers: str, started: float
    ) -> Shown:
        """Write the file, in a new folder that is whole or gone, and describe it."""
        seam = float(seam_error(erp)["wrap_ratio"])
        status = (
            f"seam ratio {seam:.2f} (1 = no seam), {numbers}{erp.shape[1]}x{erp.shape[0]} pixels, "
            f"seed {made_with['seed']}, {time.perf_counter() - started:.1f} s"
        )
        prompt = made_with["prompt"]
        folder = self.folder / secrets.token_hex(16)
        path = folder / FILE_NAME
        try:
            write_panorama(path, erp, made_with)
            frame = viewer_frame(self.folder, erp, prompt)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return frame, str(path), str(path), prompt, status


def _draw(canvas: Canvas) -> Drawn:
    return canvas, canvas.picture(), canvas.overview()


def _started(canvas: Canvas | None) -> Canvas:
    if canvas is None:
        raise ValueError(NO_PANORAMA)
    return canvas


def _full_prompt(prompt: str) -> str:
    if not prompt.strip():
        raise ValueError("the prompt is empty; describe the panorama")
    return with_trigger(prompt.strip())


def _checked_seed(seed: int | None) -> int:
    if seed is None:
        raise ValueError("the seed is empty; use a whole number from 0")
    return seed


def _checked_keep(keep: np.ndarray, erode_cells: int, advice: str) -> np.ndarray:
    """Shrink the kept part; refuse what leaves no token on one of the two sides."""
    smaller = resize_keep(keep, -erode_cells)
    try:
        token_keep(smaller)
    except ValueError as error:  # its advice names flags of the command line
        raise ValueError(advice) from error
    return smaller
