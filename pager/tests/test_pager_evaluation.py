"""The evaluation scripts: metrics by hand, foreign predictions, what is counted and what is written."""

import csv
import json
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from pager.cli import evaluate as cli
from pager.data.registry import open_dataset
from pager.depth import DepthRange, align
from pager.evaluation import pictures
from pager.evaluation.loop import evaluate
from pager.evaluation.predictions import PredictionFolder, read_map
from pager.evaluation.tasks import DepthTask, EdgesTask, NormalsTask
from pager.geometry import structured3d_to_pager
from pager.metrics.depth import depth_metrics
from pager.metrics.edges import depth_edges, edge_metrics
from pager.metrics.normals import normals_metrics
from pager.metrics.seams import seam_metrics
from shared_pano_utils.imageio import read_image, write_png16

ROOT = Path(__file__).parents[1]
ROOM = "test_shard00000_room20000000_view0000"
OUTDOOR = "test_shard00000_outdoor22000000_view0000"
MAINS = {
    "depth": cli.depth_main, "normals": cli.normals_main,
    "edge": cli.edge_main, "seam": cli.seam_main,
}  # fmt: skip


def image(rows: list) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float32)[None]


def everywhere(like: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(like[:1], dtype=torch.bool)


def close(actual, expected) -> None:
    assert actual == pytest.approx(expected, abs=2e-6)


# ---- depth --------------------------------------------------------------------------------------


def test_depth_metrics_of_twice_the_truth():
    truth = image([[1, 2, 4, 8]] * 2)
    values = depth_metrics(2 * truth, truth, everywhere(truth), alignment="metric")
    expected = {
        "abs_relative_difference": 1.0,
        "rmse_linear": math.sqrt(85 / 4),
        "delta1_acc": 0.0,
        "delta2_acc": 0.0,
        "delta3_acc": 0.0,  # 2 is more than 1.25^3 = 1.953
        "squared_relative_difference": 15 / 4,
        "rmse_log": math.log(2),
        "log10": math.log10(2),
        "i_rmse": math.sqrt((0.5**2 + 0.25**2 + 0.125**2 + 0.0625**2) / 4),
        "silog_rmse": 0.0,
    }
    assert values.keys() == expected.keys()
    for name, value in expected.items():
        close(values[name], value)


def test_depth_metrics_of_mixed_errors():
    truth = image([[1, 1, 1, 1], [2, 2, 2, 2]])
    pred = image([[1.2, 1.5, 1.9, 0.5], [2, 2, 2, -2]])
    mask = everywhere(truth)
    mask[0, 1, 2] = False
    values = depth_metrics(pred, truth, mask, alignment="metric")
    errors = [0.2, 0.5, 0.9, -0.5, 0, 0, -4]
    close(values["abs_relative_difference"], (0.2 + 0.5 + 0.9 + 0.5 + 4 / 2) / 7)
    close(values["squared_relative_difference"], (0.04 + 0.25 + 0.81 + 0.25 + 16 / 2) / 7)
    close(values["rmse_linear"], math.sqrt(sum(e * e for e in errors) / 7))
    assert [values[f"delta{i}_acc"] * 7 for i in (1, 2, 3)] == pytest.approx([3, 4, 5])
    logs = [math.log(v) for v in (1.2, 1.5, 1.9, 0.5, 1, 1, 0.01 / 2)]  # -2 m counts as 1 cm
    mean, square = sum(logs) / 7, sum(v * v for v in logs) / 7
    close(values["rmse_log"], math.sqrt(square))
    close(values["log10"], sum(abs(v) for v in logs) / 7 / math.log(10))
    assert values["silog_rmse"] == pytest.approx(100 * math.sqrt(square - mean**2), rel=1e-6)


def test_negative_aligned_depth_is_never_an_inlier():
    truth = image([[1.0, 1.1, 5, 9]])
    pred = image([[-1.0, -1.1, 5, 9]])  # -1 / 1 = -1 < 1.25 made the original call it correct
    values = depth_metrics(pred, truth, everywhere(truth), alignment="metric")
    assert [values[f"delta{i}_acc"] for i in (1, 2, 3)] == [0.5, 0.5, 0.5]


def test_solid_angle_weights():
    truth = torch.ones(1, 4, 8)
    pred = truth.clone()
    pred[0, 0] = 3.0  # the top row: sin(90) - sin(45) of 2, while it is a quarter of the pixels
    near_pole = (1 - math.sqrt(0.5)) / 2
    for weighting, share in (("uniform", 0.25), ("area", near_pole)):
        values = depth_metrics(
            pred, truth, everywhere(truth), alignment="metric", weighting=weighting
        )
        close(values["abs_relative_difference"], 2 * share)
        close(values["rmse_linear"], math.sqrt(4 * share))
        close(values["delta1_acc"], 1 - share)
        close(values["silog_rmse"], 100 * math.log(3) * math.sqrt(share - share**2))


def test_every_alignment_by_hand():
    truth, pred = image([[2, 4, 6, 8]]), image([[1, 2, 4, 10]])
    expected = {
        "metric": (1.0, 0.0),
        "scale": (114 / 121, 0.0),
        # n = 4, sum p = 17, sum p^2 = 121, sum g = 20, sum pg = 114, determinant 195
        "scale_and_shift": ((4 * 114 - 17 * 20) / 195, (121 * 20 - 17 * 114) / 195),
        "log_scale": ((2 * 2 * 1.5 * 0.8) ** 0.25, 0.0),
        "median": (5 / 3, 0.0),
    }
    assert tuple(expected) == cli.ALIGNMENTS
    for name, (scale, shift) in expected.items():
        aligned = align(pred[None].double(), truth[None].double(), everywhere(pred)[None], name)
        torch.testing.assert_close(aligned[0], pred.double() * scale + shift, atol=1e-12, rtol=0)


def test_median_alignment_looks_at_the_mask_only_and_fits_every_sample():
    truth = torch.tensor([[1.0, 2, 4, torch.inf], [3, 3, 9, 1]])
    pred = torch.tensor([[2.0, 4, 8, 5], [1, 1, 1, 50]])
    mask = torch.tensor([[True, True, True, False]] * 2)
    aligned = align(pred, truth, mask, "median")
    assert aligned.tolist() == [[1, 2, 4, 2.5], [3, 3, 3, 150]]
    untouched = align(pred, truth, torch.zeros_like(mask), "median")
    assert torch.equal(untouched, pred)


@pytest.mark.parametrize("alignment", cli.ALIGNMENTS)
def test_what_lies_outside_the_mask_does_not_count(alignment):
    truth, pred = torch.rand(1, 4, 8) + 1, torch.rand(1, 4, 8) + 1
    mask = torch.rand(1, 4, 8) > 0.3
    clean = depth_metrics(pred, truth, mask, alignment=alignment)
    truth[~mask], pred[~mask] = torch.inf, torch.nan
    assert depth_metrics(pred, truth, mask, alignment=alignment) == clean


def test_predictions_that_cannot_be_scored():
    truth = torch.ones(1, 4, 8)
    mask = everywhere(truth)
    nan, zero = truth.clone(), truth.clone()
    nan[0, 1, 2], zero[0, 1, 2] = torch.nan, 0
    with pytest.raises(ValueError, match="1 of 32 valid pixels are predicted as NaN"):
        depth_metrics(nan, truth, mask)
    for alignment in ("log_scale", "median"):
        with pytest.raises(ValueError, match=f"zero or less; the alignment {alignment} needs"):
            depth_metrics(zero, truth, mask, alignment=alignment)
    close(depth_metrics(zero, truth, mask, alignment="metric")["delta1_acc"], 31 / 32)
    with pytest.raises(ValueError, match="1 of 32 valid pixels"):
        normals_metrics(nan.expand(3, 4, 8), truth.expand(3, 4, 8), mask)
    with pytest.raises(ValueError, match="NaN or infinity"):
        edge_metrics(nan, truth, mask)
    for metric in (depth_metrics, edge_metrics, normals_metrics):
        with pytest.raises(ValueError, match="no valid ground-truth pixel"):
            metric(truth.expand(3, 4, 8), truth.expand(3, 4, 8), ~mask)


# ---- normals ------------------------------------------------------------------------------------


def test_normals_metrics_by_hand():
    def at(*angles: float) -> torch.Tensor:
        """Vectors of length 3 at angles to x, towards y."""
        radians = torch.deg2rad(torch.tensor(angles, dtype=torch.float64))
        return 3 * torch.stack([radians.cos(), radians.sin(), 0 * radians]).view(3, 2, 4)

    truth = torch.zeros(3, 2, 4)
    truth[0] = 1
    pred = at(0, 4, 6, 10, 20, 25, 90, 180)
    mask = everywhere(truth)
    mask[0, 1, 3] = False
    values = normals_metrics(pred, truth, mask)
    angles = [0, 4, 6, 10, 20, 25, 90]
    close(values["mean"], sum(angles) / 7)
    close(values["median"], 10)
    assert values["mse"] == pytest.approx(sum(a * a for a in angles) / 7, rel=1e-9)
    counts = {"5": 2, "7.5": 3, "11.25": 4, "22.5": 5, "30": 6}
    for threshold, count in counts.items():
        close(values[f"delta_{threshold}"], count / 7)


def test_equal_normals_have_no_angle_at_all_and_missing_ones_a_right_angle():
    truth = torch.nn.functional.normalize(torch.randn(3, 16, 32), dim=0)
    assert normals_metrics(truth, truth, everywhere(truth))["mse"] == 0.0
    assert normals_metrics(-truth, truth, everywhere(truth))["mean"] == pytest.approx(180)
    assert normals_metrics(0 * truth, truth, everywhere(truth))["mean"] == 90.0


def test_pixels_without_true_normal_do_not_count():
    sample = {"depth": torch.ones(1, 2, 4), "normals": torch.ones(3, 2, 4)}
    sample["normals"][:, 0, 1] = 0
    sample["depth"][0, 1, 3] = torch.inf
    mask = NormalsTask(depth_range=DepthRange()).mask(sample)
    assert mask[0].tolist() == [[True, False, True, True], [True, True, True, False]]
    del sample["depth"]
    assert NormalsTask(depth_range=DepthRange()).mask(sample).sum() == 7


# ---- edges --------------------------------------------------------------------------------------


def step(column: int, width: int = 64) -> torch.Tensor:
    depth = torch.ones(1, 32, width)
    depth[..., column:] = 2
    return depth


def test_edges_of_two_levels():
    truth, pred = step(32), step(35)
    mask = everywhere(truth)
    columns = depth_edges(truth, mask)[0].all(0).nonzero().flatten()
    assert columns.tolist() == [30, 31, 32, 33]
    assert depth_edges(truth, mask).sum() == 4 * 32
    values = edge_metrics(pred, truth, mask)
    expected = {"accuracy": 1.5, "completeness": 1.5}
    assert {k: values[f"edge_dbe_{k}"] for k in expected} == expected
    assert (values["edge_precision"], values["edge_recall"]) == (0.25, 0.25)


def test_edges_need_no_alignment():
    truth = torch.rand(1, 16, 32)
    values = edge_metrics(7 * truth + 3, truth, everywhere(truth))
    assert values == edge_metrics(truth, truth, everywhere(truth))


def test_edges_wrap_around_the_sphere():
    truth = step(32)
    truth[..., :2] = 2  # moves the jump at +-180 degrees to the right
    pred = step(32)
    mask = everywhere(truth)
    mask[:, :4], mask[:, -4:] = False, False  # beyond the poles lies the other side: more edges
    at_border = depth_edges(pred, mask, convention="sphere")[0, 16].nonzero().flatten()
    assert at_border.tolist() == [0, 1, 30, 31, 32, 33, 62, 63]
    values = edge_metrics(pred, truth, mask, convention="sphere")
    # Predicted -2..1, true 0..3 around the wrap: distances 2, 1, 0, 0 and 0, 0, 1, 2.
    close(values["edge_dbe_completeness"], 6 / 16)
    close(values["edge_precision"], 6 / 8)
    assert edge_metrics(pred, truth, mask)["edge_precision"] == 1.0  # the original sees no wrap


def test_edges_to_unmeasured_pixels_do_not_count_on_the_sphere():
    truth = torch.full((1, 32, 64), 2.0)
    mask = everywhere(truth)
    mask[:, 10:20, 10:20] = False
    truth[~mask] = torch.inf
    pred = truth.clone()
    pred[~mask] = torch.rand(int((~mask).sum()))
    assert not depth_edges(torch.where(mask, pred, 0), mask, convention="sphere").any()
    values = edge_metrics(pred, truth, mask, convention="sphere")
    assert (values["edge_precision"], values["edge_dbe_accuracy"]) == (1.0, 0.0)
    # The original's files hold the smallest depth outside the mask: edges around every hole.
    ring = depth_edges(torch.where(mask, truth, 0.01), mask)
    assert ring.sum() == 14 * 14 - 10 * 10
    assert edge_metrics(pred, truth, mask)["edge_recall"] == 1.0


def test_edges_without_edges():
    flat, mask = torch.ones(1, 32, 64), everywhere(torch.ones(1, 32, 64))
    values = edge_metrics(flat, step(32), mask)
    assert list(values.values()) == [75.0, 75.0, 0.0, 0.0]
    values = edge_metrics(step(32), flat, mask)
    assert list(values.values()) == [75.0, 75.0, 1.0, 1.0]
    assert list(edge_metrics(flat, flat, mask).values()) == [0.0, 0.0, 1.0, 1.0]


def test_edge_cap_is_a_number_of_pixels():
    truth, pred = step(20, 128), step(60, 128)  # 40 pixels apart
    mask = everywhere(truth)
    assert edge_metrics(pred, truth, mask)["edge_dbe_accuracy"] == 38.5  # 37, 38, 39, 40
    assert edge_metrics(pred, truth, mask, cap_px=38.5)["edge_dbe_accuracy"] == 37.5  # 37, 38
    close(edge_metrics(pred, truth, mask, cap_px=38.5)["edge_dbe_completeness"], 38)
    assert edge_metrics(pred, truth, mask, cap_px=30)["edge_dbe_completeness"] == 30
    sample = {"depth": truth}
    for max_depth in (15.0, 75.0):  # the range of depths, in metres, has nothing to do with it
        task = EdgesTask(depth_range=DepthRange(max_m=max_depth))
        assert task.score(pred, sample, mask)["edge_dbe_accuracy"] == 38.5


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), cap=st.floats(2, 20))
def test_edge_distances_against_scipy(seed, cap):
    rng = np.random.default_rng(seed)
    truth, pred = (torch.from_numpy(blocks(rng)) for _ in range(2))
    mask = torch.from_numpy(rng.random((1, 24, 48)) < 0.98)
    values = edge_metrics(pred, truth, mask, cap_px=cap)
    found = depth_edges(torch.where(mask, pred, 0.01), mask)[0].numpy()
    true = depth_edges(truth, mask)[0].numpy()
    to_true, to_found = (ndimage.distance_transform_edt(~edges) for edges in (true, found))
    near = to_true[found & (to_true < cap)]
    assert values["edge_dbe_accuracy"] == pytest.approx(near.mean(), rel=1e-6)
    both = np.concatenate([to_true[found], to_found[true]]).clip(max=cap)
    assert values["edge_dbe_completeness"] == pytest.approx(both.mean(), rel=1e-6)
    close(values["edge_precision"], (found & true).sum() / found.sum())
    close(values["edge_recall"], (found & true).sum() / true.sum())


