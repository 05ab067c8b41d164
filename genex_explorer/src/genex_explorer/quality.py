"""Quality of a tiny pipeline on held-out procedural places, beside trivial baselines.

Clips: PSNR of frames 2 to N, beside copying the first frame and beside two ceilings: the true
frames, encoded and decoded by the VAE; and the first frame, as the VAE shows it, moved by the true
depth of every pixel. Loops: four times forward and a turn of 90 degrees,
each frame beside the true panorama of its pose.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from genex_explorer.data.clips import to_unit
from genex_explorer.data.procedural import (
    CLIP_SEEDS,
    KINDS,
    ClipOptions,
    SceneKind,
    find_walk,
    first_seed,
    render_erp,
)
from genex_explorer.metrics.loop import CLEARANCE_M, LoggedPose, Place, true_panorama, true_pose
from genex_explorer.paths import STEP_M, Move, Pose
from genex_explorer.vae import decode_clips, encode_moments
from genex_explorer.walk import WalkSettings, walk
from shared_pano_utils import rays, rotate_erp, sample_erp
from shared_pano_utils.metrics import psnr, seam_error
from shared_pano_utils.synthetic import Pose as ScenePose
from shared_pano_utils.synthetic import Scene
from shared_pano_utils.synthetic.paths import free_distance

HELD_OUT: dict[SceneKind, int] = {"room": 16, "corridor": 8, "outdoor": 8}
LOOPS: dict[SceneKind, int] = {"room": 4, "corridor": 4, "outdoor": 4}
RENDERED = (128, 64)  # width and height, as the training clips are rendered
LOOP_FRAMES = 3  # of each side
LOOP_OFFSET = 1000  # loops have other scenes than clips
POSES_PER_SCENE = 40
SKY_M = 1000.0  # so far away that a walk does not move it


@dataclass(frozen=True, kw_only=True)
class Row:
    """Numbers of one clip or loop."""

    kind: SceneKind
    index: int
    values: dict[str, float]


def clip_values(
    pipeline: Any, clip: np.ndarray, moved: Callable[[Tensor], Tensor], settings: WalkSettings
) -> dict[str, float]:
    """Decibels of a walk and of what it is compared with; seam ratios.

    Args:
        pipeline: a GenEx pipeline.
        clip: true frames (F, H, W, 3) uint8.
        moved: takes the first frame (3, H, W) to the poses of the others, see `move_by_depth`.
        settings: of the walk.
    """
    result = walk(pipeline, clip[0], [Move(0.0, len(clip) - 1)], settings)
    walked, truth = _unit(result.segments[0].frames), _unit(clip[1:])
    decoded = _reconstruct(pipeline, clip)
    return {
        "psnr": psnr(walked, truth).mean().item(),
        "copy_first": psnr(_unit(clip[:1]).expand_as(truth), truth).mean().item(),
        "true_depth": psnr(moved(decoded[0]), truth).mean().item(),
        "vae_ceiling": psnr(decoded[1:], truth).mean().item(),
        "seam_ratio": seam_error(walked)["wrap_ratio"].mean().item(),
        "seam_ratio_truth": seam_error(truth)["wrap_ratio"].mean().item(),
    }


def move_by_depth(erp: Tensor, scene: Scene, poses: Sequence[ScenePose]) -> Tensor:
    """What a panorama at the first pose shows of the others, were every depth known.

    Whatever was hidden from the first pose shows what hid it.

    Args:
        erp: (3, H, W) in [0, 1].
        scene: for its depth.
        poses: N camera poses, the first that of `erp`.

    Returns:
        (N - 1, 3, H, W) in [0, 1].
    """
    width, height = RENDERED
    frames = []
    for pose in poses[1:]:
        depth = scene.render(pose, (height, width), outputs=("depth",), aa=1).depth
        assert depth is not None
        points = depth.reshape(height, width, 1).clamp(max=SKY_M) * rays(
            "erp", (height, width), R=pose.R
        )
        where = (points + pose.t - poses[0].t) @ poses[0].R
        seen = torch.as_tensor(sample_erp(erp, where, mode="bicubic"))
        frames.append(F.interpolate(seen[None], erp.shape[-2:], mode="area")[0])
    return torch.stack(frames).clamp(0, 1)


def evaluate_clips(
    pipeline: Any, settings: WalkSettings, counts: dict[SceneKind, int] | None = None
) -> list[Row]:
    """Score a pipeline on clips of scenes that are never trained on."""
    frames = int(pipeline.unet.config.num_frames)
    options = ClipOptions(frames=frames, size=RENDERED)
    jobs: list[tuple[SceneKind, int]] = [
        (kind, index) for kind in KINDS for index in range((counts or HELD_OUT)[kind])
    ]
    rows = []
    for kind, index in tqdm(jobs, desc="clips", leave=False):
        scene, poses = find_walk("test", kind, index, options)
        clip = [_at_model_size(render_erp(scene, pose, options), settings) for pose in poses]
        moved = partial(move_by_depth, scene=scene, poses=poses)
        rows.append(
            Row(
                kind=kind,
                index=index,
                values=clip_values(pipeline, np.stack(clip), moved, settings),
            )
        )
    return rows


def loop_moves(frames: int = LOOP_FRAMES) -> list[Move]:
    """Forward, and turn right by 90 degrees, four times: back at the start, looking ahead."""
    return [Move(0.0, frames), *[Move(90.0, frames)] * 3, Move(90.0, 0)]


def find_loop(kind: SceneKind, index: int, frames: int, aa: int = 2) -> Place:
    """A held-out place whose square of `frames` steps to the right is free.

    Raises:
        ValueError: none of its scenes has one.
    """
    side = frames * STEP_M
    t = np.linspace(0, side, 1 + 10 * frames)
    square = np.concatenate(
        [
            np.stack(pair, 1)
            for pair in ((0 * t, t), (t, 0 * t + side), (0 * t + side, t), (t, 0 * t))
        ]
    )
    seed = first_seed("test", kind, LOOP_OFFSET + index)
    for candidate in range(seed, seed + CLIP_SEEDS):
        scene = Scene.random(candidate, kind)
        for number in range(POSES_PER_SCENE):
            try:
                place = Place(scene=scene, start=scene.random_pose(number), aa=aa)
            except ValueError:
                break  # too full to stand in
            poses = (LoggedPose(frame=0, x_m=x, z_m=z, heading_deg=0) for x, z in square.tolist())
            points = np.stack([true_pose(place, pose).t.double().numpy() for pose in poses])
            if free_distance(scene, points).min() >= CLEARANCE_M:
                return place
    raise ValueError(f"no {kind} near seed {seed} has a free square of {side:.1f} m")


def loop_values(pipeline: Any, place: Place, settings: WalkSettings) -> dict[str, float]:
    """Walk the square: decibels against the truth along it, at its end, and of the baseline.

    ``turned`` turns the start panorama to each heading without walking; at the end, where a turned
    start is perfect, only a model that comes back to what it saw is near it.
    """
    start = _true_frame(place, Pose(), settings)
    result = walk(pipeline, start, loop_moves(), settings)
    frames = _unit(result.frames((settings.width, settings.height)))
    values, turned = [], []
    for frame, pose in zip(frames, result.poses(), strict=True):
        truth = _unit(_true_frame(place, pose, settings)[None])[0]
        values.append(psnr(frame, truth).item())
        baseline = rotate_erp(_unit(start[None])[0], yaw=pose.heading_deg)
        turned.append(min(psnr(baseline, truth).item(), 100.0))
    inner = slice(1, len(values) - 2)  # the last two poses are the start again
    return {
        "psnr": float(np.mean(values[inner])),
        "turned": float(np.mean(turned[inner])),
        "closing": values[-1],
    }


def evaluate_loops(
    pipeline: Any, settings: WalkSettings, counts: dict[SceneKind, int] | None = None
) -> list[Row]:
    """Walk a square in held-out places."""
    jobs: list[tuple[SceneKind, int]] = [
        (kind, index) for kind in KINDS for index in range((counts or LOOPS)[kind])
    ]
    rows = []
    for kind, index in tqdm(jobs, desc="loops", leave=False):
        place = find_loop(kind, index, LOOP_FRAMES)
        rows.append(Row(kind=kind, index=index, values=loop_values(pipeline, place, settings)))
    return rows


def summarize(rows: list[Row]) -> dict[str, dict[str, float]]:
    """Means over all rows ("all") and per kind, with their ``count``."""
    groups = {"all": rows, **{kind: [row for row in rows if row.kind == kind] for kind in KINDS}}
    return {
        name: {
            "count": len(group),
            **{key: float(np.mean([r.values[key] for r in group])) for key in group[0].values},
        }
        for name, group in groups.items()
        if group
    }


@torch.no_grad()
def _reconstruct(pipeline: Any, clip: np.ndarray) -> Tensor:
    """True frames through the VAE (F, 3, H, W) in [0, 1]: what a perfect UNet would reach."""
    vae, wrap = pipeline.vae, pipeline.wrap_columns
    images = to_unit(clip).to(vae.device, vae.dtype)
    latents = encode_moments(vae, images, wrap=wrap)[:, : vae.config.latent_channels]
    decoded = decode_clips(vae, latents[None] * vae.config.scaling_factor, wrap=wrap)[0]
    return (decoded.float().cpu() / 2 + 0.5).clamp(0, 1)


def _true_frame(place: Place, pose: Pose, settings: WalkSettings) -> np.ndarray:
    """The true panorama of a pose (H, W, 3) uint8, at the model's size."""
    logged = LoggedPose(frame=0, x_m=pose.x_m, z_m=pose.z_m, heading_deg=pose.heading_deg)
    truth = true_panorama(place, logged, (RENDERED[1], RENDERED[0]))
    erp = (truth * 255).round().to(torch.uint8).movedim(0, -1).contiguous().numpy()
    return _at_model_size(erp, settings)


def _at_model_size(erp: np.ndarray, settings: WalkSettings) -> np.ndarray:
    """Reduced as the frames of training are."""
    size = (settings.width, settings.height)
    return np.array(Image.fromarray(erp).resize(size, Image.Resampling.BICUBIC))


def _unit(frames: np.ndarray) -> Tensor:
    """(F, H, W, 3) uint8 -> (F, 3, H, W) in [0, 1]."""
    return torch.from_numpy(frames).movedim(-1, 1).float() / 255
