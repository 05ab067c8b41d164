"""`StableVideoDiffusionPipeline` for panoramas: the same call, without a seam from the VAE."""

from typing import Any, Literal

import torch
from diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion import (
    StableVideoDiffusionPipeline,
)
from torch import Tensor

from genex_explorer.vae import decode_clips, pad_columns

SeamMode = Literal["none", "decode", "vae"]
SEAM_MODES: tuple[SeamMode, ...] = ("none", "decode", "vae")


class GenexPipeline(StableVideoDiffusionPipeline):
    """The stock pipeline whose VAE may look around +-180 degrees.

    The UNet stays as it is: without positional encoding it reads "forward is the image centre"
    off the zero padding at the borders, and circular convolutions would take that away.

    Attributes:
        seam_mode: "vae" wraps encoder and decoder, "decode" the decoder, "none" is the stock path.
        wrap_columns: latent columns of the other end on each side.
    """

    seam_mode: SeamMode = "vae"
    wrap_columns: int = 4

    def _encode_vae_image(self, image: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        wrap = self.wrap_columns if self.seam_mode == "vae" else 0
        padded = pad_columns(image, wrap * self.vae_scale_factor)
        with torch.autocast(padded.device.type, enabled=False):  # of a training around it
            latents = super()._encode_vae_image(padded, *args, **kwargs)
        return latents[..., wrap : latents.shape[-1] - wrap]

    def decode_latents(
        self, latents: Tensor, num_frames: int, decode_chunk_size: int = 14
    ) -> Tensor:
        """Decode (B, F, 4, h, w) to (B, 3, F, H, W) float32, about [-1, 1].

        Unlike the stock method, chunks never hold frames of two clips.
        """
        wrap = 0 if self.seam_mode == "none" else self.wrap_columns
        shown = latents[:, :num_frames].to(self.vae.dtype)
        with torch.autocast(shown.device.type, enabled=False):
            frames = decode_clips(self.vae, shown, chunk=decode_chunk_size, wrap=wrap)
        return frames.movedim(2, 1).float()

    def stock(self) -> StableVideoDiffusionPipeline:
        """The same components in the stock class, whose name is then in `model_index.json`."""
        return StableVideoDiffusionPipeline(**self.components)
