"""Camera poses in free space, straight walks, and before/after pairs of an object removal."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from shared_pano_utils.geometry import rotation_matrix
from shared_pano_utils.synthetic.draft import stream
from shared_pano_utils.synthetic.elements import Pose, SceneObject, Structure
from shared_pano_utils.synthetic.visibility import mask_bfov

if TYPE_CHECKING:
    from shared_pano_utils.synthetic.scene import Scene

EYE_M = (1.2, 1.7)
POSE_CLEARANCE_M = 0.35
POSE_TRIES = 300
PATH_TRIES = 64
HEADINGS = 16


def make_pose(position, yaw: float) -> Pose:
    """Return an upright pose at a world position (x, y, z), looking `yaw` degrees right of +z."""
    t = torch.tensor([float(v) for v in position], dtype=torch.float32)
    return Pose(R=rotation_matrix(yaw=yaw).float(), t=t)


def clearance(room: Structure, objects: Sequence[SceneObject], points: np.ndarray) -> np.ndarray:
    """Distance in metres from points (n, 3) to the nearest surface, a lower bound, negative inside.

    Solids count as their oriented bounding boxes.
    """
    best = np.minimum(points - np.array(room.min), np.array(room.max) - points).min(1)
    for prim in (p for o in objects for p in o.prims):
        c, s = math.cos(math.radians(prim.yaw)), math.sin(math.radians(prim.yaw))
        x, y, z = (points - np.array(prim.center)).T
        over = np.abs(np.stack((c * x - s * z, y, s * x + c * z), 1)) - np.array(prim.half)
        outside = np.linalg.norm(np.maximum(over, 0), axis=1)
        best = np.minimum(best, outside + np.minimum(over.max(1), 0))
    return best


def free_distance(scene: "Scene", points: np.ndarray) -> np.ndarray:
    """Return `clearance` in a scene."""
    return clearance(scene.room, scene.objects, points)


def _range_of(scene: "Scene") -> tuple[np.ndarray, np.ndarray]:
    """Area (x, z) where cameras may stand: the room, or 4 x 15 m around the start outdoors."""
    if scene.kind == "outdoor":
        return np.array((-4.0, -15.0)), np.array((4.0, 15.0))
    return np.array(scene.room.min)[[0, 2]], np.array(scene.room.max)[[0, 2]]


def _draw_position(scene: "Scene", rng: np.random.Generator) -> np.ndarray:
    lo, hi = _range_of(scene)
    x, z = rng.uniform(lo, hi)
    return np.array((x, -rng.uniform(*EYE_M), z))


def _free_positions(scene: "Scene", rng: np.random.Generator, clearance: float) -> np.ndarray:
    """Draw camera centres at least `clearance` metres from everything, (n, 3), n >= 1."""
    points = np.stack([_draw_position(scene, rng) for _ in range(POSE_TRIES)])
    free = points[free_distance(scene, points) >= clearance]
    if len(free) == 0:
        raise ValueError(
            f"none of {POSE_TRIES} drawn camera positions has a clearance of {clearance} m; "
            "use a smaller clearance or a scene with fewer objects"
        )
    return free


def random_pose(scene: "Scene", seed: int) -> Pose:
    """See `Scene.random_pose`."""
    rng = stream(seed, f"pose-{scene.seed}")
    position = _free_positions(scene, rng, POSE_CLEARANCE_M)[0]
    return make_pose(position, float(rng.uniform(-180, 180)))


def forward_path(
    scene: "Scene", n_frames: int, step: float, seed: int, clearance: float
) -> list[Pose]:
    """See `Scene.forward_path`."""
    if n_frames < 1 or step < 0 or clearance <= 0:
        raise ValueError(
            f"n_frames={n_frames}, step={step}, clearance={clearance}: need n_frames >= 1, "
            "step >= 0, clearance > 0"
        )
    rng = stream(seed, f"path-{scene.seed}")
    starts = _free_positions(scene, rng, clearance)
    length = (n_frames - 1) * step
    # The swept sphere is tested at points so dense that the sphere between two of them is covered.
    spacing = min(clearance / 4, 0.05)
    margin = math.hypot(clearance, spacing / 2)
    along = np.linspace(0, length, max(2, math.ceil(length / spacing) + 1))
    for k in range(PATH_TRIES):
        start = starts[k % len(starts)]
        yaws = np.degrees(2 * np.pi * (np.arange(HEADINGS) + rng.uniform()) / HEADINGS)
        yaws = rng.permutation(yaws)
        angles = np.radians(yaws)
        headings = np.stack((np.sin(angles), np.zeros(HEADINGS), np.cos(angles)), 1)
        is_open = free_distance(scene, start + length * headings) >= margin
        for yaw, heading in zip(yaws[is_open], headings[is_open], strict=True):
            if free_distance(scene, start + along[:, None] * heading).min() >= margin:
                return [make_pose(start + i * step * heading, float(yaw)) for i in range(n_frames)]
    raise ValueError(
        f"no straight free path of {length:.2f} m among {PATH_TRIES} starts with {HEADINGS} "
        f"headings each (clearance {clearance} m); use fewer frames, a smaller step or another seed"
    )


def removal_pair(
    scene: "Scene",
    instance_id: int,
    pose: Pose | None = None,
    size: tuple[int, int] = (512, 1024),
    *,
    shadows: bool = False,
) -> dict:
    """Render an ERP with and without one object.

    Args:
        scene: The scene.
        instance_id: Object to remove; it must be visible.
        pose: Camera, by default the start camera of the scene.
        size: (H, W).
        shadows: Also remove the object's shadow; by default there are no shadows, so the images
            differ only where the object was (and in the antialiased pixels at its border).

    Returns:
        `rgb_with`, `rgb_without` (3, H, W) in [0, 1]; `mask` (H, W) bool, 1 = visible pixel of
        the object; `amodal_mask` (H, W) bool, 1 = pixel the object would cover were nothing in
        front; `bfov` = (yaw, pitch, hfov, vfov) in degrees of the box around `mask`.

    Raises:
        ValueError: Unknown id, or the object is not visible from the pose.
    """
    pose = scene.start_pose if pose is None else pose
    removed = scene.without(instance_id)
    others = [o.id for o in scene.objects if o.id != instance_id]
    before = scene.render(pose, size, shadows=shadows, outputs=("rgb", "instance"))
    after = removed.render(pose, size, shadows=shadows, outputs=("rgb",))
    alone = scene.without(*others).render(pose, size, outputs=("instance",))
    assert before.instance is not None
    assert alone.instance is not None
    mask = before.instance == instance_id
    if not mask.any():
        raise ValueError(
            f"instance {instance_id} is not visible from this pose; choose another pose or object"
        )
    return {
        "rgb_with": before.rgb,
        "rgb_without": after.rgb,
        "mask": mask,
        "amodal_mask": alone.instance == instance_id,
        "bfov": mask_bfov(mask),
    }
