"""Every data set in its own layout: numbers, ids, order, splits, damaged files, the validator."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import lmdb
import numpy as np
import pytest
import torch
from dataset_writers import (
    Room,
    box_room,
    encode,
    encode_npy,
    hub_row,
    write_dpt,
    write_matterport,
    write_png16,
    write_replica,
    write_rgb,
    write_scannetpp,
    write_stanford,
    write_structured3d,
)

from pager.cli import validate
from pager.data import files, matterport3d360, panoinfinigen_hub, panointhewild, replica, scannetpp
from pager.data.checks import check_sample
from pager.data.matterport3d360 import read_dpt
from pager.data.panoinfinigen import INDEX_NAME, Frame, PanoInfinigen, write_split
from pager.data.registry import DATASETS, dataset_entry, open_dataset
from pager.data.structured3d import Structured3D, Structured3DScannetPP

ROOT = Path(__file__).parents[1]
SIZE = (50, 100)  # 14 % and 15 % of the rows are 7 and 7, from row 43 and 42
HALF_MM = 0.000501
NEEDS_PYARROW = pytest.mark.skipif(
    importlib.util.find_spec("pyarrow") is None, reason="needs pyarrow (extra data)"
)


@pytest.fixture(scope="module")
def room() -> Room:
    return box_room(SIZE[0])


@pytest.fixture
def small(monkeypatch) -> None:
    """Loaders that resize go to `SIZE`, the size the rooms are written in."""
    for loader in (
        scannetpp.ScannetPP, replica.Replica360, panointhewild.PanoInTheWild,
        panointhewild.ZuriPano, Structured3DScannetPP,
    ):  # fmt: skip
        monkeypatch.setattr(loader, "size", SIZE)


def ids(dataset) -> list[str]:
    return [view.id for view in dataset.views]


def assert_rgb(item, room: Room, tolerance: int = 0) -> None:
    assert (item["rgb"].dtype, item["rgb"].shape) == (torch.uint8, (3, *SIZE))
    difference = item["rgb"].movedim(0, -1).numpy().astype(int) - room.rgb.astype(int)
    assert np.abs(difference).max() <= tolerance


def assert_depth(item, expected: np.ndarray, atol: float) -> None:
    assert (item["depth"].dtype, item["depth"].shape) == (torch.float32, (1, *expected.shape))
    np.testing.assert_allclose(item["depth"][0].numpy(), expected, atol=atol, rtol=1e-6)


def without_poles(depth: np.ndarray, top: int, bottom: int) -> np.ndarray:
    depth = depth.copy()
    depth[:top] = depth[bottom:] = 0
    return depth


# ---- Matterport3D360 and .dpt -------------------------------------------------------------------


def test_dpt_header_and_values(tmp_path):
    depth = np.array([[0, 1.5, 75.25], [1e-3, 2, 80]])
    write_dpt(tmp_path / "a.dpt", depth)
    data = (tmp_path / "a.dpt").read_bytes()
    assert data[:12] == b"PIEH" + (3).to_bytes(4, "little") + (2).to_bytes(4, "little")
    assert np.frombuffer(data[:4], "<f4")[0] == np.float32(202021.25)
    read = read_dpt(tmp_path / "a.dpt")
    assert read.dtype == np.float32
    assert np.array_equal(read, depth.astype(np.float32))
    read[0] = 0  # writable


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: d[:-4], r"a\.dpt: 32 bytes, expected 36 for 3x2; replace"),
        (lambda d: d + b"\0", r"a\.dpt: 37 bytes, expected 36"),
        (lambda d: d[:7], r"a\.dpt: 7 bytes are too few"),
        (lambda d: b"HEIP" + d[4:], r"a\.dpt: not a \.dpt file \(tag "),
        (lambda d: d[:8] + b"\0\0\0\0" + d[12:], r"size 3x0"),
    ],
)
def test_damaged_dpt(damage, message, tmp_path):
    path = tmp_path / "a.dpt"
    write_dpt(path, np.ones((2, 3)))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=message):
        read_dpt(path)


def test_matterport(tmp_path, room):
    holes = room._replace(depth=room.depth.copy())
    holes.depth[20, :10] = 0
    far = box_room(SIZE[0], scale=2)
    write_matterport(tmp_path, "test", "zeta", "b7", far, part="part2")
    write_matterport(tmp_path, "test", "alpha", "c1", room)
    write_matterport(tmp_path, "test", "alpha", "a1", holes)
    write_matterport(tmp_path, "train", "other", "t0", room)
    dataset = open_dataset("Matterport3D360", tmp_path, "test")
    assert ids(dataset) == ["a1", "c1", "b7"]  # sorted by part, scene, key: D15
    for item, true in zip((dataset[0], dataset[1], dataset[2]), (holes, room, far), strict=True):
        assert_rgb(item, true)
        assert_depth(item, without_poles(true.depth, 7, 43), atol=0)
        assert "normals" not in item
    assert dataset[0]["depth"][0, 20, :10].eq(0).all()
    assert ids(open_dataset("Matterport3D360", tmp_path, "train")) == ["t0"]


def test_matterport_poles_at_the_official_size():
    assert files.blank_poles(np.ones((1024, 2)), 0.14)[:, 0].nonzero()[0][[0, -1]].tolist() == [
        143, 879,
    ]  # fmt: skip
    assert files.blank_poles(np.ones((2048, 2)), 0.15)[:, 0].nonzero()[0][[0, -1]].tolist() == [
        307, 1739,
    ]  # fmt: skip


def test_matterport_names_what_is_missing(tmp_path, room):
    folder = write_matterport(tmp_path, "test", "s", "a", room)
    for key in ("b", "c"):
        write_matterport(tmp_path, "test", "s", key, room)
    (folder / "a_rgb.png").unlink()  # depth alone is still a panorama, a bad one
    (folder / "b_depth.dpt").unlink()
    dataset = open_dataset("Matterport3D360", tmp_path, "test")
    assert ids(dataset) == ["a", "b", "c"]
    with pytest.raises(FileNotFoundError, match=r"a_rgb\.png: no such file"):
        dataset[0]
    with pytest.raises(FileNotFoundError, match=r"b_depth\.dpt: no such file"):
        dataset[1]
    assert_rgb(dataset[2], room)
    with pytest.raises(FileNotFoundError, match=r"scenes_val\.txt: no such file; it lists"):
        open_dataset("Matterport3D360", tmp_path, "val")
    (tmp_path / "Matterport3D360/scenes_val.txt").write_text("absent\n\n")
    with pytest.raises(FileNotFoundError, match=r"no panoramas: expected .*\*_rgb\.png"):
        open_dataset("Matterport3D360", tmp_path, "val")


def test_equal_ids_are_refused(tmp_path, room):
    write_matterport(tmp_path, "test", "s1", "a", room)
    write_matterport(tmp_path, "test", "s2", "a", room)
    with pytest.raises(ValueError, match=r"s1/a_rgb\.png and .*s2/a_rgb\.png have the same id a"):
        open_dataset("Matterport3D360", tmp_path, "test")


# ---- Stanford2D3DS ------------------------------------------------------------------------------


def test_stanford(tmp_path, room):
    true = room._replace(depth=room.depth.copy())
    true.depth[25, 30:40] = np.inf  # written as 65535
    write_stanford(tmp_path, "area_3", "camera_ff_office_1", room)
    write_stanford(tmp_path, "area_1", "camera_0d_hallway_2", true)
    perspective = tmp_path / "Stanford2D3DS/area_1/data/rgb/camera_0d_frame_3_domain_rgb.png"
    write_rgb(perspective, room.rgb)  # views of the official archive, not panoramas
    dataset = open_dataset("Stanford2D3DS", tmp_path)
    assert len(dataset) == 2  # D12: the original cannot tell its length
    assert ids(dataset) == ["camera_0d_hallway_2", "camera_ff_office_1"]
    item = dataset[0]
    assert_rgb(item, true)
    expected = without_poles(np.where(np.isfinite(true.depth), true.depth, 0), 7, 42)
    assert_depth(item, expected, atol=1 / 1024 + 1e-4)
    assert item["depth"][0, 25, 30:40].eq(0).all()


def test_stanford_units(tmp_path, room):
    folder = write_stanford(tmp_path, "area_1", "camera_a", room)
    write_png16(next((folder / "depth").iterdir()), np.full(SIZE, 12345))
    depth = open_dataset("Stanford2D3DS", tmp_path)[0]["depth"]
    assert depth[0, 25, 0].item() == pytest.approx(12345 * 128 / 65535, rel=1e-7)


def test_split_files(tmp_path, room):
    for area, name in (("area_1", "a"), ("area_1", "b"), ("area_5a", "c")):
        write_stanford(tmp_path, area, name, room)
    base = tmp_path / "Stanford2D3DS"
    with pytest.raises(FileNotFoundError, match=r"without a train split; list .*scenes_train\.txt"):
        open_dataset("Stanford2D3DS", tmp_path, "train")
    (base / "scenes_train.txt").write_text("area_5a\nb\n")
    assert ids(open_dataset("Stanford2D3DS", tmp_path, "train")) == ["b", "c"]
    # Once panoramas are set aside for training, "everything" is no test set.
    with pytest.raises(FileNotFoundError, match=r"scenes_test\.txt"):
        open_dataset("Stanford2D3DS", tmp_path, "test")
    (base / "scenes_test.txt").write_text("a\narea_9\n")
    with pytest.raises(ValueError, match=r"scenes_test\.txt: 'area_9' is no scene folder"):
        open_dataset("Stanford2D3DS", tmp_path, "test")


# ---- ScannetPP ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("small")
def test_scannetpp(tmp_path, room):
    write_scannetpp(tmp_path, "val", "f00d", "DSC2", room)
    write_scannetpp(tmp_path, "val", "beef", "DSC1", box_room(SIZE[0], scale=2))
    write_scannetpp(tmp_path, "train", "cafe", "DSC1", room)
    dataset = open_dataset("ScannetPP", tmp_path, "val")
    assert ids(dataset) == ["f00d_DSC2", "beef_DSC1"]  # the order of the list; D14: any folder
    assert_rgb(dataset[0], room, tolerance=8)
    assert_depth(dataset[0], room.depth, atol=HALF_MM)
    assert_depth(dataset[1], box_room(SIZE[0], scale=2).depth, atol=HALF_MM)
    assert ids(open_dataset("ScannetPP", tmp_path, "test")) == ids(dataset)
    assert ids(open_dataset("ScannetPP", tmp_path, "train")) == ["cafe_DSC1"]


def test_scannetpp_is_resized_to_its_raster(tmp_path):
    room = box_room(321, 643)
    write_scannetpp(tmp_path, "val", "s", "a", room)
    item = open_dataset("ScannetPP", tmp_path, "val")[0]
    assert item["rgb"].shape == (3, 1284, 2572)
    # Four times finer: every depth pixel is one of the file's, nearest and unmixed.
    assert torch.equal(item["depth"][0, ::4, ::4], item["depth"][0, 3::4, 3::4])
    np.testing.assert_allclose(item["depth"][0, ::4, ::4].numpy(), room.depth, atol=HALF_MM)


# ---- Structured3D -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["normal.png", "normals.png"])
def test_structured3d(name, tmp_path, room):
    true = room._replace(normals=room.normals.copy())
    write_structured3d(tmp_path, 3250, "485142", true, name)
    dataset = open_dataset("Structured3D", tmp_path, "test")
    assert ids(dataset) == ["scene_03250_485142"]  # D14
    item = dataset[0]
    assert_rgb(item, true)
    assert_depth(item, true.depth, atol=HALF_MM)
    # v = 256 does not fit into 8 bits: 1 is stored as 127/128, unit length is restored.
    np.testing.assert_allclose(item["normals"].numpy(), true.pager_normals, atol=1e-6)
    assert (item["normals"].dtype, item["normals"].shape) == (torch.float32, (3, *SIZE))
    assert check_sample(item, dataset_entry("Structured3D")) == {}


def test_structured3d_decoding(tmp_path, room):
    """D13: right, up, backward (0.6, 0, 0.8) is forward, up, left (-0.8, 0, -0.6)."""
    folder = write_structured3d(tmp_path, 0, "1", room)
    pixels = np.tile(np.uint8([205, 128, 230]), (*SIZE, 1))
    pixels[0] = 0  # nothing rendered: (-1, -1, -1) is no direction
    pixels[1] = 128
    write_rgb(folder / "normal.png", pixels)
    raw = np.array([77, 0, 102]) / np.hypot(77, 102)
    normals = Structured3D(tmp_path, "train")[0]["normals"][:, 2, 5].numpy()
    np.testing.assert_allclose(normals, [-raw[2], 0, -raw[0]], atol=1e-6)
    kept = Structured3D(tmp_path, "train", normals_frame="structured3d")[0]["normals"]
    np.testing.assert_allclose(kept[:, 2, 5].numpy(), raw, atol=1e-6)
    assert kept[:, :2].eq(0).all()


def test_structured3d_splits(tmp_path, room):
    for scene in (2999, 0, 3000, 3249, 3250, 3499):
        write_structured3d(tmp_path, scene, "9", room)
    found = {s: ids(open_dataset("Structured3D", tmp_path, s)) for s in ("train", "val", "test")}
    assert found == {
        "train": ["scene_00000_9", "scene_02999_9"],
        "val": ["scene_03000_9", "scene_03249_9"],
        "test": ["scene_03250_9", "scene_03499_9"],
    }


def test_structured3d_without_normals_raises(tmp_path, room):
    """D13: the original returned an empty data set, or zeros with id 0."""
    folder = write_structured3d(tmp_path, 3250, "1", room)
    (folder / "normal.png").unlink()
    dataset = open_dataset("Structured3D", tmp_path, "test")
    assert len(dataset) == 1
    with pytest.raises(FileNotFoundError, match=r"normal\.png: no such file"):
        dataset[0]


@pytest.mark.usefixtures("small")
def test_joint_data_set(tmp_path, room):
    far = box_room(64, scale=2)
    write_structured3d(tmp_path, 3000, "1", far)
    write_scannetpp(tmp_path, "val", "s", "a", room)
    write_scannetpp(tmp_path, "val", "s2", "b", room)
    dataset = open_dataset("Structured3D_ScannetPP", tmp_path, "val")
    assert ids(dataset) == ["scene_03000_1", "s_a", "s2_b"]  # the original's ids were all equal
    first, last = dataset[0], dataset[-1]
    assert [set(item) for item in (first, last)] == [{"id", "rgb", "depth"}] * 2
    assert [item["id"] for item in (first, last)] == ["scene_03000_1", "s2_b"]
    rows, columns = (((np.arange(n) + 0.5) * 64 / 50).astype(int) for n in SIZE)
    assert_depth(first, far.depth[rows[:, None], columns], atol=HALF_MM)
    assert_depth(last, room.depth, atol=HALF_MM)
    with pytest.raises(IndexError):
        dataset[3]


# ---- Replica360_4K ------------------------------------------------------------------------------


@pytest.mark.usefixtures("small")
def test_replica(tmp_path, room):
    mask = np.ones(SIZE, bool)
    mask[:, 30:60] = False
    write_replica(tmp_path, "office_0", "0002", room, mask)
    write_replica(tmp_path, "apartment", "0001", room, np.ones(SIZE, bool))
    write_replica(tmp_path, "apartment", "0000", room, np.ones(SIZE, bool))
    dataset = open_dataset("Replica360_4K", tmp_path)
    assert ids(dataset) == ["apartment_0000", "apartment_0001", "office_0_0002"]
    assert_rgb(dataset[2], room, tolerance=8)
    assert_depth(dataset[2], np.where(mask, room.depth, 0), atol=0)
    # The mask is part of the depth: whatever rolls the panorama rolls both.
    assert_depth(dataset[0], room.depth, atol=0)


def test_replica_is_resized_to_4k(tmp_path):
    room = box_room(64)
    mask = np.arange(16)[:, None] < np.full((16, 32), 8)  # another size than the picture
    write_replica(tmp_path, "s", "0000", room, mask)
    item = open_dataset("Replica360_4K", tmp_path)[0]
    assert item["rgb"].shape == (3, 2048, 4096)
    expected = room.depth.astype(np.float32)
    expected[32:] = 0
    assert np.array_equal(item["depth"][0, 31::32, 31::32].numpy(), expected)


@pytest.mark.usefixtures("small")
def test_replica_needs_its_mask(tmp_path, room):
    folder = write_replica(tmp_path, "s", "0000", room, np.ones(SIZE, bool))
    (folder / "0000_mask_pano.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"0000_mask_pano\.png: no such file"):
        open_dataset("Replica360_4K", tmp_path)[0]


# ---- in the wild --------------------------------------------------------------------------------


@pytest.mark.usefixtures("small")
def test_pano_in_the_wild(tmp_path, room):
    base = tmp_path / "PanoInTheWild"
    write_rgb(base / "square.v2.png", room.rgb)
    write_rgb(base / "Alley.JPG".lower(), room.rgb)
    (base / "notes.txt").write_text("no picture")
    (base / ".hidden.png").write_bytes(b"")
    dataset = open_dataset("PanoInTheWild", tmp_path)
    assert ids(dataset) == ["alley", "square"]
    assert set(dataset[0]) == {"id", "rgb"}
    assert_rgb(dataset[1], room)
    with pytest.raises(FileNotFoundError, match="has no train split, only test"):
        open_dataset("PanoInTheWild", tmp_path, "train")


def test_photographs_are_resized_to_2k(tmp_path):
    write_rgb(tmp_path / "PanoInTheWild/a.png", np.full((64, 128, 3), [10, 200, 30], np.uint8))
    rgb = open_dataset("PanoInTheWild", tmp_path)[0]["rgb"]
    assert rgb.shape == (3, 1024, 2048)
    assert rgb[:, 500, 700].tolist() == [10, 200, 30]


def write_parquet(path: Path, rows: list[dict], group: int = 2) -> None:
    import pyarrow as pa  # pyright: ignore[reportMissingImports]
    import pyarrow.parquet as pq  # pyright: ignore[reportMissingImports]

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=group)


@NEEDS_PYARROW
@pytest.mark.usefixtures("small")
def test_zuripano(tmp_path, room):
    mask = np.ones(SIZE, np.uint8) * 255
    mask[:, :9] = 0
    row = {
        "id": " ETH main hall ",
        "rgb": {"bytes": encode(".png", room.rgb[..., ::-1]), "path": None},
        "depth": {
            "bytes": encode(".png", (room.depth * 65535 / 200).round().astype(np.uint16)),
            "path": None,
        },
        "mask": {"bytes": encode(".png", mask), "path": None},
    }
    write_parquet(tmp_path / "ZuriPano/data/test-00000-of-00001.parquet", [row])
    dataset = open_dataset("ZuriPano", tmp_path)
    assert ids(dataset) == ["ETH_main_hall"]
    assert_rgb(dataset[0], room)
    assert_depth(dataset[0], np.where(mask, room.depth, 0), atol=100 / 65535 + 1e-6)


# ---- PanoInfinigen, two layouts -----------------------------------------------------------------


@NEEDS_PYARROW
@pytest.mark.parametrize("kind", ["npy", "image"])
def test_panoinfinigen_hub(kind, tmp_path, room):
    far = box_room(SIZE[0], scale=80)  # walls at 96 to 320 m
    far.depth[:5] = 0  # sky
    base = tmp_path / "PanoInfinigen/data"
    near = [hub_row(r, kind=kind, max_depth_m=75) for r in (room, box_room(SIZE[0], scale=2), room)]
    write_parquet(base / "indoor/test-00001.parquet", near)
    write_parquet(base / "indoor/test-00000.parquet", near[:1])
    write_parquet(base / "urban/test-00000.parquet", [hub_row(far, kind=kind, max_depth_m=500)])
    dataset = open_dataset("PanoInfinigen", tmp_path, "test")
    assert ids(dataset) == [
        "indoor_test-00000_0000", "indoor_test-00001_0000", "indoor_test-00001_0001",
        "indoor_test-00001_0002", "urban_test-00000_0000",
    ]  # fmt: skip
    exact = kind == "npy"
    step = 0 if exact else 75 / 131070 + 1e-5
    assert_depth(dataset[2], box_room(SIZE[0], scale=2).depth, atol=step)  # before its neighbours
    assert_depth(dataset[3], room.depth, atol=step)
    item = dataset[4]
    assert_rgb(item, far, tolerance=0 if exact else 8)
    assert_depth(item, far.depth, atol=0 if exact else 500 / 131070 + 1e-4)
    cosine = (item["normals"].numpy() * far.pager_normals).sum(0)
    # JPEG rings where walls meet; a wrong axis or sign would be 90 degrees off.
    assert np.quantile(cosine, 0.01) > (1 - 1e-6 if exact else 0.95)
    np.testing.assert_allclose(item["normals"].norm(dim=0), 1, atol=1e-3)
    assert len(open_dataset("PanoInfinigen", tmp_path, "test", "indoor")) == 4
    assert ids(open_dataset("PanoInfinigen", tmp_path, "test", "outdoor")) == ids(dataset)[4:]


@NEEDS_PYARROW
def test_damaged_shard(tmp_path, room):
    base = tmp_path / "PanoInfinigen/data/indoor"
    row = hub_row(room, kind="image", max_depth_m=75)
    for number in range(2):
        write_parquet(base / f"val-{number:05d}.parquet", [row])
    broken = base / "val-00000.parquet"
    broken.write_bytes(broken.read_bytes()[:-30])
    write_parquet(base / "val-00002.parquet", [{k: v for k, v in row.items() if k != "normals"}])
    write_parquet(
        base / "val-00003.parquet", [{**row, "depth": {"bytes": b"x", "path": None}}, row]
    )
    write_parquet(base / "val-00004.parquet", [{**row, "image": None}, row])
    wrong = hub_row(box_room(10), kind="npy", max_depth_m=75)
    write_parquet(base / "val-00005.parquet", [{**row, "depth": wrong["depth"]}])
    dataset = open_dataset("PanoInfinigen", tmp_path, "val")
    assert len(dataset) == 8
    for index, message in {
        0: r"val-00000\.parquet: not a readable Parquet file",
        2: r"val-00002\.parquet: no column normals",
        3: r"val-00003\.parquet row 0 depth: not a readable image",
        5: r"val-00004\.parquet row 0: image is empty",
        7: r"val-00005\.parquet row 0 depth: shape is \(10, 20\), but the colour image is \(50, 100\)",
    }.items():
        with pytest.raises(ValueError, match=message):
            dataset[index]
    for index in (1, 4, 6):
        assert_depth(dataset[index], room.depth, atol=75 / 131070 + 1e-5)


def test_lmdb_layout_is_chosen(tmp_path, room):
    """D10: depth is metres whatever the split is used for, never normalised."""
    normals = np.moveaxis(room.pager_normals, 0, -1)
    frame = Frame(room.rgb, room.depth, normals)
    write_split(tmp_path / "PanoInfinigen/indoor/train", [("s", [frame])])
    dataset = open_dataset("PanoInfinigen", tmp_path, "train", "indoor")
    assert isinstance(dataset, PanoInfinigen)
    assert_depth(dataset[0], room.depth, atol=0)
    with pytest.raises(FileNotFoundError, match="no PanoInfinigen test data"):
        open_dataset("PanoInfinigen", tmp_path, "test")


def test_outdoor_configurations():
    assert panoinfinigen_hub.CONFIGURATIONS["outdoor"] == ("nature", "urban")
    assert panoinfinigen_hub.MAX_DEPTH_M == {"indoor": 75.0, "nature": 75.0, "urban": 500.0}


# ---- one's own folder ---------------------------------------------------------------------------


def write_json(path: Path, **values) -> None:
    path.write_text(json.dumps(values))


@pytest.mark.parametrize("kind", ["png", "npy", "npz", "dpt"])
def test_folder_depth_files(kind, tmp_path, room):
    write_rgb(tmp_path / "rgb/a.b.png", room.rgb)
    path = tmp_path / f"depth/a.b.{kind}"
    path.parent.mkdir()
    millimetres = room.depth * 1000
    if kind == "png":
        write_png16(path, millimetres)
    elif kind == "dpt":
        write_dpt(path, millimetres)
    elif kind == "npy":
        path.write_bytes(encode_npy(millimetres.astype(np.float32)))
    else:
        np.savez_compressed(path, millimetres[None].astype(np.float32))  # as eval/<id>.npz
    write_json(tmp_path / "dataset.json", metres_per_unit=1e-3, depth_kind="euclidean")
    dataset = open_dataset("Folder", tmp_path)
    assert ids(dataset) == ["a.b"]
    assert_rgb(dataset[0], room)
    assert_depth(dataset[0], room.depth, atol=HALF_MM if kind == "png" else 1e-6)


def test_folder_planar_depth(tmp_path, room):
    """Along the axis of its cube face, a pixel's depth is its largest coordinate."""
    (tmp_path / "depth").mkdir()
    write_rgb(tmp_path / "rgb/a.png", room.rgb)
    points = room.directions * room.depth[..., None]
    np.save(tmp_path / "depth/a.npy", np.abs(points).max(-1))
    write_json(tmp_path / "dataset.json", metres_per_unit=1, depth_kind="planar")
    assert_depth(open_dataset("Folder", tmp_path)[0], room.depth, atol=1e-5)


