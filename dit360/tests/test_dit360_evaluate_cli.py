"""`evaluate.py`: files of a report, one-line errors, the Inception metrics from end to end."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dit360.cli.evaluate import build_parser, main
from dit360.metrics.evaluation import METRICS, WITHOUT_WEIGHTS
from shared_pano_utils.imageio import write_image

ROOT = Path(__file__).parents[1]


@pytest.fixture
def make_set(tmp_path: Path) -> Callable[..., Path]:
    """Writes a folder of noisy panoramas."""

    def make(name: str, count: int = 3, height: int = 16, seed: int = 0) -> Path:
        rng = np.random.default_rng(seed)
        for index in range(count):
            erp = rng.integers(0, 256, (height, 2 * height, 3), dtype=np.uint8)
            write_image(tmp_path / name / f"{index}.png", erp)
        return tmp_path / name

    return make


def report_of(out: Path) -> Any:
    return json.loads((out / "report.json").read_text())


def scores_of(out: Path) -> dict[str, Any]:
    return {score["name"]: score for score in report_of(out)["scores"]}


def one_error(capsys: pytest.CaptureFixture[str]) -> str:
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    return lines[0]


def test_help_names_every_metric_and_what_is_missing() -> None:
    text = " ".join(build_parser().format_help().split())
    for name in METRICS:
        assert name.replace("frechet_random_", "fid_") in text
    assert "Not offered: BRISQUE, NIQE and Q-Align" in text


def test_tiny_needs_nothing_and_writes_everything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report"
    assert main(["--tiny", "--out", str(out), "--html"]) == 0
    printed = capsys.readouterr()
    assert "| frechet_random_omni | lower |" in printed.out
    assert str(out / "report.json") in printed.out
    assert "note: frechet_random: 8 images of whole for 64 features" in printed.err
    report = report_of(out)
    assert report["sets"] == {"generated": 8, "reference": 8}
    assert report["skipped"] == {}
    assert {score["name"] for score in report["scores"]} >= set(WITHOUT_WEIGHTS)
    assert [row["file"] for row in report["images"]] == [f"{i:03d}.png" for i in range(8)]
    ratios = [row["seam_ratio"] for row in report["images"]]
    mean = scores_of(out)["seam_ratio"]["value"]
    assert mean == pytest.approx(sum(ratios) / 8)
    assert f"| seam_ratio | near 1 | {mean:.4g} |" in (out / "report.md").read_text()
    with Image.open(out / "gallery.png") as sheet:
        assert sheet.size == (4 * 320, 2 * (160 + 22))
    assert "000 (seam" in (out / "gallery.html").read_text()
    assert json.loads((out / "run.json").read_text())["options"]["tiny"] is True
    assert not list(out.rglob("*.tmp*"))


def test_equal_folders_are_perfect_and_given_metrics_are_all(
    make_set: Callable[..., Path], tmp_path: Path
) -> None:
    folder, out = str(make_set("a")), tmp_path / "report"
    flags = ["--generated", folder, "--reference", folder, "--out", str(out), "--gallery", "0"]
    assert main([*flags, "--metrics", "frechet_random", "discontinuity"]) == 0
    scores = scores_of(out)
    assert set(scores) == {"discontinuity", "discontinuity_rolled", "frechet_random"}
    assert scores["frechet_random"]["value"] < 1e-6
    assert scores["discontinuity"]["value"] == scores["discontinuity"]["reference"]
    assert not (out / "gallery.png").exists()


def test_all_says_what_is_left_out(
    make_set: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))
    out = tmp_path / "report"
    assert main(["--generated", str(make_set("a")), "--out", str(out)]) == 0
    error = capsys.readouterr().err
    assert "left out: fid: needs --reference" in error
    assert "left out: inception_score: no Inception weights offline" in error
    assert "left out: clip_score: needs --captions" in error
    assert "| faed | needs --reference |" in (out / "report.md").read_text()
    assert set(scores_of(out)) == {
        "seam_ratio", "seam_ratio_north", "seam_ratio_equator", "seam_ratio_south",
        "seam_ratio_rolled", "discontinuity", "discontinuity_rolled",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ([], "--generated is missing; give a folder of panoramas, or try --tiny"),
        (["--generated", "{none}"], "--generated {none} is not a folder; give a folder"),
        (["--generated", "{empty}"], "--generated {empty} holds no image"),
        (["--generated", "{a}", "--reference", "{b}"], "--generated has 3 images and --reference"),
        (["--generated", "{a}", "--metrics", "fdi"], "--metrics fdi is unknown; use all, or seam"),
        (["--generated", "{a}", "--metrics", "kid"], "--metrics kid cannot be computed: needs --"),
        (["--generated", "{a}", "--metrics", "all", "fdi"], "--metrics fdi is unknown; use all"),
        (["--generated", "{a}", "--device", "foo"], "--device foo is unknown; use auto, cpu"),
        (["--generated", "{a}", "--device", "mps"], "--device mps is not available on this"),
        (["--generated", "{a}", "--batch_size", "0"], "--batch_size is 0; use 1 or more"),
        (["--generated", "{a}", "--limit", "0"], "--limit is 0; use 1 or more"),
        (["--generated", "{a}", "--gallery", "-1"], "--gallery is -1; use 0 for no contact sheet"),
        (["--generated", "{a}", "--clip_fraction", "0.5"], "clip_fraction is 0.5; use a part"),
        (["--generated", "{a}", "--inception_weights", "{none}"], "--inception_weights {none} do"),
        (["--generated", "{a}", "--captions", "{none}"], "--captions {none} does not exist"),
        (["--generated", "{a}", "--train_source", "{b}"], "--train_source {b}: none of its 2"),
        (["--generated", "{flat}"], "panorama is 32x32; width must be 2 x height"),
    ],
)
def test_errors_are_one_line(
    flags: list[str],
    line: str,
    make_set: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = {"none": tmp_path / "none", "empty": tmp_path / "empty", "flat": tmp_path / "flat"}
    names |= {"a": make_set("a", 3), "b": make_set("b", 2)}
    names["empty"].mkdir()
    write_image(names["flat"] / "0.png", np.zeros((32, 32, 3), np.uint8))
    out = tmp_path / "report"
    assert main([*(flag.format(**names) for flag in flags), "--out", str(out)]) == 2
    assert line.format(**names) in one_error(capsys)
    assert not (out / "report.json").exists()


def test_a_report_is_kept_unless_overwritten(
    make_set: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report"
    flags = ["--generated", str(make_set("a")), "--out", str(out), "--metrics", "seam_ratio"]
    assert main([*flags, "--limit", "2"]) == 0
    capsys.readouterr()
    assert main(flags) == 2
    assert "holds a report; give another --out, or --overwrite" in one_error(capsys)
    assert report_of(out)["sets"] == {"generated": 2}
    assert main([*flags, "--overwrite"]) == 0
    assert report_of(out)["sets"] == {"generated": 3}


def test_the_report_does_not_go_among_the_panoramas(
    make_set: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = make_set("a"), make_set("b")
    for out, flag in ((a, "generated"), (b, "reference")):
        flags = ["--generated", str(a), "--reference", str(b), "--out", str(out / ".." / out.name)]
        assert main([*flags, "--overwrite"]) == 2
        assert f"is the folder of --{flag}, where the contact sheet would" in one_error(capsys)
        assert len(list(out.iterdir())) == 3


def test_worlds_of_an_earlier_run_do_not_count(
    make_set: Callable[..., Path], tmp_path: Path
) -> None:
    out = tmp_path / "report"
    assert main(["--tiny", "--out", str(out), "--metrics", "frechet_random"]) == 0
    flags = ["--tiny", "--generated", str(make_set("four", 4)), "--out", str(out), "--overwrite"]
    assert main([*flags, "--metrics", "frechet_random"]) == 0
    assert report_of(out)["sets"] == {"generated": 4, "reference": 4}


def test_all_may_stand_among_others(make_set: Callable[..., Path], tmp_path: Path) -> None:
    flags = ["--tiny", "--generated", str(make_set("a")), "--out", str(tmp_path / "report")]
    assert main([*flags, "--metrics", "all", "frechet_random"]) == 0
    assert set(scores_of(tmp_path / "report")) >= set(WITHOUT_WEIGHTS)


def test_macs_compute_on_the_cpu(
    make_set: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    flags = ["--generated", str(make_set("a")), "--metrics", "seam_ratio", "--out"]
    assert main([*flags, str(tmp_path / "auto")]) == 0
    capsys.readouterr()
    assert main([*flags, str(tmp_path / "mps"), "--device", "mps"]) == 2
    assert "--device mps has no float64" in one_error(capsys)


def test_trained_viewpoints_are_reported(
    make_set: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = make_set("a", 2), tmp_path / "report"
    (folder / "0.png").rename(folder / f"{'a' * 32}_clean_big_dc.png")
    (folder / "1.png").rename(folder / f"{'b' * 32}.png")
    train = tmp_path / "train.txt"
    train.write_text("a" * 32)
    flags = ["--generated", str(folder), "--out", str(out), "--metrics", "seam_ratio"]
    assert main([*flags, "--train_source", str(train)]) == 0
    assert "1 of 2 viewpoints are in" in capsys.readouterr().err
    assert report_of(out)["held_out"]["generated"]["trained"] == ["a" * 32]
    assert "this is no held-out set" in (out / "report.md").read_text()


def test_the_worst_seams_come_first(tmp_path: Path) -> None:
    ramp = np.abs(np.arange(32) - 15.5).astype(np.uint8)  # continuous across the border
    for index, step in enumerate((0, 60, 30)):
        erp = np.broadcast_to(ramp[None, :, None], (16, 32, 3)).copy()
        erp[:, 16:] += np.uint8(step)
        write_image(tmp_path / "set" / f"{index}.png", erp)
    out = tmp_path / "report"
    flags = ["--generated", str(tmp_path / "set"), "--metrics", "seam_ratio"]
    assert main([*flags, "--out", str(out), "--gallery", "2"]) == 0
    lines = (out / "report.md").read_text().splitlines()
    names = [line.split("|")[1].strip() for line in lines if ".png |" in line]
    assert names == ["1.png", "2.png", "0.png"]
    with Image.open(out / "gallery.png") as sheet:
        assert sheet.size == (2 * 320, 160 + 22)


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random Inception-v3 weights under the names of the published file."""
    from torch_fidelity import feature_extractor_inceptionv3 as library

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(torch.nn.Module, "load_state_dict", lambda *_: None)
        torch.manual_seed(0)
        network = library.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save({name: value.half() for name, value in network.state_dict().items()}, path)
    return path


