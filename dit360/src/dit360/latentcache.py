"""Posterior moments of the training images on disk, so that training steps do not run the VAE.

A pass of the encoder costs 10.9 TFLOP an image and step (spec 12.4). Mean and log-variance are
kept, not latents: every step still draws its own from the posterior. A turned image needs no entry,
since a circular VAE commutes with turns by whole latent columns; a mirror image has its own.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.utils.torch_utils import get_module_execution_device
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm
from tqdm.contrib.concurrent import thread_map

from dit360.data.dataset import load_pixels
from dit360.data.rows import Row
from dit360.vae import is_circular
from shared_pano_utils.imageio import atomic_path

# 2.1 MB at full size. This moves latents of the embedded VAE by 0.0002 (root mean square), the
# rounding of the image to 8 bits by 0.0008; and the transformer reads them in half precision.
STORED_DTYPE = torch.float16
_READERS = 8  # threads that hash image files


class LatentCache:
    """Moments of the images of `rows`, one safetensors file each.

    ``<folder>/<fingerprint of the VAE>-<height>px-<wrap>/<hash of the image file>[-mirror]``, so
    that nothing can be taken for something else: with another VAE, size or wrap another folder is
    read, for a changed image another file. A stale entry is one that is not asked for any more.
    Several data sets, runs and processes may share a folder.
    """

    def __init__(self, folder: str | Path, vae: Any, height: int, rows: Sequence[Row]) -> None:
        """Open a cache: image files are read for their hashes, nothing is written.

        Args:
            folder: of the cache; made when the first image is stored.
            vae: float32 `AutoencoderKL` with its encoder.
            height: of the encoded images, pixels; their width is twice that.
            rows: whose images are meant; captions and masks play no part.

        Raises:
            FileNotFoundError: an image is missing.
        """
        wrap = "circular" if is_circular(vae) else "none"
        self.place = Path(folder) / f"{fingerprint(vae)}-{height}px-{wrap}"
        self.height = height
        self.rows = rows
        self._digests: list[str] = thread_map(
            _hash_image, rows, max_workers=_READERS, desc="images", leave=False
        )

    def encode_all(self, vae: Any, may_flip: Sequence[bool]) -> int:
        """Encode and store what is missing; every image is kept if the next one fails.

        Args:
            vae: that of the constructor, on the device where it is to run.
            may_flip: of each row, whether its mirror image is needed too.

        Returns:
            How many images were encoded, mirror images included.

        Raises:
            ValueError: an image cannot be decoded, or its moments are not finite.
        """
        count = 0
        # An order of its own makes each of several processes do a part: what another one has
        # stored in the meantime is left out.
        order = np.random.default_rng().permutation(self.missing(may_flip))
        for index in tqdm(order, desc="latents", leave=False):
            missing = self._missing_views(index, may_flip[index])
            if not missing:
                continue
            pixels = load_pixels(self.rows[index], self.height)
            for mirrored in missing:
                moments = encode_moments(vae, pixels.flip(-1) if mirrored else pixels)
                self._store(index, mirrored, moments)
            count += len(missing)
        return count

    def get(self, index: int, *, mirrored: bool) -> Tensor:
        """Moments (32, H/8, W/8) of an image or its mirror image, on the CPU, as stored.

        Raises:
            FileNotFoundError: it is not in the cache.
        """
        with safe_open(self._path(index, mirrored), framework="pt") as file:
            return file.get_tensor("moments")

    def missing(self, may_flip: Sequence[bool]) -> list[int]:
        """Rows of which something is not stored."""
        return [index for index, flip in enumerate(may_flip) if self._missing_views(index, flip)]

    def count(self, may_flip: Sequence[bool]) -> tuple[int, int]:
        """Stored files of the rows, and their bytes."""
        sizes = [path.stat().st_size for path in self._paths(may_flip) if path.is_file()]
        return len(sizes), sum(sizes)

    def count_unused(self, may_flip: Sequence[bool]) -> tuple[int, int]:
        """Stored files of other or changed images, and folders of other VAEs, sizes or wraps."""
        files = set(self.place.glob("*.safetensors")) - self._paths(may_flip)
        folders = set(self.place.parent.glob("*px-*")) - {self.place}
        return len(files), len(folders)

    def _paths(self, may_flip: Sequence[bool]) -> set[Path]:
        """Files that the rows need; rows with the same image share them."""
        views = [(index, False) for index in range(len(may_flip))]
        views += [(index, True) for index, flip in enumerate(may_flip) if flip]
        return {self._path(index, mirrored) for index, mirrored in views}

    def _path(self, index: int, mirrored: bool) -> Path:
        return self.place / f"{self._digests[index]}{'-mirror' * mirrored}.safetensors"

    def _missing_views(self, index: int, may_flip: bool) -> list[bool]:
        views = (False, True) if may_flip else (False,)
        return [mirrored for mirrored in views if not self._path(index, mirrored).is_file()]

    def _store(self, index: int, mirrored: bool, moments: Tensor) -> None:
        stored = moments.to("cpu", STORED_DTYPE).contiguous()
        if not stored.isfinite().all():
            raise ValueError(
                f"{self.rows[index].where}: its latents are not finite in {STORED_DTYPE}; train "
                "without --latent_cache, or with another VAE"
            )
        with atomic_path(self._path(index, mirrored)) as temporary:
            save_file({"moments": stored}, temporary)


@torch.inference_mode()
def encode_moments(vae: Any, pixels: Tensor) -> Tensor:
    """Mean and log-variance (32, H/8, W/8) of the posterior of an image (3, H, W) in [-1, 1]."""
    images = pixels[None].to(get_module_execution_device(vae))
    posterior = vae.encode(images, return_dict=False)[0]
    return torch.cat([posterior.mean, posterior.logvar], 1)[0]  # the log-variance is clamped


def fingerprint(vae: Any) -> str:
    """Identity of the encoder: 16 hex digits of its weights and what they do not show."""
    shown = {name: vae.config[name] for name in ("act_fn", "norm_num_groups")}
    digest = hashlib.sha256(json.dumps(shown).encode())
    for name, weight in vae.state_dict().items():
        if not name.startswith(("decoder.", "post_quant_conv.")):
            digest.update(name.encode())
            digest.update(weight.float().cpu().contiguous().numpy())
    return digest.hexdigest()[:16]


def _hash_image(row: Row) -> str:
    """32 hex digits of the encoded file, so that its name, place and time play no part."""
    image = row.image
    if not isinstance(image, Path):
        stored = image.table[image.index][image.column]
        if stored["bytes"] is not None:
            return hashlib.sha256(stored["bytes"]).hexdigest()[:32]
        image = Path(stored["path"])
    with image.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:32]
