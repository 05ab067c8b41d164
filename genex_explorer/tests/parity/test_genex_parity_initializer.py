"""Numbers of the initializer that hold without weights: the mask, and what FLUX.1-Fill is fed.

Row numbers are those of the check list in the design document.
"""

import math

import numpy as np
import pytest
import torch
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from scipy.integrate import quad

from genex_explorer.initializer import TRIGGER, fill_mask, full_prompt


def test_row_22_mask() -> None:
    mask = fill_mask((1024, 2048))
    assert mask.shape == (1024, 2048)
    assert mask.dtype == np.uint8
    assert np.unique(mask).tolist() == [0, 255]
    rows, columns = np.nonzero(mask == 0)
    assert (rows.min(), rows.max()) == (256, 767)
    assert (columns.min(), columns.max()) == (768, 1280)
    # The lower border is out: one pixel, at longitude 0, less than the closed face has.
    assert len(rows) == 244304
    assert len(rows) / mask.size == pytest.approx(0.11649, abs=5e-6)


def test_mask_is_the_front_face_of_a_cube() -> None:
    # Fraction of the plane of longitude and latitude inside |tan(lat)| < cos(lon), |lon| < 45.
    area = quad(lambda lon: 2 * math.atan(math.cos(lon)), -math.pi / 4, math.pi / 4)[0]
    exact = area / (2 * math.pi**2)
    assert exact == pytest.approx(0.116316, abs=1e-6)
    for height in (64, 256, 1024):
        # Closed sides: half a column and row on each side more than the face.
        excess = np.mean(fill_mask((height, 2 * height)) == 0) - exact
        assert 0 < excess < 0.2 / height


def test_mask_ray_by_ray() -> None:
    mask = fill_mask((64, 128))
    for v in range(64):
        for u in range(128):
            lon, lat = 2 * math.pi * u / 128 - math.pi, math.pi / 2 - math.pi * v / 64
            right = math.cos(lat) * math.sin(lon)
            up, forward = math.sin(lat), math.cos(lat) * math.cos(lon)
            largest = max(abs(right), abs(up), abs(forward))
            if largest - forward > 1e-9:
                assert mask[v, u] == 255
            elif (v, u) != (48, 64):  # the lower border
                assert mask[v, u] == 0
    assert mask[48, 64] == 255
    assert mask[16, 64] == 0
    assert mask[32, 48] == mask[32, 80] == 0


def test_channels_of_the_released_transformer() -> None:
    latents, packing, vae_factor = 16, 2 * 2, 8
    noisy = masked = latents * packing
    mask = vae_factor**2 * packing
    assert (noisy, masked, mask) == (64, 64, 256)
    with torch.device("meta"):
        transformer = FluxTransformer2DModel(
            in_channels=noisy + masked + mask, out_channels=noisy, guidance_embeds=True,
            num_layers=1, num_single_layers=1,
        )  # fmt: skip
    assert transformer.x_embedder.weight.shape == (3072, 384)
    assert transformer.proj_out.weight.shape == (64, 3072)


def test_prompt_of_the_released_weights() -> None:
    assert TRIGGER == "GenEx Panoramic World Initialization"
    assert full_prompt(None) == full_prompt("") == TRIGGER
    assert full_prompt("a street") == "GenEx Panoramic World Initialization, a street"