def test_inception_metrics_equal_torchmetrics(
    inception_file: Path, make_set: Callable[..., Path], tmp_path: Path
) -> None:
    from torchmetrics.image.fid import FrechetInceptionDistance

    a, b = make_set("a", 3, seed=1), make_set("b", 3, seed=2)
    out = tmp_path / "report"
    flags = ["--generated", str(a), "--reference", str(b), "--inception_weights"]
    flags += [str(inception_file), "--out", str(out), "--batch_size", "2", "--metrics"]
    assert main([*flags, "fid", "kid", "inception_score"]) == 0
    scores = scores_of(out)
    fid = FrechetInceptionDistance(feature_extractor_weights_path=str(inception_file))
    for folder, is_real in ((a, False), (b, True)):
        images = [np.asarray(Image.open(path)) for path in sorted(folder.iterdir())]
        fid.update(torch.from_numpy(np.stack(images)).movedim(-1, 1), real=is_real)
    # Ours keeps the digits that sums of squares and roots of rounding errors lose.
    assert scores["fid"]["value"] == pytest.approx(_float64_fid(fid), rel=1e-3)
    assert scores["kid"]["spread"] is None
    assert scores["inception_score"]["reference"] >= 1
    assert "compare them only with those of as many" in report_of(out)["notes"][0]


