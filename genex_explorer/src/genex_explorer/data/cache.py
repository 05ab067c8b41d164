"""Latent cache: posterior moments and CLIP tokens of every frame of every clip, encoded once.

Saves 25 of 26 VAE passes, the CLIP model and the reading of images in each training step. The
moments keep the statistics of training: latents are still drawn from the posterior.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from genex_explorer.conditioning import clip_tokens
from genex_explorer.data.clips import Clip, read_clip, to_unit
from genex_explorer.vae import encode_moments
from shared_pano_utils.imageio import atomic_path, write_json

INDEX_NAME = "cache.json"


def fingerprint(vae: Any, image_encoder: Any, size: tuple[int, int], wrap: int) -> dict[str, Any]:
    """What a cache depends on: the encoding weights, the frame size, the wrapped columns."""
    digest = hashlib.blake2b(digest_size=16)
    for module in (vae.encoder, vae.quant_conv, image_encoder):
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(name.encode())
            # A sum and a sum of squares tell models apart; reading 700 M values bytewise is slow.
            values = tensor.detach().double().cpu()
            digest.update(f"{values.sum():.9e}/{values.square().sum():.9e}".encode())
    dtype = str(vae.dtype).removeprefix("torch.")
    return {
        "dtype": dtype,
        "weights": digest.hexdigest(),
        "width": size[0],
        "height": size[1],
        "vae_wrap": wrap,
    }


def digest_of(clip: Clip) -> str:
    """What tells the frames of a clip from others of the same name: names, sizes, times."""
    digest = hashlib.blake2b(digest_size=16)
    for path in clip.frames:
        status = path.stat()
        digest.update(f"{path.name}/{status.st_size}/{status.st_mtime_ns}".encode())
    return digest.hexdigest()


class LatentCache:
    """Encoded clips below a folder.

    Raises:
        FileNotFoundError: the folder holds no cache.
        ValueError: it was made with other weights, another size or another wrap.
    """

    def __init__(self, folder: Path, expected: dict[str, Any]) -> None:
        self.folder = folder
        index = folder / INDEX_NAME
        if not index.is_file():
            raise FileNotFoundError(
                f"{folder} holds no latent cache; add --build_latent_cache to make it"
            )
        stored = json.loads(index.read_text(encoding="utf-8"))
        if stored != expected:
            different = [key for key in expected if stored.get(key) != expected[key]]
            raise ValueError(
                f"the latent cache {folder} was made with other {', '.join(different)}; use another "
                "--latent_cache folder and --build_latent_cache"
            )

    def path(self, clip: Clip) -> Path:
        """File of a clip."""
        return self.folder / f"{clip.id}.safetensors"

    def holds(self, clip: Clip) -> bool:
        """Whether these very frames are encoded here."""
        return _is_encoded(self.path(clip), clip)

    def read(self, clip: Clip, start: int, count: int, stride: int) -> tuple[Tensor, Tensor]:
        """Moments (F, 8, h, w) and token (D,) of the window, float32.

        Raises:
            FileNotFoundError: the clip is not in the cache.
        """
        path = self.path(clip)
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is missing in the latent cache; add --build_latent_cache to encode it"
            )
        with safe_open(path, "pt") as file:
            moments = file.get_slice("moments")[start : start + (count - 1) * stride + 1]
            token = file.get_slice("tokens")[start : start + 1]
        return moments[::stride].float(), token[0].float()


@torch.no_grad()
def build_cache(
    folder: Path, clips: list[Clip], pipeline: Any, *, size: tuple[int, int], chunk: int, wrap: int
) -> None:
    """Encode clips that are not in the cache yet; finished files are kept.

    Args:
        folder: of the cache; its index is written first.
        clips: to encode.
        pipeline: gives VAE, image encoder and feature extractor, on their device.
        size: (width, height) of the frames.
        chunk: frames at a time.
        wrap: latent columns that the VAE sees around the seam.
    """
    expected = fingerprint(pipeline.vae, pipeline.image_encoder, size, wrap)
    if (folder / INDEX_NAME).is_file():
        LatentCache(folder, expected)
    write_json(folder / INDEX_NAME, expected)
    vae, encoder = pipeline.vae, pipeline.image_encoder
    for clip in tqdm(clips, desc="latent cache", leave=False):
        target = folder / f"{clip.id}.safetensors"
        if _is_encoded(target, clip):
            continue
        frames = to_unit(read_clip(clip.frames, size)).to(vae.device)
        moments = encode_moments(vae, frames.to(vae.dtype), chunk=chunk, wrap=wrap)
        tokens = torch.cat(
            [clip_tokens(encoder, pipeline.feature_extractor, part) for part in frames.split(chunk)]
        )
        with atomic_path(target) as temporary:
            save_file(
                {"moments": moments.half().cpu().contiguous(), "tokens": tokens.half().cpu()},
                temporary,
                metadata={"frames": digest_of(clip)},
            )


def _is_encoded(path: Path, clip: Clip) -> bool:
    if not path.is_file():
        return False
    with safe_open(path, "pt") as file:
        return (file.metadata() or {}).get("frames") == digest_of(clip)
