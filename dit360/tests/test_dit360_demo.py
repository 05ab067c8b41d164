"""`scripts/demo.py`: which photo it takes, what it asks of the commands, one-line errors."""

from pathlib import Path

import numpy as np
import pytest

from dit360.cli import demo, editing, inference
from shared_pano_utils import erp_to_perspective
from shared_pano_utils.imageio import read_image, write_image


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Arguments of the commands, which do nothing."""
    calls = []
    for command in (inference, editing):
        monkeypatch.setattr(command, "main", lambda argv: calls.append(argv) or 0)
    return calls


def value(argv: list[str], flag: str) -> str:
    return argv[argv.index(flag) + 1]


def test_the_front_of_your_panorama_becomes_the_photo(
    tmp_path: Path, calls: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    """Longitude in the red channel, latitude in the green one: rays in closed form."""
    v, u = np.mgrid[:128, :256].astype(np.uint8)
    erp = np.stack([u, v, np.zeros_like(u)], -1)
    write_image(tmp_path / "pano.png", erp)
    assert demo.main(["--input", str(tmp_path / "pano.png"), "--out", str(tmp_path / "out")]) == 0
    photo = tmp_path / "out" / "photo.png"
    seen = read_image(photo).astype(float)
    x = ((np.arange(256) + 0.5) / 128 - 1) * np.tan(np.radians(60))  # on the plane z = 1
    columns = (np.degrees(np.arctan(x)) / 360 + 0.5) * 256 - 0.5
    assert np.abs(seen[128, :, 0] - columns).max() < 1
    down = np.degrees(np.arctan2(x[:, None], np.hypot(x, 1)))
    assert np.abs(seen[..., 1] - ((down / 180 + 0.5) * 128 - 0.5)).max() < 1
    from_words, around_photo = calls
    assert value(around_photo, "--perspective") == str(photo)
    assert value(around_photo, "--fov") == "120.0"
    assert value(around_photo, "--prompt") == value(from_words, "--prompt") == demo.DEMO_PROMPT
    assert "around_photo.html" in capsys.readouterr().out


def test_without_an_input_the_photo_shows_what_the_prompt_says(
    tmp_path: Path, calls: list[list[str]]
) -> None:
    from dit360.captions import caption, random_world, render_world, split_seed

    assert demo.main(["--out", str(tmp_path)]) == 0
    world = random_world(split_seed("test", demo.DEMO_WORLD))
    assert value(calls[1], "--prompt") == caption(world)
    view = erp_to_perspective(render_world(world, 512), size=(256, 256), fov=120)
    error = np.abs(read_image(tmp_path / "photo.png").astype(int) - np.asarray(view))
    assert np.median(error) <= 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.png", "missing.png: no such file"),
        ("square.png", "square.png: panorama is 64x64; width must be 2 x height"),
        ("text.png", "text.png: not a readable image"),
    ],
)
def test_bad_inputs_are_one_line_before_anything_runs(
    tmp_path: Path,
    calls: list[list[str]],
    capsys: pytest.CaptureFixture[str],
    name: str,
    message: str,
) -> None:
    write_image(tmp_path / "square.png", np.zeros((64, 64, 3), np.uint8))
    (tmp_path / "text.png").write_text("hello")
    assert demo.main(["--input", str(tmp_path / name), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not calls
    assert not (tmp_path / "out").exists()
