"""FLUX that generates panoramas: the stock pipeline on wrap-padded tokens, decoded circularly."""

import inspect
from typing import Any

import torch
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from diffusers.pipelines.flux.pipeline_output import FluxPipelineOutput
from torch import Tensor

from dit360 import vae, wrap

_CALL = inspect.signature(FluxPipeline.__call__)


class DiT360Pipeline(FluxPipeline):
    """`FluxPipeline` for panoramas; with `padding_n` = 0 and a stock VAE it gives the same bits.

    Attributes:
        padding_n: token columns of the other end on each side of the sequence; 1 as trained.
        pad_ids: position ids of these columns, see `dit360.wrap.pad_ids`.
        tile_columns: latent columns decoded at a time, see `dit360.vae.decode`; all if None.
    """

    padding_n: int = 1
    pad_ids: wrap.PadIds = "source"
    tile_columns: int | None = None

    def token_grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of tokens of an image, rounded down as the stock pipeline does."""
        side = 2 * self.vae_scale_factor
        return height // side, width // side

    def prepare_latents(
        self,
        batch_size: int,
        num_channels_latents: int,
        height: int,
        width: int,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        """Start noise and position ids with `padding_n` columns more on each side (paper 3.3).

        The noise is drawn first and copied then: copies must equal their sources. What the stock
        pipeline does afterwards, the shift of the schedule included, sees the padded length.

        Returns:
            (B, Hp*(Wp + 2*padding_n), 64) and (Hp*(Wp + 2*padding_n), 3).
        """
        tokens, ids = super().prepare_latents(
            batch_size, num_channels_latents, height, width, *args, **kwargs
        )
        grid = self.token_grid(height, width)
        ids = wrap.pad_ids(ids, grid, self.padding_n, self.pad_ids)
        return wrap.pad_tokens(tokens, grid, self.padding_n), ids

    @torch.no_grad()
    def __call__(self, *args: Any, **kwargs: Any) -> FluxPipelineOutput | tuple[Any]:
        """Generate panoramas; arguments and results are those of `FluxPipeline.__call__`.

        Differences: `width` is 2 * `height` by default; `latents` and the result of `output_type`
        "latent" are packed tokens (B, Hp*Wp, 64) without padding, while callbacks see (and may
        return) padded ones.

        Raises:
            ValueError: `padding_n`, `pad_ids` or `tile_columns` is out of range, and what the
                stock pipeline raises.
        """
        call = _CALL.bind(self, *args, **kwargs)
        call.apply_defaults()
        options = {name: value for name, value in call.arguments.items() if name != "self"}
        height = options["height"] or self.default_sample_size * self.vae_scale_factor
        width = options["width"] or 2 * height
        stock = {"height": height, "width": width, "output_type": "latent", "return_dict": False}
        padded = super().__call__(**(options | stock))[0]
        grid = self.token_grid(height, width)
        images: Any = wrap.crop_tokens(padded, grid, self.padding_n)
        if options["output_type"] != "latent":
            decoded = vae.decode(self.vae, vae.unpack(images, grid), tile_columns=self.tile_columns)
            images = self.image_processor.postprocess(decoded, options["output_type"])
            self.maybe_free_model_hooks()  # decoding has moved the VAE to the device again
        return FluxPipelineOutput(images=images) if options["return_dict"] else (images,)
