"""Commands of the evaluation: scores of walks, closed loops, comparison with the true place."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from genex_explorer import loops
from genex_explorer.cli import iecc_generate, iecc_score, loop_consistency, scores
from genex_explorer.metrics import frames as fm
from genex_explorer.metrics import perceptual
from genex_explorer.paths import read_path, trace
from genex_explorer.video import read_video, write_video
from shared_pano_utils.imageio import read_image, write_image, write_json

torch.set_num_threads(1)
ROOT = Path(__file__).parents[1]
OWN = ("psnr", "ssim", "ws_psnr", "ws_ssim", "seam_ratio")


def clip(seed: int, length: int = 3, size: tuple[int, int] = (16, 32)) -> np.ndarray:
    """Smooth moving noise (F, H, W, 3) uint8 that wraps around."""
    rng = np.random.default_rng(seed)
    height, width = size
    first = rng.integers(40, 216, (height // 4, width // 4, 3), dtype=np.uint8).repeat(4, 0)
    return np.stack([np.roll(first.repeat(4, 1), 2 * i, 1) for i in range(length)])


def write_frames(folder: Path, frames: np.ndarray) -> None:
    for i, frame in enumerate(frames, 1):
        write_image(folder / f"frame_{i}.png", frame)


@pytest.fixture
def pairs(tmp_path) -> Path:
    """Two cases: a shifted walk as videos, a brighter one as folders of frames."""
    root = tmp_path / "results"
    for role, frames in (("original", clip(0)), ("navigated", np.roll(clip(0), 1, 2))):
        write_video(root / "a" / f"{role}.mp4", frames, fps=10)
    write_frames(root / "b" / "original", clip(1))
    write_frames(root / "b" / "navigated", clip(1) + 20)
    return root


def run_scores(capsys, *argv) -> dict:
    code = scores.main([*map(str, argv), "--device", "cpu"])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return json.loads(captured.out)


def failure(capsys, main, *argv) -> str:
    """The one line of a command that must fail without a result."""
    assert main([*map(str, argv)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = [line for line in captured.err.splitlines() if not line.startswith("note: no CUDA")]
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("error: ")
    return lines[0]


# ---- scores -------------------------------------------------------------------------------------


def test_json_has_the_original_shape_and_the_right_numbers(pairs, capsys):
    report = run_scores(capsys, "--input_folder", pairs, "--resolution", 32, 16)
    assert report["psnr"]["video_setting"] == [3, 3, 16, 32]
    for metric in ("psnr", "ssim"):
        assert list(report[metric]["value"]) == list(report[metric]["value_std"]) == ["0", "1", "2"]
    values = []
    for case in ("a", "b"):
        if case == "a":
            navigated, original = (
                read_video(pairs / f"a/{r}.mp4") for r in ("navigated", "original")
            )
        else:
            navigated, original = clip(1) + 20, clip(1)
        error = (navigated.astype(float) - original) / 255
        values.append(-10 * np.log10(np.square(error).mean((1, 2, 3))))
    expected = np.stack(values)
    assert list(report["psnr"]["value"].values()) == pytest.approx(expected.mean(0))
    assert list(report["psnr"]["value_std"].values()) == pytest.approx(expected.std(0))
    assert report["psnr"]["mean"] == pytest.approx(expected[:, 1:].mean())
    assert values[1] == pytest.approx(20 * np.log10(255 / 20))
    copies = report["baseline_copy_first_frame"]["psnr"]["value"]
    assert copies["0"] == 100
    assert copies["2"] < copies["1"] < 40
    assert report["settings"] == {
        "regime": "custom", "resolution": [32, 16], "clips": 2, "frames": 3,
    }  # fmt: skip
    assert set(report["original"]) == {"seam_ratio"}


def test_metrics_without_weights_are_left_out_and_said(pairs, capsys):
    assert scores.main(["--input_folder", str(pairs), "--device", "cpu", "--resolution", "64"]) == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert "fvd" not in report
    assert "lpips" not in report
    assert all(name in report for name in OWN)
    assert report["settings"]["regime"] == "code"
    expected = ["left out: fvd needs --i3d_weights", "left out: lpips needs --lpips_weights"]
    assert [note.split(" FILE")[0] for note in report["notes"]] == expected
    assert captured.err.count("note: left out") == 2


@pytest.mark.parametrize(("metric", "flag"), [("fvd", "i3d"), ("lpips", "lpips")])
def test_named_metrics_without_weights_are_errors(pairs, capsys, metric, flag):
    line = failure(capsys, scores.main, "--input_folder", pairs, "--metrics", "psnr", metric)
    assert line.startswith(f"error: {metric} needs --{flag}_weights FILE")


def test_identical_walks_are_perfect(tmp_path, capsys):
    for i in range(3):
        for role in ("original", "navigated"):
            write_frames(tmp_path / f"case{i}" / role, clip(i, size=(32, 64)))
    report = run_scores(
        capsys, "--input_folder", tmp_path, "--resolution", 64, 32, "--backbone", "random",
        "--fvd_views",
    )  # fmt: skip
    perfect = {"psnr": 100, "ws_psnr": 100, "ssim": 1, "ws_ssim": 1, "lpips": 0}
    for metric, value in perfect.items():
        assert list(report[metric]["value"].values()) == pytest.approx([value] * 3, abs=1e-12)
    assert list(report["fvd"]["value"]) == ["3"]
    assert report["fvd"]["value"]["3"] < 1e-6
    assert report["fvd"]["video_setting"] == [3, 3, 3, 32, 64]
    assert set(report["fvd"]["views"]) == {"front", "right", "back", "left"}
    assert max(report["fvd"]["views"].values()) < 1e-6
    baseline = report["baseline_copy_first_frame"]
    assert baseline["fvd"]["value"]["3"] > 1e-6
    assert baseline["lpips"]["mean"] > 1e-4
    for entry in (report["fvd"], report["lpips"], baseline["fvd"], baseline["lpips"]):
        assert entry["backbone"] == perceptual.NOT_COMPARABLE
    assert "backbone" not in report["psnr"]
    assert report["notes"] == ["fvd is taken at 3 frames only: the original begins at 10"]


class FirstFrames(nn.Module):
    """Features of a clip: means of its frames and its length."""

    def forward(self, x: Tensor, rescale: bool, resize: bool, return_features: bool) -> Tensor:
        assert not rescale
        assert not resize
        assert return_features
        feature = x.mean(dim=[1, 3, 4])[:, :10]
        length = torch.full((x.shape[0], 1), float(x.shape[2]))
        return torch.cat([feature, length, torch.zeros(x.shape[0], 389)], 1)


def test_fvd_of_every_prefix_with_a_given_i3d(tmp_path, capsys):
    torch.jit.script(FirstFrames()).save(str(tmp_path / "i3d.pt"))
    root, shift = tmp_path / "cases", 10
    for i in range(2):
        write_frames(root / f"case{i}" / "original", clip(i, 12))
        write_frames(root / f"case{i}" / "navigated", clip(i, 12) + shift)
    report = run_scores(
        capsys, "--input_folder", root, "--metrics", "fvd", "--i3d_weights", tmp_path / "i3d.pt",
        "--resolution", 32, 16, "--json", tmp_path / "scores.json",
    )  # fmt: skip
    # ten features moved by 2 * 10 / 255, equal covariances
    expected = 10 * (2 * shift / 255) ** 2
    assert report["fvd"]["value"] == pytest.approx(dict.fromkeys(("10", "11", "12"), expected))
    assert report["notes"] == []
    assert "backbone" not in report["fvd"]
    assert json.loads((tmp_path / "scores.json").read_text()) == report


def test_markdown_and_iecc_folder(tmp_path, capsys):
    folder = tmp_path / "n_4_k_2" / "pano"
    write_image(folder / "original.png", clip(0)[0])
    write_image(folder / "navigatied.png", clip(0)[1])  # as the original's generator wrote it
    argv = ["--input_folder", str(tmp_path), "--device", "cpu", "--resolution", "32", "16"]
    assert scores.main([*argv, "--metrics", "psnr", "seam_ratio", "--markdown"]) == 0
    table = capsys.readouterr().out.splitlines()
    error = (clip(0)[1].astype(float) - clip(0)[0]) / 255
    value = -10 * np.log10(np.square(error).mean())
    assert table[0] == "1 clips of 1 frames at 32x16 (custom regime)"
    assert table[4] == f"| psnr | higher | {value:.4g} | 100 |"
    assert table[5].startswith("| seam_ratio | 1 | ")
    assert table[5].endswith(" |  |")
    assert table[-1] == "Note: clips of one frame: copy_first_frame is the truth itself"


def test_resolution_device_and_views_are_checked(pairs, capsys):
    base = ["--input_folder", pairs]
    assert "give one number" in failure(capsys, scores.main, *base, "--resolution", 1, 2, 3)
    assert "even width" in failure(capsys, scores.main, *base, "--resolution", 33, 16)
    assert "use cuda" in failure(capsys, scores.main, *base, "--device", "mps", "--metrics", "psnr")
    line = failure(capsys, scores.main, *base, "--metrics", "psnr", "--fvd_views")
    assert "--fvd_views needs fvd" in line


def test_a_bad_folder_never_scores(pairs, tmp_path, capsys):
    def line(root: Path) -> str:
        return failure(capsys, scores.main, "--input_folder", root, "--device", "cpu",
                       "--metrics", "psnr", "--resolution", 64)  # fmt: skip

    assert "none does not exist" in line(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    assert "holds no case" in line(tmp_path / "empty")
    (pairs / "c").mkdir()
    assert "c holds neither navigated nor original" in line(pairs)
    write_video(pairs / "c" / "original.mp4", clip(2), fps=10)
    assert "c holds no navigated beside original.mp4; a case needs both" in line(pairs)
    write_video(pairs / "c" / "navigated.mp4", clip(2, 4), fps=10)
    assert "navigated.mp4 has 4 frames, original.mp4 beside it 3" in line(pairs)
    write_video(pairs / "c" / "original.mp4", clip(2, 4), fps=10)
    assert "has 4 frames, the cases before it 3" in line(pairs)
    (pairs / "c" / "original.mp4").write_bytes(b"\x00" * 100)
    assert "original.mp4 is not a readable video" in line(pairs)
    (pairs / "c" / "original.mp4").unlink()
    (pairs / "c" / "original").mkdir()
    assert "original holds no image" in line(pairs)


def test_a_truncated_video_is_an_error(pairs, capsys):
    path = pairs / "a" / "navigated.mp4"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert failure(capsys, scores.main, "--input_folder", pairs, "--metrics", "psnr")


def test_a_single_case_is_its_own_folder(pairs):
    assert [case.id for case in fm.find_cases(pairs)] == ["a", "b"]
    assert [case.id for case in fm.find_cases(pairs / "b")] == ["."]
    with pytest.raises(FileNotFoundError, match="holds no case"):
        fm.find_cases(pairs, images_only=True)


# ---- loops --------------------------------------------------------------------------------------


class FakeExplorer:
    """Turns by whole columns and brightens by 1 per frame; returns new frames only, as ours does."""

    def __init__(self) -> None:
        self.calls: list[tuple] = []

    def navigate_path(self, path, start_image, num_inference_steps=50):
        self.calls.append((len(path), start_image.size, num_inference_steps))
        current, segments = np.asarray(start_image), []
        for step in path:
            columns = round(step["turn_angle"] / 360 * current.shape[1])
            current = np.roll(current, -columns, 1)
            segment = [current + i for i in range(1, step["move_distance"] + 1)] or [current]
            current = segment[-1]
            segments.append([Image.fromarray(frame) for frame in segment])
        return segments


@pytest.fixture
def explorer(monkeypatch) -> FakeExplorer:
    fake = FakeExplorer()
    fake.loaded = []

    def load_explorer(**options):
        fake.loaded.append(options)
        return fake

    module = SimpleNamespace(load_explorer=load_explorer)
    monkeypatch.setitem(sys.modules, "genex_explorer.explorer", module)
    return fake


@pytest.fixture
def validation(tmp_path, monkeypatch) -> Path:
    """Working directory with the original's constant input folder."""
    monkeypatch.chdir(tmp_path)
    for i in range(3):
        write_image(Path("validation") / f"pano_{i}.png", clip(i)[0])
    Path("validation/notes.txt").write_text("not an image")
    return tmp_path


