"""The three behaviours that turn stock diffusers networks into cubemap networks.

A panorama is six images of a batch, faces F R B L U D, panoramas one after the other: ``(6b, C, h,
w)``. `cubify` swaps the classes of existing modules, so parameters, names and checkpoints of
`UNet2DConditionModel` and `AutoencoderKL` stay what they are: group norms see the whole cube,
padded convolutions read the neighbouring face, self-attention joins the six faces.
"""

import math
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from diffusers.models.downsampling import Downsample2D
from torch import Tensor, nn

from shared_pano_utils.geometry import PY360_E2X, rays, xyz_to_lonlat

T = TypeVar("T")

FACES = 6
ROPE_BASE = 10_000.0

# Neighbour strip of each face (F R B L U D): (face, edge, reversed) for its top, bottom, left and
# right side. Edges of the source: top row, bottom row (left to right), left and right column
# (top to bottom).
_TOP, _BOTTOM, _LEFT, _RIGHT = range(4)
_F, _R, _B, _L, _U, _D = range(6)
NEIGHBOURS = (
    ((_U, _BOTTOM, False), (_D, _TOP, False), (_L, _RIGHT, False), (_R, _LEFT, False)),
    ((_U, _RIGHT, True), (_D, _RIGHT, False), (_F, _RIGHT, False), (_B, _LEFT, False)),
    ((_U, _TOP, True), (_D, _BOTTOM, True), (_R, _RIGHT, False), (_L, _LEFT, False)),
    ((_U, _LEFT, False), (_D, _LEFT, True), (_B, _RIGHT, False), (_F, _LEFT, False)),
    ((_B, _TOP, True), (_F, _TOP, False), (_L, _TOP, False), (_R, _TOP, True)),
    ((_F, _BOTTOM, False), (_B, _BOTTOM, True), (_L, _BOTTOM, True), (_R, _BOTTOM, False)),
)


def _cached_table(function: Callable[..., T]) -> Callable[..., T]:
    """Keep the results of `function` for the life of the process.

    They are ordinary tensors even if first asked for in inference mode (one made there could not
    take part in a later backward pass), and inputs to a compiled network, which is cut where it
    asks for one that does not exist yet.
    """
    tables: dict[tuple[Any, ...], T] = {}

    @torch.compiler.disable
    def make(key: tuple[Any, ...]) -> None:
        with torch.inference_mode(False):
            tables[key] = function(*key)

    @wraps(function)
    def table(*args: Any) -> T:
        if args not in tables:
            make(args)  # pyright: ignore[reportArgumentType]
        return tables[args]

    return table


@_cached_table
def _strip_index(side: int, device: torch.device) -> Tensor:
    """Index (6, 4, side) into the flattened (6, 4, side) face edges of every neighbour strip."""
    position = torch.arange(side)
    index = torch.stack(
        [
            torch.stack(
                [(f * 4 + e) * side + (position.flip(0) if rev else position) for f, e, rev in row]
            )
            for row in NEIGHBOURS
        ]
    )
    return index.to(device)


def pad_faces(x: Tensor) -> Tensor:
    """Pad every face by one pixel copied from its neighbours; corners are the mean of two cells.

    Args:
        x: (6b, C, S, S).

    Returns:
        (6b, C, S+2, S+2). Source: the padding table of the released checkpoints.
    """
    n, side, width = x.shape[0], *x.shape[-2:]
    if n % FACES or side != width:
        raise ValueError(
            f"got {n} images of {side}x{width}; cube padding needs 6 square faces per panorama"
        )
    edges = torch.stack([x[..., 0, :], x[..., -1, :], x[..., :, 0], x[..., :, -1]], 2)
    edges = edges.unflatten(0, (-1, FACES)).transpose(1, 2).flatten(2)  # [b, C, 6*4*S]
    strips = edges[..., _strip_index(side, x.device)].transpose(1, 2).flatten(0, 1)  # [6b, C, 4, S]
    top, bottom, left, right = strips.unbind(2)

    def with_corners(row: Tensor, end: int) -> Tensor:
        first = (row[..., :1] + left[..., end, None]) / 2
        last = (row[..., -1:] + right[..., end, None]) / 2
        return torch.cat([first, row, last], -1)[..., None, :]

    body = torch.cat([left[..., None], x, right[..., None]], -1)
    return torch.cat([with_corners(top, 0), body, with_corners(bottom, -1)], -2)