def blocks(rng: np.random.Generator) -> np.ndarray:
    """Flat with a few boxes, (1, 24, 48)."""
    depth = np.ones((1, 24, 48))
    for _ in range(3):
        row, column = rng.integers(0, 18), rng.integers(0, 40)
        depth[0, row : row + 4, column : column + 6] = rng.uniform(2, 3)
    return depth


# ---- seams --------------------------------------------------------------------------------------


def test_seams_of_a_ramp_and_of_a_smooth_panorama():
    ramp = torch.arange(32.0).expand(1, 16, 32) / 31
    values = seam_metrics(ramp)
    assert values["wrap_ratio"] == pytest.approx(31)
    assert values["wrap_jump"] == pytest.approx(1)
    lon = (torch.arange(256) + 0.5) / 256 * 2 * math.pi
    smooth = seam_metrics((lon + 0.3).cos().expand(1, 128, 256))
    assert smooth["wrap_ratio"] == pytest.approx(1, abs=2e-2)  # the step itself varies a little
    assert smooth["seam_severity"] == 0
    flat = seam_metrics(torch.full((1, 16, 32), 2.0))
    expected = dict.fromkeys(flat, 0.0) | {"wrap_ratio": 1.0, "cube_edge_ratio": 1.0}
    assert flat == pytest.approx(expected, abs=1e-12)
    with pytest.raises(ValueError, match="8 pixels wide; seams need 12"):
        seam_metrics(torch.ones(1, 4, 8))


