"""Examples: pixels against Pillow, flips, turns, masks, and what the random numbers depend on."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from dit360.data.dataset import PanoramaDataset
from dit360.data.rows import Row
from shared_pano_utils.imageio import write_image

HEIGHT = 32


@pytest.fixture
def row(tmp_path: Path) -> Row:
    """A panorama of 64x128 whose mask is white in the columns 32 to 63 and the upper half."""
    rng = np.random.default_rng(0)
    write_image(tmp_path / "a.png", rng.integers(0, 256, (64, 128, 3), dtype=np.uint8))
    mask = np.zeros((64, 128), np.uint8)
    mask[:32, 32:64] = 255
    write_image(tmp_path / "mask.png", mask)
    return Row(
        image=tmp_path / "a.png",
        caption="A room.",
        supervised=tmp_path / "mask.png",
        where="a.jsonl line 1",
    )


def plain(row: Row) -> torch.Tensor:
    """Float64 reference: Pillow's bicubic in [-1, 1]."""
    with Image.open(row.image) as image:  # type: ignore[arg-type]
        resized = image.resize((2 * HEIGHT, HEIGHT), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(resized, dtype=np.float64) / 255 * 2 - 1).movedim(-1, 0)


def test_pixels_and_mask_without_augmentation(row: Row) -> None:
    example = PanoramaDataset([row], HEIGHT, flip=False, roll="none")[0]
    assert example["pixel_values"].dtype == torch.float32
    assert torch.allclose(example["pixel_values"].double(), plain(row), atol=1e-6)
    assert example["caption"] == "A room."
    expected = torch.zeros(4, 8, dtype=torch.bool)
    expected[:2, 2:4] = True
    assert torch.equal(example["supervised"], expected)


def test_image_of_another_shape_is_refused(tmp_path: Path) -> None:
    write_image(tmp_path / "photo.png", np.zeros((32, 48, 3), np.uint8))
    data = PanoramaDataset([Row(image=tmp_path / "photo.png", caption="a", where="row 7")], HEIGHT)
    with pytest.raises(ValueError, match="row 7: image is 48x32, its width must be twice its heig"):
        data[0]


def test_mask_threshold_and_missing_mask(row: Row, tmp_path: Path) -> None:
    values = np.repeat(np.uint8([0, 127, 128, 129, 200, 254, 255, 1]), 16)
    write_image(tmp_path / "mask.png", np.tile(values, (64, 1)))
    supervised = PanoramaDataset([row], HEIGHT, flip=False, roll="none")[0]["supervised"]
    assert supervised[0].tolist() == [False, False, False, True, True, True, True, False]
    whole = Row(image=row.image, caption="a", where="x")
    assert PanoramaDataset([whole], HEIGHT)[0]["supervised"].all()
    assert PanoramaDataset([whole], HEIGHT)[0]["supervised"].shape == (4, 8)


def test_turns_are_uniform_multiples_of_the_step_and_move_the_mask(row: Row) -> None:
    data = PanoramaDataset([row], HEIGHT, flip=False, seed=3)
    reference = PanoramaDataset([row], HEIGHT, flip=False, roll="none")[0]
    seen = []
    for epoch in range(80):
        data.set_epoch(epoch)
        example = data[0]
        shift = next(
            k
            for k in range(0, 64, 16)
            if torch.equal(example["pixel_values"], reference["pixel_values"].roll(k, -1))
        )
        assert torch.equal(example["supervised"], reference["supervised"].roll(shift // 8, -1))
        seen.append(shift)
    counts = [seen.count(k) for k in (0, 16, 32, 48)]
    assert min(counts) >= 10  # expected 20 each, standard deviation 3.9


def test_original_turns(row: Row) -> None:
    """Integers from W // 3 to W inclusive, as `random.randint` draws them (spec 5.5)."""
    data = PanoramaDataset([row], HEIGHT, roll="original")
    drawn = {data._draw_shift(np.random.default_rng(k)) for k in range(2000)}
    assert drawn == {random.Random(k).randint(21, 64) for k in range(2000)}
    assert (min(drawn), max(drawn)) == (21, 64)


def test_flips(row: Row) -> None:
    data = PanoramaDataset([row], HEIGHT, roll="none", seed=1)
    reference = PanoramaDataset([row], HEIGHT, flip=False, roll="none")[0]
    count = 0
    for epoch in range(100):
        data.set_epoch(epoch)
        example = data[0]
        is_flipped = not torch.equal(example["pixel_values"], reference["pixel_values"])
        if is_flipped:
            assert torch.equal(example["pixel_values"], reference["pixel_values"].flip(-1))
            assert torch.equal(example["supervised"], reference["supervised"].flip(-1))
        count += is_flipped
    assert 35 <= count <= 65


@pytest.mark.parametrize(
    ("caption", "is_safe"),
    [
        ("A door to the left of a desk", False),
        ("Right: a window.", False),
        ("The leftmost chair", False),
        ("A bright room with a copyright sign", True),
    ],
)
def test_captions_with_sides_are_never_flipped(row: Row, caption: str, is_safe: bool) -> None:
    named = Row(image=row.image, caption=caption, where="x")
    example = PanoramaDataset([named], HEIGHT, flip=1.0, roll="none")[0]
    reference = PanoramaDataset([named], HEIGHT, flip=0.0, roll="none")[0]
    assert torch.equal(example["pixel_values"], reference["pixel_values"]) != is_safe


def test_random_numbers_depend_on_seed_epoch_and_index_only(row: Row) -> None:
    def pixels(seed: int, epoch: int, index: int) -> torch.Tensor:
        data = PanoramaDataset([row] * 40, 64, flip=False, roll_step=1, seed=seed)
        data.set_epoch(epoch)
        return data[index]["pixel_values"]

    assert torch.equal(pixels(1, 2, 3), pixels(1, 2, 3))
    for other in ((2, 2, 3), (1, 3, 3), (1, 2, 4)):
        assert not torch.equal(pixels(1, 2, 3), pixels(*other))


def test_epoch_reaches_living_workers(row: Row) -> None:
    data = PanoramaDataset([row] * 6, HEIGHT, flip=False, roll_step=1)
    loader = DataLoader(data, batch_size=6, num_workers=1, persistent_workers=True)
    for epoch in range(2):
        data.set_epoch(epoch)
        (batch,) = loader
        expected = torch.stack([data[k]["pixel_values"] for k in range(6)])
        assert torch.equal(batch["pixel_values"], expected)
    data.set_epoch(0)
    assert not torch.equal(torch.stack([data[k]["pixel_values"] for k in range(6)]), expected)


def test_options_are_checked(row: Row) -> None:
    with pytest.raises(ValueError, match="height is 100 px, expected a multiple of 16; use 96"):
        PanoramaDataset([row], 100)
    with pytest.raises(ValueError, match="roll_step is 24 px; it must divide the width 64"):
        PanoramaDataset([row], HEIGHT, roll_step=24)
    with pytest.raises(ValueError, match="use one of uniform, original, none"):
        PanoramaDataset([row], HEIGHT, roll="random")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="flip is 2"):
        PanoramaDataset([row], HEIGHT, flip=2.0)
