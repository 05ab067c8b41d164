"""Procedural textures, filtered over the pixel footprint.

Surface coordinates u, v are metres; wu, wv are the widths of the footprint along them. Regular
patterns (checker, stripes, bricks, planks, tiles) are integrated over that box in closed form, so
they converge to their mean colour far away; noise comes from a mip chain of one 1/f tile.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from shared_pano_utils.synthetic.elements import Material
from shared_pano_utils.synthetic.primitives import length2

TILE = 512  # noise tile side, texels
CELLS = 4096  # length of the table of cell tints


class MaterialTable(NamedTuple):
    """Materials as arrays of length M; colours are linear RGB."""

    pattern: Tensor  # (M,) int64, index into PATTERNS
    scale: Tensor  # (M,) float32, metres
    seed: Tensor  # (M,) int64
    colors: Tensor  # (4, 3, M) float32
    glow: Tensor  # (M,) float32, 1 for surfaces that emit their colour
    gloss: Tensor  # (M,) float32, strength of the highlight


class Surface(NamedTuple):
    """Points that share one pattern; every field has length n unless noted."""

    u: Tensor
    v: Tensor
    wu: Tensor
    wv: Tensor
    dirs: Tensor  # (3, n) ray directions
    scale: Tensor
    seed: Tensor
    material: Tensor  # column of the palette
    palette: Tensor  # (4, 3, M) linear RGB

    def color(self, k: int) -> Tensor:
        """Return colour k of the material of each point, (3, n)."""
        return self.palette[k].index_select(1, self.material)


def srgb_to_linear(x: Tensor) -> Tensor:
    """Decode sRGB values in [0, 1]."""
    return torch.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(x: Tensor) -> Tensor:
    """Encode linear values, clipped to [0, 1]."""
    x = x.clamp(0, 1)
    return torch.where(x <= 0.0031308, x * 12.92, 1.055 * x.clamp_min(1e-8) ** (1 / 2.4) - 0.055)


@functools.cache
def _noise_mips(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Make the 1/f noise tile and the table of cell tints.

    Returns:
        Texels of all mip levels, each with its right, lower and diagonal neighbour so that one
        gather feeds a bilinear lookup, (n, 4); first texel of each level, (10,); tints, (CELLS,).
    """
    rng = np.random.Generator(np.random.Philox(key=360))
    fy, fx = np.fft.fftfreq(TILE)[:, None], np.fft.rfftfreq(TILE)[None]
    radius = np.maximum(np.hypot(fy, fx), 1 / TILE)
    spectrum = np.fft.rfft2(rng.standard_normal((TILE, TILE))) / radius
    spectrum[0, 0] = 0
    tile = np.fft.irfft2(spectrum, (TILE, TILE))
    level = torch.from_numpy((tile / tile.std()).clip(-2.5, 2.5).astype(np.float32))
    quads, starts, count = [], [], 0
    while True:
        right, down = level.roll(-1, 1), level.roll(-1, 0)
        quads.append(torch.stack((level, right, down, right.roll(-1, 0)), -1).reshape(-1, 4))
        starts.append(count)
        count += level.numel()
        if level.shape[0] == 1:
            break
        level = torch.nn.functional.avg_pool2d(level[None], 2)[0]
    tints = torch.from_numpy(rng.uniform(-1, 1, CELLS).astype(np.float32))
    return torch.cat(quads).to(device), torch.tensor(starts, device=device), tints.to(device)


