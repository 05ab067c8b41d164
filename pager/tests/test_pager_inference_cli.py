"""`inference.py` in process: results, mistakes, interruptions, full disks, second runs."""

import json
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from pager.cli import inference
from pager.cli.inputs import unique_names
from pager.cli.outputs import result_folders
from pager.cloud import _equal_area_pixels, point_cloud
from pager.export import write_prediction
from pager.geometry import pager_to_rdf, structured3d_to_pager
from pager.pipeline import PagerPipeline, Prediction, choose_device, merge
from pager.training.batches import erp_to_faces, rgb_to_unit
from shared_pano_utils import cubemap_to_erp, rays
from shared_pano_utils.geometry import PY360_E2X
from shared_pano_utils.imageio import read_image, read_png16

ROOT = Path(__file__).parents[1]
DEPTH_FILES = {"depth.npz", "depth.png", "depth.json", "depth_preview.png", "points.ply"}
NORMALS_FILES = {"normals.npz", "normals.png", "normals_preview.png"}


@pytest.fixture
def models(checkpoints: dict[str, Path]) -> list[str]:
    """Flags that choose the random checkpoints."""
    return [
        "--depth_checkpoint_path", str(checkpoints["depth"]),
        "--normals_checkpoint_path", str(checkpoints["normals"]),
    ]  # fmt: skip


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "results"


def load_array(path: Path) -> np.ndarray:
    with np.load(path) as archive:
        assert archive.files == ["arr_0"]
        return archive["arr_0"]


def finished(out: Path) -> set[str]:
    return {path.parent.name for path in out.glob("*/meta.json")}


def assert_whole(out: Path) -> None:
    """Every file under a final name can be read, and finished panoramas have all of theirs."""
    for path in out.rglob("*"):
        if path.name.startswith(".") or path.is_dir():
            continue
        if path.suffix == ".npz":
            load_array(path)
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".png":
            assert cv2.imread(str(path), cv2.IMREAD_UNCHANGED) is not None
        elif path.suffix == ".ply":
            assert len(trimesh.load(path).vertices) > 0
    for name in finished(out):
        meta = json.loads((out / name / "meta.json").read_text())
        assert all((out / name / file).is_file() for file in meta["files"])


def assert_no_leftovers(out: Path) -> None:
    assert not list(out.rglob(".*"))


# ---- results ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(16, 32), (37, 74), (100, 200)])
def test_results_have_the_size_of_the_input(size, models, tmp_path, out, panorama):
    photo = tmp_path / "photo.jpg"
    Image.fromarray(panorama).resize(size[::-1]).save(photo)
    assert inference.main(["--input", str(photo), "--results_path", str(out), *models]) == 0
    folder = out / "photo"
    assert {path.name for path in folder.iterdir()} == DEPTH_FILES | NORMALS_FILES | {"meta.json"}
    depth, normals = load_array(folder / "depth.npz"), load_array(folder / "normals.npz")
    assert (depth.shape, depth.dtype) == ((1, *size), np.float32)
    assert (normals.shape, normals.dtype) == ((3, *size), np.float32)
    assert depth.min() >= 0.01
    assert depth.max() <= 75
    np.testing.assert_allclose(np.linalg.norm(normals, axis=0), 1, atol=1e-5)
    for name in ("depth_preview.png", "normals_preview.png"):
        assert read_image(folder / name).shape == (*size, 3)
    meta = json.loads((folder / "meta.json").read_text())
    assert meta["size"] == list(size)
    assert meta["source"] == str(photo)
    assert meta["depth"]["is_metric"] is False
    assert json.loads((out / "run.json").read_text())["options"]["input"] == [str(photo)]
    assert_no_leftovers(out)


def test_depth_png_and_its_scale_give_the_depth(models, out, write_panoramas, tmp_path):
    (photo,) = write_panoramas(tmp_path, 1)
    assert inference.main(["--input", str(photo), "--results_path", str(out), *models]) == 0
    folder = out / photo.stem
    depth = load_array(folder / "depth.npz")[0]
    info = json.loads((folder / "depth.json").read_text())
    png = read_png16(folder / "depth.png")
    assert png.max() == 65535
    step = info["metres_per_unit"]
    assert np.abs(png * step - depth).max() <= 0.501 * step
    assert (info["min"], info["max"]) == pytest.approx((depth.min(), depth.max()))
    normals = load_array(folder / "normals.npz")
    stored = cv2.imread(str(folder / "normals.png"), cv2.IMREAD_UNCHANGED)[..., ::-1]
    assert stored.dtype == np.uint16
    decoded = torch.from_numpy(stored / 65535 * 2 - 1).movedim(-1, 0)
    expected = pager_to_rdf(torch.from_numpy(normals)).double()
    torch.testing.assert_close(decoded, expected, atol=1.01 / 65535, rtol=0)