@pytest.mark.parametrize("frame", ["pager", "rdf", "structured3d"])
@pytest.mark.parametrize("kind", ["png", "npy", "chw"])
def test_folder_normals(frame, kind, tmp_path, room):
    right, up, forward = np.moveaxis(room.normals, -1, 0)
    stored = {
        "pager": [forward, up, -right], "rdf": [right, -up, forward],
        "structured3d": [right, up, -forward],
    }[frame]  # fmt: skip
    stored = np.stack(stored, -1)
    write_rgb(tmp_path / "rgb/a.png", room.rgb)
    (tmp_path / "normals").mkdir()
    if kind == "png":
        write_rgb(tmp_path / "normals/a.png", ((stored + 1) * 127.5).round().astype(np.uint8))
    else:
        np.save(tmp_path / "normals/a.npy", np.moveaxis(stored, -1, 0) if kind == "chw" else stored)
    write_json(tmp_path / "dataset.json", normals_frame=frame)
    item = open_dataset("Folder", tmp_path)[0]
    assert set(item) == {"id", "rgb", "normals"}
    np.testing.assert_allclose(
        item["normals"].numpy(), room.pager_normals, atol=0.006 if kind == "png" else 1e-6
    )


def test_folder_of_images_alone(tmp_path, room):
    write_rgb(tmp_path / "b.jpg", room.rgb)
    write_rgb(tmp_path / "a.png", room.rgb)
    write_rgb(tmp_path / "train/c.png", room.rgb)
    dataset = open_dataset("Folder", tmp_path)
    assert ids(dataset) == ["a", "b"]
    assert check_sample(dataset[0], dataset_entry("Folder")) == {}
    assert ids(open_dataset("Folder", tmp_path, "train")) == ["c"]
    with pytest.raises(FileNotFoundError, match=r"val: no such folder"):
        open_dataset("Folder", tmp_path, "val")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"depth_kind": "euclidean"}, "metres_per_unit is missing; add it"),
        ({"depth_kind": "z", "metres_per_unit": 1}, "depth_kind is 'z'; use one of euclidean"),
        ({"depth_kind": "planar", "metres_per_unit": 0}, "metres_per_unit is 0; use a positive"),
        ({"depth_kind": "planar", "metres_per_unit": "mm"}, "metres_per_unit is 'mm'"),
        ([1], "depth_kind, metres_per_unit is missing"),
        (None, "no such file; it must state depth_kind, metres_per_unit"),
        ("{", "not JSON"),
    ],
)
def test_folder_must_state_its_units(values, message, tmp_path, room):
    write_rgb(tmp_path / "rgb/a.png", room.rgb)
    (tmp_path / "depth").mkdir()
    if values is not None:
        text = values if isinstance(values, str) else json.dumps(values)
        (tmp_path / "dataset.json").write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=rf"dataset\.json: {message}"):
        open_dataset("Folder", tmp_path)


