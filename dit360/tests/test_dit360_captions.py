"""Procedural worlds, their words, and the checker that scores pictures of them."""

import re

import numpy as np
import pytest

from dit360.captions import (
    DIRECTIONS,
    SHAPES,
    SKIES,
    SURFACE_COLORS,
    Item,
    World,
    caption,
    check,
    look,
    random_world,
    render_photo,
    render_world,
    split_seed,
    world_scene,
)
from shared_pano_utils.synthetic.labels import COLORS


def worlds(count: int, split: str = "val") -> list[World]:
    return [random_world(split_seed(split, index)) for index in range(count)]


def test_same_seed_same_world_and_picture() -> None:
    seed = split_seed("test", 3)
    assert random_world(seed) == random_world(seed)
    first, second = (render_world(random_world(seed), 32, aa=1) for _ in range(2))
    assert np.array_equal(first, second)


def test_splits_are_apart() -> None:
    ranges = [(split_seed(split, 0), split_seed(split, 9_999_999)) for split in ("train", "val")]
    assert ranges[0][1] < ranges[1][0]
    assert split_seed("val", 9_999_999) < split_seed("test", 0)
    with pytest.raises(ValueError, match="split is 'dev'"):
        split_seed("dev", 0)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="world 10000000"):
        split_seed("train", 10_000_000)


def test_captions_say_what_the_world_is() -> None:
    for world in worlds(60):
        text = caption(world)
        assert text.startswith("This is a panorama. ")
        things = re.findall(r"an? (\w+) (\w+) (in front|to the right|behind|to the left)", text)
        assert things == [(item.color, item.shape, item.direction) for item in world.items]
        above, below = ("sky", "(?:field|ground)") if world.outdoor else ("walls", "floor")
        assert re.search(rf"{world.above} {above}|{above} (?:are|is) {world.above}", text)
        assert re.search(rf"{world.below} {below}|{below} is {world.below}", text)


def test_all_words_are_drawn_about_equally() -> None:
    many = worlds(1200, "train")
    items = [item for world in many for item in world.items]
    for values, expected in (
        ([item.direction for item in items], DIRECTIONS),
        ([item.shape for item in items], SHAPES),
        ([item.color for item in items], SURFACE_COLORS),
        ([world.below for world in many], SURFACE_COLORS),
        ([world.above for world in many if world.outdoor], SKIES),
    ):
        shares = {name: values.count(name) * len(expected) / len(values) for name in expected}
        assert min(shares.values()) > 0.75, shares
        assert max(shares.values()) < 1.25, shares


def test_objects_stand_where_the_caption_says() -> None:
    for world in worlds(40):
        for item, thing in zip(world.items, world_scene(world).objects, strict=True):
            x, _, z = thing.box3d.center
            turn = (np.degrees(np.arctan2(x, z)) - DIRECTIONS[item.direction] + 180) % 360 - 180
            assert abs(turn) <= 8.01
            assert thing.color == item.color


def test_checker_agrees_with_true_pictures() -> None:
    answers = [
        value
        for world in worlds(64)
        for values in check(render_world(world, 96, aa=2), world).values()
        for value in values
    ]
    assert np.mean(answers) > 0.98


def painted(above, floor, things: dict[str, str]) -> np.ndarray:
    """A flat picture in the exact colours: bands, and blocks below the horizon."""
    erp = np.zeros((96, 192, 3))
    erp[:50], erp[50:] = above, COLORS[floor]
    for direction, color in things.items():
        columns = np.arange(-10, 10) + round(192 * (0.5 + DIRECTIONS[direction] / 360))
        erp[52:68, columns % 192] = COLORS[color]
    return (erp * 255).round().astype(np.uint8)


def test_checker_reads_flat_pictures() -> None:
    erp = painted(COLORS["blue"], "white", {"behind": "red", "to the left": "green"})
    found = look(erp, outdoor=False)
    assert (found.above, found.below) == ("blue", "white")
    expected = {"in front": None, "to the right": None, "behind": "red", "to the left": "green"}
    assert found.items == expected


def test_checker_tells_colour_from_direction() -> None:
    world = World(
        seed=0, above="pink", below="yellow", outdoor=True,
        items=(
            Item(shape="box", color="blue", direction="in front"),
            Item(shape="ball", color="red", direction="behind"),
        ),
    )  # fmt: skip
    sky = np.mean(SKIES["pink"], 0)
    exchanged = painted(sky, "yellow", {"behind": "blue", "in front": "red"})
    assert check(exchanged, world) == {
        "sky": [True],
        "floor": [True],
        "object_color": [True, True],
        "object_direction": [False, False],
    }
    empty = check(painted(np.mean(SKIES["gray"], 0), "red", {}), world)
    assert not any(value for values in empty.values() for value in values)


@pytest.mark.parametrize("color", SURFACE_COLORS)
@pytest.mark.parametrize("light", [0.6, 1.0])
def test_colours_are_named_in_shade_and_light(color: str, light: float) -> None:
    shade = np.full((32, 64, 3), np.array(COLORS[color]) * light * 255).round().astype(np.uint8)
    assert look(shade, outdoor=False).below == color


def test_photo_is_the_front_of_the_panorama() -> None:
    world = worlds(1)[0]
    photo = render_photo(world, 48, 40.0)
    erp = render_world(world, 432, aa=1)  # 0.42 degrees a pixel, half of the photo's
    middle = erp[216 - 8 : 216 + 8, 432 - 8 : 432 + 8].reshape(-1, 3).mean(0)
    assert np.abs(photo[20:28, 20:28].reshape(-1, 3).mean(0) - middle).max() < 6