def _float64_fid(metric: Any) -> float:
    """FID from the sums that torchmetrics has collected, by a symmetric root."""
    sides = []
    for side in ("real", "fake"):
        total = getattr(metric, f"{side}_features_sum").double()
        squares = getattr(metric, f"{side}_features_cov_sum").double()
        count = getattr(metric, f"{side}_features_num_samples").item()
        mean = total / count
        sides.append((mean, (squares - count * mean.outer(mean)) / (count - 1)))
    (mean_a, cov_a), (mean_b, cov_b) = sides
    values, vectors = torch.linalg.eigh(cov_a)
    root = (vectors[:, -4:] * values[-4:].clamp(min=0).sqrt()) @ vectors[:, -4:].mT  # rank 2
    trace = torch.linalg.eigvalsh(vectors[:, -4:].mT @ root @ cov_b @ root @ vectors[:, -4:])
    overlap = trace.clamp(min=0).sqrt().sum()
    shift = (mean_a - mean_b).square().sum()
    return float(shift + cov_a.trace() + cov_b.trace() - 2 * overlap)


def test_other_inception_weights_are_refused(
    make_set: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(make_set("a"))
    torch.save({"fc.weight": torch.zeros(2)}, tmp_path / "other.pth")
    flags = ["--generated", folder, "--metrics", "inception_score", "--out", str(tmp_path / "r")]
    assert main([*flags, "--inception_weights", str(tmp_path / "other.pth")]) == 2
    assert "other.pth holds other weights" in one_error(capsys)
    (tmp_path / "text.pth").write_text("hello")
    assert main([*flags, "--inception_weights", str(tmp_path / "text.pth")]) == 2
    assert "text.pth is not a file of weights" in one_error(capsys)


def test_root_file_runs() -> None:
    result = subprocess.run(
        [sys.executable, str(ROOT / "evaluate.py"), "--help"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "frechet_random" in result.stdout
