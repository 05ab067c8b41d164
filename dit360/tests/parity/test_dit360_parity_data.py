"""Parity of the data: the shipped masks (P17), the mask of the released code (P18), pixels."""

import math
import random
from pathlib import Path

import numpy as np
import py360convert
import pytest
import torch
from PIL import Image

from dit360.data.dataset import PanoramaDataset, load_supervised
from dit360.data.photos import Camera, place_photo
from dit360.data.rows import Row, open_rows
from shared_pano_utils.imageio import write_image

SIZE = (1024, 2048)


def lateral_mask(yaw_deg: float) -> np.ndarray:
    face = np.full((256, 256, 3), 255, np.uint8)
    return place_photo(face, SIZE[0], Camera(yaw_deg=yaw_deg))[1]


def on_tokens(mask: np.ndarray) -> np.ndarray:
    """Nearest at 64 x 128, 1 where the value is 255 (spec 3.4)."""
    image = Image.fromarray(mask.astype(np.uint8) * 255)
    return np.asarray(image.resize((128, 64), Image.Resampling.NEAREST)) == 255


def write_mask(folder: Path, mask: np.ndarray) -> Row:
    write_image(folder / "mask.png", mask.astype(np.uint8) * 255)
    write_image(folder / "canvas.png", np.zeros((16, 32, 3), np.uint8))
    return Row(image=folder / "canvas.png", caption="a", supervised=folder / "mask.png", where="x")


def test_P17_lateral_face_mask() -> None:
    mask = lateral_mask(0)
    assert mask.mean() == pytest.approx(0.1163, abs=5e-4)
    theta = np.radians((np.arange(20_000) + 0.5) / 20_000 * 90 - 45)
    exact = (2 * np.arctan(np.cos(theta)) / np.pi).mean() / 4
    assert mask.mean() == pytest.approx(exact, abs=1e-4)
    tokens = on_tokens(mask)
    assert tokens.sum() == 957
    rows, columns = np.flatnonzero(tokens.any(1)), np.flatnonzero(tokens.any(0))
    assert (rows[0], rows[-1]) == (16, 47)
    assert (columns[0], columns[-1]) == (48, 79)


def test_P17_turning_by_90_degrees_rolls_by_32_tokens() -> None:
    front, tokens = lateral_mask(0), on_tokens(lateral_mask(0))
    for k, yaw_deg in enumerate((90, 180, -90), start=1):
        assert np.array_equal(lateral_mask(yaw_deg), np.roll(front, 512 * k, 1))
        assert np.array_equal(on_tokens(lateral_mask(yaw_deg)), np.roll(tokens, 32 * k, 1))


def test_P17_against_py360convert() -> None:
    """Its faces are sampled on another pixel grid, so borders differ by a pixel (spec: 0.998)."""
    faces = [np.full((512, 512, 1), 255.0 * (k == 0)) for k in range(6)]
    theirs = py360convert.c2e(faces, *SIZE, mode="nearest", cube_format="list")[..., 0] > 128
    ours = lateral_mask(0)
    assert (theirs & ours).sum() / (theirs | ours).sum() >= 0.998


def test_P18_mask_of_the_released_code(tmp_path: Path) -> None:
    """D2: the swapped size makes two half-width copies that miss a front view completely."""
    mask = lateral_mask(0)
    image = Image.fromarray(mask.astype(np.uint8) * 255)
    swapped = np.asarray(image.resize((128, 256), Image.Resampling.NEAREST)) > 128
    legacy = swapped.reshape(-1).reshape(128, 256)  # flattened against the latent grid
    r, c = np.indices((128, 256))
    assert np.array_equal(legacy, swapped[2 * r + (c >= 128), c % 128])
    ours = load_supervised(write_mask(tmp_path, mask), 1024).numpy()
    assert (legacy & ours).sum() == 0
    assert legacy.sum() > 0
    rows, columns = np.flatnonzero(ours.any(1)), np.flatnonzero(ours.any(0))
    assert (rows[0], rows[-1]) == (32, 95)
    assert (columns[0], columns[-1]) == (96, 159)


def test_item_7_pixels_of_the_original_transform(tmp_path: Path) -> None:
    """Longest caption; resize, flip, roll, [-1, 1] as torchvision does, with the same numbers."""
    from torchvision.transforms import functional

    pixels = np.random.default_rng(0).integers(0, 256, (48, 96, 3), dtype=np.uint8)
    write_image(tmp_path / "a.png", pixels)
    source = tmp_path / "rows.jsonl"
    source.write_text('{"image": "a.png", "caption": ["A.", "A long room.", "B."], "mask": null}\n')
    (row,) = open_rows(source)
    assert row.caption == "A long room."
    data = PanoramaDataset([row], 32, roll="original", seed=4)
    flips = set()
    for epoch in range(12):
        data.set_epoch(epoch)
        rng = np.random.default_rng([4, epoch, 0])
        is_flipped, shift = rng.random() < 0.5, int(rng.integers(64 // 3, 64, endpoint=True))
        image = functional.resize(
            Image.fromarray(pixels), [32, 64], functional.InterpolationMode.BICUBIC
        )
        image = functional.hflip(image) if is_flipped else image
        rolled = np.roll(np.asarray(image), shift, axis=1)
        expected = functional.normalize(functional.to_tensor(rolled.copy()), [0.5], [0.5])
        assert torch.allclose(data[0]["pixel_values"], expected, atol=1e-6)
        flips.add(bool(is_flipped))
    assert flips == {True, False}


def test_item_7_range_of_turns() -> None:
    """[W // 3, W]: 120 to 360 degrees, so turns of 0 to 120 degrees never occur."""
    drawn = [random.Random(k).randint(2048 // 3, 2048) for k in range(400)]
    assert math.floor(min(drawn) / 2048 * 360) >= 119
    data = PanoramaDataset([], 1024, roll="original")
    ours = [data._draw_shift(np.random.default_rng(k)) for k in range(400)]
    assert min(ours) >= 682
    assert max(ours) <= 2048
    assert np.mean(ours) == pytest.approx(np.mean(drawn), rel=0.05)