def test_folder_files_that_cannot_be_read(tmp_path, room):
    for name in ("a", "b", "c", "d", "e"):
        write_rgb(tmp_path / f"rgb/{name}.png", room.rgb)
    depth = tmp_path / "depth"
    depth.mkdir()
    (depth / "a.npy").write_bytes(encode_npy(room.depth)[:-8])
    np.savez_compressed(depth / "b.npz", room.depth)
    (depth / "b.npz").write_bytes((depth / "b.npz").read_bytes()[:-100])
    np.save(depth / "c.npy", np.ones((*SIZE, 2)))
    np.save(depth / "d.npy", np.array([{"code": 1}], dtype=object), allow_pickle=True)
    write_json(tmp_path / "dataset.json", metres_per_unit=1, depth_kind="euclidean")
    dataset = open_dataset("Folder", tmp_path)
    for index, message in enumerate((
        r"a\.npy: not a readable array", r"b\.npz: not a readable array",
        r"c\.npy: depth has shape \(50, 100, 2\)", r"d\.npy: not a readable array",
    )):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            dataset[index]
    with pytest.raises(FileNotFoundError, match=r"depth/e\.png: no such file, nor \.npy"):
        dataset[4]


# ---- what all share -----------------------------------------------------------------------------


def written(name: str, root: Path, room: Room, count: int) -> tuple[str, list[Path], list[Path]]:
    """Write `count` panoramas; returns the split, the colour files and the depth files."""
    everywhere = np.ones(SIZE, bool)
    for i in range(count):
        match name:
            case "Matterport3D360":
                write_matterport(root, "val", "s", f"k{i}", room)
            case "Stanford2D3DS":
                write_stanford(root, "area_1", f"camera_{i}", room)
            case "ScannetPP":
                write_scannetpp(root, "val", f"s{i}", "a", room)
            case "Structured3D":
                write_structured3d(root, 3000 + i, "1", room)
            case "Replica360_4K":
                write_replica(root, "s", f"{i:04d}", room, everywhere)
    patterns = {
        "Matterport3D360": ("*_rgb.png", "*.dpt"), "Stanford2D3DS": ("*_rgb.png", "*_depth.png"),
        "ScannetPP": ("*.jpg", "*.png"), "Structured3D": ("rgb_*.png", "depth.png"),
        "Replica360_4K": ("*.jpg", "*.dpt"),
    }[name]  # fmt: skip
    split = "test" if DATASETS[name].splits == ("test",) else "val"
    colour, depth = (sorted(root.rglob(pattern)) for pattern in patterns)
    return split, colour, depth


