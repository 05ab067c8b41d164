"""Exploring a panorama: turn, walk, turn again.

The network only walks to the image centre, one clip at a time. A turn is a yaw of the panorama, the
last frame of a clip starts the next one, and where the viewer is follows from the moves alone.
Nothing here reads or writes files, or touches the global random generators.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from genex_explorer.data.clips import stable_hash
from genex_explorer.paths import Move, Pose, split_moves, trace
from genex_explorer.rotation import turn


@dataclass(frozen=True, kw_only=True)
class WalkSettings:
    """How clips are generated; the defaults are the original's calls.

    Attributes:
        width: of the generated frames in pixels.
        height: of the generated frames in pixels; 576 squeezes a panorama of 1024x512.
        num_frames: of a clip, the start included; None is the model's.
        num_inference_steps: denoising steps of a clip.
        min_guidance: guidance scale of the first frame.
        max_guidance: of the last frame, linear in between; 1 needs half the time.
        noise_aug_strength: noise on the start of a clip, in units of [-1, 1].
        fps_id: first added number. The original trained with 7, but its exploration fed 6: it
            called the pipeline with ``fps=7``, which subtracts 1.
        motion_bucket_id: second added number.
        decode_chunk: frames decoded at a time; fewer need less memory and flicker at the joints.
        seed: every clip has a generator of its own, seeded by this and its number in the walk.
    """

    width: int = 1024
    height: int = 576
    num_frames: int | None = None
    num_inference_steps: int = 30
    min_guidance: float = 1.0
    max_guidance: float = 3.0
    noise_aug_strength: float = 0.02
    fps_id: float = 6
    motion_bucket_id: float = 127
    decode_chunk: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("num_inference_steps", "decode_chunk"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; use 1 or more")
        if not 0 <= self.noise_aug_strength < math.inf:
            raise ValueError(f"noise_aug_strength is {self.noise_aug_strength}; use 0 or more")
        if not self.min_guidance <= self.max_guidance < math.inf:
            raise ValueError(
                f"guidance goes from {self.min_guidance} to {self.max_guidance}; it must not fall, "
                "use min_guidance <= max_guidance"
            )


@dataclass(frozen=True)
class View:
    """What the viewer sees: a panorama as it was made, and how far it is turned.

    The angles of several turns add up and the panorama is turned once: a fraction of a column
    blurs, so that an already turned image is never turned again.

    Attributes:
        erp: (H, W, 3) uint8, the start or the last generated frame.
        yaw_deg: to the right.
    """

    erp: np.ndarray
    yaw_deg: float = 0.0

    def turned(self, yaw_deg: float) -> "View":
        """The view after a turn to the right."""
        return View(self.erp, self.yaw_deg + yaw_deg)

    def render(self) -> np.ndarray:
        """The panorama (H, W, 3) uint8 with the viewer's heading in its centre."""
        return turn(self.erp, self.yaw_deg)


@dataclass(frozen=True)
class Segment:
    """One move that fits into a clip, and what it added.

    Attributes:
        move: a turn, a walk, or a turn and a walk.
        frames: (N, H, W, 3) uint8. A walk adds its new frames, N = `move.frames`; the first frame
            of the clip repeats the view it started from and is not among them. A mere turn adds
            the turned panorama.
    """

    move: Move
    frames: np.ndarray


@dataclass(frozen=True)
class Walk:
    """The result of a path.

    Attributes:
        start: (H, W, 3) uint8, any size.
        segments: in order; generated frames have the model's size.
    """

    start: np.ndarray
    segments: tuple[Segment, ...]

    def frames(self, size: tuple[int, int]) -> np.ndarray:
        """The start and everything that was added, (1 + sum of N, H, W, 3) at (width, height)."""
        added = (frame for segment in self.segments for frame in segment.frames)
        return np.stack([resize_erp(erp, size) for erp in (self.start, *added)])

    def poses(self) -> list[Pose]:
        """Where each of `frames` was taken, by dead reckoning."""
        poses = [Pose()]
        for move in (segment.move for segment in self.segments):
            steps = [Move(move.turn_deg, 1 if move.frames else 0)]
            steps += [Move(0.0, 1)] * (move.frames - 1)
            poses += trace(steps, poses[-1])[1:]
        return poses

    def end(self) -> View:
        """What the viewer sees at the end."""
        view = View(self.start)
        for segment in self.segments:
            walked = segment.move.frames
            view = View(segment.frames[-1]) if walked else view.turned(segment.move.turn_deg)
        return view

    def last_frames(self) -> list[int]:
        """Index of the last of `frames` of each segment."""
        counts = [len(segment.frames) for segment in self.segments]
        return np.cumsum(counts, dtype=int).tolist()


# ---- walking ------------------------------------------------------------------------------------


def walk(
    pipeline: Any,
    start: np.ndarray,
    moves: Iterable[Move],
    settings: WalkSettings,
    first_number: int = 0,
) -> Walk:
    """Walk one path from one panorama; see `walk_together`."""
    return walk_together(pipeline, [start], [moves], settings, first_number=first_number)[0]