GENERATE = ["--navigation_distances", "6", "8", "--rotation_times", "2", "3", "--num_data", "2"]


def test_generate_writes_every_file_and_resumes(validation, explorer, capsys):
    argv = ["--unet_path", "unet", *GENERATE, "--num_inference_steps", "7"]
    assert iecc_generate.main(argv) == 0
    assert capsys.readouterr().out == "8 loops walked, 8 in consistency\n"
    assert explorer.loaded[0] == {
        "unet_path": "unet", "svd_path": iecc_generate.SVD, "tiny": False, "device": "auto",
    }  # fmt: skip
    assert {call[2] for call in explorer.calls} == {7}
    folder = validation / "consistency" / "n_6_k_3" / "pano_1"
    path = json.loads((folder / "path.json").read_text())
    assert [step["move_distance"] for step in path][-1] == 0
    assert len(path) == 4
    assert sum(step["move_distance"] for step in path) == 6
    np.testing.assert_array_equal(read_image(folder / "original.png"), clip(1)[0])
    # Six frames brighten by one each; every turn is rounded to whole columns.
    shifts = [np.roll(clip(1)[0] + 6, i, 1) for i in range(-2, 3)]
    navigated = read_image(folder / "navigated.png")
    assert any(np.array_equal(navigated, shifted) for shifted in shifts)
    assert len(read_video(folder / "movement.mp4")) == 8  # start, six steps, turn
    assert read_image(folder / "path.png").shape == (480, 480, 3)
    assert not (folder / "movements").exists()
    assert (validation / "consistency" / "run.json").exists()

    first = (folder / "path.json").read_bytes()
    (folder / "path.json").unlink()
    assert iecc_generate.main(argv) == 0
    assert capsys.readouterr().out == "1 loops walked, 8 in consistency\n"
    assert (folder / "path.json").read_bytes() == first
    assert iecc_generate.main([*argv, "--save_frames"]) == 0
    assert capsys.readouterr().out == "8 loops walked, 8 in consistency\n"
    assert len(list((folder / "movements").glob("frame*.png"))) == 8
    np.testing.assert_array_equal(read_image(folder / "movements" / "frame0.png"), clip(1)[0])


