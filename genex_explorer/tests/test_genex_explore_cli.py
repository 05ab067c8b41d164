"""`explore.py` in process: files, second runs, interruptions, many walks, mistakes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from genex_explorer import explorer as explorer_module
from genex_explorer import outputs
from genex_explorer.cli import explore
from genex_explorer.data.procedural import ClipOptions, find_walk, render_erp
from genex_explorer.legacy import cubemap_cross, perspective_view
from genex_explorer.metrics.loop import read_poses
from genex_explorer.paths import Move, read_path
from genex_explorer.pipeline import GenexPipeline
from genex_explorer.tiny import tiny_pipeline
from genex_explorer.video import read_video
from genex_explorer.walk import WalkSettings, walk
from shared_pano_utils.imageio import read_image, write_image

torch.set_num_threads(1)

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def pipeline() -> GenexPipeline:
    return GenexPipeline(**tiny_pipeline().components)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, pipeline: GenexPipeline) -> str:
    """Folder of the random pipeline."""
    folder = tmp_path_factory.mktemp("model")
    pipeline.stock().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def room() -> np.ndarray:
    options = ClipOptions(frames=1, size=(128, 64))
    scene, poses = find_walk("test", "room", 0, options)
    return render_erp(scene, poses[0], options)


@pytest.fixture
def image(tmp_path: Path, room: np.ndarray) -> Path:
    write_image(tmp_path / "room.png", room)
    return tmp_path / "room.png"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch, pipeline: GenexPipeline) -> list[dict[str, Any]]:
    """Use one pipeline in memory; the list holds what each loading asked for."""
    asked = []

    def open_pipeline(name: str, **options: Any) -> GenexPipeline:
        asked.append({"model": name, **options})
        return pipeline

    monkeypatch.setattr(explorer_module, "open_pipeline", open_pipeline)
    return asked


def run(image: Path | list[Path], out: Path, path: str = "forward 2", *flags: str) -> int:
    images = [str(one) for one in (image if isinstance(image, list) else [image])]
    return explore.main(
        ["--tiny", "--image", *images, "--path", path, "--output_dir", str(out),
         "--num_inference_steps", "1", *flags]
    )  # fmt: skip


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


# ---- files --------------------------------------------------------------------------------------


def test_everything_that_can_be_written(
    model: str, image: Path, out: Path, room: np.ndarray, pipeline: GenexPipeline
) -> None:
    """With the model from its folder; numbers against a walk in memory."""
    flags = [
        "--model", model, "--save_mp4", "--save_gif", "--save_frames", "--cubemap", "--html",
        "--export_views", "front,left", "--fps", "5", "--seed", "3", "--shortcut",
    ]  # fmt: skip
    assert run(image, out, "forward 8, left 90", *flags) == 0
    frames = {f"frames/frame_{i:04d}.png" for i in range(10)}
    assert files(out) == frames | {
        "run.json", "path.json", "poses.json", "walk.mp4", "walk.gif", "walk.html", "cubemap.png",
        "view_front.mp4", "view_left.mp4",
    }  # fmt: skip
    moves = [Move(0.0, 8), Move(-90.0, 0)]
    settings = WalkSettings(
        width=64, height=32, num_inference_steps=1, max_guidance=1.0, fps_id=7, seed=3
    )
    expected = walk(pipeline, room, moves, settings).frames((64, 32))
    written = np.stack([read_image(out / name) for name in sorted(frames)])
    assert np.abs(written.astype(int) - expected).max() <= 1  # the shortcut rounds otherwise
    with Image.open(out / "frames" / "frame_0003.png") as frame:
        assert "GPano:ProjectionType" in frame.info["XML:com.adobe.xmp"]
    assert len(read_video(out / "walk.mp4")) == 10
    assert b"spherical" in (out / "walk.mp4").read_bytes().lower()
    left = read_video(out / "view_left.mp4")
    assert left.shape == (10, 32, 32, 3)
    view = perspective_view(written[0], 90, 90, -90, 0, 0, (32, 32))
    assert np.abs(left[0].astype(int) - view).mean() < 4  # yuv420p
    assert b"spherical" not in (out / "view_left.mp4").read_bytes().lower()
    np.testing.assert_array_equal(read_image(out / "cubemap.png"), cubemap_cross(written[-1])[0])
    page = (out / "walk.html").read_text()
    assert page.count("data:image/jpeg;base64") == 4
    for label in ("start", "1: forward 7", "2: forward 1", "3: turn -90"):
        assert f">{label}<" in page
    assert read_path(out / "path.json") == [Move(0.0, 7), Move(0.0, 1), Move(270.0, 0)]
    poses = read_poses(out / "poses.json")
    assert [pose.frame for pose in poses] == list(range(10))
    assert [pose.z_m for pose in poses] == [0, 0.4, 0.8, 1.2, 1.6, 2.0, 2.4, 2.8, 3.2, 3.2]
    assert (poses[-1].x_m, poses[-1].heading_deg) == (0.0, 270.0)
    assert json.loads((out / "run.json").read_text())["options"]["seed"] == 3


def test_video_and_frames_without_a_choice(
    loads: list[dict[str, Any]], image: Path, out: Path
) -> None:
    assert run(image, out, "forward 1", "--output_size", "96", "54") == 0
    assert files(out) == {
        "run.json", "path.json", "poses.json", "walk.mp4",
        "frames/frame_0000.png", "frames/frame_0001.png",
    }  # fmt: skip
    with Image.open(out / "frames" / "frame_0001.png") as frame:
        assert frame.size == (96, 54)
        assert "XML:com.adobe.xmp" not in frame.info  # not 2:1, so no player should wrap it
    assert b"spherical" not in (out / "walk.mp4").read_bytes().lower()
    assert loads[0]["model"].endswith("tiny")
    assert loads[0]["seam_mode"] == "vae"


def test_defaults_are_those_of_the_original() -> None:
    args = explore.build_parser().parse_args(["--image", "a.png", "--actions", "forward 1"])
    assert args.model == "genex-world/GenEx-World-Explorer"
    assert (args.width, args.height, args.num_inference_steps) == (1024, 576, 30)
    assert (args.min_guidance, args.max_guidance, args.noise_aug_strength) == (1.0, 3.0, 0.02)
    assert (args.fps_id, args.motion_bucket_id, args.decode_chunk, args.fps) == (6, 127, 8, 10)
    assert args.path == ["forward 1"]


def test_original_path_files(loads: list[dict[str, Any]], image: Path, out: Path) -> None:
    path = out.parent / "path.json"
    path.write_text('[{"turn_angle": 90.0, "move_distance": 2, "new_position": [0, 2]}]')
    assert run(image, out, str(path)) == 0
    assert [pose.x_m for pose in read_poses(out / "poses.json")] == [0.0, 0.4, 0.8]
    assert len(loads) == 1


# ---- second runs --------------------------------------------------------------------------------


def test_a_finished_walk_is_kept(
    loads: list[dict[str, Any]], image: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(image, out, "forward 3", "--save_frames") == 0
    before = {name: (out / name).stat().st_mtime_ns for name in files(out)}
    assert run(image, out, "forward 3", "--save_frames", "--batch_size", "1") == 0
    assert "nothing to do" in capsys.readouterr().out
    assert {name: (out / name).stat().st_mtime_ns for name in files(out)} == before
    assert len(loads) == 1
    assert run(image, out, "forward 3", "--save_frames", "--seed", "1") == 2
    assert "made with seed 0, not 1" in capsys.readouterr().err
    assert run(image, out, "forward 1", "--save_frames") == 2
    assert "made with path forward 3, not forward 1" in capsys.readouterr().err
    assert run(image, out, "forward 1", "--save_frames", "--overwrite") == 0
    assert {path.name for path in (out / "frames").iterdir()} == {
        "frame_0000.png",
        "frame_0001.png",
    }


def test_killed_half_way(
    loads: list[dict[str, Any]], image: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(outputs, "write_video", interrupt)
        assert run(image, out, "forward 2", "--save_frames", "--export_views", "front") == 130
    assert "poses.json" not in files(out)
    assert not list(out.rglob(".*"))
    assert run(image, out, "forward 2", "--save_frames", "--export_views", "front") == 0
    assert {"poses.json", "view_front.mp4"} <= files(out)
    old = (out / "poses.json").read_text()
    with monkeypatch.context() as patched:  # before anything new is there, the old walk stays whole
        patched.setattr(GenexPipeline, "decode_latents", interrupt)
        assert run(image, out, "forward 1", "--save_frames", "--overwrite") == 130
    assert (out / "poses.json").read_text() == old
    assert len(loads) == 3


# ---- many walks ---------------------------------------------------------------------------------


def test_branches(
    loads: list[dict[str, Any]], image: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = []
    encode = GenexPipeline._encode_image

    def count(self: GenexPipeline, images: list[Image.Image], *args: Any) -> torch.Tensor:
        batches.append(len(images))
        return encode(self, images, *args)

    monkeypatch.setattr(GenexPipeline, "_encode_image", count)
    assert run(image, out, "right 10, forward 1", "--branches", "-60,0,60") == 0
    assert batches == [3]
    headings = [read_poses(out / f"branch_{i}" / "poses.json")[1].heading_deg for i in range(3)]
    assert headings == [310.0, 10.0, 70.0]
    assert run(image, out.parent / "two", "forward 1", "--path", "left 5", "--batch_size", "1") == 0
    assert {path.name for path in (out.parent / "two").iterdir()} == {
        "branch_0", "branch_1", "run.json",
    }  # fmt: skip
    assert batches == [3, 1]  # the turn needs no network
    assert len(loads) == 2


def test_a_folder_with_a_bad_image_in_shards(
    loads: list[dict[str, Any]], tmp_path: Path, room: np.ndarray, out: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder = tmp_path / "panoramas"
    for name in ("a2", "a10", "a1"):
        write_image(folder / f"{name}.png", room)
    (folder / "b.png").write_bytes(b"no image")
    Image.new("RGB", (1536, 640)).save(folder / "c.png")
    assert run(folder, out, "left 30", "--shard", "0/2") == 1  # a1, a10, c
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"failed: {folder / 'c.png'}: panorama is 1536x640" in error
    assert run(folder, out, "left 30", "--shard", "1/2") == 1  # a2, b
    assert "b.png: not a readable image" in capsys.readouterr().err
    assert {path.parent.name for path in out.glob("*/poses.json")} == {"a1", "a2", "a10"}
    assert len(loads) == 2


# ---- mistakes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "flags", "message"),
    [
        ("forwards 2", [], "step 1 ('forwards 2') is not an action"),
        ("none.json", [], "path file none.json does not exist"),
        ("forward 1", ["--image", "none.png"], "none.png: no such file"),
        ("forward 1", ["--branches", "-60;60"], "--branches -60;60: expected degrees"),
        ("forward 1", ["--shard", "2/2"], "--shard 2/2: expected I/N"),
        ("forward 1", ["--batch_size", "0"], "--batch_size is 0"),
        ("forward 1", ["--export_views", "ahead"], "view 'ahead' is unknown; use some of front"),
        ("forward 1", ["--fps", "0"], "fps is 0.0"),
        ("forward 1", ["--output_size", "0", "4"], "output size is 0x4"),
        ("forward 1", ["--max_guidance", "0.5"], "guidance goes from 1.0 to 0.5"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_loaded(
    loads: list[dict[str, Any]], image: Path, out: Path, capsys: pytest.CaptureFixture[str],
    path: str, flags: list[str], message: str,
) -> None:  # fmt: skip
    assert run(image, out, path, *flags) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("error: ")
    assert message in error
    assert loads == []
    assert not out.exists()


def test_json_typos(image: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = out.parent / "path.json"
    path.write_text('[{"turn": 30,}]')
    assert run(image, out, str(path)) == 2
    assert "is not JSON" in capsys.readouterr().err
    path.write_text('[{"trun": 30}]')
    assert run(image, out, str(path)) == 2
    assert "unknown key 'trun'; closest allowed is 'turn'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model", "/no/such/folder"], "/no/such/folder"),
        (["--offload", "model", "--device", "cpu"], "offload 'model' needs an accelerator"),
        (["--device", "abacus"], "device 'abacus' is unknown"),
        (["--width", "60"], "model size is 60x32"),
        (["--wrap_columns", "99"], "cannot wrap"),
    ],
)
def test_mistakes_that_only_the_model_shows(
    model: str, image: Path, out: Path, capsys: pytest.CaptureFixture[str],
    flags: list[str], message: str,
) -> None:  # fmt: skip
    assert run(image, out, "forward 1", "--model", model, *flags) == 2
    errors = [line for line in capsys.readouterr().err.split("\n") if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert "poses.json" not in files(out)


def test_folders_of_no_or_equal_images(
    image: Path, tmp_path: Path, out: Path, room: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert run(tmp_path / "empty", out) == 2
    assert "holds no image" in capsys.readouterr().err
    write_image(tmp_path / "other" / "room.jpg", room)
    assert run([image, tmp_path / "other" / "room.jpg"], out) == 2
    assert "several images are called 'room'" in capsys.readouterr().err


def test_a_strange_log_is_not_overwritten(
    image: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out.mkdir()
    (out / "poses.json").write_text("[]")
    assert run(image, out) == 2
    assert "poses.json is not a log of poses" in capsys.readouterr().err
    assert (out / "poses.json").read_text() == "[]"


def test_the_root_file() -> None:
    result = subprocess.run(
        [sys.executable, str(ROOT / "explore.py"), "--help"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "--path PATH" in result.stdout
