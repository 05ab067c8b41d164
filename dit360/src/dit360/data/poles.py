"""Repainting the poles of a panorama in perspective, where they are not stretched (spec 5.7).

The paper (section 3.2) cuts the Up and Down cube faces, whitens their centre and lets an
inpainting model fill it. Only that centre is pasted back, feathered inside its border, so every
other pixel of the panorama stays as it was.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from PIL import Image

from shared_pano_utils import erp_to_perspective, perspective_to_erp
from shared_pano_utils.imageio import read_image

Pole = Literal["up", "down"]
POLES: tuple[Pole, ...] = ("up", "down")
PITCH_DEG: dict[Pole, float] = {"up": 90.0, "down": -90.0}
WHITE = 255
# Fills the hole (S, S) bool of a face (S, S, 3) uint8 that looks at a pole.
Inpainter = Callable[[np.ndarray, np.ndarray, Pole], np.ndarray]


def refine_poles(
    erp: np.ndarray,
    inpaint: Inpainter,
    *,
    face_size: int | None = None,
    feather_px: int = 32,
    poles: Sequence[Pole] = POLES,
) -> np.ndarray:
    """Repaint the centre of the Up and Down faces.

    Args:
        erp: (H, 2H, 3) uint8.
        inpaint: fills the hole of a face.
        face_size: pixels of a side; None is H, as in the paper (1024).
        feather_px: width, in face pixels, over which old and new are mixed inside the hole.
        poles: which to repaint.

    Returns:
        (H, 2H, 3) uint8. At most 201 of 1024 rows at each pole differ from `erp`, all others
        are equal bit for bit: the hole reaches atan(sqrt(1/2)) = 35.3 degrees from the pole.

    Raises:
        ValueError: a size is not allowed, or the inpainter returned another one.
    """
    side = erp.shape[0] if face_size is None else face_size
    if side < 8 or side % 8:
        raise ValueError(f"the face is {side} px, expected a multiple of 8; use --face_size 1024")
    if not 1 <= feather_px <= side // 4:
        raise ValueError(
            f"the feather is {feather_px} px, use 1 to {side // 4} for {side} px faces"
        )
    hole = center_hole(side)
    weight = _paste_weight(side, feather_px)
    out = erp.copy()
    for pole in poles:
        face = cut_face(erp, side, pole)
        painted = inpaint(face, hole, pole)
        if painted.shape != face.shape or painted.dtype != np.uint8:
            raise ValueError(
                f"the inpainter returned {painted.shape} {painted.dtype}, expected {face.shape} "
                "uint8"
            )
        _paste(out, painted, weight, PITCH_DEG[pole])
    return out


def cut_face(erp: np.ndarray, side: int, pole: Pole) -> np.ndarray:
    """The cube face around a pole with a white centre, (side, side, 3) uint8."""
    face = erp_to_perspective(erp, size=(side, side), pitch=PITCH_DEG[pole], antialias=True)
    return np.where(center_hole(side)[..., None], np.uint8(WHITE), face)


def center_hole(side: int) -> np.ndarray:
    """The square that is repainted, (side, side) bool: 256 <= u, v < 768 of 1024 (paper)."""
    hole = np.zeros((side, side), dtype=bool)
    hole[side // 4 : side - side // 4, side // 4 : side - side // 4] = True
    return hole


def _paste_weight(side: int, feather_px: int) -> np.ndarray:
    """Share of the new face, (side, side) float32: 0 in the outermost pixels of the hole."""
    distance = side / 4 - np.abs(np.arange(side) + 0.5 - side / 2) - 0.5
    inside = np.minimum(distance[:, None], distance[None, :])
    return np.clip(inside / feather_px, 0, 1).astype(np.float32)


def _paste(erp: np.ndarray, face: np.ndarray, weight: np.ndarray, pitch_deg: float) -> None:
    size = (erp.shape[0], erp.shape[1])
    layers = np.concatenate([face.astype(np.float32), weight[..., None]], axis=-1)
    turned, _ = perspective_to_erp(layers, size, pitch=pitch_deg, layout="hwc")
    new, share = np.asarray(turned)[..., :3], np.asarray(turned)[..., 3:]
    mixed = share * new + (1 - share) * erp
    np.copyto(erp, np.rint(mixed).astype(np.uint8), where=share > 0)


# ---- inpainters ---------------------------------------------------------------------------------


def inpaint_smooth(face: np.ndarray, hole: np.ndarray, pole: Pole) -> np.ndarray:  # noqa: ARG001
    """Fill a rectangular hole by the harmonic function that continues its border.

    The discrete Laplace equation on a rectangle is diagonal in sines: exact, no iterations.
    """
    rows, columns = np.flatnonzero(hole.any(1)), np.flatnonzero(hole.any(0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    height, width = bottom - top, right - left
    known = torch.from_numpy(face).double().movedim(-1, 0)
    source = torch.zeros(3, height, width, dtype=torch.float64)
    source[:, 0] += known[:, top - 1, left:right]
    source[:, -1] += known[:, bottom, left:right]
    source[:, :, 0] += known[:, top:bottom, left - 1]
    source[:, :, -1] += known[:, top:bottom, right]
    vertical, row_values = _sines(height)
    horizontal, column_values = _sines(width)
    spectrum = vertical @ source @ horizontal
    spectrum /= row_values[:, None] + column_values
    filled = (vertical @ spectrum @ horizontal).round().clamp(0, WHITE).to(torch.uint8)
    out = face.copy()
    out[top:bottom, left:right] = filled.movedim(0, -1).numpy()
    return out


def _sines(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Eigenvectors (n, n), symmetric, and eigenvalues (n,) of the second difference."""
    k = torch.arange(1, n + 1, dtype=torch.float64)
    angle = torch.pi * k / (n + 1)
    return (2 / (n + 1)) ** 0.5 * (k[:, None] * angle).sin(), 2 - 2 * angle.cos()