def noise(s: Surface, freq_u: float, freq_v: float | None = None, salt: int = 0) -> Tensor:
    """Sample 1/f noise (mean 0, deviation 1, within +-2.5) at `freq` texels per metre."""
    freq_v = freq_u if freq_v is None else freq_v
    quads, starts, _ = _noise_mips(s.u.device)
    footprint = torch.maximum(s.wu * freq_u, s.wv * freq_v)
    level = (footprint.clamp_min(1.0).log2() + 0.25).clamp(max=8.9).int()
    side = torch.bitwise_right_shift(TILE, level)
    shrink = side / TILE
    number = s.seed.int() + salt
    x = (s.u * freq_u + number * 37 % TILE) * shrink - 0.5
    y = (s.v * freq_v + number * 101 % TILE) * shrink - 0.5
    col, row = x.floor(), y.floor()
    fx, fy = x - col, y - row
    index = (row.int() & (side - 1)) * side + (col.int() & (side - 1))
    index = index + starts.int().index_select(0, level)
    nw, ne, sw, se = quads.index_select(0, index).unbind(1)
    return _mix(_mix(nw, ne, fx), _mix(sw, se, fx), fy)


def pulse_coverage(x: Tensor, width: Tensor, duty: Tensor | float) -> Tensor:
    """Share of [x - width/2, x + width/2] where frac(x) < duty: the box-filtered pulse train."""
    width = width.clamp_min(1e-6)

    def integral(a: Tensor) -> Tensor:
        cell = a.floor()
        return cell * duty + torch.clamp(a - cell, max=duty)

    base = x.floor()  # keeps the difference of integrals exact far from the origin
    coverage = (integral(x - base + width / 2) - integral(x - base - width / 2)) / width
    return coverage.clamp(0, 1)


def _inside(x: Tensor, half: Tensor | float, width: Tensor) -> Tensor:
    """Filtered indicator of |x| < half."""
    return (0.5 + (half - x.abs()) / width.clamp_min(1e-6)).clamp(0, 1)


def _tint(s: Surface, row: Tensor, col: Tensor, salt: int = 0) -> Tensor:
    """Random value in [-1, 1] of a lattice cell."""
    tints = _noise_mips(s.u.device)[2]
    cell = row.long() * 613 + col.long() * 179 + s.seed * 53 + salt
    return tints[(cell ^ (cell >> 5)) & (CELLS - 1)]


