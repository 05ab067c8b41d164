"""Lighting: ambient with room-corner occlusion, one point light or sun, highlights, sky."""

import torch
from torch import Tensor

from shared_pano_utils.synthetic.elements import Light, Sky, Structure
from shared_pano_utils.synthetic.primitives import dot, length2, unit
from shared_pano_utils.synthetic.textures import bare_surface, noise, skyline, srgb_to_linear

POINT_POWER = 1.75
SUN_COLOR = (1.30, 1.18, 0.98)
SKY_COLOR = (0.92, 1.00, 1.14)
LAMP_COLOR = (1.00, 0.95, 0.86)
HAZE_M = 160.0
CORNER_M = 0.35  # reach of the darkening in corners
TRIM_M = 0.09  # height of the skirting board


def _column(rgb: tuple[float, float, float], like: Tensor) -> Tensor:
    return torch.tensor(rgb, dtype=like.dtype, device=like.device)[:, None]


def corner_occlusion(point: Tensor, normal: Tensor, structure: Structure) -> Tensor:
    """Ambient share (n,) that room corners leave at points (3, n) of the world frame."""
    open_share = torch.ones_like(point[0])
    for axis in range(3):
        lo, hi = structure.min[axis], structure.max[axis]
        gap = torch.minimum(point[axis] - lo, hi - point[axis]).clamp_min(0)
        facing = normal[axis].abs()
        open_share = open_share * (1 - 0.42 * (1 - facing) / (1 + (gap / CORNER_M)) ** 2)
    return open_share


def ground_occlusion(point: Tensor, normal: Tensor) -> Tensor:
    """Ambient share (n,) left by the ground y = 0: vertical faces darken at their foot."""
    height = (-point[1]).clamp_min(0)
    return 1 - 0.4 * (1 - normal[1].abs()) / (1 + height / CORNER_M) ** 2


def contact_occlusion(point: Tensor, normal: Tensor, boxes: Tensor) -> Tensor:
    """Soft dark halo (n,) around objects that stand on the floor.

    Args:
        point: (3, n) world.
        normal: (3, n) world; only upward faces near y = 0 are darkened.
        boxes: (k, 6) centre x, centre z, half x, half z, cos yaw, sin yaw of the footprints.
    """
    share = torch.ones_like(point[0])
    (rows,) = ((point[1] > -0.05) & (normal[1] < -0.9)).nonzero(as_tuple=True)
    x, z = point[0, rows], point[2, rows]
    dark = torch.ones_like(x)
    for cx, cz, hx, hz, cos, sin in boxes.tolist():
        (near,) = ((x - cx) ** 2 + (z - cz) ** 2 < (hx + hz + 0.6) ** 2).nonzero(as_tuple=True)
        dx, dz = x[near] - cx, z[near] - cz
        qx = (cos * dx - sin * dz).abs() - hx
        qz = (sin * dx + cos * dz).abs() - hz
        outside = length2(qx.clamp_min(0), qz.clamp_min(0))
        inside = torch.maximum(qx, qz).clamp(max=0)
        dark[near] *= 1 - 0.55 / (1 + ((outside + 0.3 * inside).abs() / 0.16) ** 2)
    share[rows] = dark
    return share