FILE_DATA_SETS = [
    "Matterport3D360", "Stanford2D3DS", "ScannetPP", "Structured3D", "Replica360_4K",
]  # fmt: skip


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", FILE_DATA_SETS)
def test_bad_files_are_named_and_alone(name, tmp_path, room):
    split, colour, depth = written(name, tmp_path, room, 6)
    colour[0].write_bytes(colour[0].read_bytes()[:-200])
    depth[1].write_bytes(depth[1].read_bytes()[:-200])
    depth[2].unlink()
    write_rgb(colour[3], box_room(40, 100).rgb)
    wrong = box_room(40, 100).depth
    (write_dpt if depth[4].suffix == ".dpt" else write_png16)(depth[4], wrong)
    dataset = open_dataset(name, tmp_path, split)
    for index, path in enumerate((colour[0], depth[1], depth[2], colour[3], depth[4])):
        with pytest.raises((ValueError, FileNotFoundError), match=rf"^{path}: ") as caught:
            dataset[index]
        assert "\n" not in str(caught.value)
    assert_rgb(dataset[5], room, tolerance=8)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", FILE_DATA_SETS)
def test_eight_bit_depth_is_refused(name, tmp_path, room):
    split, _, depth = written(name, tmp_path, room, 1)
    depth[0].write_bytes(encode(".png", np.ones(SIZE, np.uint8)))
    with pytest.raises(ValueError, match=rf"^{depth[0]}: "):
        open_dataset(name, tmp_path, split)[0]


