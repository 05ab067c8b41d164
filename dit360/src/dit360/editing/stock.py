"""The stock inpainting pipelines of FLUX, called with a panorama: `inpaint` and `fill`.

Both make tokens in two methods, whose results are wrap-padded here like those of
`DiT360Pipeline`; everything else is theirs. The shift of the schedule comes from the unpadded
length, as in editing.
"""

from typing import Any

import torch
from diffusers.pipelines.flux.pipeline_flux_fill import FluxFillPipeline
from diffusers.pipelines.flux.pipeline_flux_inpaint import FluxInpaintPipeline
from PIL import Image
from torch import Tensor

from dit360 import vae, wrap
from dit360.editing.settings import EditSettings
from dit360.pipeline import DiT360Pipeline


class _WrapPadded:
    """Wrap padding of everything that a stock inpainting pipeline makes tokens of."""

    padding_n: int = 1
    pad_ids: wrap.PadIds = "source"
    tile_columns: int | None = None
    vae_scale_factor: int

    def token_grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of tokens of an image."""
        side = 2 * self.vae_scale_factor
        return height // side, width // side

    def prepare_latents(
        self, image: Any, timestep: Any, batch: int, channels: int, height: int, width: int,
        *args: Any,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        """Pad the stock results: packed tokens (B, Hp*Wp, C), and at last ids (Hp*Wp, 3)."""
        stock: Any = super()
        *tokens, ids = stock.prepare_latents(image, timestep, batch, channels, height, width, *args)
        grid = self.token_grid(height, width)
        padded = [wrap.pad_tokens(part, grid, self.padding_n) for part in tokens]
        return *padded, wrap.pad_ids(ids, grid, self.padding_n, self.pad_ids)

    def prepare_mask_latents(
        self, mask: Any, masked_image: Any, batch: int, channels: int, number: int,
        height: int, width: int, *args: Any,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        """Pad the stock results: packed mask and masked image, (B, Hp*Wp, C) each."""
        stock: Any = super()
        tokens = stock.prepare_mask_latents(
            mask, masked_image, batch, channels, number, height, width, *args
        )
        grid = self.token_grid(height, width)
        return tuple(wrap.pad_tokens(part, grid, self.padding_n) for part in tokens)


class InpaintPipeline(_WrapPadded, FluxInpaintPipeline):  # pyright: ignore[reportIncompatibleMethodOverride]
    """`FluxInpaintPipeline` on wrap-padded tokens; `paint` decodes its latents."""


class FillPipeline(_WrapPadded, FluxFillPipeline):  # pyright: ignore[reportIncompatibleMethodOverride]
    """`FluxFillPipeline` on wrap-padded tokens; `paint` decodes its latents."""


def inpaint_pipeline(pipeline: DiT360Pipeline) -> InpaintPipeline:
    """The same components, padding and source of embeddings in an `InpaintPipeline`."""
    stock = InpaintPipeline(**pipeline.components)
    stock.padding_n, stock.pad_ids = pipeline.padding_n, pipeline.pad_ids
    stock.encode_prompt = pipeline.encode_prompt  # a text cache may stand in for the encoders
    stock.set_progress_bar_config(**getattr(pipeline, "_progress_bar_config", {}))
    return stock


def paint(
    pipeline: InpaintPipeline | FillPipeline,
    source: Image.Image,
    repaint: Image.Image,
    settings: EditSettings,
) -> Tensor:
    """Paint the white part of a mask, starting from pure noise there.

    Args:
        pipeline: one of the two.
        source: panorama, (W, H) pixels.
        repaint: mode L, white = paint (the diffusers polarity).
        settings: prompt, steps, guidance, seed and text length are read.

    Returns:
        Latents (1, 16, H/8, W/8); the network has seen one panorama a step.
    """
    padded = pipeline(
        prompt=settings.prompt,
        image=source,  # pyright: ignore[reportArgumentType]
        mask_image=repaint,  # pyright: ignore[reportArgumentType]
        height=source.height,
        width=source.width,
        strength=1.0,
        num_inference_steps=settings.num_inference_steps,
        guidance_scale=settings.guidance_scale,
        generator=torch.Generator().manual_seed(settings.seed),
        max_sequence_length=settings.max_sequence_length,
        output_type="latent",
        return_dict=False,
    )[0]
    grid = pipeline.token_grid(source.height, source.width)
    return vae.unpack(wrap.crop_tokens(padded, grid, pipeline.padding_n), grid)
