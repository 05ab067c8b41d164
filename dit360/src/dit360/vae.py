"""The stock VAE around the seam: circular convolutions, scaled latents, tiles that wrap.

Convolutions that pad with zeros are the only place of the VAE that breaks the wrap; group norms
and the attention do not know where a column lies. With "circular", padding is taken from the other
end in width and stays zero in height, which makes both halves exactly equivariant to rolls (of 8
pixels and 1 latent column). Nothing is renamed or added: only the class of a convolution changes.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from diffusers.models.downsampling import Downsample2D
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from diffusers.utils.torch_utils import get_module_execution_device
from torch import Tensor, nn
from torch.nn import functional as F

VaeWrap = Literal["circular", "none"]
VAE_WRAPS: tuple[VaeWrap, ...] = ("circular", "none")
MIN_TILE_COLUMNS = 4


class _WrapConv2d(nn.Conv2d):
    """Pads in width from the other end, in height with zeros."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        rows, columns = (int(side) for side in self.padding)
        wrapped = F.pad(input, (columns, columns, 0, 0), mode="circular")
        return F.conv2d(wrapped, weight, bias, self.stride, (rows, 0), self.dilation, self.groups)


class _WrapDownConv2d(nn.Conv2d):
    """Convolution in a `Downsample2D`, which has put one column of zeros on the right."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        wrapped = torch.cat([input[..., :-1], input[..., :1]], -1)
        return super()._conv_forward(wrapped, weight, bias)


def set_vae_wrap(vae: Any, mode: VaeWrap = "circular") -> None:
    """Change the padding of all padded convolutions in place; any number of times.

    Parameters, their names and the configuration stay, so that saving, loading and copying do.

    Args:
        vae: `AutoencoderKL`; may carry offload hooks.
        mode: "circular" in width, or "none" for the stock class.

    Raises:
        ValueError: `mode` is unknown.
    """
    if mode not in VAE_WRAPS:
        raise ValueError(f"vae_wrap is {mode!r}; use one of {', '.join(VAE_WRAPS)}")
    down = {
        id(module.conv)
        for module in vae.modules()
        if isinstance(module, Downsample2D) and module.use_conv and module.padding == 0
    }
    for module in vae.modules():
        if type(module) not in (nn.Conv2d, _WrapConv2d, _WrapDownConv2d):
            continue
        if mode == "circular" and id(module) in down:
            module.__class__ = _WrapDownConv2d
        elif mode == "circular" and module.padding != (0, 0):
            module.__class__ = _WrapConv2d
        else:
            module.__class__ = nn.Conv2d


def is_circular(vae: Any) -> bool:
    """Whether `set_vae_wrap` has made the VAE circular."""
    return any(isinstance(module, _WrapConv2d) for module in vae.modules())


def encode(
    vae: Any,
    images: Tensor,
    *,
    generator: torch.Generator | None = None,
    sample: bool = True,
) -> Tensor:
    """Encode images to the latents that the transformer sees.

    Args:
        vae: may be offloaded, and of another dtype than `images`.
        images: (B, 3, H, W) in [-1, 1], H and W multiples of 8.
        generator: of the posterior's noise.
        sample: draw from the posterior; its mean otherwise.

    Returns:
        (B, 16, H/8, W/8) in the dtype of the VAE: ``(z - shift) * scale``.

    Raises:
        ValueError: the VAE is circular, and the library's tiling, which cuts the seam, is on.
    """
    _refuse_stock_tiling(vae)
    images = images.to(device=get_module_execution_device(vae), dtype=vae.dtype)
    posterior = vae.encode(images, return_dict=False)[0]
    latents = posterior.sample(generator) if sample else posterior.mode()
    return (latents - vae.config.shift_factor) * vae.config.scaling_factor


def decode(vae: Any, latents: Tensor, *, tile_columns: int | None = None) -> Tensor:
    """Decode latents of the transformer.

    Args:
        vae: may be offloaded, and of another dtype than `latents`; float16 latents of a float32
            VAE are decoded in float32.
        latents: (B, 16, h, w).
        tile_columns: latent columns decoded at a time, a quarter of which overlaps the next tile;
            everything at once if None or not less than w. Tiles of a circular VAE go around the
            seam, which is then like any other border. They have group norms and attention of
            their own, so that results differ slightly from those of the whole.

    Returns:
        (B, 3, 8*h, 8*w) in the dtype of the VAE, about [-1, 1].

    Raises:
        ValueError: tiles are too narrow, or the VAE is circular and the library's tiling, which
            cuts the seam, is on.
    """
    _refuse_stock_tiling(vae)
    latents = latents.to(device=get_module_execution_device(vae), dtype=vae.dtype)
    latents = latents / vae.config.scaling_factor + vae.config.shift_factor
    if tile_columns is not None and tile_columns < MIN_TILE_COLUMNS:
        raise ValueError(
            f"tile_columns is {tile_columns}; use {MIN_TILE_COLUMNS} or more, or none for no tiles"
        )
    if tile_columns is None or tile_columns >= latents.shape[-1]:
        return vae.decode(latents, return_dict=False)[0]
    if not is_circular(vae):
        return _decode_tiles(vae, latents, tile_columns, circular=False)
    with _stock_padding(vae):  # the two sides of a tile are no neighbours
        return _decode_tiles(vae, latents, tile_columns, circular=True)


def pack(latents: Tensor) -> Tensor:
    """Pack latents (B, 16, 2*Hp, 2*Wp) to tokens (B, Hp*Wp, 64), 2 x 2 cells a token."""
    return FluxPipeline._pack_latents(latents, *latents.shape)


def unpack(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Undo `pack`: tokens (B, Hp*Wp, 64) of a grid (Hp, Wp) to latents (B, 16, 2*Hp, 2*Wp)."""
    # The stock method takes the size of the image; with a VAE factor of 1 that is the latents'.
    return FluxPipeline._unpack_latents(tokens, 2 * grid[0], 2 * grid[1], 1)