@pytest.mark.parametrize("kind", ["ply", "glb"])
def test_point_cloud_read_back(kind, models, out, write_panoramas, tmp_path):
    (photo,) = write_panoramas(tmp_path, 1)
    flags = ["--input", str(photo), "--results_path", str(out), "--points", kind]
    assert inference.main([*flags, "--modality", "depth", *models]) == 0
    folder = out / photo.stem
    assert {p.name for p in folder.iterdir()} == DEPTH_FILES - {"points.ply"} | {f"points.{kind}", "meta.json"}  # fmt: skip
    loaded = trimesh.load(folder / f"points.{kind}")
    if kind == "glb":
        (cloud,) = loaded.geometry.values()
        vertices = cloud.vertices * [1, -1, -1]  # y up and z backward in glTF
    else:
        cloud, vertices = loaded, loaded.vertices
    depth = load_array(folder / "depth.npz")
    points, colors = point_cloud(depth, read_image(photo))
    assert len(points) > 20  # the depth of a random network is full of edges
    np.testing.assert_allclose(vertices, points, atol=1e-5)
    assert np.array_equal(np.asarray(cloud.colors)[:, :3], colors)


def test_points_lie_on_their_rays_with_the_colour_of_their_pixel():
    height, width = 16, 32
    depth = np.full((1, height, width), 3.0, np.float32)
    depth[0, 4:8, 5:9] = 80.0  # beyond the far limit
    depth[0, 0, 0] = np.nan
    rgb = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    points, colors = point_cloud(depth, rgb, far_m=75.0)
    np.testing.assert_allclose(np.linalg.norm(points, axis=1), 3, atol=1e-5)
    directions = rays("erp", (height, width)).numpy().reshape(-1, 3)
    nearest = (points / 3 @ directions.T).argmax(1)
    assert len(set(nearest)) == len(points)
    assert np.array_equal(colors, rgb.reshape(-1, 3)[nearest])
    kept = np.zeros(height * width, bool)
    kept[nearest] = True
    assert not kept.reshape(height, width)[4:8, 5:9].any()
    assert len(point_cloud(depth, rgb, max_points=50)[0]) == 50


