"""Photos on canvases against closed forms, and the commands that write training data."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dit360.captions import random_world, render_world, split_seed
from dit360.cli.prepare_data import build_parser, main
from dit360.data import prepare
from dit360.data.journal import Journal
from dit360.data.photos import Camera, crop_square, erode, place_photo, random_yaw
from dit360.data.prepare import random_cameras
from dit360.data.rows import open_rows
from dit360.data.sidecars import find_captions, find_images
from shared_pano_utils.imageio import read_image, write_image
from shared_pano_utils.metadata import read_gpano

# ---- placing ------------------------------------------------------------------------------------


def tangent_coordinates(height: int, camera: Camera) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x / z and y / z (right, down) of every panorama pixel in the camera, and z; float64."""
    lon = ((np.arange(2 * height) + 0.5) / (2 * height) - 0.5) * 2 * np.pi
    lat = (0.5 - (np.arange(height) + 0.5) / height) * np.pi
    lon, lat = np.meshgrid(lon, lat)
    rays = np.stack([np.cos(lat) * np.sin(lon), -np.sin(lat), np.cos(lat) * np.cos(lon)], -1)
    y, p, r = np.radians([camera.yaw_deg, camera.pitch_deg, camera.roll_deg])
    ry = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
    rx = np.array([[1, 0, 0], [0, np.cos(p), -np.sin(p)], [0, np.sin(p), np.cos(p)]])
    rz = np.array([[np.cos(r), -np.sin(r), 0], [np.sin(r), np.cos(r), 0], [0, 0, 1]])
    seen = rays @ (ry @ rx @ rz)
    z = seen[..., 2]
    safe = np.where(np.abs(z) < 1e-9, 1e-9, z)
    return seen[..., 0] / safe, seen[..., 1] / safe, z


@pytest.mark.parametrize(
    "camera",
    [
        Camera(),
        Camera(fov_deg=60, yaw_deg=170, pitch_deg=20, roll_deg=-15),
        Camera(fov_deg=110, yaw_deg=-75, pitch_deg=-60, roll_deg=40),
    ],
)
def test_placing_against_closed_form(camera: Camera) -> None:
    """A photo whose colours are its own coordinates, 160 x 120."""
    half_x = math.tan(math.radians(camera.fov_deg) / 2)
    half_y = half_x * 120 / 160
    u, v = np.meshgrid((np.arange(160) + 0.5) / 160, (np.arange(120) + 0.5) / 120)
    photo = np.stack([u, v, np.full_like(u, 0.5)], -1)
    height = 64
    canvas, supervised = place_photo((photo * 255).round().astype(np.uint8), height, camera)
    x, y, z = tangent_coordinates(height, camera)
    border = np.maximum(np.abs(x) / half_x, np.abs(y) / half_y)
    inside = (z > 0) & (border < 1)
    sure = (z <= 0) | (np.abs(border - 1) > 1e-4)
    assert np.array_equal(supervised[sure], inside[sure])
    assert not canvas[~supervised].any()
    deep = inside & (border < 0.95)
    expected = np.stack([x / half_x / 2 + 0.5, y / half_y / 2 + 0.5, np.full_like(x, 0.5)], -1)
    assert deep.sum() > 100
    assert np.abs(canvas[deep] / 255 - expected[deep]).max() < 0.012  # 3 of 255: two roundings


def test_yaw_of_whole_steps_is_a_roll() -> None:
    photo = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    front, seen = place_photo(photo, 64, Camera(fov_deg=70, pitch_deg=10))
    for step in (1, 3, 5):
        camera = Camera(fov_deg=70, pitch_deg=10, yaw_deg=step * 45.0)
        turned, there = place_photo(photo, 64, camera)
        assert np.array_equal(there, np.roll(seen, 16 * step, 1))
        difference = np.abs(turned.astype(int) - np.roll(front, 16 * step, 1).astype(int))
        assert difference.max() <= 1  # rounding of float32 directions


