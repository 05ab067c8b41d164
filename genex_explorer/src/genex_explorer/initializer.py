"""A panorama from one photo: FLUX.1-Fill paints the sphere around it, the walk's starting point.

The photo becomes the front face of a cube; a mask keeps it and has the other 88 % painted. Tested
with small random weights only, not tried with the released ones.
"""

import importlib.util
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.flux.pipeline_flux_fill import FluxFillPipeline
from PIL import Image

from genex_explorer.memory import Offload, check_placement, choose_device, move
from shared_pano_utils import perspective_to_erp

TRIGGER = "GenEx Panoramic World Initialization"
"""Prompt prefix of the released weights (GenEx-world/genex, code/inference/initializer.py)."""

FOV_DEG = 90.0
"""Of a cube face: the only known region that the released weights saw in training."""
MIN_FOV_DEG, MAX_FOV_DEG = 10.0, 150.0

MULTIPLE_PX = 16
"""FLUX's VAE makes one latent of 8 x 8 pixels, its transformer one token of 2 x 2 latents."""

FEATHER = 0.1
"""Weight of `perspective_to_erp` (1 in the middle, 0 at the border) from which a pasted photo is
opaque: the cross-fade covers 5 % of its side along each edge."""

LORA_NAME = "pytorch_lora_weights.safetensors"

KEEP, GENERATE = 0, 255


# ---- geometry -----------------------------------------------------------------------------------


def front_face(image: Image.Image, size: int = 512) -> Image.Image:
    """Cut the largest square out of the middle of a photo and resize it to `size` pixels, RGB."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.convert("RGB").crop((left, top, left + side, top + side))
    return square.resize((size, size), Image.Resampling.LANCZOS)


def fill_mask(erp_size: tuple[int, int], fov_deg: float = FOV_DEG) -> np.ndarray:
    """Mark what has to be painted around a square photo that looks forward.

    Like the original's mask, it takes pixel (u, v) for longitude 2 pi u / W - pi and latitude
    pi / 2 - pi v / H, without half a pixel, and counts the upper and both side borders of the face
    in: one column more than `perspective_to_erp` covers.

    Args:
        erp_size: (height, width) in pixels.
        fov_deg: covered by the photo's side.

    Returns:
        (H, W) uint8, 255 = generate, 0 = keep.
    """
    _check_fov(fov_deg)
    height, width = erp_size
    lon = np.arange(width) / width * 2 * np.pi - np.pi
    lat = (np.pi / 2 - np.arange(height) / height * np.pi)[:, None]
    half = math.radians(fov_deg) / 2
    # Where the plane of the face, one unit ahead, ends above a pixel's longitude.
    border = math.tan(half) * np.cos(lon)
    tie = 1e-9  # rounding must not decide the pixels that lie on the border
    known = np.abs(lon) <= half + tie
    known = known & (np.tan(lat) <= border + tie) & (np.tan(lat) > tie - border)
    return np.where(known, KEEP, GENERATE).astype(np.uint8)


def place_front(
    face: np.ndarray, erp_size: tuple[int, int], fov_deg: float = FOV_DEG
) -> np.ndarray:
    """Paint a square photo into the middle of a white panorama, wherever `fill_mask` keeps.

    Args:
        face: (S, S, 3) uint8.
        erp_size: (height, width) in pixels.
        fov_deg: covered by the photo's side.

    Returns:
        (H, W, 3) uint8.
    """
    mask = fill_mask(erp_size, fov_deg)
    # The mask reaches up to a pixel beyond the photo; there its border goes on, instead of white.
    margin = math.ceil(len(face) / 4)
    padded = np.pad(face, ((margin, margin), (margin, margin), (0, 0)), "edge")
    reach = math.tan(math.radians(fov_deg) / 2) * len(padded) / len(face)
    erp = perspective_to_erp(padded, erp_size, fov=2 * math.degrees(math.atan(reach)))[0]
    return np.where(mask[..., None] == KEEP, erp, np.uint8(255))


def paste_front(erp: np.ndarray, face: np.ndarray, fov_deg: float = FOV_DEG) -> np.ndarray:
    """Lay a square photo over a panorama that was painted around it, faded out at its border.

    Args:
        erp: (H, W, 3) uint8.
        face: (S, S, 3) uint8.
        fov_deg: covered by the photo's side.

    Returns:
        (H, W, 3) uint8.
    """
    _check_fov(fov_deg)
    # A sequence of angles, so that the weights come with the image.
    photo, weight = perspective_to_erp(face[None], erp.shape[:2], fov=fov_deg, yaw=[0.0])
    alpha = np.clip(np.asarray(weight, np.float32) / FEATHER, 0, 1)
    return np.round(erp + alpha * (np.asarray(photo, np.float32) - erp)).astype(np.uint8)


def check_size(height: int, width: int) -> None:
    """Refuse a size that is not that of a panorama, or that FLUX would silently change."""
    if height < MULTIPLE_PX or width != 2 * height or height % MULTIPLE_PX:
        raise ValueError(
            f"panorama is {width}x{height}; width must be 2 x height and the height a multiple of "
            f"{MULTIPLE_PX}; the original's is 2048x1024"
        )


def _check_fov(fov_deg: float) -> None:
    if not MIN_FOV_DEG <= fov_deg <= MAX_FOV_DEG:
        raise ValueError(
            f"field of view is {fov_deg} degrees; use {MIN_FOV_DEG:g} to {MAX_FOV_DEG:g}, the "
            "original's is 90"
        )


# ---- pipeline -----------------------------------------------------------------------------------


def full_prompt(prompt: str | None) -> str:
    """The trigger phrase, followed by the user's text if there is any."""
    return f"{TRIGGER}, {prompt}" if prompt else TRIGGER