def test_points_are_spread_evenly_over_the_sphere():
    height, width = 64, 128
    kept = _equal_area_pixels(height, width)
    latitude = (0.5 - (np.arange(height) + 0.5) / height) * np.pi
    expected = width * np.cos(latitude)
    assert np.abs(kept.sum(1) - expected).max() <= 1
    gaps = np.diff(np.flatnonzero(kept[height // 4]))
    assert gaps.max() - gaps.min() <= 1


def test_viewer_page_and_gpano(models, out, write_panoramas, tmp_path):
    (photo,) = write_panoramas(tmp_path, 1)
    flags = ["--input", str(photo), "--results_path", str(out), "--html", *models]
    assert inference.main(flags) == 0
    page = (out / photo.stem / "index.html").read_text()
    assert all(label in page for label in ("RGB", "Depth", "Normals", "depth.npz"))
    with Image.open(out / photo.stem / "depth_preview.png") as preview:
        assert "ProjectionType" in preview.info["XML:com.adobe.xmp"]


def test_pipeline_is_the_network_between_two_warps(checkpoints, panorama):
    pipeline = PagerPipeline.from_pretrained(checkpoints["depth"], device="cpu")
    erp = rgb_to_unit(torch.from_numpy(panorama).movedim(-1, 0)[None])
    with torch.no_grad():
        faces = pipeline.model(erp_to_faces(erp, 16))
    values = cubemap_to_erp(faces, (32, 64), reg=PY360_E2X)[0]
    expected = pipeline.model.config.depth_range.denormalize(values)
    depth = pipeline(panorama).depth
    np.testing.assert_allclose(depth, expected.numpy(), rtol=1e-5)
    assert pipeline(panorama, (20, 40)).depth.shape == (1, 20, 40)


def test_structured3d_normals_are_turned(checkpoints, panorama):
    usual = PagerPipeline.from_pretrained(checkpoints["normals"])(panorama).normals
    raw = PagerPipeline.from_pretrained(checkpoints["normals"], normals_frame="structured3d")
    right, up, backward = usual  # what the network says, read as right, up, backward
    np.testing.assert_allclose(raw(panorama).normals, np.stack([-backward, up, -right]), atol=1e-5)


def test_options_of_the_model_reach_it(checkpoints, out, write_panoramas, tmp_path):
    (photo,) = write_panoramas(tmp_path, 1)

    def depth(*flags: str) -> np.ndarray:
        common = ["--input", str(photo), "--results_path", str(out), "--points", "none"]
        checkpoint = ["--checkpoint_path", str(checkpoints["depth"])]
        assert inference.main([*common, *checkpoint, "--overwrite", *flags]) == 0
        return load_array(out / photo.stem / "depth.npz")

    usual = depth()
    unit = np.log(usual / 0.01) / np.log(75 / 0.01)
    np.testing.assert_allclose(depth("--max_depth", "15"), 0.01 * 1500**unit, rtol=1e-4)
    assert np.abs(np.log(depth("--rope", "off") / usual)).max() > 1e-3
    assert np.abs(np.log(depth("--face_size", "24") / usual)).max() > 1e-3
    assert 0 < np.abs(np.log(depth("--precision", "bfloat16") / usual)).max() < 0.5
    np.testing.assert_array_equal(depth("--enable_xformers"), usual)


def test_metric_checkpoints_say_so(checkpoints, tmp_path, panorama):
    pipeline = PagerPipeline.from_pretrained(checkpoints["depth"], metric_depth=True)
    write_prediction(tmp_path, panorama, pipeline(panorama), source="x.png")
    info = json.loads((tmp_path / "depth.json").read_text())
    assert (info["is_metric"], info["note"]) == (True, "metres")


def test_merged_predictions():
    depth, normals = np.ones((1, 2, 4)), np.zeros((3, 2, 4))
    merged = merge([Prediction(depth=depth, is_metric=True), Prediction(normals=normals)])
    assert merged.depth is depth
    assert merged.normals is normals
    assert merged.is_metric


# ---- data sets ----------------------------------------------------------------------------------


def test_data_set_tree(models, checkpoints, data_path, out):
    flags = [
        "--dataset",
        "PanoInfinigen",
        "--data_path",
        str(data_path),
        "--results_path",
        str(out),
    ]
    flags += ["--split", "train", "--generate_eval", "--img_report_frequency", "3", *models]
    assert inference.main(flags) == 0
    for modality in ("depth", "normals"):
        folder = out / checkpoints[modality].name / "PanoInfinigen"
        assert len(list((folder / "eval").glob("*.npz"))) == 4
        pictures = sorted((folder / "example_images").iterdir())
        assert len(pictures) == 2  # numbers 0 and 3
        assert read_image(pictures[0]).shape == (64, 64, 3)  # colour above prediction
    assert inference.main([*flags, "--pred_only", "--overwrite"]) == 0
    assert read_image(pictures[0]).shape == (32, 64, 3)
    indoor = [*flags, "--scenes", "indoor", "--overwrite", "--results_path", str(out / "indoor")]
    assert inference.main(indoor) == 0
    assert len(list((out / "indoor").rglob("*.npz"))) == 6


def test_folder_of_photographs_as_data_set(models, checkpoints, tmp_path, out, write_panoramas):
    write_panoramas(tmp_path / "PanoInTheWild", 2)
    flags = ["--dataset", "PanoInTheWild", "--data_path", str(tmp_path), "--results_path", str(out)]
    assert inference.main([*flags, "--generate_eval", *models]) == 0
    folder = out / checkpoints["depth"].name / "PanoInTheWild" / "eval"
    assert {p.stem for p in folder.iterdir()} == {"pano00", "pano01"}


# ---- bad inputs ---------------------------------------------------------------------------------


def truncated_jpeg(path: Path, panorama: np.ndarray) -> None:
    Image.fromarray(panorama).resize((256, 128)).save(path)
    path.write_bytes(path.read_bytes()[:2000])


BAD_FILES: dict[str, tuple[str, Callable[[Path, np.ndarray], object], str]] = {
    "truncated": ("x.jpg", truncated_jpeg, "not a readable image"),
    "3:2": ("x.png", lambda p, a: Image.fromarray(a[:, :48]).save(p), "width must be 2 x height"),
    "16-bit grey": (
        "x.png",
        lambda p, a: cv2.imwrite(str(p), a[..., 0].astype(np.uint16) * 200),
        "expected an 8-bit colour image",
    ),
    "1x2": ("x.png", lambda p, a: Image.fromarray(a[:1, :2]).save(p), "smallest allowed is 32x16"),
    "empty": ("x.png", lambda p, _: p.touch(), "not a readable image"),
    "text": ("x.png", lambda p, _: p.write_text("hello"), "not a readable image"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_file_is_one_line(kind, models, tmp_path, out, panorama, capsys):
    name, write, message = BAD_FILES[kind]
    write(tmp_path / name, panorama)
    flags = ["--input", str(tmp_path / name), "--results_path", str(out), *models]
    assert inference.main(flags) == 1
    captured = capsys.readouterr()
    (line,) = [line for line in captured.err.splitlines() if line.startswith("failed: ")]
    assert message in line
    assert str(tmp_path / name) in line
    assert "0 of 1 panoramas written" in captured.out
    assert not (out / "x").exists()


def test_one_bad_file_among_ten(models, tmp_path, out, write_panoramas, capsys):
    paths = write_panoramas(tmp_path / "in", 10)
    paths[4].write_bytes(paths[4].read_bytes()[:300])
    (tmp_path / "in" / "notes.txt").write_text("not an image: ignored")
    flags = ["--input", str(tmp_path / "in"), "--results_path", str(out), *models]
    assert inference.main(flags) == 1
    captured = capsys.readouterr()
    assert "9 of 10 panoramas written" in captured.out
    assert [line for line in captured.err.splitlines() if line.startswith("failed: ")] == [
        line for line in captured.err.splitlines() if str(paths[4]) in line
    ]
    assert finished(out) == {path.stem for path in paths} - {"pano04"}
    assert_whole(out)
    # Mended and run again, only the missing one is predicted.
    shutil.copy(paths[0], paths[4])
    assert inference.main(flags) == 0
    assert "1 of 1 panoramas written" in capsys.readouterr().out
    assert len(finished(out)) == 10


@pytest.mark.parametrize(("flags", "message"), [
    (["--input", "nowhere.jpg"], "--input nowhere.jpg: no such file"),
    (["--input", "nowhere/*.jpg"], "no such file, folder with images or glob match"),
    ([], "pass either --input"),
    (["--input", "a.jpg", "--dataset", "PanoInTheWild"], "pass either --input"),
    (["--dataset", "PanoInfinigen"], "--dataset needs --data_path"),
    (["--dataset", "PanoInfinigen", "--data_path", "nowhere"], "no PanoInfinigen test data"),
    (["--input", "IMAGE", "--shard", "2/2"], "--shard 2/2: expected I/N"),
    (["--input", "IMAGE", "--shard", "half"], "--shard half: expected I/N"),
    (["--input", "IMAGE", "--device", "cuda:7"], "not available"),
    (["--input", "IMAGE", "--device", "quantum"], "device 'quantum' is unknown"),
    (["--input", "IMAGE", "--max_depth", "0.001"], "0 < min < max"),
    (["--input", "IMAGE", "--modality", "normals", "--checkpoint_path", "DEPTH"],
     "predicts depth, but --modality is normals"),
    (["--input", "IMAGE", "--normals_checkpoint_path", "DEPTH"],
     "predicts depth, not normals; pass it as --depth_checkpoint_path"),
    (["--input", "IMAGE", "--checkpoint_path", "BASE/vae"], "no config.yaml in"),
])  # fmt: skip
def test_mistakes_are_one_line(
    flags, message, models, base, checkpoints, tmp_path, out, write_panoramas, capsys, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (image,) = write_panoramas(tmp_path, 1)
    places = {"IMAGE": str(image), "DEPTH": str(checkpoints["depth"]), "BASE": str(base)}
    for word, place in places.items():
        flags = [flag.replace(word, place) for flag in flags]
    assert inference.main(["--results_path", str(out), *models, *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert not finished(out)


@pytest.mark.parametrize("flags", [["--inptu", "x.jpg"], ["--points", "obj"], ["--max_depth", "far"],
                                   ["--input"], ["--dataset", "Kitti"]])  # fmt: skip
def test_unknown_flags_and_values(flags, capsys):
    with pytest.raises(SystemExit) as caught:
        inference.main(flags)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_flags_of_the_original_are_accepted():
    known = inference.build_parser().format_help()
    for flag in (
        "checkpoint_path", "data_path", "dataset", "scenes", "results_path",
        "img_report_frequency", "pred_only", "generate_eval", "enable_xformers",
    ):  # fmt: skip
        assert f"--{flag}" in known


def test_absent_device_is_refused():
    with pytest.raises(ValueError, match="use auto, cpu, cuda"):
        choose_device("warp drive")
    assert choose_device("cpu") == torch.device("cpu")


# ---- names, shards, second runs -----------------------------------------------------------------


def test_equal_names_do_not_collide(models, tmp_path, out, write_panoramas):
    write_panoramas(tmp_path / "a", 1)
    write_panoramas(tmp_path / "b", 1)
    (copy,) = write_panoramas(tmp_path / "c", 1)
    Image.open(copy).save(copy.with_suffix(".jpg"))
    pattern = str(tmp_path / "[ab]" / "*.png")
    flags = ["--input", pattern, str(tmp_path / "c"), "--results_path", str(out), *models]
    assert inference.main(flags) == 0
    assert finished(out) == {
        "a_pano00", "b_pano00", "pano00_png", "pano00_jpg",
    }  # fmt: skip


def test_names_tell_files_apart():
    paths = [Path(text) for text in ("a/p/x.png", "b/p/x.png", "b/y.png", "c/y.jpg", "z.tif")]
    assert unique_names(paths) == ["a_p_x", "b_p_x", "b_y", "c_y", "z"]
    assert unique_names([Path("c/x.png"), Path("c/x.jpg")]) == ["x_png", "x_jpg"]
    assert unique_names([]) == []


def test_results_of_something_else_are_not_taken_for_finished(
    models, tmp_path, out, write_panoramas, capsys
):
    """Another input, or other options, in the same folder: refused, unless --overwrite."""
    for folder in ("a", "b"):
        write_panoramas(tmp_path / folder, 1)
    flags = ["--results_path", str(out), "--points", "none", *models]
    first = [*flags, "--input", str(tmp_path / "a")]
    assert inference.main(first) == 0
    before = np.load(out / "pano00/depth.npz")["arr_0"]
    for other, word in (
        ([*flags, "--input", str(tmp_path / "b")], "source"),
        ([*first, "--max_depth", "15"], "depth max_depth=None, not max_depth=15.0;"),
        ([*first, "--face_size", "32"], "depth face_size=None, not face_size=32;"),
    ):
        capsys.readouterr()
        assert inference.main(other) == 1
        line = capsys.readouterr().err.strip()
        assert line.startswith(f"failed: {out / 'pano00'} holds results made with {word}")
        assert line.endswith("choose another --results_path or pass --overwrite")
        assert np.array_equal(np.load(out / "pano00/depth.npz")["arr_0"], before)
    assert inference.main([*first, "--max_depth", "15", "--overwrite"]) == 0
    assert not np.array_equal(np.load(out / "pano00/depth.npz")["arr_0"], before)


def test_modalities_one_after_the_other_complete_each_other(
    models, tmp_path, out, write_panoramas, capsys
):
    write_panoramas(tmp_path / "a", 1)
    flags = ["--input", str(tmp_path / "a"), "--results_path", str(out), *models]
    for modality in ("depth", "normals"):
        assert inference.main([*flags, "--modality", modality]) == 0
    capsys.readouterr()
    assert inference.main(flags) == 0
    assert "nothing to do" in capsys.readouterr().out
    meta = json.loads((out / "pano00/meta.json").read_text())
    assert {"depth.npz", "normals.npz", "points.ply"} <= set(meta["files"])


@pytest.mark.parametrize("culprit", ["write_npz", "write_points", "write_json"])
def test_interrupted_write_leaves_nothing_and_loses_nothing(
    culprit, models, tmp_path, out, write_panoramas, monkeypatch
):
    write_panoramas(tmp_path / "a", 2)
    flags = ["--results_path", str(out), *models, "--input"]
    assert inference.main([*flags, str(tmp_path / "a/pano00.png")]) == 0
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file() and p.name != "run.json"}

    def interrupted(*_args, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"pager.export.{culprit}", interrupted)
    for name in ("pano00", "pano01"):
        assert inference.main([*flags, str(tmp_path / f"a/{name}.png"), "--overwrite"]) == 130
    after = {p: p.read_bytes() for p in out.rglob("*") if p.is_file() and p.name != "run.json"}
    assert after == before
    assert sorted(p.name for p in out.iterdir()) == ["pano00", "run.json"]


def test_result_folders_of_our_own_checkpoints_differ(tmp_path):
    for name in ("runs/d/checkpoint-last", "runs/n/checkpoint-last", "one", "two/one"):
        (tmp_path / name).mkdir(parents=True)

    def folders(depth: str, normals: str) -> list[str]:
        return list(result_folders({"depth": depth, "normals": normals}).values())

    runs = [str(tmp_path / "runs" / name / "checkpoint-last") for name in "dn"]
    assert folders(*runs) == ["d_checkpoint-last", "n_checkpoint-last"]
    hub = ["prs-eth/PaGeR-depth", "prs-eth/PaGeR-normals"]
    assert folders(*hub) == ["PaGeR-depth", "PaGeR-normals"]
    same = [str(tmp_path / "one"), str(tmp_path / "two/one")]
    assert folders(*same) == ["one_depth", "one_normals"]
    names = set()
    for run in "ab":  # the original's layouts: two runs never share results
        for end in ("checkpoint-best/EMA", "checkpoint-best/original", "checkpoint-best/unet"):
            path = tmp_path / "runs" / run / end
            path.mkdir(parents=True)
            names |= set(result_folders({"depth": str(path)}).values())
    assert len(names) == 6
    assert "a_checkpoint-best_EMA" in names


def test_hidden_leftovers_and_folders_are_no_input(models, tmp_path, out, write_panoramas):
    (path,) = write_panoramas(tmp_path / "a", 1)
    path.with_name(".pano.tmp.png").write_bytes(path.read_bytes())
    (tmp_path / "a" / "sub.png").mkdir()
    for pattern in (tmp_path / "a", tmp_path / "a" / "*.png"):
        flags = ["--input", str(pattern), "--results_path", str(out), "--overwrite", *models]
        assert inference.main(flags) == 0
        assert finished(out) == {"pano00"}


def test_shards_share_the_work(models, tmp_path, out, write_panoramas, capsys):
    paths = write_panoramas(tmp_path / "in", 5)
    done: list[set[str]] = []
    for shard in range(3):
        flags = ["--input", str(tmp_path / "in"), "--results_path", str(out / str(shard))]
        assert inference.main([*flags, "--shard", f"{shard}/3", *models]) == 0
        done.append(finished(out / str(shard)))
    assert [len(names) for names in done] == [2, 2, 1]
    assert set.union(*done) == {path.stem for path in paths}
    flags = ["--input", str(paths[0]), "--results_path", str(out), "--shard", "1/2", *models]
    assert inference.main(flags) == 0
    assert "nothing to do" in capsys.readouterr().out


def test_second_run_skips_what_is_finished(models, tmp_path, out, write_panoramas, monkeypatch, capsys):  # fmt: skip
    paths = write_panoramas(tmp_path / "in", 2)
    flags = ["--input", str(tmp_path / "in"), "--results_path", str(out), *models]
    assert inference.main(flags) == 0
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*/*.*")}
    with monkeypatch.context() as patch:
        patch.setattr(inference, "_load_pipelines", lambda *_: pytest.fail("nothing to load"))
        assert inference.main(flags) == 0
    assert "nothing to do: all 2 panoramas are finished" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*/*.*")} == times
    # What is missing is made again; more outputs than before are made too.
    (out / paths[0].stem / "depth.npz").unlink()
    assert inference.main(flags) == 0
    assert (out / paths[0].stem / "depth.npz").is_file()
    unchanged = out / paths[1].stem / "depth.npz"
    assert unchanged.stat().st_mtime_ns == times[unchanged]
    assert inference.main([*flags, "--html"]) == 0
    assert (out / paths[1].stem / "index.html").is_file()
    first = load_array(unchanged)
    assert inference.main([*flags, "--overwrite"]) == 0
    assert unchanged.stat().st_mtime_ns > times[unchanged]
    np.testing.assert_array_equal(load_array(unchanged), first)


def test_other_modality_is_added_to_finished_results(models, tmp_path, out, write_panoramas):  # fmt: skip
    (photo,) = write_panoramas(tmp_path, 1)
    flags = ["--input", str(photo), "--results_path", str(out), *models]
    assert inference.main([*flags, "--modality", "depth"]) == 0
    assert inference.main([*flags, "--modality", "normals"]) == 0
    folder = out / photo.stem
    assert {path.name for path in folder.iterdir()} >= DEPTH_FILES | NORMALS_FILES
    assert inference.main(flags) == 0
    meta = json.loads((folder / "meta.json").read_text())
    assert set(meta["files"]) == DEPTH_FILES | NORMALS_FILES


def test_ctrl_c_keeps_what_is_finished(models, tmp_path, out, write_panoramas, monkeypatch, capsys):
    write_panoramas(tmp_path / "in", 3)
    flags = ["--input", str(tmp_path / "in"), "--results_path", str(out), *models]
    real, calls = PagerPipeline.__call__, []

    def interrupted(self, rgb, size=None):
        calls.append(self)
        if len(calls) == 4:  # normals of the second panorama
            raise KeyboardInterrupt
        return real(self, rgb, size)

    with monkeypatch.context() as patch:
        patch.setattr(PagerPipeline, "__call__", interrupted)
        assert inference.main(flags) == 130
    assert "run the same command again" in capsys.readouterr().err
    assert finished(out) == {"pano00"}
    assert_no_leftovers(out)
    assert inference.main(flags) == 0
    assert len(finished(out)) == 3


# ---- full disks and killed processes ------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 96 kB, where the tests may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_full_disk(small_disk, models, tmp_path, write_panoramas, capsys):
    write_panoramas(tmp_path / "in", 8)
    out = small_disk / "results"
    flags = ["--input", str(tmp_path / "in"), "--results_path", str(out), *models]
    assert inference.main(flags) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "cannot write the results of" in error
    assert "No space left on device" in error
    assert "free space or choose another --results_path" in error
    done = finished(out)
    assert 1 <= len(done) < 8
    assert_whole(out)
    assert_no_leftovers(out)
    # With space again (the finished ones moved away), the rest follows.
    shutil.move(out, tmp_path / "moved")
    moved = [*flags[:2], "--results_path", str(tmp_path / "moved"), *models]
    assert inference.main(moved) == 0
    assert f"{8 - len(done)} of {8 - len(done)} panoramas written" in capsys.readouterr().out
    assert len(finished(tmp_path / "moved")) == 8


def test_file_size_limit(models, tmp_path, out, write_panoramas, capsys):
    (photo,) = write_panoramas(tmp_path, 1)
    flags = ["--input", str(photo), "--results_path", str(out), *models]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        code = inference.main(flags)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert code == 2
    assert f"cannot write the results of {photo}" in capsys.readouterr().err
    assert not finished(out)
    assert_whole(out)
    assert_no_leftovers(out)
    assert inference.main(flags) == 0
    assert finished(out) == {photo.stem}


def test_killed_process_is_completed_by_a_second_run(
    models, tmp_path, out, write_panoramas, capsys
):
    count = 60
    write_panoramas(tmp_path / "in", count)
    flags = ["--input", str(tmp_path / "in"), "--results_path", str(out), *models]
    process = subprocess.Popen(
        [sys.executable, ROOT / "inference.py", *flags],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while len(finished(out)) < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = finished(out)
    assert 3 <= len(done) < count
    assert_whole(out)
    times = {path: path.stat().st_mtime_ns for name in done for path in (out / name).iterdir()}
    assert inference.main(flags) == 0
    rest = count - len(done)
    assert f"{rest} of {rest} panoramas written" in capsys.readouterr().out
    assert len(finished(out)) == count
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert_whole(out)


def test_frame_of_normals_that_store_none(models, tmp_path, out, write_panoramas):
    write_panoramas(tmp_path / "a", 1)
    flags = ["--input", str(tmp_path / "a"), *models, "--modality", "normals", "--results_path"]
    assert inference.main([*flags, str(out)]) == 0
    assert inference.main([*flags, str(tmp_path / "s3d"), "--normals_frame", "structured3d"]) == 0
    stored = np.load(out / "pano00/normals.npz")["arr_0"]
    turned = np.load(tmp_path / "s3d/pano00/normals.npz")["arr_0"]
    expected = structured3d_to_pager(torch.from_numpy(stored)).numpy()
    np.testing.assert_allclose(turned, expected, atol=1e-6)
    assert np.abs(turned - stored).max() > 0.1