def test_fine_photos_do_not_alias() -> None:
    """A checkerboard of single pixels, 8 times finer than the canvas, becomes grey."""
    photo = np.indices((512, 512)).sum(0) % 2 * np.uint8(255)
    canvas, supervised = place_photo(
        np.repeat(photo[..., None], 3, -1).astype(np.uint8), 64, Camera()
    )
    inner = erode(supervised, 2)
    assert np.abs(canvas[inner].astype(int) - 127).max() <= 2


def test_erosion_against_brute_force() -> None:
    rng = np.random.default_rng(1)
    supervised = rng.random((12, 24)) < 0.97
    radius = 2
    expected = np.ones_like(supervised)
    for dy in range(-radius, radius + 1):
        rows = np.arange(12) + dy
        beyond = (rows < 0) | (rows > 11)
        source = np.where(rows < 0, -1 - rows, np.where(rows > 11, 23 - rows, rows))
        for dx in range(-radius, radius + 1):
            columns = (np.arange(24) + dx + 12 * beyond[:, None]) % 24
            expected &= supervised[source[:, None], columns]
    assert np.array_equal(erode(supervised, radius), expected)
    assert expected.any()
    assert not expected.all()
    assert erode(supervised, 0) is supervised


def test_erosion_by_cells_and_its_limit() -> None:
    photo = np.full((32, 32, 3), 9, np.uint8)
    whole = place_photo(photo, 128, Camera())[1]
    eroded = place_photo(photo, 128, Camera(), erode_cells=1)[1]
    assert whole[64].sum() - eroded[64].sum() == 16
    with pytest.raises(ValueError, match="no supervised pixel is left"):
        place_photo(photo, 64, Camera(fov_deg=20), erode_cells=3)


def test_cameras_are_checked() -> None:
    with pytest.raises(ValueError, match="field of view is 180"):
        Camera(fov_deg=180)
    with pytest.raises(ValueError, match="pitch is 100"):
        Camera(pitch_deg=100)


def test_random_yaws() -> None:
    rng = np.random.default_rng(0)
    yaws = np.array([random_yaw(rng, 64) for _ in range(800)])
    values, counts = np.unique(yaws, return_counts=True)
    assert values.tolist() == [-180 + 45 * k for k in range(8)]
    assert counts.min() > 65  # expected 100 each, standard deviation 9.4
    photos = [Path(f"{k}.jpg") for k in range(30)]
    cameras = random_cameras(photos, Camera(fov_deg=50), 1024, seed=5)
    assert random_cameras(photos[10:], Camera(fov_deg=50), 1024, seed=5) == cameras[10:]
    assert random_cameras(photos, Camera(fov_deg=50), 1024, seed=6) != cameras
    steps = np.array([camera.yaw_deg for camera in cameras]) / 360 * 2048 / 16
    assert np.allclose(steps, steps.round())
    assert len(set(steps)) > 20
    assert {replace(camera, yaw_deg=0.0) for camera in cameras} == {Camera(fov_deg=50)}


def test_crop_square() -> None:
    photo = np.arange(5 * 8 * 3, dtype=np.uint8).reshape(5, 8, 3)
    assert np.array_equal(crop_square(photo), photo[:, 1:6])
    assert np.array_equal(crop_square(photo.swapaxes(0, 1)), photo[:, 1:6].swapaxes(0, 1))


