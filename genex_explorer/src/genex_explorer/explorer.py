"""The original's class `Explorer`: its methods, over `walk` and `legacy`.

What differs from the original: turns are exact and add up instead of blurring, segments hold new
frames only, a move by 25 walks 25 steps, every clip has a seed of its own, and neither the caller's
path nor the global random generator changes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from genex_explorer.cross_attention import use_single_token_shortcut
from genex_explorer.embedded import TINY_ASSETS, TINY_HEIGHT, TINY_STEPS, TINY_WIDTH
from genex_explorer.legacy import (
    check_panorama,
    cubemap_cross,
    faces_to_erp,
    legacy_cubemap,
    legacy_erp,
    legacy_rotate,
    legacy_view,
    perspective_view,
)
from genex_explorer.loading import load_pipeline
from genex_explorer.memory import Offload, check_placement, choose_device, place
from genex_explorer.parameters import load_adapter
from genex_explorer.paths import Move, read_path
from genex_explorer.pipeline import GenexPipeline, SeamMode
from genex_explorer.video import write_gif, write_video
from genex_explorer.walk import View, WalkSettings, resize_erp, walk

TINY_SETTINGS: dict[str, Any] = {
    "width": TINY_WIDTH,
    "height": TINY_HEIGHT,
    "num_inference_steps": TINY_STEPS,
    "max_guidance": 1.0,
    "fps_id": 7,  # as in training; only the released model is called as the original called it
}
"""`WalkSettings` of the embedded model."""

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """Resolve "auto" to the original's float16 on accelerators and float32 on the CPU."""
    if name != "auto":
        return DTYPES[name]
    return torch.float32 if device.type == "cpu" else torch.float16


def open_pipeline(
    model: str,
    *,
    unet: str | None = None,
    lora: str | None = None,
    revision: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    offload: Offload = "none",
    compile: bool = False,
    shortcut: bool = False,
    seam_mode: SeamMode = "vae",
    wrap_columns: int = 4,
) -> GenexPipeline:
    """Load a pipeline and put it where it runs.

    Args:
        model: hub id or folder of a Stable Video Diffusion pipeline.
        unet: hub id or folder whose ``unet`` replaces the model's.
        lora: folder of adapters that `--trainable lora` wrote for this model.
        revision: hub revision of the model.
        device: "auto", "cpu", "cuda", "cuda:1" or "mps".
        dtype: "auto", "float32", "float16" or "bfloat16".
        offload: see `memory.place`.
        compile: compile the UNet.
        shortcut: cross-attention without queries and keys; exact.
        seam_mode: see `GenexPipeline`.
        wrap_columns: see `GenexPipeline`.
    """
    where = choose_device(device)
    weights = choose_dtype(dtype, where)
    check_placement(where, weights, offload=offload, compile=compile)
    pipeline = load_pipeline(model, unet_path=unet, revision=revision, dtype=weights)
    pipeline.seam_mode, pipeline.wrap_columns = seam_mode, wrap_columns
    if lora is not None:
        load_adapter(pipeline.unet, lora)
    if shortcut:
        use_single_token_shortcut(pipeline.unet)
    place(pipeline, where, weights, offload=offload, compile=compile)
    return pipeline


def load_explorer(
    *,
    unet_path: str | None = None,
    svd_path: str,
    tiny: bool = False,
    device: str = "auto",
) -> "Explorer":
    """Make an `Explorer` that is ready to walk.

    Args:
        unet_path: hub id or folder whose ``unet`` is used; None is that of `svd_path`.
        svd_path: hub id or folder of the pipeline.
        tiny: the embedded pipeline and its sizes, instead of both paths.
        device: "auto", "cpu", "cuda", "cuda:1" or "mps".
    """
    explorer = Explorer()
    if tiny:
        explorer.pipeline = open_pipeline(str(TINY_ASSETS), device=device)
        explorer.settings = WalkSettings(**TINY_SETTINGS)
        explorer.image_size = (TINY_WIDTH, TINY_HEIGHT)
    else:
        explorer.pipeline = open_pipeline(svd_path, unet=unet_path, device=device)
    return explorer