class CubeConv2d(nn.Conv2d):
    """3x3 convolution whose one-pixel padding comes from the neighbouring faces.

    With `one_sided` the input already carries the zero row and column that the stock
    `Downsample2D` appends at the bottom and right; they are replaced by true neighbours.
    """

    one_sided: bool = False

    def forward(self, input: Tensor) -> Tensor:
        """Convolve (6b, C, S, S) faces."""
        padded = (
            pad_faces(input[..., :-1, :-1])[..., 1:, 1:] if self.one_sided else pad_faces(input)
        )
        return F.conv2d(padded, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class CubeGroupNorm(nn.GroupNorm):
    """Group norm whose statistics run over the six faces of a panorama. Input (6b, C, ...)."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise per panorama."""
        cube = input.unflatten(0, (-1, FACES)).transpose(1, 2)
        normed = F.group_norm(cube, self.num_groups, self.weight, self.bias, self.eps)
        return normed.transpose(1, 2).flatten(0, 1)


class CubeAttnProcessor:
    """Joint self-attention over the tokens of all six faces, with optional spherical RoPE.

    Serves the transformer blocks of the UNet (tokens, (6b, L, C)) and the attention of the VAE's
    middle block (maps, (6b, C, h, w)). Cross-attention stays per face: six copies of the same text
    tokens give the same softmax average as one.
    """

    def __init__(self, use_rope: bool = False) -> None:
        self.use_rope = use_rope

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,  # noqa: ARG002 (passed by the stock blocks)
    ) -> Tensor:
        """Attend; called by `Attention.forward`, same shape out as in."""
        if attention_mask is not None:
            raise ValueError("attention masks are not supported by the cube attention; pass None")
        # Optional in diffusers only for attention with added keys.
        assert attn.to_k is not None
        assert attn.to_v is not None
        assert attn.to_out is not None
        residual = hidden_states
        if hidden_states.ndim == 4:
            hidden_states = hidden_states.flatten(2).transpose(1, 2)
        if attn.group_norm is not None:
            hidden_states = attn.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)
        is_self_attention = encoder_hidden_states is None
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states

        q, k, v = attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)
        if is_self_attention:
            q, k, v = (t.unflatten(0, (-1, FACES)).flatten(1, 2) for t in (q, k, v))  # [b, 6L, C]
        q, k, v = (t.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for t in (q, k, v))
        if is_self_attention and self.use_rope:
            table = rope_table(math.isqrt(hidden_states.shape[1]), q.shape[-1], q.device)
            q, k = rotate_pairs(q, table), rotate_pairs(k, table)
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        if is_self_attention:
            out = out.unflatten(1, (FACES, -1)).flatten(0, 1)

        out = attn.to_out[1](attn.to_out[0](out))
        if residual.ndim == 4:
            out = out.transpose(1, 2).reshape(residual.shape)
        if attn.residual_connection:
            out = out + residual
        return out / attn.rescale_output_factor


# ---- spherical position -------------------------------------------------------------------------


def erp_coordinates(face_size: int, device: torch.device | str | None = None) -> Tensor:
    """Longitude and latitude maps of the faces, (6, 2, S, S) float64: U right, V *down*, in [-1, 1].

    Face pixels are corner-registered like the images the network sees, so the first and last
    column lie on the cube edges.
    """
    directions = rays("cube", face_size, reg=PY360_E2X, dtype=torch.float64, device=device)
    lon, lat = xyz_to_lonlat(directions).unbind(-1)
    return torch.stack([lon / 180, -lat / 90], 1)


@_cached_table
def rope_table(side: int, head_dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosine and sine (6*S*S, head_dim/2), float32, of the rotary angles of every token.

    The first half of the pairs turns by longitude (pi*U), the rest by latitude (pi/2*V), with
    frequencies ``10000^(-2i/P)`` over the P pairs of the axis.
    """
    pairs = head_dim // 2
    u, v = erp_coordinates(side).transpose(0, 1).flatten(1)  # [6*S*S] each
    angles = []
    for coordinate, count in ((math.pi * u, pairs // 2), (math.pi / 2 * v, pairs - pairs // 2)):
        frequency = ROPE_BASE ** (-2 * torch.arange(count, dtype=torch.float64) / count)
        angles.append(coordinate[:, None] * frequency)
    table = torch.cat(angles, -1)
    return table.cos().float().to(device), table.sin().float().to(device)


def rotate_pairs(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate channel pairs (2k, 2k+1) of x (..., tokens, D) by the angles of `table`."""
    cos, sin = table
    a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2).to(x.dtype)


# ---- adaptation ---------------------------------------------------------------------------------


def cubify(model: nn.Module, *, use_rope: bool = False) -> dict[str, int]:
    """Give a stock diffusers network the three cube behaviours, in place.

    Args:
        model: a `UNet2DConditionModel` or `AutoencoderKL`, fresh or loaded.
        use_rope: rotary positions in every self-attention (the UNet of "RoPE" checkpoints).

    Returns:
        How many modules were changed: keys "conv", "one_sided", "norm", "attention".
    """
    processor: Any = CubeAttnProcessor(use_rope)
    count = {"conv": 0, "one_sided": 0, "norm": 0, "attention": 0}
    for module in list(model.modules()):
        if isinstance(module, nn.GroupNorm):
            module.__class__ = CubeGroupNorm
            count["norm"] += 1
        elif isinstance(module, nn.Conv2d) and module.padding == (1, 1):
            module.__class__ = CubeConv2d
            count["conv"] += 1
        elif isinstance(module, Downsample2D) and module.use_conv and module.padding == 0:
            conv: Any = module.conv
            conv.__class__ = CubeConv2d
            conv.one_sided = True
            count["conv"] += 1
            count["one_sided"] += 1
        elif isinstance(module, Attention):
            module.set_processor(processor)
            count["attention"] += 1
    return count