@pytest.mark.parametrize("name", ["Matterport3D360", "ScannetPP", "Structured3D"])
def test_thinned_validation(name, tmp_path):
    written(name, tmp_path, box_room(8), 24)
    full = open_dataset(name, tmp_path, "val")
    assert ids(open_dataset(name, tmp_path, "tiny_val")) == ids(full)[::3]


def test_thinning_stride():
    views = [files.View(str(i), Path()) for i in range(1000)]
    assert files.thin(views, "val", 10) == views
    assert files.thin(views, "tiny_val", 10) == views[::10]
    assert files.thin(views, "tiny_val", 50) == views[::50]
    assert files.thin(views[:4], "tiny_val", 50) == views[:4]
    assert (matterport3d360.TINY_VAL_STRIDE, scannetpp.TINY_VAL_STRIDE) == (10, 50)


def test_nearest_is_that_of_pillow():
    from PIL import Image

    array = np.random.default_rng(0).random((13, 26), dtype=np.float32)
    for size in ((7, 14), (40, 82), (13, 26)):  # no ties, where Pillow rounds at random
        expected = Image.fromarray(array).resize(size[::-1], Image.Resampling.NEAREST)
        assert np.array_equal(files.resize_nearest(array, size), np.array(expected))


def test_unknown_names():
    with pytest.raises(ValueError, match=r"'Replica' is unknown; use one of PanoInfinigen, .*\?$"):
        open_dataset("Replica", ".")
    with pytest.raises(ValueError, match="split 'tes' is unknown; use one of train, val, test"):
        open_dataset("Structured3D", ".", "tes")
    with pytest.raises(ValueError, match="scenes 'inside' is unknown"):
        open_dataset("PanoInfinigen", ".", "test", "inside")