def test_a_face_at_another_depth_is_a_seam():
    log_depth = torch.zeros(1, 128, 256)
    log_depth[..., 96:160] = math.log(1.2)  # 90 degrees: F, and the sectors of U and D before it
    values = seam_metrics(log_depth)
    # F-R and F-L step at every place; the sectors step along the other edges, not across them.
    close(values["seam_severity"], 2 / 12)
    close(values["seam_prevalence"], 2 / 12)
    assert values["seam_density"] == pytest.approx(2 / 12, abs=0.02)
    assert values["cube_edge_ratio"] > 5
    assert (values["wrap_jump"], values["wrap_ratio"]) == (0, 1)


# ---- reading predictions ------------------------------------------------------------------------


@pytest.fixture
def depth_map() -> np.ndarray:
    """Multiples of 1 mm, exact in 16 bit."""
    rng = np.random.default_rng(0)
    return (rng.integers(100, 60_000, (1, 4, 8)) / 1000).astype(np.float32)


def test_every_format_reads_the_same_depth(depth_map, tmp_path):
    np.savez(tmp_path / "a.npz", depth_map)
    np.savez(tmp_path / "b.npz", distance=depth_map[0])
    np.savez(tmp_path / "c.npz", arr_0=depth_map, other=depth_map * 0)
    np.save(tmp_path / "d.npy", np.moveaxis(depth_map, 0, -1).astype(np.float64))
    millimetres = (depth_map[0] * 1000).round().astype(np.uint16)
    write_png16(tmp_path / "e.png", millimetres)
    (tmp_path / "e.json").write_text('{"metres_per_unit": 0.001, "note": "mm"}')
    (tmp_path / "flat").mkdir()
    write_png16(tmp_path / "flat" / "f.png", millimetres)
    (tmp_path / "flat" / "scale.json").write_text('{"metres_per_unit": 0.001}')
    paths = [*sorted(tmp_path.glob("?.np?")), tmp_path / "e.png", tmp_path / "flat" / "f.png"]
    assert len(paths) == 6
    for path in paths:
        value = read_map(path, "depth")
        assert value.dtype == torch.float32
        np.testing.assert_allclose(value.numpy(), depth_map, rtol=1e-7)


