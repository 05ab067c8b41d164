"""Quality of a tiny pipeline on held-out captions, beside chance, truth and a plain decode."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from dit360.captions import (
    World,
    caption,
    check,
    random_world,
    render_photo,
    render_world,
    split_seed,
)
from dit360.editing.compose import border_step
from dit360.editing.place import place_photo
from dit360.editing.run import edit
from dit360.editing.settings import EditSettings
from dit360.embedded import TINY_PASTE
from dit360.vae import VaeWrap, decode, encode, set_vae_wrap, unpack
from shared_pano_utils.metrics import psnr, seam_error

HELD_OUT = 128
ATTRIBUTES = ("wall", "sky", "floor", "object_color", "object_direction")
BATCH = 16
PHOTO_FOV_DEG = 120.0


def held_out_worlds(count: int = HELD_OUT) -> list[World]:
    """Worlds of the test split."""
    return [random_world(split_seed("test", index)) for index in range(count)]


def generate_latents(
    pipeline: Any, worlds: Sequence[World], *, height: int, steps: int, text_length: int
) -> Iterator[Tensor]:
    """Packed latents (B, Hp * Wp, 64) of the worlds' captions; the seed is the caption's number."""
    for start in tqdm(range(0, len(worlds), BATCH), desc="captions", leave=False):
        chosen = worlds[start : start + BATCH]
        yield pipeline(
            [caption(world) for world in chosen],
            height=height,
            width=2 * height,
            num_inference_steps=steps,
            guidance_scale=2.8,
            max_sequence_length=text_length,
            generator=[torch.Generator().manual_seed(start + k) for k in range(len(chosen))],
            output_type="latent",
        ).images


def decode_erps(pipeline: Any, tokens: Tensor, height: int, wrap: VaeWrap) -> np.ndarray:
    """Panoramas (B, H, 2H, 3) uint8 of packed latents."""
    set_vae_wrap(pipeline.vae, wrap)
    images = decode(pipeline.vae, unpack(tokens, (height // 16, height // 8)))
    scaled = ((images.float().cpu() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    return scaled.movedim(1, -1).numpy()


def attribute_accuracy(erps: Sequence[np.ndarray], worlds: Sequence[World]) -> dict[str, float]:
    """Share of statements that hold, by attribute and for all statements together."""
    answers: dict[str, list[bool]] = defaultdict(list)
    for erp, world in zip(erps, worlds, strict=True):
        for name, values in check(erp, world).items():
            answers[name] += values
    every = [value for values in answers.values() for value in values]
    return {"all": float(np.mean(every))} | {
        name: float(np.mean(answers[name])) for name in ATTRIBUTES if answers[name]
    }


def shuffled(worlds: Sequence[World]) -> list[int]:
    """For every world the next other one of its kind: its picture, by chance, under this caption."""
    order = []
    for index, world in enumerate(worlds):
        others = [*range(index + 1, len(worlds)), *range(index)]
        order.append(next(k for k in others if worlds[k].outdoor == world.outdoor))
    return order


def seam_ratio(erps: np.ndarray) -> float:
    """Mean step across the border over that of the four column pairs beside it; 1 = no seam."""
    images = torch.from_numpy(erps).movedim(-1, 1).float() / 255
    return float(seam_error(images)["wrap_ratio"].mean())


@torch.no_grad()
def evaluate_captions(
    pipeline: Any, worlds: Sequence[World], *, height: int, steps: int, text_length: int
) -> dict[str, dict[str, float]]:
    """Accuracies of generated panoramas, of chance and of true renders; seam ratios.

    Returns:
        Rows ``generated``, ``chance``, ``truth`` with accuracies by attribute and, where there are
        pictures of the row's own, ``seam`` (circular decode) and ``seam_plain`` (zero padding).
    """
    circular, plain = [], []
    sizes = {"height": height, "steps": steps, "text_length": text_length}
    for tokens in generate_latents(pipeline, worlds, **sizes):
        plain.append(decode_erps(pipeline, tokens, height, "none"))
        circular.append(decode_erps(pipeline, tokens, height, "circular"))
    erps = np.concatenate(circular)
    truth = np.stack([render_world(world, height) for world in worlds])
    order = shuffled(worlds)
    generated = attribute_accuracy(list(erps), worlds)
    generated |= {"seam": seam_ratio(erps), "seam_plain": seam_ratio(np.concatenate(plain))}
    return {
        "generated": generated,
        "chance": attribute_accuracy([erps[k] for k in order], worlds),
        "truth": attribute_accuracy(list(truth), worlds) | {"seam": seam_ratio(truth)},
    }


@torch.no_grad()
def vae_psnr(pipeline: Any, worlds: Sequence[World], height: int) -> float:
    """Decibels of true panoramas through the VAE."""
    truth = np.stack([render_world(world, height) for world in worlds])
    images = torch.from_numpy(truth).movedim(-1, 1).float() / 127.5 - 1
    set_vae_wrap(pipeline.vae, "circular")
    decoded = decode(pipeline.vae, encode(pipeline.vae, images, sample=False))
    return float(psnr((decoded / 2 + 0.5).clamp(0, 1), images / 2 + 0.5).mean())


def evaluate_outpainting(
    pipeline: Any, worlds: Sequence[World], *, height: int, steps: int, text_length: int
) -> dict[str, float]:
    """Panoramas around photos of the front, 120 degrees wide, with the captions of their places.

    Returns:
        Means: ``kept`` dB of the known part against the photo, ``kept_model`` the same before the
        photo was pasted, ``border`` step at the photo's border (1 = as between other pixels),
        ``border_paste`` of the photo pasted on the panorama of another place, ``all`` accuracy of
        the caption.
    """
    values: dict[str, list[float]] = defaultdict(list)
    order = shuffled(worlds)
    for index, world in enumerate(tqdm(worlds, desc="outpainting", leave=False)):
        source, keep = place_photo(
            render_photo(world, height, PHOTO_FOV_DEG), height, fov_deg=PHOTO_FOV_DEG
        )
        settings = EditSettings(
            prompt=caption(world), num_inference_steps=steps, seed=index,
            max_sequence_length=text_length, paste=TINY_PASTE,
        )  # fmt: skip
        result = edit(pipeline, source, keep, settings)
        other = render_world(worlds[order[index]], height)
        values["kept"].append(result.kept_psnr_db)
        values["kept_model"].append(result.model_psnr_db)
        values["border"].append(result.border_step)
        values["border_paste"].append(border_step(np.where(keep[..., None], source, other), keep))
        answers = [value for found in check(result.image, world).values() for value in found]
        values["all"].append(float(np.mean(answers)))
    return {name: float(np.mean(numbers)) for name, numbers in values.items()}