def light_colors(color: Tensor, glow: Tensor, gloss: Tensor, point, normal, dirs, **context):
    """Return the linear RGB (3, n) that leaves surface points towards the camera.

    Args:
        color: Albedo, (3, n) linear.
        glow: (n,), 1 for emitters.
        gloss: (n,), strength of the highlight.
        point: (3, n) metres, world.
        normal: (3, n).
        dirs: Ray directions, (3, n).
        context: light: Light; ambient_share: (n,); lit: (n,) 0 in shadow, 1 in light.
    """
    light: Light = context["light"]
    ambient_share, lit = context["ambient_share"], context["lit"]
    vector = _column(light.vector, point)
    if light.type == "sun":
        to_light, falloff = vector.expand_as(point), 1.15 * lit
        direct_color, sky_color = _column(SUN_COLOR, point), _column(SKY_COLOR, point)
        wrap = 0.0
    else:
        to_light = vector - point
        r2 = dot(to_light, to_light).clamp_min(1e-4)
        to_light = to_light * r2.rsqrt()
        falloff = POINT_POWER * lit / (1 + 0.12 * r2)
        direct_color, sky_color = _column(LAMP_COLOR, point), _column((1.0, 1.0, 1.0), point)
        wrap = 0.25
    facing = dot(normal, to_light)
    direct = ((facing + wrap) / (1 + wrap)).clamp_min(0) * falloff * (1 - light.ambient)
    # Ambient light is a little stronger from above and from +x, so that unlit faces differ.
    ambient = light.ambient * ambient_share * (1.0 - 0.18 * normal[1] + 0.10 * normal[0])
    direct = direct * (0.5 + 0.5 * ambient_share)
    out = color * (sky_color * ambient + direct_color * direct)
    (rows,) = (gloss > 0).nonzero(as_tuple=True)
    if rows.numel():
        middle = unit(to_light[:, rows] - dirs[:, rows])
        shine = dot(normal[:, rows], middle).clamp_min(0)
        for _ in range(5):  # to the power 32
            shine = shine * shine
        out[:, rows] += gloss[rows] * shine * falloff[rows] * (facing[rows] > 0)
    return torch.where(glow > 0, color, out)


def add_skirting(color: Tensor, point: Tensor, normal: Tensor, reach: Tensor) -> Tensor:
    """Paint a light skirting board on the lowest centimetres of walls."""
    height = -point[1]
    cover = (0.5 + (TRIM_M - height) / reach.clamp_min(1e-4)).clamp(0, 1) * (normal[1].abs() < 0.5)
    line = (0.5 + (0.008 - (height - TRIM_M).abs()) / reach.clamp_min(1e-4)).clamp(0, 1)
    trim = color + (0.72 - color) * cover
    return trim * (1 - 0.4 * line * (normal[1].abs() < 0.5))


def add_haze(color: Tensor, t: Tensor, sky: Sky) -> Tensor:
    """Fade colours (3, n) at distances t (n,) towards the horizon colour."""
    horizon = srgb_to_linear(_column(sky.horizon, color))
    return color + (horizon - color) * (1 - torch.exp(-t / HAZE_M))


def sky_colors(dirs: Tensor, sky: Sky, pixel_rad: float, seed: int) -> Tensor:
    """Return linear RGB (3, n): gradient, clouds, sun disc, distant hills."""
    up = -dirs[1]
    zenith, horizon = (srgb_to_linear(_column(c, dirs)) for c in (sky.zenith, sky.horizon))
    color = horizon + (zenith - horizon) * up.clamp(0, 1).sqrt()
    lift = up.clamp_min(0) + 0.12
    number = torch.full_like(up, seed % 4096, dtype=torch.long)
    width = pixel_rad / (lift * lift)
    layer = bare_surface(dirs[0] / lift, dirs[2] / lift, width, number)
    density = 0.85 * noise(layer, 34) + 0.3 * noise(layer, 150, salt=3)
    cloud = ((density - 0.25) * 0.65).clamp(0, 1) * (up * 6).clamp(0, 1)
    white = 0.95 - 0.16 * (density - 0.9).clamp(0, 1)
    color = color + (white - color) * 0.85 * cloud
    if sky.sun_dir is not None:
        angle = (1 - dot(_column(sky.sun_dir, dirs), dirs)).clamp_min(0).mul(2).sqrt()
        soft = max(3 * pixel_rad, 1e-4)
        disc = (0.5 + (0.0046 - angle) / soft).clamp(0, 1)
        halo = 0.55 * torch.exp(-angle / 0.10) + 0.12 * torch.exp(-angle / 0.5)
        color = color + _column((1.0, 0.92, 0.75), dirs) * (halo + 3 * disc)
    for height, shade, salt in ((1.7, 0.62, 0), (0.8, 0.36, 977)):
        ridge = height * skyline(dirs, number + salt)
        cover = (0.5 + (ridge - up) / max(pixel_rad, 1e-4)).clamp(0, 1)
        hill = horizon * shade * _column((0.72, 0.86, 0.8), dirs)
        color = color + (hill - color) * cover
    return color