def test_normals_in_either_order_of_axes(tmp_path):
    normals = np.random.default_rng(0).standard_normal((3, 4, 8)).astype(np.float16)
    np.save(tmp_path / "a.npy", normals)
    np.save(tmp_path / "b.npy", np.moveaxis(normals, 0, -1))
    for name in ("a.npy", "b.npy"):
        assert np.array_equal(read_map(tmp_path / name, "normals").numpy(), normals)


def test_exr_channels_come_in_opencv_order(tmp_path, monkeypatch):
    rgb = np.random.default_rng(0).standard_normal((4, 8, 3)).astype(np.float32)
    monkeypatch.setattr(cv2, "haveImageReader", lambda _: True)
    monkeypatch.setattr(cv2, "imread", lambda _, flags: rgb[..., ::-1] if flags < 0 else None)
    assert np.array_equal(read_map(tmp_path / "n.exr", "normals"), np.moveaxis(rgb, -1, 0))
    monkeypatch.setattr(cv2, "imread", lambda *_: rgb[..., 0])
    assert np.array_equal(read_map(tmp_path / "d.exr", "depth"), rgb[None, ..., 0])


def test_three_places_in_order(depth_map, tmp_path):
    folder = PredictionFolder(tmp_path, "Set", "depth")
    with pytest.raises(FileNotFoundError, match=r"no .*Set/eval/a\.b\.npz"):
        folder.find("a.b")
    for scale, name in ((3, "a.b.npy"), (2, "a.b/depth.npz"), (1, "Set/eval/a.b.npz")):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            (np.save if path.suffix == ".npy" else np.savez)(file, scale * depth_map)
        assert np.array_equal(folder.read("a.b").numpy(), scale * depth_map)
    with pytest.raises(FileNotFoundError, match="is not a folder; pass the folder of one"):
        PredictionFolder(tmp_path / "none", "Set", "depth")


def test_unreadable_predictions_name_the_file(depth_map, tmp_path):
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04 cut short")
    (tmp_path / "cut.npy").write_bytes(b"")
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "two.npz", a=depth_map, b=depth_map)
    np.save(tmp_path / "flags.npy", depth_map > 1)
    np.save(tmp_path / "color.npy", np.zeros((4, 8, 4)))
    (tmp_path / "x.exr").write_bytes(b"no picture")
    write_png16(tmp_path / "noscale.png", np.ones((4, 8), np.uint16))
    for path, message in {
        "cut.npz": "not a readable array", "cut.npy": "not a readable array",
        "objects.npy": "not a readable array", "two.npz": "expected arr_0 or one array",
        "flags.npy": "values are of type bool", "color.npy": r"shape is \(4, 8, 4\); expected \(1,",
        "x.exr": "without EXR; convert it to .npy", "noscale.png": "needs its scale",
    }.items():  # fmt: skip
        with pytest.raises(ValueError, match=message) as caught:
            read_map(tmp_path / path, "depth")
        assert path in str(caught.value)
    for content in ("{}", "[]", "no json", '{"metres_per_unit": "far"}'):
        (tmp_path / "scale.json").write_text(content)
        with pytest.raises(ValueError, match=r'expected \{"metres_per_unit"'):
            read_map(tmp_path / "noscale.png", "depth")
    (tmp_path / "scale.json").write_text('{"metres_per_unit": 0}')
    with pytest.raises(ValueError, match=r"is 0\.0; expected a positive number"):
        read_map(tmp_path / "noscale.png", "depth")
    with pytest.raises(ValueError, match=r"normals in \.png is not read; convert it to .npy"):
        read_map(tmp_path / "noscale.png", "normals")