def test_generate_with_one_model_and_another_seed(validation, explorer):
    argv = ["--model", "whole", *GENERATE, "--output_dir"]
    assert iecc_generate.main([*argv, "a"]) == iecc_generate.main([*argv, "b", "--seed", "1"]) == 0
    assert explorer.loaded[0]["unet_path"] == explorer.loaded[0]["svd_path"] == "whole"
    case = Path("n_6_k_3") / "pano_0" / "path.json"
    assert (validation / "a" / case).read_bytes() != (validation / "b" / case).read_bytes()


def test_generate_tiny_renders_its_own_starts(tmp_path, monkeypatch, explorer):
    monkeypatch.chdir(tmp_path)
    argv = ["--tiny", "--navigation_distances", "2", "--rotation_times", "2", "--num_data", "1"]
    assert iecc_generate.main(argv) == 0
    assert explorer.loaded[0]["tiny"]
    image = read_image(tmp_path / "consistency/n_2_k_2/room_00000/original.png")
    assert image.shape == (32, 64, 3)
    assert image.std() > 10


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([*GENERATE], "no model: give --unet_path, --model or --tiny"),
        (["--tiny", *GENERATE, "--rotation_times", "3", "1"], "never return to the start"),
        (["--tiny", *GENERATE, "--rotation_times", "9"], "has at most 6 segments"),
        (["--tiny", *GENERATE, "--navigation_distances", "5"], "must be even"),
        (["--tiny", *GENERATE, "--num_data", "0"], "--num_data"),
        (["--tiny", *GENERATE, "--input_dir", "none"], "--input_dir none does not exist"),
    ],
)
def test_generate_refuses_before_loading(validation, explorer, capsys, argv, message):
    assert message in failure(capsys, iecc_generate.main, *argv)
    assert explorer.loaded == []
    assert not (validation / "consistency").exists()