def test_scenes_without_effect_are_reported(tmp_path, room, caplog):
    write_structured3d(tmp_path, 3250, "1", room)
    open_dataset("Structured3D", tmp_path, "test", "indoor")
    assert "does not tell indoor from outdoor" in caplog.text


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_nothing_on_disk(name, tmp_path):
    with pytest.raises(FileNotFoundError):
        open_dataset(name, tmp_path, "test")


# ---- validate_dataset.py ------------------------------------------------------------------------


def run(capsys, *flags: str) -> tuple[int, list[str], list[str]]:
    code = validate.main(list(flags))
    captured = capsys.readouterr()
    return code, captured.out.splitlines(), captured.err.splitlines()


def test_validator_on_sound_data(tmp_path, room, capsys):
    write_structured3d(tmp_path, 0, "1", room)
    write_structured3d(tmp_path, 3250, "1", room)
    flags = ["--data_path", str(tmp_path), "--dataset", "Structured3D"]
    code, out, err = run(capsys, *flags, "--json", str(tmp_path / "report.json"))
    assert (code, err) == (0, [])
    assert out == [f"Structured3D {split}: 1 panoramas, 0 bad" for split in ("train", "test")]
    report = json.loads((tmp_path / "report.json").read_text())
    test = report["splits"]["test"]
    assert (test["sizes"], test["bad"], test["panoramas"]) == ({"100x50": 1}, [], 1)
    assert test["depth_m"]["measured"] == 1.0
    assert test["depth_m"]["min"] == pytest.approx(room.depth.min(), abs=HALF_MM)
    assert test["depth_m"]["max"] == pytest.approx(room.depth.max(), abs=HALF_MM)