# ---- scripts ------------------------------------------------------------------------------------


@pytest.fixture
def samples(data_path: Path) -> dict[str, dict]:
    """The two test panoramas, a room and an outdoor scene, 32x64."""
    dataset = open_dataset("PanoInfinigen", data_path, "test", "both")
    return {view.id: dataset[i] for i, view in enumerate(dataset.views)}


@pytest.fixture
def predict(samples, tmp_path):
    """Write predictions made from the truth, and give the flags that evaluate them."""

    def write(modality: str = "depth", change=lambda x: x, only=(ROOM, OUTDOOR)) -> list[str]:
        folder = tmp_path / f"PaGeR-{modality}" / "PanoInfinigen" / "eval"
        folder.mkdir(parents=True, exist_ok=True)
        for name in only:
            truth = samples[name][modality].clamp(-1 if modality == "normals" else 0.01, 75)
            np.savez(folder / f"{name}.npz", change(truth).numpy())
        return ["--pred_path", str(tmp_path / f"PaGeR-{modality}")]

    return write


@pytest.fixture
def run(data_path, tmp_path):
    """Run a script; give its exit code and folder of results."""

    def call(kind: str, flags: list[str], folder: str) -> SimpleNamespace:
        code = MAINS[kind](["--data_path", str(data_path), *flags])
        modality = "normals" if kind == "normals" else "depth"
        path = tmp_path / f"PaGeR-{modality}" / "PanoInfinigen" / folder
        result = path / "evaluation_metrics.json"
        content = json.loads(result.read_text()) if result.is_file() else None
        return SimpleNamespace(code=code, path=path, json=content)

    return call


@pytest.mark.parametrize("alignment", cli.ALIGNMENTS)
def test_truth_against_itself_is_perfect(alignment, predict, run):
    flags = [*predict(), "--alignment_type", alignment]
    result = run("depth", flags, f"depth_evaluation/{alignment}")
    assert (result.code, result.json["evaluated"]) == (0, 2)
    for name, value in result.json["mean"].items():
        assert value == pytest.approx(float(name.startswith("delta")), abs=1e-5), name


def test_normals_edges_and_seams_of_the_truth_are_perfect(predict, run):
    result = run("normals", predict("normals"), "normals_evaluation")
    assert result.code == 0
    for name, value in result.json["mean"].items():
        assert value == pytest.approx(float(name.startswith("delta")), abs=1e-12)
    perfect = [0.0, 0.0, 1.0, 1.0]
    for convention, folder in (("original", ""), ("sphere", "_sphere")):
        flags = [*predict(), "--edge_convention", convention]
        result = run("edge", flags, f"edge_evaluation{folder}")
        # The original counts edges to the sky, which its predictions put at the smallest depth.
        rows = [r for r in result.json["panoramas"] if r["id"] == ROOM or folder]
        assert [[v for v in row.values() if v != row["id"]] for row in rows] == [perfect] * len(
            rows
        )
    result = run("seam", predict(), "seam_evaluation/depth")
    means = result.json["mean"]
    names = [name for name in means if not name.startswith("truth_")]
    assert len(names) == 7
    for name in names:
        assert means[name] == pytest.approx(means[f"truth_{name}"], abs=1e-6)


def test_metres_are_compared_with_metres(predict, run, samples):
    # The original read PanoInfinigen's truth as training targets in [-1, 1].
    result = run("depth", [*predict(change=lambda d: 2 * d), "--alignment_type", "metric"],
                 "depth_evaluation/metric")  # fmt: skip
    assert result.json["mean"]["abs_relative_difference"] == pytest.approx(1, abs=1e-6)
    rmse = []
    for sample in samples.values():
        truth = sample["depth"].double()
        rmse.append(truth[(truth > 0.0101) & (truth < 74.25)].square().mean().sqrt())
    assert result.json["mean"]["rmse_linear"] == pytest.approx(float(sum(rmse) / 2), rel=1e-6)


def test_text_file_is_the_originals(predict, run):
    result = run("depth", [*predict(change=lambda d: 1.1 * d), "--alignment_type", "metric"],
                 "depth_evaluation/metric")  # fmt: skip
    lines = (result.path / "evaluation_metrics.txt").read_text().splitlines()
    assert lines[0] == "abs_relative_difference: 0.1000"
    assert lines[1].startswith("rmse_linear: ")
    assert lines[2:] == ["delta1_acc: 1.0000", "delta2_acc: 1.0000"]
    run("edge", predict(), "edge_evaluation")
    edge = (result.path.parents[1] / "edge_evaluation" / "evaluation_metrics.txt").read_text()
    assert [line.split(":")[0] for line in edge.splitlines()] == [
        "edge_dbe_accuracy", "edge_dbe_completeness", "edge_precision", "edge_recall",
    ]  # fmt: skip