def _mix(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    return a + (b - a) * weight


def _lattice(s: Surface, cell_u, cell_v, shift: float | None, gap: float):
    """Return joint coverage, cell tint in [-1, 1] faded with distance.

    Rows have height `cell_v`; row k is moved by k * shift cells, or randomly for shift None.
    `gap` is the width of the joints in units of `cell_v`.
    """
    y, hy = s.v / cell_v, s.wv / cell_v
    row = y.floor()
    offset = _tint(s, row, torch.zeros_like(row), 7) if shift is None else row * shift
    x, hx = s.u / cell_u + offset, s.wu / cell_u
    gap_u = gap * cell_v / cell_u
    joint_u = pulse_coverage(x + gap_u / 2, hx, gap_u)
    joint_v = pulse_coverage(y + gap / 2, hy, gap)
    tint = _tint(s, row, x.floor()) * (1.2 - torch.maximum(hx, hy)).clamp(0, 1)
    return joint_u + joint_v - joint_u * joint_v, tint


def _solid(s: Surface) -> Tensor:
    return s.color(0) * (1 + 0.03 * noise(s, 40))


def _checker(s: Surface) -> Tensor:
    su = 2 * pulse_coverage(s.u / (2 * s.scale), s.wu / (2 * s.scale), 0.5) - 1
    sv = 2 * pulse_coverage(s.v / (2 * s.scale), s.wv / (2 * s.scale), 0.5) - 1
    return _mix(s.color(0), s.color(1), 0.5 + 0.5 * su * sv) * (1 + 0.03 * noise(s, 60))


def _stripes(s: Surface) -> Tensor:
    band = pulse_coverage(s.u / (2 * s.scale), s.wu / (2 * s.scale), 0.5)
    return _mix(s.color(0), s.color(1), band) * (1 + 0.03 * noise(s, 60))


def _siding(s: Surface) -> Tensor:
    """Horizontal boards with a shadow line, as on house walls."""
    joint, tint = _lattice(s, s.scale * 18, s.scale, None, 0.12)
    grain = noise(s, 8, 90)
    return _mix(s.color(0), s.color(1), joint) * (1 + 0.05 * tint + 0.03 * grain)


def _planks(s: Surface) -> Tensor:
    joint, tint = _lattice(s, s.scale * 9, s.scale, None, 0.035)
    grain = noise(s, 18, 220, salt=0)
    board = _mix(s.color(0), s.color(1), (0.35 + 0.35 * tint + 0.12 * grain).clamp(0, 1))
    return board * (1 + 0.07 * grain) * (1 - 0.7 * joint)


def _bricks(s: Surface) -> Tensor:
    joint, tint = _lattice(s, s.scale * 3, s.scale, 0.5, 0.16)
    brick = s.color(0) * (1 + 0.28 * tint + 0.10 * noise(s, 90))
    return _mix(brick, s.color(1) * (1 + 0.06 * noise(s, 120)), joint)


def _tiles(s: Surface) -> Tensor:
    joint, tint = _lattice(s, s.scale, s.scale, 0.0, 0.025)
    tile = s.color(0) * (1 + 0.09 * tint + 0.04 * noise(s, 50))
    return _mix(tile, s.color(1), joint)


def _dots(s: Surface) -> Tensor:
    u, v = s.u / s.scale, s.v / s.scale
    r = length2(u - u.floor() - 0.5, v - v.floor() - 0.5)
    w = torch.maximum(s.wu, s.wv) / s.scale
    dot = (0.5 + (0.28 - r) / w.clamp_min(0.02)).clamp(0, 1)
    dot = torch.where(w < 1, _mix(dot, torch.full_like(w, 0.246), w.clamp(0, 1)), 0.246)
    return _mix(s.color(0), s.color(1), dot)


def _plaster(s: Surface) -> Tensor:
    mottled = (0.5 + 0.14 * noise(s, 110)).clamp(0, 1)
    return _mix(s.color(0), s.color(1), mottled) * (1 + 0.02 * noise(s, 300, salt=5))


def _noise(s: Surface) -> Tensor:
    return _mix(s.color(0), s.color(1), (0.5 + 0.25 * noise(s, 120)).clamp(0, 1))


def _marble(s: Surface) -> Tensor:
    phase = s.u / s.scale + 0.6 * s.v / s.scale + 0.9 * noise(s, 60)
    fade = torch.exp(-4 * (torch.maximum(s.wu, s.wv) / s.scale) ** 2)
    vein = 0.5 + 0.5 * fade * torch.sin(2 * math.pi * phase)
    vein = vein * vein
    return _mix(s.color(0), s.color(1), 0.8 * vein * vein)


def _grain(s: Surface) -> Tensor:
    ring = noise(s, 25, 260)
    board = _mix(s.color(0), s.color(1), (0.4 + 0.25 * ring).clamp(0, 1))
    return board * (1 + 0.05 * noise(s, 30, salt=9))


def _weave(s: Surface) -> Tensor:
    thread = pulse_coverage(s.u / s.scale, s.wu / s.scale, 0.5)
    cross = pulse_coverage(s.v / s.scale, s.wv / s.scale, 0.5)
    cloth = _mix(s.color(0), s.color(1), 0.5 * thread + 0.5 * cross)
    return cloth * (1 + 0.07 * noise(s, 90))


def _rug(s: Surface) -> Tensor:
    """Border bands and a diamond field; `scale` is the half width of the rug."""
    edge = (s.u.abs() / s.scale).clamp(0, 2)
    w = (s.wu / s.scale).clamp_min(1e-4)
    band = _inside(edge - 0.86, 0.05, w) + _inside(edge - 0.74, 0.02, w)
    cell = s.scale / 4
    a, b = (s.u + s.v) / cell, (s.u - s.v) / cell
    w = (s.wu + s.wv) / cell
    field = (2 * pulse_coverage(a, w, 0.5) - 1) * (2 * pulse_coverage(b, w, 0.5) - 1)
    field = (0.5 + 0.5 * field) * (edge < 0.7)
    cloth = _mix(s.color(0), s.color(2), 0.8 * field)
    return _mix(cloth, s.color(1), band.clamp(0, 1)) * (1 + 0.06 * noise(s, 200))


def _books(s: Surface) -> Tensor:
    joint, tint = _lattice(s, s.scale, s.scale * 40, 0.0, 0.003)
    hue = _tint(s, torch.zeros_like(s.u), (s.u / s.scale).floor(), 3)
    a = _mix(s.color(0), s.color(1), (hue > -0.4).float())
    b = _mix(s.color(2), s.color(3), (hue > 0.6).float())
    return _mix(a, b, (hue > 0.1).float()) * (1 + 0.25 * tint) * (1 - 0.6 * joint)


def _glow(s: Surface) -> Tensor:
    return s.color(0)


def bare_surface(u: Tensor, v: Tensor, width: Tensor, seed: Tensor) -> Surface:
    """Return a surface without material, enough to sample `noise`."""
    none = u.new_zeros(0)
    return Surface(u, v, width, width, none, none, seed, none, none)


def skyline(dirs: Tensor, seed: Tensor) -> Tensor:
    """Elevation (radians, about 0 to 0.12) of a distant ridge seen along directions (3, n)."""
    flat = length2(dirs[0], dirs[2]).clamp_min(1e-6)
    width = torch.full_like(flat, 0.004)
    ring = bare_surface(dirs[0] / flat, dirs[2] / flat, width, seed)
    return 0.045 + 0.025 * noise(ring, 40) + 0.008 * noise(ring, 300)


def _view(s: Surface) -> Tensor:
    """What is outside a window, a function of the direction only."""
    up = -s.dirs[1]
    ridge = skyline(s.dirs, s.seed)
    haze = _mix(s.color(1), s.color(0), (up * 1.3).clamp(0, 1))
    land = _mix(s.color(2), s.color(3), (-up * 3).clamp(0, 1))
    return _mix(land, haze, (0.5 + (up - ridge) * 120).clamp(0, 1))


def _picture(s: Surface) -> Tensor:
    """Landscape, colour blocks or blobs, by seed; `scale` is the half width of the canvas."""
    u, v = s.u / s.scale, s.v / s.scale
    blot = noise(s, 60)
    sun = (((0.25 - length2(u - 0.35, v + 0.25)) * 30) + 0.5).clamp(0, 1)
    sky = _mix(_mix(s.color(0), s.color(1), (0.5 + 0.7 * v).clamp(0, 1)), s.color(3), sun)
    hill = ((v - 0.1 - 0.12 * torch.sin(3 * u + s.seed) - 0.04 * blot) * 30).clamp(0, 1)
    landscape = _mix(sky, s.color(2) * (1 + 0.15 * blot), hill)
    cell = s._replace(u=u + 9, v=v + 9, wu=s.wu / s.scale, wv=s.wv / s.scale)
    joint, tint = _lattice(cell, torch.full_like(u, 0.55), torch.full_like(u, 0.42), 0.4, 0.06)
    low, high = (tint < -0.2).float(), (tint > 0.35).float()
    blocks = _mix(_mix(s.color(0), s.color(1), low), s.color(2), high) * (1 - 0.85 * joint)
    blobs = _mix(s.color(1), s.color(0), (0.5 + 6 * (blot - 0.2)).clamp(0, 1))
    blobs = _mix(blobs, s.color(3), (0.5 + 6 * (noise(s, 90, salt=3) - 0.8)).clamp(0, 1))
    style = s.seed % 3
    return torch.where(style == 0, landscape, torch.where(style == 1, blocks, blobs))


def _foliage(s: Surface) -> Tensor:
    leaf = 0.45 + 0.28 * noise(s, 110) + 0.25 * noise(s, 28, salt=11)
    return _mix(s.color(0), s.color(1), leaf.clamp(0, 1))


def _lawn(s: Surface, dark: Tensor, bright: Tensor) -> Tensor:
    blade = 0.5 + 0.30 * noise(s, 300) + 0.2 * noise(s, 24, salt=2)
    return _mix(dark, bright, blade.clamp(0, 1))


def _grass(s: Surface) -> Tensor:
    return _lawn(s, s.color(0), s.color(1))


def _road(s: Surface) -> Tensor:
    """Asphalt along v of half width `scale`, kerb, 2 m of paving, then grass."""
    x = s.u.abs()
    pitch = torch.full_like(s.u, 0.5)
    asphalt = s.color(0) * (1 + 0.10 * noise(s, 150) + 0.06 * noise(s, 12, salt=1))
    dash = _inside(s.u, 0.07, s.wu) * pulse_coverage(s.v / 5, s.wv / 5, 0.5)
    side = _inside(x - (s.scale - 0.25), 0.05, s.wu)
    asphalt = _mix(asphalt, s.color(3), (dash + 0.8 * side).clamp(0, 1))
    joint, tint = _lattice(s, pitch, pitch, 0.0, 0.04)
    paving = s.color(1) * (1 + 0.08 * tint + 0.05 * noise(s, 80)) * (1 - 0.45 * joint)
    kerb = _inside(x - s.scale - 0.08, 0.08, s.wu)
    paving = _mix(paving, s.color(1) * 1.25, kerb)
    near = _mix(paving, asphalt, _inside(x, s.scale, s.wu))
    lawn = _lawn(s, s.color(2), s.color(2) * 1.5)
    return _mix(lawn, near, _inside(x, s.scale + 2.1, s.wu))


PATTERNS = {
    "solid": _solid,
    "checker": _checker,
    "stripes": _stripes,
    "siding": _siding,
    "planks": _planks,
    "bricks": _bricks,
    "tiles": _tiles,
    "dots": _dots,
    "plaster": _plaster,
    "noise": _noise,
    "marble": _marble,
    "grain": _grain,
    "weave": _weave,
    "rug": _rug,
    "books": _books,
    "glow": _glow,
    "view": _view,
    "picture": _picture,
    "foliage": _foliage,
    "grass": _grass,
    "road": _road,
}
GLOWING = {"glow": 1.0, "view": 1.0}
GLOSS = {"metal": 0.35, "glass-like": 0.5, "plastic": 0.18, "tile": 0.15, "wood": 0.06}


def build_material_table(materials: Sequence[Material], device) -> MaterialTable:
    """Collect materials in the given order; missing colours repeat the last one."""
    names = list(PATTERNS)
    colors = [[*m.colors, *[m.colors[-1]] * (4 - len(m.colors))] for m in materials]
    table = MaterialTable(
        pattern=torch.tensor([names.index(m.pattern) for m in materials]),
        scale=torch.tensor([m.scale for m in materials]),
        seed=torch.tensor([m.seed for m in materials]),
        colors=srgb_to_linear(torch.tensor(colors)).permute(1, 2, 0).contiguous(),
        glow=torch.tensor([GLOWING.get(m.pattern, 0.0) for m in materials]),
        gloss=torch.tensor([GLOSS.get(m.name, 0.0) for m in materials]),
    )
    return MaterialTable(*(x.to(device) for x in table))


def albedo(table: MaterialTable, material: Tensor, u, v, wu, wv, dirs: Tensor) -> Tensor:
    """Linear RGB colour (3, n) of surface points; arguments have length n, dirs is (3, n)."""
    out = torch.empty_like(dirs)
    pattern = table.pattern.index_select(0, material)
    for number in table.pattern.unique().tolist():
        (rows,) = (pattern == number).nonzero(as_tuple=True)
        if rows.numel() == 0:
            continue
        m = material.index_select(0, rows)
        surface = Surface(
            u.index_select(0, rows),
            v.index_select(0, rows),
            wu.index_select(0, rows),
            wv.index_select(0, rows),
            dirs.index_select(1, rows),
            table.scale.index_select(0, m),
            table.seed.index_select(0, m),
            m,
            table.colors,
        )
        out.index_copy_(1, rows, list(PATTERNS.values())[number](surface))
    return out