@pytest.mark.usefixtures("explorer")
def test_generate_names_ambiguous_and_missing_images(validation, capsys):
    assert iecc_generate.main(["--tiny", *GENERATE, "--num_data", "9"]) == 0
    assert "--num_data 9, but validation holds 3 images" in capsys.readouterr().err
    write_image(validation / "validation" / "pano_0.jpg", clip(0)[0])
    line = failure(capsys, iecc_generate.main, "--tiny", *GENERATE)
    assert "differ in the suffix only" in line
    (validation / "void").mkdir()
    line = failure(capsys, iecc_generate.main, "--tiny", *GENERATE, "--input_dir", "void")
    assert "void holds no image" in line


def test_an_explorer_without_frames_leaves_no_complete_case(tmp_path):
    nothing = SimpleNamespace(navigate_path=lambda *_, **__: [[]])
    path = loops.construct_path(4, 2, np.random.default_rng(0))
    with pytest.raises(ValueError, match="returned no frame for case"):
        loops.walk_loop(nothing, Image.new("RGB", (32, 16)), path, tmp_path / "case")
    assert not loops.is_complete(tmp_path / "case")


@pytest.mark.usefixtures("validation", "explorer")
def test_generated_loops_can_be_scored(capsys):
    assert iecc_generate.main(["--tiny", *GENERATE, "--navigation_distances", "4"]) == 0
    capsys.readouterr()
    argv = ["consistency", "--backbone", "random", "--resolution", "75", "--device", "cpu"]
    assert iecc_score.main([*argv, "--json", "iecc.json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    result = json.loads(Path("iecc.json").read_text())
    assert result["pairs"] == 4
    assert list(result["settings"]) == ["n_4_k_2", "n_4_k_3"]
    assert all(group["pairs"] == 2 for group in result["settings"].values())
    assert result["average"] == pytest.approx(np.mean(list(result["cases"].values())))
    assert result["average"] > 0
    assert result["backbone"] == perceptual.NOT_COMPARABLE
    assert result["regime"] == "custom"
    assert lines[-1].startswith("Average Latent MSE across all image pairs: ")
    assert perceptual.NOT_COMPARABLE in lines[-1]
    assert lines[2].startswith("| n_4_k_2 | 2 | ")


def test_score_uses_the_images_and_the_folder_names(tmp_path, monkeypatch, capsys):
    sizes = []

    def latent_mse(_network, a, b, size):
        sizes.append(size)
        return float(np.square(a.astype(float) - b).mean())

    monkeypatch.setattr(perceptual, "latent_mse", latent_mse)
    monkeypatch.setattr(perceptual, "load_inception", lambda weights, _device: weights)
    root = tmp_path / "n_5_k_3"
    for i, name in enumerate(("navigated.png", "navigatied.png")):
        write_image(root / f"case{i}" / "original.png", clip(0)[0])
        write_image(root / f"case{i}" / name, clip(0)[0] + 3 * i)
    argv = [str(root), "--weights", "w.pth", "--device", "cpu", "--json", str(tmp_path / "o.json")]
    assert iecc_score.main(argv) == 0
    result = json.loads((tmp_path / "o.json").read_text())
    assert result["cases"] == {"case0": 0, "case1": 9}
    assert result["settings"] == {"n_5_k_3": {"average": 4.5, "pairs": 2}}
    assert (result["regime"], sizes) == ("paper", [500, 500])
    assert "backbone" not in result
    assert capsys.readouterr().out.endswith("across all image pairs: 4.5\n")


def test_score_without_pairs_or_weights_is_an_error(tmp_path, capsys):
    assert "needs --weights FILE" in failure(capsys, iecc_score.main, tmp_path)
    argv = (tmp_path, "--backbone", "random")
    assert "holds no case" in failure(capsys, iecc_score.main, *argv)
    write_image(tmp_path / "n_4_k_2" / "a" / "original.png", clip(0)[0])
    assert "holds no navigated beside original.png" in failure(capsys, iecc_score.main, *argv)
    assert "75 pixels" in failure(capsys, iecc_score.main, *argv, "--resolution", 10)


def test_sample_path_prints_a_loop_and_draws_it(tmp_path, capsys):
    argv = ["--navigation_distance", "10", "--rotation_times", "4"]
    main = iecc_generate.sample_path_main
    assert main([*argv, "--picture", str(tmp_path / "path.png")]) == 0
    path = json.loads(capsys.readouterr().out)
    end = trace(read_path(path), step_m=1.0)[-1]
    assert (end.x_m, end.z_m) == pytest.approx((0, 0), abs=1e-4)
    picture = read_image(tmp_path / "path.png")
    assert picture.shape == (480, 480, 3)
    assert tuple(picture[240, 240]) == (0, 0, 0)  # the dot at the start
    assert (picture.std(-1) > 20).sum() > 500  # coloured arrows
    assert "never return" in failure(capsys, main, *argv[:3], "1")


def test_picture_shows_ahead_as_up_and_right_as_right(tmp_path):
    # One step of four frames ahead, one of four to the right.
    steps = [{"new_position": [4.0, 0.0]}, {"new_position": [4.0, 4.0]}]
    loops.draw_path(steps, tmp_path / "path.png")
    coloured = read_image(tmp_path / "path.png").std(-1) > 20
    rows, columns = np.nonzero(coloured)
    assert rows.max() <= 245
    assert columns.min() >= 235


# ---- comparison with the true place ------------------------------------------------------------


def test_loop_consistency_command(tmp_path, capsys):
    from genex_explorer.data.procedural import ClipOptions, write_clips

    write_clips(
        tmp_path, {"corridor": 1}, split="test", options=ClipOptions(frames=2, size=(64, 32))
    )
    source = tmp_path / "corridor" / "video_00000"
    start = read_image(source / "frame_0001.jpg")
    out = tmp_path / "out"
    poses = [
        {"frame": i, "x_m": 0.0, "z_m": z, "heading_deg": 0.0} for i, z in enumerate((0, 0.4, 99))
    ]
    for i in range(3):
        write_image(out / "frames" / f"frame_{i:04d}.png", start)
    write_json(out / "poses.json", {"poses": poses})
    argv = ["--exploration", out, "--clip", source / "clip.json", "--json", tmp_path / "s.json"]
    assert loop_consistency.main([*map(str, argv)]) == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert json.loads((tmp_path / "s.json").read_text()) == report
    assert "1 of 3 poses lie in obstacles" in captured.err
    first, second, _ = report["frames"]
    assert first["psnr"] > 30  # JPEG
    assert second["psnr"] == pytest.approx(second["baseline_psnr"], abs=0.5)  # it stood still
    (out / "poses.json").unlink()
    assert "poses.json does not exist" in failure(capsys, loop_consistency.main, *argv)


# ---- command lines ------------------------------------------------------------------------------


def flags(parser) -> dict[str, object]:
    return {
        option: action.default for action in parser._actions for option in action.option_strings
    }


def test_flags_of_the_original_are_kept():
    assert flags(scores.build_parser())["--device"] == "cuda"
    ours = flags(iecc_generate.build_parser())
    expected = {
        "--unet_path": None,
        "--svd_path": "stabilityai/stable-video-diffusion-img2vid-xt-1-1",
        "--navigation_distances": None,
        "--rotation_times": None,
        "--num_data": None,
        "--save_frames": False,
        "--input_dir": Path("validation"),
        "--output_dir": Path("consistency"),
        "--num_inference_steps": 50,
    }
    assert {flag: ours[flag] for flag in expected} == expected


@pytest.mark.parametrize("metric", ["fvd", "lpips", "psnr", "ssim"])
def test_scripts_of_one_metric(pairs, monkeypatch, capsys, metric):
    script = ROOT / "evaluate" / "FVD" / f"calculate_{metric}.py"
    argv = [str(script), "--input_folder", str(pairs), "--device", "cpu", "--resolution", "64"]
    monkeypatch.setattr(sys, "argv", [*argv, "--backbone", "random"])
    with pytest.raises(SystemExit) as stop:
        exec(compile(script.read_text(), script, "exec"), {"__name__": "__main__"})
    assert stop.value.code == 0
    report = json.loads(capsys.readouterr().out)
    assert {"fvd", "lpips", *OWN} & report.keys() == {metric}


@pytest.mark.parametrize(
    "script",
    [
        "FVD/calculate_scores.py", "IECC/iecc_generate.py", "IECC/iecc_score.py",
        "IECC/sample_path.py", "loop_consistency.py",
    ],
)  # fmt: skip
def test_help_is_instant_and_free_of_heavy_imports(script):
    code = (
        "import runpy, sys\n"
        f"sys.argv = [{script!r}, '--help']\n"
        "try:\n"
        f"    runpy.run_path({str(ROOT / 'evaluate' / script)!r}, run_name='__main__')\n"
        "except SystemExit as stop:\n"
        "    heavy = {'torch', 'numpy', 'diffusers'} & set(sys.modules)\n"
        "    sys.exit(f'imported {heavy}' if heavy else stop.code)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "usage: evaluate/" in result.stdout