def test_json_csv_and_markdown_agree(predict, run, capsys):
    noise = torch.linspace(0.9, 1.2, 64)
    result = run("depth", predict(change=lambda d: d * noise), "depth_evaluation/scale")
    rows = result.json["panoramas"]
    assert {row["id"] for row in rows} == {ROOM, OUTDOOR}
    with (result.path / "evaluation_metrics.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    means = result.json["mean"]
    assert len(means) == 10
    markdown = (result.path / "evaluation_metrics.md").read_text()
    for name, mean in means.items():
        values = [row[name] for row in rows]
        assert mean == pytest.approx(np.mean(values))
        assert result.json["median"][name] == pytest.approx(np.median(values))
        assert [float(row[name]) for row in table] == pytest.approx(values, rel=1e-8)
        assert f"| {name} | {mean:.4f} |" in markdown
    worst = max(rows, key=lambda row: row["abs_relative_difference"])
    listed = markdown.split("| worst panoramas")[1].splitlines()
    assert listed[2].startswith(f"| {worst['id']} |")
    assert "2 of 2 panoramas evaluated" in capsys.readouterr().out
    assert result.json["settings"]["alignment_type"] == "scale"
    assert json.loads((result.path / "run.json").read_text())["options"]["split"] == "test"
    assert not list(result.path.rglob("*.tmp*"))


def test_weights_have_their_own_folder(predict, run, samples):
    noise = torch.linspace(0.7, 1.2, 32)[:, None]
    flags = [*predict(change=lambda d: d * noise), "--alignment_type", "metric"]
    uniform = run("depth", flags, "depth_evaluation/metric").json["mean"]
    area = run("depth", [*flags, "--weights", "coslat"], "depth_evaluation/metric_area")
    room = {row["id"]: row for row in area.json["panoramas"]}[ROOM]
    latitude = (0.5 - (torch.arange(32, dtype=torch.float64) + 0.5) / 32) * math.pi
    weight = latitude.cos()[:, None].expand(32, 64) * (samples[ROOM]["depth"][0] < 74.25)
    expected = (weight * (noise - 1).abs()).sum() / weight.sum()
    assert room["abs_relative_difference"] == pytest.approx(float(expected), rel=1e-6)
    assert area.json["mean"]["abs_relative_difference"] != uniform["abs_relative_difference"]


def test_indoor_scenes_have_the_indoor_range(predict, run, samples):
    depth = samples[ROOM]["depth"]
    far = float(depth.quantile(0.7))

    def change(truth: torch.Tensor) -> torch.Tensor:
        return torch.where(truth > 0.99 * far, 100 * truth, truth)

    flags = [*predict(change=change, only=(ROOM,)), "--alignment_type", "metric"]
    result = run("depth", [*flags, "--scenes", "indoor"], "depth_evaluation/metric")
    assert (result.code, [r["id"] for r in result.json["panoramas"]]) == (0, [ROOM])
    assert result.json["mean"]["delta1_acc"] < 0.8
    flags += ["--scenes", "indoor", "--max_depth", str(far)]
    assert run("depth", flags, "depth_evaluation/metric").json["mean"]["delta1_acc"] == 1.0
    parser = cli.build_parser("depth")
    for given_flags, expected in (
        ([], 75.0), (["--scenes", "indoor"], 15.0), (["--max_depth", "200"], 200.0),
        (["--scenes", "indoor", "--dataset", "Matterport3D360"], 75.0),
    ):  # fmt: skip
        args = parser.parse_args(["--pred_path", "x", *given_flags])
        assert cli._depth_range(args).max_m == expected


# ---- what goes wrong ----------------------------------------------------------------------------


def test_missing_prediction_is_counted_and_the_rest_is_evaluated(predict, run, capsys):
    flags = predict(change=lambda d: 1.5 * d, only=(ROOM,))
    result = run("depth", [*flags, "--alignment_type", "metric"], "depth_evaluation/metric")
    assert result.code == 1
    assert result.json["evaluated"] == result.json["skipped_count"] == 1
    assert result.json["mean"]["abs_relative_difference"] == pytest.approx(0.5)
    (skipped,) = result.json["skipped"]
    assert (skipped["id"], skipped["kind"]) == (OUTDOOR, "missing prediction")
    lines = capsys.readouterr().err.splitlines()
    assert lines[-2].startswith(f"skipped: {OUTDOOR}: missing prediction: no ")
    assert lines[-1] == "1 of 2 panoramas evaluated; 1 skipped (1 missing prediction)"
    assert (
        f"| {OUTDOOR} | missing prediction: " in (result.path / "evaluation_metrics.md").read_text()
    )


def test_nothing_found_is_no_division_by_zero(predict, run, capsys):
    complete = run("depth", predict(), "depth_evaluation/scale")
    assert (complete.path / "evaluation_metrics.txt").read_text()
    for path in (complete.path.parents[1] / "eval").iterdir():
        path.unlink()
    flags = [*predict(only=()), "--save_error_maps"]
    result = run("depth", flags, "depth_evaluation/scale")
    assert (result.code, result.json["evaluated"], result.json["skipped_count"]) == (1, 0, 2)
    assert result.json["mean"] == {}
    assert (result.path / "evaluation_metrics.txt").read_text() == ""  # not those of before
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "0 of 2 panoramas evaluated; 2 skipped (2 missing prediction)"


@pytest.mark.parametrize(
    ("change", "kind", "reason"),
    [
        (lambda d: d[:, :16, :32], "wrong shape", "the prediction is 32x16, the truth 64x32"),
        (lambda d: d.expand(2, 32, 64), "unreadable prediction", "shape is (2, 32, 64)"),
        (lambda d: d * torch.nan, "invalid prediction", "predicted as NaN or infinity"),
    ],
)
@pytest.mark.parametrize("script", ["depth", "edge"])
def test_useless_prediction_is_counted(script, change, kind, reason, predict, run, capsys):
    predict(change=change, only=(ROOM,))
    folder = {"depth": "depth_evaluation/scale", "edge": "edge_evaluation"}[script]
    result = run(script, predict(only=(OUTDOOR,)), folder)
    assert (result.code, [r["id"] for r in result.json["panoramas"]]) == (1, [OUTDOOR])
    (skipped,) = result.json["skipped"]
    assert (skipped["id"], skipped["kind"]) == (ROOM, kind)
    assert reason in skipped["reason"]
    assert f"skipped: {ROOM}: {kind}: " in capsys.readouterr().err


class Panoramas:
    """A data set in memory; an exception in place of a sample is raised on access."""

    def __init__(self, items: dict[str, dict | Exception]) -> None:
        self.items = list(items.values())
        self.views = [SimpleNamespace(id=name.split("#")[0]) for name in items]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict:
        item = self.items[index]
        if isinstance(item, Exception):
            raise item
        return item


def test_truth_that_cannot_be_used_is_counted(tmp_path):
    depth = torch.rand(1, 4, 8) + 1
    good = {"rgb": torch.zeros(3, 4, 8, dtype=torch.uint8), "depth": depth}
    dataset = Panoramas(
        {
            "empty": {**good, "depth": torch.full_like(depth, torch.inf)},
            "broken": ValueError("broken_depth.png: not a readable image"),
            "twin#1": good, "twin#2": good, "good": good,
        }
    )  # fmt: skip
    for name in ("empty", "broken", "twin", "good"):
        np.save(tmp_path / f"{name}.npy", depth.numpy())
    folder = PredictionFolder(tmp_path, "Set", "depth")
    report = evaluate(DepthTask(depth_range=DepthRange()), dataset, folder)
    assert [row.id for row in report.rows] == ["good"]
    assert [(s.id, s.kind) for s in report.skipped] == [
        ("empty", "no valid pixel"), ("broken", "unreadable sample"),
        ("twin", "duplicate id"), ("twin", "duplicate id"),
    ]  # fmt: skip
    assert "broken_depth.png" in report.skipped[1].reason
    assert report.summary() == (
        "1 of 5 panoramas evaluated; 4 skipped (1 no valid pixel, 1 unreadable sample, "
        "2 duplicate id)"
    )


def test_seams_need_whole_panoramas_but_no_truth(predict, run, capsys):
    assert run("seam", predict(change=lambda d: 0 * d), "seam_evaluation/depth").code == 1
    assert (
        "2048 values are predicted as NaN, infinity or, for depth, zero" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("kind", "flags", "message"),
    [
        ("depth", ["--dataset", "PanoInTheWild"], "has no ground truth for this evaluation"),
        ("normals", ["--dataset", "Matterport3D360"], "use PanoInfinigen, Structured3D"),
        ("depth", ["--pred_path", "nowhere"], "--pred_path nowhere is not a folder"),
    ],
)
def test_what_cannot_start(kind, flags, message, tmp_path, data_path, capsys):
    start = ["--data_path", str(data_path), "--pred_path", str(tmp_path)]
    assert MAINS[kind]([*start, *flags]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert message in lines[0]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "flags",
    [["--error_maps_saving_frequency", "0"], ["--worst", "-1"], ["--max_depth", "nan"],
     ["--max_depth", "0"], ["--weights", "area"], ["--alignment_type", "affine"]],
)  # fmt: skip
def test_nonsense_flags_are_refused(flags):
    with pytest.raises(SystemExit):
        cli.build_parser("depth").parse_args(["--pred_path", "x", *flags])


# ---- pictures -----------------------------------------------------------------------------------


def test_error_maps_without_a_frequency_are_all_of_them(predict, run):
    noise = torch.linspace(0.5, 1.2, 64)
    flags = [*predict(change=lambda d: d * noise), "--save_error_maps"]
    result = run("depth", flags, "depth_evaluation/scale")
    assert {p.stem for p in (result.path / "error_maps").iterdir()} == {ROOM, OUTDOOR}
    rows = {row["id"]: row["abs_relative_difference"] for row in result.json["panoramas"]}
    ranked = sorted(rows, key=lambda name: -rows[name])
    names = sorted(p.name for p in (result.path / "worst").iterdir())
    assert names == [f"01_{ranked[0]}.png", f"02_{ranked[1]}.png"]
    panel = read_image(result.path / "worst" / names[0])
    assert panel.shape == (2 * (480 + 28), 2 * 960, 3)  # 2 x 2 pictures with their captions


def test_frequency_and_number_of_worst(predict, run):
    flags = [*predict(), "--save_error_maps"]
    result = run("edge", flags, "edge_evaluation")
    assert len(list((result.path / "worst").iterdir())) == 2
    flags += ["--error_maps_saving_frequency", "2", "--worst", "1"]
    for path in (result.path / "error_maps").iterdir():
        path.unlink()
    result = run("edge", flags, "edge_evaluation")
    assert len(list((result.path / "error_maps").iterdir())) == 1
    assert len(list((result.path / "worst").iterdir())) == 1  # not those of before


def test_no_pictures_unless_asked_for(predict, run):
    result = run("normals", predict("normals"), "normals_evaluation")
    assert {p.name for p in result.path.iterdir()} == {
        "run.json", *(f"evaluation_metrics.{suffix}" for suffix in ("txt", "json", "csv", "md")),
    }  # fmt: skip


def test_colours_of_errors():
    mask = torch.tensor([[[True, True, True, False]]])
    caption, picture = pictures.signed_error_picture(torch.tensor([[[2.0, -2, 0, 9]]]), mask)
    far, near, right, outside = picture[0].astype(int)
    assert far[0] > 100 > far[2]  # red
    assert near[2] > 70 > near[0]  # blue
    assert (right > 250).all()
    assert (outside > 250).all()
    assert "-2 m blue to +2 m red" in caption
    angles = torch.tensor([[[0.0, 60, 180, 30]]])
    _, picture = pictures.angle_picture(angles, mask)
    assert picture[0, 0].max() < 10
    assert np.array_equal(picture[0, 1], picture[0, 2])
    assert tuple(picture[0, 3]) == pictures.GREY
    found = torch.tensor([[[True, True, False, False]]])
    true = torch.tensor([[[True, False, True, False]]])
    _, picture = pictures.edge_picture(found, true)
    colors = [pictures.GREEN, pictures.RED, pictures.BLUE, (0, 0, 0)]
    assert [tuple(pixel) for pixel in picture[0].tolist()] == colors


def test_prediction_and_truth_share_their_colours():
    truth = torch.logspace(0, 1, 32).expand(1, 16, 32)
    mask = everywhere(truth)
    mask[0, 0, 0] = False
    maps = pictures.depth_pictures(truth, truth, mask)
    assert np.array_equal(maps["prediction"][1:], maps["truth"][1:])
    assert not maps["truth"][0, 0].any()
    doubled = pictures.depth_pictures(2 * truth, truth, mask)["prediction"]
    assert not np.array_equal(doubled, maps["prediction"])


# ---- other predictions, other names -------------------------------------------------------------


def test_predictions_of_inference_on_files(samples, data_path, tmp_path):
    for name, sample in samples.items():
        (tmp_path / name).mkdir()
        np.savez(tmp_path / name / "depth.npz", sample["depth"].clamp(0.01, 75).numpy())
    start = ["--data_path", str(data_path), "--pred_path", str(tmp_path)]
    assert cli.depth_main([*start, "--alignment_type", "metric"]) == 0
    text = tmp_path / "PanoInfinigen" / "depth_evaluation" / "metric" / "evaluation_metrics.txt"
    assert text.read_text().startswith("abs_relative_difference: 0.0000\n")


def test_normals_in_structured3d_axes(predict, run):
    def to_structured3d(normals: torch.Tensor) -> torch.Tensor:
        forward, up, left = normals
        return torch.stack([-left, up, -forward])

    vectors = torch.randn(3, 2, 4)
    assert torch.equal(structured3d_to_pager(to_structured3d(vectors)), vectors)
    flags = predict("normals", to_structured3d)
    assert run("normals", flags, "normals_evaluation").json["mean"]["mean"] > 20
    flags += ["--pred_frame", "structured3d"]
    assert run("normals", flags, "normals_evaluation").json["mean"]["mean"] == 0


@pytest.mark.parametrize(
    ("script", "flags"),
    [
        ("depth_evaluation", {"--alignment_type", "--save_error_maps",
                              "--error_maps_saving_frequency"}),
        ("normals_evaluation", set()), ("normals_estimation", set()),
        ("edge_evaluation", set()), ("edge_estimation", set()), ("seam_evaluation", set()),
    ],
)  # fmt: skip
def test_scripts_run_from_anywhere(script, flags, tmp_path):
    path = ROOT / "evaluation" / f"{script}.py"
    result = subprocess.run(
        [sys.executable, str(path), "--help"], cwd=tmp_path, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    for flag in flags | {"--data_path", "--dataset", "--pred_path", "--scenes"}:
        assert flag in result.stdout
    assert len(path.read_text().splitlines()) <= 15


def test_script_in_its_own_process(predict, data_path, tmp_path):
    script = ROOT / "evaluation" / "depth_evaluation.py"
    flags = [*predict(only=(ROOM,)), "--data_path", str(data_path)]
    result = subprocess.run(
        [sys.executable, str(script), *flags], cwd=tmp_path, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert result.returncode == 1
    assert result.stdout.startswith("abs_relative_difference: 0.0000\n")
    assert result.stderr.splitlines()[-1].startswith("1 of 2 panoramas evaluated; 1 skipped")


def test_sample_without_the_map_is_skipped_by_name(samples, tmp_path):
    """A folder data set may hold photographs only."""

    class Photographs:
        views = (SimpleNamespace(id="photo"),)

        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: int) -> dict:
            return {"id": "photo", "rgb": samples[ROOM]["rgb"]}

    np.savez(tmp_path / "photo.npz", samples[ROOM]["depth"].numpy())
    predictions = PredictionFolder(tmp_path, "Folder", "depth")
    report = evaluate(DepthTask(depth_range=DepthRange()), Photographs(), predictions)
    (skipped,) = report.skipped
    assert (skipped.kind, skipped.reason) == ("no ground truth", "the data set has no depth here")


def test_damaged_npz_is_one_line(tmp_path):
    path = tmp_path / "x.npz"
    np.savez_compressed(path, np.random.default_rng(0).random((1, 32, 64)))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(ValueError, match="not a readable array"):
        read_map(path, "depth")