# ---- captions -----------------------------------------------------------------------------------


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Photos a, b, c with captions in text files."""
    folder = tmp_path / "photos"
    for k, name in enumerate("abc"):
        write_image(folder / f"{name}.png", np.full((20, 30, 3), 60 * k + 60, np.uint8))
        (folder / f"{name}.txt").write_text(f"Photo {name}.\n")
    return folder


def test_captions_from_every_place(photos: Path, tmp_path: Path) -> None:
    images = find_images([photos])
    assert [image.name for image in images] == ["a.png", "b.png", "c.png"]
    assert find_captions(images) == ["Photo a.", "Photo b.", "Photo c."]
    assert find_captions(images, caption="x") == ["x"] * 3
    table = tmp_path / "t.csv"
    table.write_text('file_name,caption\na.png,"one, two"\nb.png,B\nsub/c.png,C\n')
    assert find_captions(images, table) == ["one, two", "B", "C"]
    lines = tmp_path / "t.jsonl"
    lines.write_text('{"image": "a.png", "caption": ["k", "long"]}\n')
    assert find_captions(images[:1], lines) == ["long"]
    with pytest.raises(ValueError, match=r"2 of 3 images have no caption \(b.png, c.png\)"):
        find_captions(images, lines)
    lines.write_text('{"image": "a.png"}\n')
    with pytest.raises(ValueError, match=r"t.jsonl line 1: caption is None"):
        find_captions(images, lines)
    with pytest.raises(FileNotFoundError, match="holds no image"):
        find_images([tmp_path])


# ---- commands -----------------------------------------------------------------------------------


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def perspective(photos: Path, output: Path, *more: str) -> int:
    argv = ["perspective", str(photos), "--output", str(output), "--height", "64", *more]
    return main(argv)


def test_perspective_command(photos: Path, tmp_path: Path, capsys) -> None:
    output = tmp_path / "out"
    (photos / "d.png").write_bytes(b"not an image")
    (photos / "d.txt").write_text("Damaged.")
    assert perspective(photos, output, "--erode", "1", "--prefix", "Look:") == 1
    shown = capsys.readouterr()
    assert "3 made, 0 skipped, 1 failed" in shown.out
    assert "failed: d.png: " in shown.err
    assert shown.err.count("failed:") == 1
    rows = open_rows(output / "perspective.jsonl", need_mask=True)
    assert [row.caption for row in rows] == ["Look: Photo a.", "Look: Photo b.", "Look: Photo c."]
    records = read_lines(output / "perspective.jsonl")
    expected = random_cameras([Path(f"{name}.png") for name in "abc"], Camera(), 64, seed=0)
    assert [record["yaw_deg"] for record in records] == [camera.yaw_deg for camera in expected]
    canvas, mask = read_image(output / "canvas/b.png"), read_image(output / "masks/b.png")[..., 0]
    assert canvas.shape == (64, 128, 3)
    assert np.unique(canvas[mask == 255]).tolist() == [120]
    assert np.unique(mask).tolist() == [0, 255]
    gpano = read_gpano(output / "canvas/b.png")
    assert gpano is not None
    assert not (output / "perspective.jsonl.part").exists()


def test_finished_photos_are_skipped_and_changed_options_are_not(
    photos: Path, tmp_path: Path, capsys
) -> None:
    output = tmp_path / "out"
    assert perspective(photos, output) == 0
    before = (output / "perspective.jsonl").read_text()
    (output / "masks/b.png").unlink()
    assert perspective(photos, output) == 0
    assert "1 made, 2 skipped" in capsys.readouterr().out
    assert (output / "perspective.jsonl").read_text() == before
    assert perspective(photos, output, "--fov", "60") == 0
    assert "3 made, 0 skipped" in capsys.readouterr().out
    assert perspective(photos, output, "--fov", "60", "--overwrite") == 0
    assert "3 made, 0 skipped" in capsys.readouterr().out


def test_interrupted_run_goes_on(
    photos: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    calls = []

    def interrupted(*args, **options):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return place_photo(*args, **options)

    monkeypatch.setattr(prepare, "place_photo", interrupted)
    assert perspective(photos, output) == 130
    assert not (output / "perspective.jsonl").exists()
    with (output / "perspective.jsonl.part").open("ab") as file:
        file.write('{"image": "canvas/é'.encode()[:-1])  # as a crash would leave it
    assert perspective(photos, output) == 0
    assert "1 made, 2 skipped" in capsys.readouterr().out
    assert len(open_rows(output / "perspective.jsonl")) == 3


def test_square_and_given_direction(tmp_path: Path) -> None:
    photo = np.zeros((20, 60, 3), np.uint8)
    photo[:, 20:40] = 255
    write_image(tmp_path / "p.png", photo)
    for flag, most in (("--square", 255.0), ("--no-square", 130.0)):
        output = tmp_path / flag
        argv = ["perspective", str(tmp_path / "p.png"), "--output", str(output), "--caption", "x"]
        assert main([*argv, "--yaw", "90", flag, "--tiny"]) == 0
        canvas = read_image(output / "canvas/p.png").astype(float)
        mask = read_image(output / "masks/p.png")[..., 0] == 255
        assert canvas.shape == (96, 192, 3)
        assert mask[48, 144]
        assert np.flatnonzero(mask[48]).mean() == pytest.approx(143.5, abs=0.5)
        assert canvas[mask].mean() == pytest.approx(most, abs=25)


def test_panoramas_command(tmp_path: Path, capsys) -> None:
    folder = tmp_path / "panos"
    write_image(folder / "a.png", np.zeros((16, 32, 3), np.uint8))
    write_image(folder / "b.png", np.zeros((16, 33, 3), np.uint8))
    argv = ["panoramas", str(folder), "--output", str(tmp_path / "out"), "--caption", "A hall."]
    assert main(argv) == 1
    assert "failed: b.png: is 33x16" in capsys.readouterr().err
    (record,) = read_lines(tmp_path / "out/panoramas.jsonl")
    assert record == {"image": "../panos/a.png", "caption": "A hall.", "mask": "white.png"}
    (row,) = open_rows(tmp_path / "out/panoramas.jsonl", need_mask=True)
    mask = row.read_supervised()
    assert mask is not None
    assert mask.getextrema() == (255, 255)


def test_rows_of_other_images_are_kept(photos: Path, tmp_path: Path, capsys) -> None:
    """Two calls with one output; images that are gone and --overwrite end it."""
    output = tmp_path / "out"
    argv = ["--output", str(output), "--caption", "x", "--height", "64"]

    def names(file: str) -> list[str]:
        return [Path(record["image"]).stem for record in read_lines(output / file)]

    for name in "ab":
        assert main(["perspective", str(photos / f"{name}.png"), *argv]) == 0
    assert "1 made, 0 skipped, 1 rows of other images kept" in capsys.readouterr().out
    assert names("perspective.jsonl") == ["a", "b"]
    assert main(["perspective", str(photos / "a.png"), *argv, "--fov", "60"]) == 0
    records = read_lines(output / "perspective.jsonl")
    assert [(Path(r["image"]).stem, r["fov_deg"]) for r in records] == [("a", 60), ("b", 90)]
    (output / "masks/a.png").unlink()
    assert main(["perspective", str(photos / "c.png"), *argv]) == 0
    assert names("perspective.jsonl") == ["b", "c"]
    assert main(["perspective", str(photos / "c.png"), *argv, "--overwrite"]) == 0
    assert names("perspective.jsonl") == ["c"]

    for name in "ab":
        write_image(tmp_path / f"{name}.png", np.zeros((16, 32, 3), np.uint8))
        assert main(["panoramas", str(tmp_path / f"{name}.png"), *argv[:4]]) == 0
    assert names("panoramas.jsonl") == ["a", "b"]
    assert main(["panoramas", str(tmp_path / "b.png"), *argv[:4], "--overwrite"]) == 0
    assert names("panoramas.jsonl") == ["b"]


def test_enormous_image_is_one_failure(
    tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, height in (("a", 16), ("b", 64)):
        write_image(tmp_path / f"in/{name}.png", np.zeros((height, 2 * height, 3), np.uint8))
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 1000)  # an error above twice that
    argv = ["panoramas", str(tmp_path / "in"), "--output", str(tmp_path), "--caption", "x"]
    assert main(argv) == 1
    assert "failed: b.png: not a readable image (Image size" in capsys.readouterr().err
    assert len(read_lines(tmp_path / "panoramas.jsonl")) == 1


def test_procedural_worlds(tmp_path: Path, capsys) -> None:
    argv = ["procedural", "--output", str(tmp_path), "--count", "3", "--perspective", "2"]
    argv += ["--height", "64", "--split", "test"]
    assert main(argv) == 0
    panoramas, photos = open_rows(tmp_path / "panoramas.jsonl"), open_rows(tmp_path / "photos")
    canvases = open_rows(tmp_path / "perspective.jsonl", need_mask=True)
    assert [row.caption for row in open_rows(tmp_path / "images")] == [r.caption for r in panoramas]
    assert len(panoramas) == 3
    world = random_world(split_seed("test", 1))
    assert np.array_equal(np.asarray(panoramas[1].read_image()), render_world(world, 64))
    for panorama, photo, canvas in zip(panoramas, photos, canvases, strict=False):
        assert panorama.caption == photo.caption == canvas.caption
        mask = canvas.read_supervised()
        assert mask is not None
        seen = erode(np.asarray(mask) > 128, 1)
        whole, part = (np.asarray(row.read_image(), dtype=float) for row in (panorama, canvas))
        # The photo lies where the panorama shows the same things.
        assert np.abs(whole - part)[seen].mean() < 10
        assert np.abs(np.roll(whole, 32, 1) - part)[seen].mean() > 12
    capsys.readouterr()
    assert main(argv) == 0
    assert capsys.readouterr().out.count(" 0 made") == 2
    assert main([*argv, "--count", "1", "--perspective", "1"]) == 0
    for name in ("panoramas", "perspective"):  # as many as asked for
        assert len(read_lines(tmp_path / f"{name}.jsonl")) == 1


def test_journal_keeps_only_what_is_asked_for(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", np.zeros((2, 2, 3), np.uint8))
    record = {"image": "a.png", "caption": "é"}
    journal = Journal(tmp_path / "rows.jsonl", files=["image"])
    journal.add(record)
    journal.close([record])
    again = Journal(tmp_path / "rows.jsonl", files=["image"])
    assert again.is_finished(record)
    assert not again.is_finished({**record, "caption": "other"})
    assert not Journal(tmp_path / "rows.jsonl", files=["image"], overwrite=True).is_finished(record)
    (tmp_path / "a.png").unlink()
    assert not again.is_finished(record)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["perspective", "x", "--output", "o", "--height", "100"], "use a multiple of 16"),
        (["perspective", "x", "--output", "o", "--height", "0"], "--height 0: use a multiple"),
        (["perspective", "x", "--output", "o", "--erode", "-1"], "--erode -1: use 0 to 63 cells"),
        (["procedural", "--output", "o", "--height", "64", "--erode", "40"], "use 0 to 3 cells"),
        (["perspective", "x", "--output", "o", "--yaw", "nan"], "yaw is nan degrees"),
        (["perspective", "x", "--output", "o", "--fov", "0"], "field of view is 0.0"),
        (["perspective", "x", "--output", "o"], "x does not exist"),
        (["procedural", "--output", "o", "--count", "0"], "--count must be at least 1"),
        (["check", "no such", "--quick"], "no such does not exist"),
    ],
)
def test_errors_are_one_line(argv: list[str], message: str, capsys) -> None:
    assert main(argv) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: ")
    assert message in shown
    assert shown.count("\n") == 1


def test_every_job_has_help() -> None:
    parser = build_parser()
    for job in ("perspective", "panoramas", "check", "overlap", "procedural"):
        with pytest.raises(SystemExit) as stopped:
            parser.parse_args([job, "--help"])
        assert stopped.value.code == 0
