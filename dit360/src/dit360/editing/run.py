"""One edit from pixels to pixels, by any of the three methods."""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dit360 import vae
from dit360.editing.compose import border_step, kept_psnr_db, paste_kept
from dit360.editing.inject import inject
from dit360.editing.masks import check_height, token_keep
from dit360.editing.settings import EditSettings
from dit360.editing.stock import FillPipeline, inpaint_pipeline, paint
from dit360.pipeline import DiT360Pipeline


@dataclass(frozen=True, kw_only=True)
class EditResult:
    """What `edit` returns.

    Attributes:
        image: edited panorama (H, W, 3) uint8.
        reconstruction: the source as the source branch ends, (H, W, 3) uint8, if wanted.
        kept_psnr_db: of the kept region of `image` against the source.
        model_psnr_db: the same before the source was pasted: what the model itself has kept.
        border_step: colour step across the border of the kept region over the steps beside it;
            near 1 it cannot be seen.
        evaluations: panoramas that the network has seen.
    """

    image: np.ndarray
    reconstruction: np.ndarray | None
    kept_psnr_db: float
    model_psnr_db: float
    border_step: float
    evaluations: int


@torch.no_grad()
def edit(
    pipeline: DiT360Pipeline | FillPipeline,
    source: np.ndarray,
    keep: np.ndarray,
    settings: EditSettings,
) -> EditResult:
    """Paint everything but the kept region of a panorama anew.

    Args:
        pipeline: `DiT360Pipeline` for the methods "inject" and "inpaint", `FillPipeline` for "fill".
        source: (H, 2H, 3) uint8, H a multiple of 16.
        keep: (H, 2H) bool, True = preserve. A token of 16 x 16 pixels is kept if its middle pixel
            is; pixels are pasted as they are.
        settings: see there.

    Raises:
        TypeError: the pipeline is not that of the method.
        ValueError: shapes do not fit, or the mask keeps nothing or everything.
        FloatingPointError: the result is not finite.
    """
    height = len(source)
    check_height(height)
    if source.shape != (height, 2 * height, 3) or keep.shape != source.shape[:2]:
        raise ValueError(
            f"the panorama has shape {source.shape} and its mask {keep.shape}; expected "
            "(H, 2H, 3) and (H, 2H)"
        )
    tokens = torch.tensor(token_keep(keep))
    _check_pipeline(pipeline, settings)
    rebuilt, evaluations = None, settings.num_inference_steps
    if isinstance(pipeline, DiT360Pipeline) and settings.method == "inject":
        images = torch.tensor(source).movedim(-1, 0)[None] / 127.5 - 1
        edited, rebuilt, evaluations = inject(pipeline, images, tokens, settings)
    else:
        stock = pipeline if isinstance(pipeline, FillPipeline) else inpaint_pipeline(pipeline)
        repaint = Image.fromarray(np.where(keep, 0, 255).astype(np.uint8))
        edited = paint(stock, Image.fromarray(source), repaint, settings)
    generated = _to_pixels(pipeline, edited)
    reconstruction = None if rebuilt is None else _to_pixels(pipeline, rebuilt)
    pipeline.maybe_free_model_hooks()
    image = paste_kept(generated, source, keep, settings.paste)
    return EditResult(
        image=image,
        reconstruction=reconstruction,
        kept_psnr_db=kept_psnr_db(image, source, keep),
        model_psnr_db=kept_psnr_db(generated, source, keep),
        border_step=border_step(image, keep),
        evaluations=evaluations,
    )


def _check_pipeline(pipeline: DiT360Pipeline | FillPipeline, settings: EditSettings) -> None:
    is_fill = settings.method == "fill"
    if isinstance(pipeline, FillPipeline) != is_fill:
        raise TypeError(
            f"the pipeline is a {type(pipeline).__name__}; method fill needs a FillPipeline, the "
            "others a DiT360Pipeline"
        )


def _to_pixels(pipeline: DiT360Pipeline | FillPipeline, latents: Tensor) -> np.ndarray:
    """Decode latents (1, 16, h, w) to (8h, 8w, 3) uint8."""
    decoded = vae.decode(pipeline.vae, latents, tile_columns=pipeline.tile_columns)
    image = np.asarray(pipeline.image_processor.postprocess(decoded, output_type="np"))[0]
    if not np.isfinite(image).all():
        raise FloatingPointError(
            f"the panorama is not finite in {pipeline.transformer.dtype} (VAE: "
            f"{pipeline.vae.dtype}); use --dtype bf16 or fp32"
        )
    return np.round(255 * image).astype(np.uint8)
