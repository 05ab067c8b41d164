"""Ray-cast a scene into colour, depth, normals and labels."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from shared_pano_utils.synthetic import shading, textures
from shared_pano_utils.synthetic.camera import PixelGrid
from shared_pano_utils.synthetic.elements import Pose
from shared_pano_utils.synthetic.labels import CATEGORY_IDS
from shared_pano_utils.synthetic.primitives import PrimitiveTable, build_table, dot, trace
from shared_pano_utils.synthetic.surface import (
    Surfaces,
    plane_surfaces,
    primitive_surfaces,
    structure_distances,
)
from shared_pano_utils.synthetic.visibility import describe_visible

if TYPE_CHECKING:
    from shared_pano_utils.synthetic.scene import Scene

OUTPUTS = (
    "rgb",
    "depth",
    "depth_z",
    "normals",
    "normals_cam",
    "instance",
    "semantic",
    "face",
    "visible",
)
DEFAULT_OUTPUTS = ("rgb", "depth", "normals", "normals_cam", "instance", "semantic")
FAR_M = 100.0  # the outdoor ground ends here; distant hills of the sky hide the end
SUN_M = 1000.0  # distance of the point that stands for the sun in shadow tests
SHADOW_BIAS_M = 0.012
# Structure faces of surface.py (-x, +x, -y, +y, -z, +z) as slot names of STRUCTURE_SLOTS.
_ROOM_FACES = ("wall_-x", "wall_+x", "ceiling", "floor", "wall_-z", "wall_+z")
_STRUCTURE_SEMANTIC = ("wall", "wall", "ceiling", "floor", "wall", "wall")
GROUND_FACE = 3
SKY = -1


class Render(NamedTuple):
    """Images of one pose; cube renders have a leading axis of 6, missing outputs are None.

    Attributes:
        rgb: (3, H, W) float32, sRGB in [0, 1].
        depth: (1, H, W) Euclidean metres, sky = inf.
        normals: (3, H, W) unit, world frame, towards the camera, sky = 0.
        normals_cam: (3, H, W), `R.T @ normals`.
        instance: (H, W) int32, object id, 0 = structure, -1 = sky.
        semantic: (H, W) int16, values of `labels.CATEGORY_IDS`.
        face: (H, W) int8, see `surface`.
        visible: One dict per visible object, ERP only, see `visibility`.
        depth_z: (1, H, W) metres along the optical axis; not for ERP.
    """

    rgb: Tensor | None = None
    depth: Tensor | None = None
    normals: Tensor | None = None
    normals_cam: Tensor | None = None
    instance: Tensor | None = None
    semantic: Tensor | None = None
    face: Tensor | None = None
    visible: list[dict] | None = None
    depth_z: Tensor | None = None


class Hits(NamedTuple):
    """What n rays see; fields are (n,) unless noted."""

    t: Tensor  # metres, inf for sky
    prim: Tensor  # primitive index, -1 for structure and sky
    face: Tensor  # int8, -1 for sky
    normal: Tensor  # (3, n)
    color: Tensor | None  # (3, n) linear RGB


class RayCaster:
    """A scene prepared for one ray origin.

    Args:
        scene: What to look at.
        origin: Ray origin in metres, (3,).
        device: Where to compute.
        shadows: Trace hard shadows and darken the floor around objects.
    """

    def __init__(self, scene: "Scene", origin: Tensor, device, *, shadows: bool):
        self.scene, self.shadows, self.device = scene, shadows, device
        self.origin = origin.float().to(device)
        prims = [p for o in scene.objects for p in o.prims]
        self.blockers = [p for p in prims if scene.materials[p.material].pattern != "glow"]
        self.table = build_table(prims, origin, device)
        owners = [k for k, o in enumerate(scene.objects) for _ in o.prims]
        self.owner = torch.tensor(owners, dtype=torch.int64, device=device)
        names = list(scene.materials)
        self.materials = textures.build_material_table(list(scene.materials.values()), device)
        index = [names.index(p.material) for p in prims]
        self.prim_material = torch.tensor(index, dtype=torch.int64, device=device)
        slots = scene.room.materials
        faces = ["ground"] * 6 if scene.kind == "outdoor" else _ROOM_FACES
        self.face_material = torch.tensor([names.index(slots[f]) for f in faces], device=device)
        corners = torch.tensor([scene.room.min, scene.room.max], dtype=torch.float64)
        self.lo, self.hi = (corners - origin.double().cpu()).float().to(device)

    def _structure(self, dirs: Tensor) -> tuple[Tensor, Tensor]:
        if self.scene.kind != "outdoor":
            return structure_distances(self.lo, self.hi, dirs)
        t = self.hi[1] / dirs[1].clamp_min(1e-9)
        hit = t < FAR_M
        return torch.where(hit, t, torch.inf), torch.where(hit, GROUND_FACE, SKY).to(torch.int8)

    def cast(self, dirs: Tensor, pixel_rad: float, *, with_color: bool) -> Hits:
        """Cast grouped rays (3, G, P); the result is flat, n = G * P."""
        limit, face = self._structure(dirs)
        t, prim = trace(self.table, dirs, limit)
        dirs, t, prim, face = dirs.reshape(3, -1), t.flatten(), prim.flatten(), face.flatten()
        normal, color = torch.zeros_like(dirs), torch.zeros_like(dirs) if with_color else None
        (inner,) = ((prim < 0) & (face >= 0)).nonzero(as_tuple=True)
        (solid,) = (prim >= 0).nonzero(as_tuple=True)
        rows = torch.cat((inner, solid))  # structure first, then primitives
        d, near = dirs.index_select(1, rows), t.index_select(0, rows)
        reach, point = near * pixel_rad, near * d + self.origin[:, None]
        k = inner.numel()
        surface = plane_surfaces(face[inner], point[:, :k], d[:, :k], reach[:k])
        material = self.face_material[face[inner].long()]
        if solid.numel():
            owner = prim.index_select(0, solid)
            other = primitive_surfaces(self.table, owner, d[:, k:], near[k:], reach[k:])
            surface = Surfaces(*(torch.cat(pair, -1) for pair in zip(surface, other, strict=True)))
            material = torch.cat((material, self.prim_material.index_select(0, owner)))
        normal.index_copy_(1, rows, surface.normal)
        face.index_copy_(0, rows, surface.face)
        if color is not None:
            s = surface
            base = textures.albedo(self.materials, material, s.u, s.v, s.wu, s.wv, d)
            if self.scene.kind != "outdoor":
                base[:, :k] = shading.add_skirting(
                    base[:, :k], point[:, :k], s.normal[:, :k], reach[:k]
                )
            color.index_copy_(1, rows, self._lit(base, material, point, s.normal, d, near))
        if color is not None and self.scene.sky is not None:
            (rows,) = (face == SKY).nonzero(as_tuple=True)
            sky = self.scene.sky
            color[:, rows] = shading.sky_colors(dirs[:, rows], sky, pixel_rad, self.scene.seed)
        return Hits(t, prim, face, normal, color)

    def covered(self, dirs: Tensor, k: int) -> Tensor:
        """Tell which rays (3, G, P) meet object number `k`, hidden or not; flat, bool."""
        mine = self.owner == k
        table = PrimitiveTable(*(x[..., mine] for x in self.table))
        limit, _ = self._structure(dirs)
        return (trace(table, dirs, limit)[1] >= 0).flatten()

    def _lit(self, base: Tensor, material: Tensor, point: Tensor, normal: Tensor, dirs, t):
        scene = self.scene
        if scene.kind == "outdoor":
            share = shading.ground_occlusion(point, normal)
        else:
            share = shading.corner_occlusion(point, normal, scene.room)
        lit = torch.ones_like(t)
        if self.shadows:
            lit = self._sunlit(point, normal)
            share = share * shading.contact_occlusion(point, normal, self._footprints())
        color = shading.light_colors(
            base,
            self.materials.glow[material],
            self.materials.gloss[material],
            point,
            normal,
            dirs,
            light=scene.light,
            ambient_share=share,
            lit=lit,
        )
        return color if scene.sky is None else shading.add_haze(color, t, scene.sky)

    def _footprints(self) -> Tensor:
        """Floor rectangles under the objects, see `shading.contact_occlusion`; (k, 6)."""
        boxes = []
        for obj in self.scene.objects:
            touching = [p for p in obj.prims if p.center[1] + p.half[1] > -0.1 and p.half[1] > 0.05]
            if obj.support != "floor" or not touching:
                continue
            yaw = math.radians(obj.box3d.yaw)
            cos, sin = math.cos(yaw), math.sin(yaw)
            local = [
                (cos * x - sin * z, sin * x + cos * z) for x, _, z in (p.center for p in touching)
            ]
            reach = [(p.half[0], p.half[2]) for p in touching]
            lo = [min(c[k] - r[k] for c, r in zip(local, reach, strict=True)) for k in (0, 1)]
            hi = [max(c[k] + r[k] for c, r in zip(local, reach, strict=True)) for k in (0, 1)]
            x, z = (lo[0] + hi[0]) / 2, (lo[1] + hi[1]) / 2
            half = ((hi[0] - lo[0]) / 2, (hi[1] - lo[1]) / 2)
            boxes.append((cos * x + sin * z, cos * z - sin * x, *half, cos, sin))
        return torch.tensor(boxes).reshape(-1, 6)

    def _sunlit(self, point: Tensor, normal: Tensor) -> Tensor:
        """Return 1 where the light reaches points (3, n), 0 in hard shadow."""
        light = self.scene.light
        source = torch.tensor(light.vector, device=self.device)
        if light.type == "sun":
            source = self.origin + SUN_M * source
        table: PrimitiveTable = build_table(self.blockers, source, self.device)
        n = point.shape[1]
        padded = torch.cat((point, point[:, -1:].expand(3, -n % 64)), 1)
        ray = padded - source[:, None]
        dist = dot(ray, ray).sqrt()
        bias = SHADOW_BIAS_M * (1 + dist / 100 if light.type == "sun" else 1)
        dirs = (ray / dist).reshape(3, -1, 64)
        _, blocker = trace(table, dirs, (dist - bias).reshape(-1, 64))
        lit = (blocker < 0).float().flatten()[:n]
        return lit * (dot(normal, source[:, None] - point) > 0)


def render(
    scene: "Scene",
    pose: Pose,
    size,
    projection: str,
    *,
    fov: float,
    R: Tensor | None,
    aa: int,
    shadows: bool,
    outputs: Sequence[str],
    device,
) -> Render:
    """Render a scene; see `Scene.render`."""
    if projection != "erp" and "visible" in outputs:
        raise ValueError(f"visible is for projection='erp', got {projection!r}; leave it out")
    if projection == "erp" and "depth_z" in outputs:
        raise ValueError("depth_z is for projection='cube' or 'perspective', got 'erp'")
    unknown = sorted(set(outputs) - set(OUTPUTS))
    if unknown:
        raise ValueError(f"outputs has unknown names {unknown}, allowed are {list(OUTPUTS)}")
    if aa < 1:
        raise ValueError(f"aa is {aa}, it must be at least 1 (1 = no supersampling)")
    R_cam = pose.R.float() if R is None else pose.R.float() @ R.float().cpu()
    grid = PixelGrid(projection, size, fov=fov, R=R_cam, device=device)
    caster = RayCaster(scene, pose.t, device, shadows=shadows)
    dirs = grid.center_rays()
    hits = caster.cast(dirs, grid.pixel_rad, with_color="rgb" in outputs)
    return _assemble(caster, grid, dirs, hits, aa, outputs)


def _assemble(
    caster: RayCaster, grid: PixelGrid, dirs: Tensor, hits: Hits, aa: int, outputs: Sequence[str]
) -> Render:
    """Turn flat hits into the requested images."""
    tiles = dirs.shape[1:]

    def image(flat: Tensor) -> Tensor:
        """(c, n) to (c, H, W), or (6, c, S, S) for cubes."""
        pixels = grid.to_image(flat.reshape(-1, *tiles)).transpose(0, 1).contiguous()
        return pixels if grid.projection == "cube" else pixels[0]

    def label_image(flat: Tensor) -> Tensor:
        return image(flat[None])[..., 0, :, :].contiguous()

    result: dict = {}
    if hits.color is not None:
        result["rgb"] = image(textures.linear_to_srgb(_antialiased(caster, grid, hits, aa)))
    if "depth" in outputs:
        result["depth"] = image(hits.t[None])
    if "depth_z" in outputs:
        forward = torch.nn.functional.normalize(grid.unrotated, dim=-1)
        axis = grid.unrotated.mean((1, 2))
        axis = torch.nn.functional.normalize(axis, dim=-1)[:, None, None]
        cos = grid.to_tiles((forward * axis).sum(-1)[None])
        result["depth_z"] = image(hits.t[None] * cos.reshape(1, -1))
    if "normals" in outputs:
        result["normals"] = image(hits.normal)
    if "normals_cam" in outputs:
        result["normals_cam"] = image(grid.R.T @ hits.normal)
    if {"instance", "semantic", "visible"} & set(outputs):
        instance, semantic = _labels(caster, hits)
        if "visible" in outputs:
            depth, ids = image(hits.t[None])[0], label_image(instance)
            amodal = {o.id: caster.covered(dirs, k) for k, o in enumerate(caster.scene.objects)}
            result["visible"] = describe_visible(
                ids, depth, {k: label_image(m) for k, m in amodal.items()}
            )
        if "instance" in outputs:
            result["instance"] = label_image(instance)
        if "semantic" in outputs:
            result["semantic"] = label_image(semantic)
    if "face" in outputs:
        result["face"] = label_image(hits.face)
    return Render(**result)


def _labels(caster: RayCaster, hits: Hits) -> tuple[Tensor, Tensor]:
    """Instance ids int32 and semantic ids int16, both (n,)."""
    scene, device = caster.scene, caster.device
    ids = torch.tensor([o.id for o in scene.objects], dtype=torch.int32, device=device)
    kinds = torch.tensor(
        [CATEGORY_IDS[o.category] for o in scene.objects], dtype=torch.int16, device=device
    )
    names = ("ground",) * 6 if scene.kind == "outdoor" else _STRUCTURE_SEMANTIC
    by_face = torch.tensor([CATEGORY_IDS[n] for n in [*names, "sky"]], dtype=torch.int16)
    sky = hits.face == SKY
    structure = torch.where(sky, 6, hits.face.clamp(0, 5).long())
    semantic = by_face.to(device)[structure]
    instance = torch.where(sky, -1, 0).to(torch.int32)
    (rows,) = (hits.prim >= 0).nonzero(as_tuple=True)
    owner = caster.owner[hits.prim[rows]]
    instance[rows], semantic[rows] = ids[owner], kinds[owner]
    return instance, semantic


def _antialiased(caster: RayCaster, grid: PixelGrid, hits: Hits, aa: int) -> Tensor:
    """Linear RGB (3, n) with pixels at edges replaced by the mean of aa x aa sub-rays."""
    assert hits.color is not None
    color = hits.color.clamp(0, 1)
    if aa == 1:
        return color
    key = (hits.prim + 1) * 8 + hits.face
    shape = (grid.frames * grid.rows * grid.cols, -1)
    index = grid.edges(key.reshape(shape))
    if index.numel() == 0:
        return color
    dirs = grid.sub_rays(index, aa).reshape(3, -1)
    n, group = dirs.shape[1], 8 * aa * aa
    padded = torch.cat((dirs, dirs[:, -1:].expand(3, -n % group)), 1).contiguous()
    fine = caster.cast(padded.reshape(3, -1, group), grid.pixel_rad / aa, with_color=True)
    assert fine.color is not None
    color[:, index] = fine.color[:, :n].clamp(0, 1).reshape(3, -1, aa * aa).mean(2)
    return color