class Explorer:
    """Walk through a panorama step by step, as the original's class did.

    Images are PIL images; what comes back has the size of the image that was set.

    Args:
        legacy: turns, cubemaps and views by the original's image maths, blur and seams included,
            to compare with its results.

    Attributes:
        pipeline: set by `get_pipeline` or `load_explorer`.
        settings: of the clips.
        image_size: (width, height) of videos and GIFs.
    """

    def __init__(self, *, legacy: bool = False) -> None:
        self.legacy = legacy
        self.pipeline: GenexPipeline | None = None
        self.settings = WalkSettings()
        self.image_size = (1024, 512)
        self._view: View | None = None
        self._size = self.image_size
        self._history: list[list[Image.Image]] = []
        self._start: Image.Image | None = None

    def get_pipeline(
        self,
        unet_path: str,
        svd_path: str,
        num_frames: int = 25,
        fps: int = 7,
        progress_bar: bool = True,
        image_width: int = 1024,
        image_height: int = 512,
        model_width: int = 1024,
        model_height: int = 576,
    ) -> None:
        """Load the UNet of one model and everything else of another, onto the first accelerator."""
        self.pipeline = open_pipeline(svd_path, unet=unet_path)
        self.pipeline.set_progress_bar_config(disable=not progress_bar)
        self.image_size = (image_width, image_height)
        self.settings = replace(
            self.settings,
            width=model_width,
            height=model_height,
            num_frames=num_frames,
            fps_id=fps - 1,
        )

    # -- state

    def set_current_image(self, image: Image.Image) -> None:
        """Start anew from a panorama, 2:1 or of the model's size."""
        check_panorama(image.size, (self.settings.width, self.settings.height))
        self._view, self._size = View(_array(image)), image.size
        self.clear_movements()

    def get_current_image(self) -> Image.Image:
        """The panorama at the current place, with the current heading in its centre."""
        return self._image(self._current().render())

    def clear_movements(self) -> None:
        """Forget the segments so far; place and heading stay."""
        self._history = []
        self._start = None if self._view is None else self.get_current_image()

    def get_all_frames(self) -> list[list[Image.Image]]:
        """The segments so far: the new frames of each walk, the turned panorama of each turn."""
        return self._history

    # -- moves

    def move_forward(
        self,
        image: Image.Image | None = None,
        num_frames: int | None = None,
        num_steps: int | None = None,
        width: int | None = None,
        height: int | None = None,
        num_inference_steps: int = 30,
        noise_aug_strength: float = 0.02,
    ) -> list[Image.Image]:
        """Walk to the image centre.

        Args:
            image: panorama to start anew from; None goes on.
            num_frames: frames to return, the start included; None is a whole clip (original: 25).
            num_steps: new frames, instead of `num_frames`.
            width: of the generated frames, instead of the model's.
            height: of the generated frames, instead of the model's.
            num_inference_steps: denoising steps.
            noise_aug_strength: noise on the start of the clip.

        Returns:
            The start and the new frames. Only the new ones become a segment.
        """
        if image is not None:
            self.set_current_image(image)
        pipeline, view, start = self._pipeline(), self._current(), self.get_current_image()
        settings = replace(
            self.settings,
            width=width or self.settings.width,
            height=height or self.settings.height,
            num_inference_steps=num_inference_steps,
            noise_aug_strength=noise_aug_strength,
        )
        if num_steps is None:
            clip = num_frames or settings.num_frames or int(pipeline.unet.config.num_frames)
            num_steps = clip - 1
        moves = [Move(0.0, num_steps)]
        result = walk(pipeline, view.render(), moves, settings, first_number=len(self._history))
        segments = [[self._image(frame) for frame in part.frames] for part in result.segments]
        if result.segments:
            self._view = View(result.segments[-1].frames[-1])
        self._history += segments
        return [start, *(frame for segment in segments for frame in segment)]

    def rotate_panorama(
        self,
        panorama_image: Image.Image | None = None,
        rotation_degrees: float = 0,
        scale_factor: int = 5,
    ) -> Image.Image:
        """Turn to the right on the spot; the turned panorama becomes a segment of its own.

        `scale_factor` is that of the original's enlarged copy; without `legacy`, turns are exact.
        """
        if panorama_image is not None:
            self.set_current_image(panorama_image)
        if self.legacy:
            erp = self._current().render()
            self._view = View(legacy_rotate(erp, rotation_degrees, scale_factor))
        else:
            self._view = self._current().turned(rotation_degrees)
        self._history.append([self.get_current_image()])
        return self.get_current_image()

    def navigate_path(
        self,
        path: str | Path | Sequence[Mapping[str, Any]],
        start_image: Image.Image,
        num_inference_steps: int = 50,
    ) -> list[list[Image.Image]]:
        """Walk a path from a panorama; earlier segments are forgotten.

        Args:
            path: the original's list of dictionaries, which stays as it is, or a JSON file.
            start_image: panorama, 2:1 or of the model's size.
            num_inference_steps: denoising steps of a clip.

        Returns:
            One list of new frames for each segment: a step that is longer than a clip makes
            several, one that neither turns nor walks none.
        """
        self.set_current_image(start_image)
        settings = replace(self.settings, num_inference_steps=num_inference_steps)
        result = walk(self._pipeline(), _array(start_image), read_path(path), settings)
        self._history = [[self._image(frame) for frame in part.frames] for part in result.segments]
        self._view = result.end()
        return self._history

    # -- files

    def save_video(self, save_path: str | Path, fps: float = 10) -> None:
        """Write the start and all segments as H.264, with spherical metadata if 2:1."""
        width, height = self.image_size
        write_video(save_path, self._frames(), fps=fps, spherical=width == 2 * height)

    def save_gif(self, save_path: str | Path, fps: float = 10) -> None:
        """Write the start and all segments as an animated GIF."""
        write_gif(save_path, self._frames(), fps=fps)

    # -- projections

    def convert_panorama_to_cubemap(
        self,
        panorama_image: Image.Image | None = None,
        interpolation: bool = True,
        scale_factor: int = 2,
    ) -> tuple[Image.Image, dict[str, Image.Image]]:
        """Cut a panorama (None: the current one) into cube faces.

        Args:
            panorama_image: 2:1.
            interpolation: bilinear instead of nearest.
            scale_factor: of the faces, whose side is W / 4 times it.

        Returns:
            The 4 x 3 cross, as wide as the panorama, and the faces right, left, top, bottom,
            front, back.
        """
        image = panorama_image or self.get_current_image()
        check_panorama(image.size)
        if self.legacy:
            cross, faces = legacy_cubemap(_array(image), scale_factor)
            return Image.fromarray(cross), {key: Image.fromarray(faces[key]) for key in faces}
        side, mode = image.width // 4, "bilinear" if interpolation else "nearest"
        cross, _ = cubemap_cross(_array(image), side, mode)
        _, faces = cubemap_cross(_array(image), side * scale_factor, mode)
        return Image.fromarray(cross), {key: Image.fromarray(faces[key]) for key in faces}

    def cubemap_to_equirectangular(
        self,
        cubemap_faces: Mapping[str, Image.Image],
        output_width: int,
        output_height: int,
        scale_factor: int = 2,
    ) -> Image.Image:
        """Assemble a panorama from cube faces, sampled `scale_factor` times as finely."""
        faces = {key: _array(face) for key, face in cubemap_faces.items()}
        if self.legacy:
            return Image.fromarray(legacy_erp(faces, (output_height, output_width), scale_factor))
        fine = faces_to_erp(faces, (output_height * scale_factor, output_width * scale_factor))
        return Image.fromarray(resize_erp(fine, (output_width, output_height)))

    def extract_normal_view(
        self,
        panorama: Image.Image,
        fov_h: float,
        fov_v: float,
        center_yaw: float,
        center_pitch: float,
        center_roll: float,
        output_width: int,
        output_height: int,
    ) -> Image.Image:
        """Look into a panorama with a pinhole camera.

        Degrees: yaw to the right, pitch down, roll lowers the left border.
        """
        size = (output_height, output_width)
        angles = (fov_h, fov_v, center_yaw, center_pitch, center_roll)
        look = legacy_view if self.legacy else perspective_view
        return Image.fromarray(look(_array(panorama), *angles, size))

    # -- inner

    def _pipeline(self) -> GenexPipeline:
        if self.pipeline is None:
            raise ValueError("no model is loaded; call get_pipeline(unet_path, svd_path) first")
        return self.pipeline

    def _current(self) -> View:
        if self._view is None:
            raise ValueError("there is no panorama yet; call set_current_image(image) first")
        return self._view

    def _image(self, erp: np.ndarray) -> Image.Image:
        """At the size of the image that was set."""
        return Image.fromarray(resize_erp(erp, self._size))

    def _frames(self) -> np.ndarray:
        if self._start is None:
            raise ValueError("there is nothing to save yet; walk first")
        frames = [self._start, *(frame for segment in self._history for frame in segment)]
        return np.stack([resize_erp(_array(frame), self.image_size) for frame in frames])


def _array(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"))