def _refuse_stock_tiling(vae: Any) -> None:
    if vae.use_tiling and is_circular(vae):
        raise ValueError(
            "the VAE is circular and its own tiling is on, whose tiles would wrap around "
            "themselves; call vae.disable_tiling() and pass tile_columns"
        )


@contextmanager
def _stock_padding(vae: Any) -> Iterator[None]:
    set_vae_wrap(vae, "none")
    try:
        yield
    finally:
        set_vae_wrap(vae, "circular")


def _decode_tiles(vae: Any, latents: Tensor, tile: int, *, circular: bool) -> Tensor:
    """Blend tiles that are as high as the image, with weights that fall smoothly to both sides."""
    batch, _, height, width = latents.shape
    side = 2 ** (len(vae.config.block_out_channels) - 1)  # pixels of a latent
    cells = torch.arange(tile, device=latents.device)
    pixels = torch.arange(tile * side, device=latents.device)
    overlap = tile // 4
    ramp = torch.minimum(pixels + 0.5, tile * side - pixels - 0.5) / (overlap * side)
    weight = ramp.clamp(max=1)
    weight = weight**2 * (3 - 2 * weight)  # flat at both ends: a tile begins without a step
    total = torch.zeros(batch, 3, height * side, width * side, device=latents.device)
    weights = torch.zeros(width * side, device=latents.device)
    for start in _tile_starts(width, tile, overlap, circular=circular):
        image = vae.decode(latents[..., (start + cells) % width], return_dict=False)[0]
        place = (start * side + pixels) % (width * side)
        total[..., place] += weight * image.float()
        weights[place] += weight
    return (total / weights).to(latents.dtype)


def _tile_starts(width: int, tile: int, overlap: int, *, circular: bool) -> list[int]:
    """First columns of evenly spread tiles, neighbours of which share `overlap` or more."""
    if circular:
        count = math.ceil(width / (tile - overlap))
        return [index * width // count for index in range(count)]
    count = math.ceil((width - overlap) / (tile - overlap))
    return [index * (width - tile) // (count - 1) for index in range(count)]