class PaintedFaces:
    """Takes faces that were painted elsewhere: ``<folder>/<name>_up.png`` and ``_down.png``."""

    def __init__(self, folder: Path, name: str) -> None:
        """Take the faces of the panorama `name`."""
        self.folder = folder
        self.name = name

    def __call__(self, face: np.ndarray, hole: np.ndarray, pole: Pole) -> np.ndarray:  # noqa: ARG002
        """Read the face of a pole; (S, S, 3) uint8."""
        return read_image(self.folder / face_name(self.name, pole))


def face_name(name: str, pole: Pole) -> str:
    """File name of a face of the panorama `name`."""
    return f"{name}_{pole}.png"


class DiffusersInpainter:
    """Fills the hole with an inpainting model of diffusers."""

    def __init__(
        self,
        pipeline: Any,
        prompts: dict[Pole, str],
        *,
        steps: int,
        guidance_scale: float,
        seed: int,
    ) -> None:
        """Keep the pipeline and what to paint.

        Args:
            pipeline: result of `load_inpainting`.
            prompts: for each pole.
            steps: of the sampler.
            guidance_scale: of the model.
            seed: the same for every face.
        """
        self.pipeline = pipeline
        self.prompts = prompts
        self.steps = steps
        self.guidance_scale = guidance_scale
        self.seed = seed

    def __call__(self, face: np.ndarray, hole: np.ndarray, pole: Pole) -> np.ndarray:
        """Paint the hole; (S, S, 3) uint8."""
        height, width = hole.shape
        repaint = Image.fromarray(hole)  # diffusers: white is repainted
        result = self.pipeline(
            prompt=self.prompts[pole],
            image=Image.fromarray(face),
            mask_image=repaint.convert("L"),
            height=height,
            width=width,
            strength=1.0,
            num_inference_steps=self.steps,
            guidance_scale=self.guidance_scale,
            generator=torch.Generator().manual_seed(self.seed),
        )
        return np.asarray(result.images[0].convert("RGB").resize((width, height)))


def load_inpainting(model: str, dtype: torch.dtype, **options: Any) -> Any:
    """An inpainting pipeline of any family that diffusers has, FLUX.1 Kontext and Fill included."""
    from diffusers import (
        AutoPipelineForInpainting,
        DiffusionPipeline,
        FluxFillPipeline,
        FluxKontextInpaintPipeline,
    )

    # Not in the table of AutoPipelineForInpainting of diffusers 0.42.
    beyond = {
        "FluxKontextPipeline": FluxKontextInpaintPipeline,
        "FluxKontextInpaintPipeline": FluxKontextInpaintPipeline,
        "FluxFillPipeline": FluxFillPipeline,
    }
    config = cast("dict[str, Any]", DiffusionPipeline.load_config(model, **options))
    cls: Any = beyond.get(config["_class_name"], AutoPipelineForInpainting)
    return cls.from_pretrained(model, dtype=dtype, **options)
