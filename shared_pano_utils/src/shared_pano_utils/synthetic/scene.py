"""Procedural scenes: random generation, JSON, rendering, cameras."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

import torch

from shared_pano_utils.synthetic import paths
from shared_pano_utils.synthetic.draft import pick, stream
from shared_pano_utils.synthetic.elements import (
    KINDS,
    Camera,
    Light,
    Material,
    Pose,
    SceneObject,
    Sky,
    Structure,
)
from shared_pano_utils.synthetic.interiors import CORRIDOR_STYLES, ROOM_STYLES, build_interior
from shared_pano_utils.synthetic.landscapes import OUTDOOR_STYLES, build_landscape
from shared_pano_utils.synthetic.render import DEFAULT_OUTPUTS, Render, render
from shared_pano_utils.synthetic.scene_json import scene_from_json, scene_to_json

STYLES = {
    "room": tuple(ROOM_STYLES),
    "corridor": tuple(CORRIDOR_STYLES),
    "outdoor": tuple(OUTDOOR_STYLES),
}


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A room, corridor or outdoor place made of primitives, with exact ground truth.

    World frame RDF in metres: the floor or ground is y = 0, up is -y. Immutable; the same seed
    gives the same scene, byte for byte in JSON.

    Attributes:
        seed: Seed it was drawn from.
        kind: `"room"`, `"corridor"` or `"outdoor"`.
        room: Walls, floor and ceiling, or the ground.
        sky: Background of outdoor scenes.
        light: Main light.
        materials: Materials by key.
        objects: The objects, ids >= 1.
        cameras: Named poses; the first is the default of `render`.

    >>> scene = Scene.random(7, "room")
    >>> Scene.from_json(scene.to_json()) == scene
    True
    """

    seed: int
    kind: str
    room: Structure
    sky: Sky | None
    light: Light
    materials: dict[str, Material]
    objects: tuple[SceneObject, ...]
    cameras: tuple[Camera, ...]

    @classmethod
    def random(
        cls,
        seed: int,
        kind: Literal["room", "corridor", "outdoor"] = "room",
        n_objects: tuple[int, int] = (3, 14),
        style: str | None = None,
    ) -> "Scene":
        """Draw a scene.

        Args:
            seed: Non-negative integer.
            kind: Sort of place.
            n_objects: Smallest and largest number of objects; a crowded place may hold fewer.
            style: Key of `STYLES[kind]`, drawn if None.
        """
        if kind not in KINDS:
            raise ValueError(f"kind is {kind!r}, allowed are {KINDS}")
        if seed < 0:
            raise ValueError(f"seed is {seed}, it must not be negative")
        if not 0 <= n_objects[0] <= n_objects[1]:
            raise ValueError(f"n_objects is {n_objects}, need 0 <= smallest <= largest")
        if style is None:
            style = pick(stream(seed, "style"), STYLES[kind])
        elif style not in STYLES[kind]:
            raise ValueError(f"style is {style!r}, for a {kind} allowed are {STYLES[kind]}")
        if kind == "outdoor":
            return cls(**build_landscape(seed, n_objects, style))
        return cls(**build_interior(seed, kind, n_objects, style))

    @classmethod
    def from_json(cls, source: dict | str | Path) -> "Scene":
        """Read a scene from its JSON form or from a file; strict, see `scene_json`."""
        return cls(**scene_from_json(source))

    def to_json(self) -> dict:
        """Return the JSON form, version 1; `json.dumps` of it is stable for a seed."""
        return scene_to_json({f.name: getattr(self, f.name) for f in fields(self)})

    def without(self, *instance_ids: int) -> "Scene":
        """Return the scene without some objects; all others stay where they are.

        Without shadows, depth, normals and labels stay bit-identical away from the pixels of the
        removed objects; so does colour with `aa=1`. With `aa > 1` mixed edge pixels that contain
        a part of a removed object change as well.
        """
        unknown = sorted(set(instance_ids) - {o.id for o in self.objects})
        if unknown:
            raise ValueError(
                f"there are no objects with ids {unknown}, allowed are "
                f"{[o.id for o in self.objects]}"
            )
        return replace(self, objects=tuple(o for o in self.objects if o.id not in instance_ids))

    def render(
        self,
        pose: Pose | None = None,
        size: int | tuple[int, int] = (512, 1024),
        projection: Literal["erp", "cube", "perspective"] = "erp",
        *,
        fov: float = 90.0,
        R: torch.Tensor | None = None,
        aa: int = 3,
        shadows: bool = False,
        outputs: Sequence[str] = DEFAULT_OUTPUTS,
        device: torch.device | str | None = None,
    ) -> Render:
        """Ray-cast the scene.

        Args:
            pose: Camera to world, by default the first camera of the scene.
            size: (H, W); for cubes the face side.
            projection: Image geometry.
            fov: Degrees, for cube and perspective.
            R: Extra rotation (3, 3) of the view in the camera frame.
            aa: Pixels at edges are the mean of aa x aa sub-rays (colour only).
            shadows: Hard shadows of the main light, and soft contact shadows on the floor.
            outputs: Any of `render.OUTPUTS`.
            device: Where to compute; the CPU by default.

        Returns:
            The requested images; see `Render`.
        """
        return render(
            self,
            self.start_pose if pose is None else pose,
            size,
            projection,
            fov=fov,
            R=R,
            aa=aa,
            shadows=shadows,
            outputs=outputs,
            device=torch.device("cpu" if device is None else device),
        )

    @property
    def start_pose(self) -> Pose:
        """Pose of the first camera."""
        camera = self.cameras[0]
        return Pose(R=torch.tensor(camera.R), t=torch.tensor(camera.t))

    def random_pose(self, seed: int) -> Pose:
        """Draw an upright pose in free space: eye 1.2-1.7 m high, 0.35 m from everything."""
        return paths.random_pose(self, seed)

    def forward_path(
        self, n_frames: int = 25, step: float = 0.1, seed: int = 0, clearance: float = 0.3
    ) -> list[Pose]:
        """Draw a straight walk through free space, looking ahead.

        Args:
            n_frames: Number of poses.
            step: Metres between two poses.
            seed: Chooses start and heading.
            clearance: Radius in metres of the sphere around the camera that must stay free.

        Raises:
            ValueError: No free path of this length was found.
        """
        return paths.forward_path(self, n_frames, step, seed, clearance)