def walk_together(
    pipeline: Any,
    starts: Sequence[np.ndarray],
    paths: Sequence[Iterable[Move]],
    settings: WalkSettings,
    *,
    first_number: int = 0,
    on_clips: Callable[[int], object] = lambda _: None,
) -> list[Walk]:
    """Walk several paths, whose clips of the same number are generated in one batch.

    The noise of a clip depends on the seed and on its number in its own path only: a walk is the
    same alone and beside others (up to rounding of batched arithmetic), and paths that begin
    alike have the same frames up to where they part.

    Args:
        pipeline: `GenexPipeline` or the stock class.
        starts: panoramas (H, W, 3) uint8 of any size, one for each path.
        paths: left unchanged; moves longer than a clip are split.
        settings: of all clips.
        first_number: number of the first segment, where a walk goes on.
        on_clips: called with the number of finished clips after each batch.

    Returns:
        One walk for each path.

    Raises:
        ValueError: the size does not fit the model.
        FloatingPointError: the model gave NaN or infinity.
    """
    check_size(pipeline, settings)
    plans = [plan_segments(pipeline, moves, settings) for moves in paths]
    views = [View(start) for start in starts]
    segments: list[list[Segment]] = [[] for _ in plans]
    for number in range(max(map(len, plans), default=0)):
        active = [i for i, plan in enumerate(plans) if number < len(plan)]
        for i in active:
            views[i] = views[i].turned(plans[i][number].turn_deg)
        walking = [i for i in active if plans[i][number].frames]
        if walking:
            seed = stable_hash(settings.seed, first_number + number)
            clips = generate_clips(
                pipeline, [views[i].render() for i in walking], [seed] * len(walking), settings
            )
            for i, clip in zip(walking, clips, strict=True):
                move = plans[i][number]
                # A copy, lest the frames beyond the move and those of other walks stay in memory.
                segments[i].append(Segment(move, clip[1 : move.frames + 1].copy()))
                views[i] = View(segments[i][-1].frames[-1])
            on_clips(len(walking))
        for i in (i for i in active if not plans[i][number].frames):
            segments[i].append(Segment(plans[i][number], views[i].render()[None]))
    return [Walk(start, tuple(parts)) for start, parts in zip(starts, segments, strict=True)]


def plan_segments(pipeline: Any, moves: Iterable[Move], settings: WalkSettings) -> list[Move]:
    """Cut moves into clips of the model; steps that neither turn nor walk are left out."""
    frames = settings.num_frames or pipeline.unet.config.num_frames
    return [move for move in split_moves(moves, frames) if move.turn_deg or move.frames]


def generate_clips(
    pipeline: Any, views: Sequence[np.ndarray], seeds: Sequence[int], settings: WalkSettings
) -> np.ndarray:
    """Generate one clip straight ahead from each view.

    Args:
        pipeline: `GenexPipeline` or the stock class.
        views: B panoramas (H, W, 3) uint8 of any size.
        seeds: of the clips; noise is drawn on the CPU, the same on every device.
        settings: of all clips.

    Returns:
        (B, F, height, width, 3) uint8; the first frame resembles the view.
    """
    size = (settings.width, settings.height)
    frames = pipeline(
        [Image.fromarray(resize_erp(view, size)) for view in views],
        width=settings.width,
        height=settings.height,
        num_frames=settings.num_frames,
        num_inference_steps=settings.num_inference_steps,
        min_guidance_scale=settings.min_guidance,
        max_guidance_scale=settings.max_guidance,
        fps=settings.fps_id + 1,  # the pipeline subtracts it again
        motion_bucket_id=settings.motion_bucket_id,
        noise_aug_strength=settings.noise_aug_strength,
        decode_chunk_size=settings.decode_chunk,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        output_type="np",
    ).frames
    if not np.isfinite(frames).all():
        raise FloatingPointError(
            "the model gave NaN or infinity; use dtype bfloat16 or float32 instead of float16"
        )
    return (frames * 255).round().astype(np.uint8)


# ---- sizes --------------------------------------------------------------------------------------


def check_size(pipeline: Any, settings: WalkSettings) -> None:
    """Refuse a size that is no whole number of latents, or that the stock pipeline refuses."""
    unit = math.lcm(8, pipeline.vae_scale_factor)
    if min(settings.width, settings.height) < 1 or settings.width % unit or settings.height % unit:
        raise ValueError(
            f"model size is {settings.width}x{settings.height}; width and height must be multiples "
            f"of {unit} for this model, use the size it was trained at"
        )


def resize_erp(erp: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize (H, W, 3) uint8 to (width, height) by antialiased bicubic, around +-180 degrees."""
    height, width = erp.shape[:2]
    if (width, height) == size:
        return erp
    reach = 0 if width == size[0] else min(width, math.ceil(2 * max(1.0, width / size[0])))
    padded = np.pad(erp, ((0, 0), (reach, reach), (0, 0)), mode="wrap")
    box = (reach, 0, reach + width, height)
    return np.asarray(Image.fromarray(padded).resize(size, Image.Resampling.BICUBIC, box=box))