class GenExWorldInitializerPipeline(FluxFillPipeline):
    """The stock pipeline, called with a photo instead of a panorama and its mask."""

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        image: Image.Image,
        prompt: str | None = None,
        guidance_scale: float = 3.5,
        *,
        height: int = 1024,
        width: int | None = None,
        fov_deg: float = FOV_DEG,
        **options: Any,
    ) -> tuple[Image.Image, Any]:
        """Paint a panorama around a photo.

        Args:
            image: of any size; its middle square looks forward.
            prompt: what else there is to see; follows the trigger phrase.
            guidance_scale: embedded guidance of FLUX.
            height: of the panorama in pixels, a multiple of 16.
            width: 2 x height, as without it.
            fov_deg: field of view of the photo's shorter side.
            options: of `FluxFillPipeline`: generator, num_inference_steps, output_type ...

        Returns:
            The front face (side height / 2) and the output of `FluxFillPipeline`, in whose
            ``images`` are the panoramas.

        Raises:
            TypeError: not a PIL image.
            ValueError: the size is not that of a panorama, or an absurd field of view.
        """
        if not isinstance(image, Image.Image):
            raise TypeError(
                f"image is {type(image).__name__}; pass one PIL image, arrays with Image.fromarray"
            )
        size = height, 2 * height if width is None else width
        check_size(*size)
        front = front_face(image, height // 2)
        known: dict[str, Any] = {  # the stock method takes images too, but declares tensors
            "image": Image.fromarray(place_front(np.asarray(front), size, fov_deg)),
            "mask_image": Image.fromarray(fill_mask(size, fov_deg)),
        }
        output = super().__call__(
            prompt=full_prompt(prompt),
            **known,
            height=size[0],
            width=size[1],
            guidance_scale=guidance_scale,
            **options,
        )
        return front, output


def open_initializer(
    model: str,
    *,
    lora: str | None = None,
    device: str = "auto",
    dtype: torch.dtype = torch.bfloat16,
    offload: Offload = "none",
) -> GenExWorldInitializerPipeline:
    """Load the pipeline and put it where it runs.

    Args:
        model: hub id or folder of a `FluxFillPipeline`.
        lora: hub id, folder or file of LoRA weights to put on it.
        device: "auto", "cpu", "cuda", "cuda:1" or "mps".
        dtype: of all weights.
        offload: see `memory.place`.

    Raises:
        FileNotFoundError: model or LoRA are not there, or the model is not a whole pipeline.
        ValueError: the LoRA does not fit, or device, dtype and offload do not.
        ImportError: a LoRA is given and peft is not installed.
    """
    where = choose_device(device)
    check_placement(where, dtype, offload=offload)
    if lora and importlib.util.find_spec("peft") is None:
        raise ImportError('--lora needs peft: pip install -e ".[train]"')
    if model.startswith((".", "/", "~")) and not Path(model).is_dir():
        raise FileNotFoundError(f"model folder {model} does not exist; pass a folder or a hub id")
    try:
        pipeline = GenExWorldInitializerPipeline.from_pretrained(model, torch_dtype=dtype)
    except OSError as error:
        raise FileNotFoundError(
            f"{model} cannot be loaded as a FLUX.1-Fill pipeline ({error}); pass a folder or hub "
            "id with model_index.json; LoRA weights go to --lora, their base to --model"
        ) from error
    if lora:
        _put_on(pipeline, lora)
    move(pipeline, where, offload)
    return pipeline


def _put_on(pipeline: FluxFillPipeline, lora: str) -> None:
    if lora.startswith((".", "/", "~")) and not Path(lora).exists():
        raise FileNotFoundError(f"LoRA {lora} does not exist; pass a file, a folder or a hub id")
    name = None if Path(lora).is_file() else LORA_NAME
    try:
        pipeline.load_lora_weights(lora, weight_name=name)
    except OSError as error:
        raise FileNotFoundError(
            f"no LoRA weights can be read from {lora}; pass a safetensors file, or a folder or hub "
            f"id with {LORA_NAME}"
        ) from error
    except (ValueError, RuntimeError) as error:  # of another architecture
        raise ValueError(
            f"LoRA {lora} does not fit the FLUX transformer: {str(error)[:300]}"
        ) from error
    if not pipeline.get_active_adapters():  # only a warning of diffusers
        raise ValueError(f"LoRA {lora} has no weights for the FLUX transformer; pass another")
