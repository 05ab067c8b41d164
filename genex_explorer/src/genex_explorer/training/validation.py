"""Looking at a run while it trains: videos of panoramas, and numbers on held-out clips."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from genex_explorer.data.clips import find_clips, find_images, read_clip, stable_hash
from genex_explorer.metrics.perceptual import load_lpips, lpips_distance
from genex_explorer.pipeline import GenexPipeline
from genex_explorer.training.options import TrainOptions
from genex_explorer.video import write_gif, write_video
from shared_pano_utils.metrics import psnr, seam_error

FPS = 7


class Validator:
    """Walks into panoramas with the weights of the moment.

    Every panorama has its own fixed seed and no global generator is touched, so that validation
    never changes the training.

    Raises:
        FileNotFoundError: a folder is missing or empty.
    """

    def __init__(self, options: TrainOptions) -> None:
        self.options = options
        self.images: list[Path] = []
        self.clips: list[np.ndarray] = []
        self.lpips: Any = None
        size = (options.width, options.height)
        folder = options.validation_images_folder
        if folder is not None:
            if not folder.is_dir():
                raise FileNotFoundError(f"--validation_images_folder {folder} does not exist")
            self.images = find_images(folder)[: options.num_validation_images]
            if not self.images:
                raise FileNotFoundError(f"--validation_images_folder {folder} holds no image")
        if options.val_folder_videos is not None:
            span = (options.num_frames - 1) * options.frame_stride + 1
            clips = find_clips(options.val_folder_videos, span)[: options.num_val_videos]
            self.clips = [read_clip(c.frames[: span : options.frame_stride], size) for c in clips]
            if options.lpips_weights is not None:
                self.lpips = load_lpips(options.lpips_weights, torch.device("cpu"))

    def __bool__(self) -> bool:
        return bool(self.images or self.clips)

    def write_videos(self, pipeline: GenexPipeline, output: Path, step: int) -> list[Path]:
        """Write a video for each panorama into ``validation_images/``; the names of the original."""
        size = (self.options.width, self.options.height)
        paths = []
        for k, image in enumerate(self.images):
            frames = self.generate(pipeline, read_clip((image,), size)[0], k)
            suffix = self.options.validation_format
            path = output / "validation_images" / f"step_{step}_val_img_{k}.{suffix}"
            if suffix == "gif":
                write_gif(path, frames, fps=FPS)
            else:
                write_video(path, frames, fps=FPS, spherical=False)
            paths.append(path)
        return paths

    def measure(self, pipeline: GenexPipeline, output: Path, step: int) -> dict[str, float]:
        """Compare walks with held-out clips: means over clips and frames 2 to N.

        Writes a video with truth above prediction of the first clip.

        Returns:
            ``psnr`` and ``copy_first_psnr`` (dB), ``seam_ratio`` (1 = no seam), and ``lpips`` if
            its weights were given.
        """
        rows = []
        for k, clip in enumerate(self.clips):
            frames = self.generate(pipeline, clip[0], k)
            if k == 0:
                both = np.concatenate([clip, frames], 1)
                path = output / "validation_images" / f"step_{step}_truth_above.mp4"
                write_video(path, both, fps=FPS, spherical=False)
            walked, truth = _unit(frames[1:]), _unit(clip[1:])
            row = {
                "psnr": _decibels(walked, truth),
                "copy_first_psnr": _decibels(_unit(clip[:1]).expand_as(truth), truth),
                "seam_ratio": seam_error(walked)["wrap_ratio"].mean().item(),
            }
            if self.lpips is not None:
                row["lpips"] = lpips_distance(self.lpips, walked, truth).mean().item()
            rows.append(row)
        return {key: float(np.mean([row[key] for row in rows])) for key in rows[0]} if rows else {}

    @torch.no_grad()
    def generate(self, pipeline: GenexPipeline, erp: np.ndarray, number: int) -> np.ndarray:
        """Walk forward from a panorama (H, W, 3) uint8; (F, H, W, 3) uint8, the first as seen."""
        options = self.options
        seed = stable_hash(options.seed, "validation", number)
        result: Any = pipeline(
            Image.fromarray(erp),
            height=options.height,
            width=options.width,
            num_frames=options.num_frames,
            num_inference_steps=options.validation_inference_steps,
            max_guidance_scale=options.validation_guidance,
            fps=options.fps_id + 1,  # pyright: ignore[reportArgumentType]  # the pipeline feeds one less
            motion_bucket_id=options.motion_bucket_id,  # pyright: ignore[reportArgumentType]
            decode_chunk_size=8,
            generator=torch.Generator().manual_seed(seed),
            output_type="np",
        )
        return (result.frames[0] * 255).round().astype(np.uint8)


def _decibels(walked: Tensor, truth: Tensor) -> float:
    """Mean PSNR; equal frames count 100 dB, as in the original's metric."""
    return psnr(walked, truth).clamp(max=100).mean().item()


def _unit(frames: np.ndarray) -> Tensor:
    """(F, H, W, 3) uint8 -> (F, 3, H, W) in [0, 1]."""
    return torch.from_numpy(frames).movedim(-1, 1).float() / 255