def test_validator_names_bad_files(tmp_path, room, capsys):
    folders = [write_structured3d(tmp_path, 3250 + i, "1", room) for i in range(8)]
    (folders[0] / "depth.png").unlink()
    write_png16(folders[1] / "depth.png", np.zeros(SIZE))
    write_png16(folders[2] / "depth.png", room.depth)  # metres where millimetres belong
    write_rgb(folders[3] / "normal.png", np.zeros((*SIZE, 3), np.uint8))
    turned = room._replace(normals=room.normals[..., [2, 1, 0]])  # right and forward exchanged
    write_structured3d(tmp_path, 3254, "1", turned)
    write_rgb(folders[5] / "rgb_rawlight.png", np.full((*SIZE, 3), 7, np.uint8))
    (folders[6] / "normal.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    flags = ["--data_path", str(tmp_path), "--dataset", "Structured3D", "--split", "test"]
    code, out, err = run(capsys, *flags, "--json", str(tmp_path / "r.json"))
    assert code == 1
    assert out == ["Structured3D test: 8 panoramas, 7 bad"]
    expected = [
        ("depth.png", "no such file"), ("depth.png", "depth has no measured pixel"),
        ("depth.png", "median depth is 0.00"), ("normal.png", "no pixel has a normal"),
        ("normal.png", "normals face away from the camera at"),
        ("rgb_rawlight.png", "the picture is one flat colour"),
        ("normal.png", "not a readable image"),
    ]  # fmt: skip
    assert len(err) == len(expected)
    for number, (line, (name, problem)) in enumerate(zip(err, expected, strict=True)):
        start = f"bad: test scene_0325{number}_1: {folders[number] / name}: {problem}"
        assert line.startswith(start)
    bad = json.loads((tmp_path / "r.json").read_text())["splits"]["test"]["bad"]
    assert [f"bad: test {item['id']}: {item['problem']}" for item in bad] == err


def test_validator_opens_the_lmdb_layout(tmp_path, room, capsys):
    normals = np.moveaxis(room.pager_normals, 0, -1)
    negative = room.depth.copy()
    negative[3, 4] = -1
    unit = normals.copy()
    unit[:10] *= 0.5
    high = box_room(54, 96)  # 16:9, as the private data set is stored, but not of its size
    frames = [
        Frame(room.rgb, room.depth, normals),
        Frame(room.rgb, negative, normals),
        Frame(room.rgb, room.depth, unit),
        Frame(high.rgb, high.depth, np.moveaxis(high.pager_normals, 0, -1)),
    ]
    folder = tmp_path / "PanoInfinigen/indoor/val"
    write_split(folder, [("s", frames)])
    with lmdb.open(str(folder / "shard_00000.lmdb")) as shard, shard.begin(write=True) as change:
        change.put(b"s/0004#rgb", b"JFIF")
        change.put(b"s/0004#depth", encode_npy(room.depth))
        change.put(b"s/0004#normal", b"")
        change.put(b"s/0005#rgb", encode(".png", room.rgb))
        change.put(b"s/0005#depth", b"")
        change.put(b"s/0005#normal", encode_npy(normals))
    index = np.empty((1, 3), dtype=object)
    index[:] = [[0, "s", 6]]
    np.save(folder / INDEX_NAME, index)
    code, out, err = run(capsys, "--data_path", str(tmp_path), "--dataset", "PanoInfinigen")
    assert (code, out) == (1, ["PanoInfinigen val: 6 panoramas, 5 bad"])
    for line, problem in zip(err, (
        "depth has 1 negative pixels", "normals are not of unit length at 20.0% of the pixels",
        "panorama is 96x54, width must be 2 x height", "s/0004#rgb: not a readable image",
        "No data left in file",
    ), strict=True):  # fmt: skip
        assert problem in line
        assert "shard_00000.lmdb" in line


@pytest.mark.parametrize(
    ("name", "size", "problem"),
    [
        ("PanoInfinigen", (2160, 3840), None),
        ("ScannetPP", (1284, 2572), None),
        ("ScannetPP", (2160, 3840), "panorama is 3840x2160, width must be 2 x height"),
    ],
)
def test_documented_rasters_are_sound(name, size, problem):
    rgb = torch.zeros(3, *size, dtype=torch.uint8)
    rgb[0, 0, 0] = 1
    found = check_sample({"id": "a", "rgb": rgb}, dataset_entry(name))
    assert found.get("rgb") == problem


def test_missing_maps_and_wrong_types_are_problems(room):
    entry = dataset_entry("Structured3D")
    rgb = torch.from_numpy(room.rgb).movedim(-1, 0)
    assert check_sample({"id": "a", "rgb": rgb}, entry) == {
        "depth": "depth is missing", "normals": "normals is missing",
    }  # fmt: skip
    assert "rgb is torch.float32" in check_sample({"id": "a", "rgb": rgb.float()}, entry)["rgb"]
    doubles = torch.from_numpy(room.depth)[None]
    normals = torch.from_numpy(room.pager_normals)
    problems = check_sample({"id": "a", "rgb": rgb, "depth": doubles, "normals": normals}, entry)
    assert "expected float32 (1, 50, 100)" in problems["depth"]
    assert "expected float32 (3, 50, 100)" in problems["normals"]
    normals = normals.float()
    normals[0, 0, 0] = torch.inf
    assert check_sample({"id": "a", "rgb": rgb, "depth": doubles.float(), "normals": normals}, entry) == {
        "normals": "normals are infinite"
    }  # fmt: skip


def test_validator_without_data(tmp_path, capsys):
    code, out, err = run(capsys, "--data_path", str(tmp_path), "--dataset", "Matterport3D360")
    assert (code, out) == (2, [])
    assert len(err) == 1
    assert "scenes_train.txt: no such file" in err[0]


def test_root_script(tmp_path, room):
    write_rgb(tmp_path / "PanoInTheWild/a.png", room.rgb)
    command = [sys.executable, str(ROOT / "validate_dataset.py"), "--dataset", "PanoInTheWild"]
    done = subprocess.run(
        [*command, "--data_path", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "PanoInTheWild test: 1 panoramas, 0 bad\n")


def test_help_needs_no_torch():
    script = "import sys; from pager.cli import validate; validate.build_parser(); print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"
