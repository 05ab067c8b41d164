"""PanoInfinigen on disk: round trip, hostile or damaged files, splits, frames."""

import io
import os
import pickle
from pathlib import Path

import lmdb
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from pager.cli import procedural
from pager.data.panoinfinigen import INDEX_NAME, Frame, PanoInfinigen, stack_samples, write_split
from pager.data.procedural import KINDS, render_frame, split_seeds, write_procedural
from pager.geometry import erp_directions


def make_frame(value: int, size: tuple[int, int] = (16, 32)) -> Frame:
    generator = np.random.default_rng(value)
    normals = generator.normal(size=(*size, 3)).astype(np.float32)
    return Frame(
        rgb=generator.integers(0, 256, (*size, 3), dtype=np.uint8),
        depth=generator.uniform(0.1, 70, size).astype(np.float32),
        normals=normals / np.linalg.norm(normals, axis=-1, keepdims=True),
    )


@pytest.fixture
def written(tmp_path: Path) -> tuple[Path, dict[str, Frame]]:
    """Two indoor scenes with two and one views, one outdoor scene; frames by item id."""
    frames = {
        "train_shard00000_a41c9e_view0000": make_frame(1),
        "train_shard00000_a41c9e_view0001": make_frame(2),
        "train_shard00000_b7_view0000": make_frame(3),
        "train_shard00000_park_view0000": make_frame(4),
    }
    first, second, third, park = frames.values()
    root = tmp_path / "PanoInfinigen"
    assert write_split(root / "indoor/train", [("a41c9e", [first, second]), ("b7", [third])]) == 3
    assert write_split(root / "outdoor/train", [("park", [park])]) == 1
    return tmp_path, frames


def write_index(folder: Path, rows: list[list]) -> None:
    index = np.empty((len(rows), 3), dtype=object)
    index[:] = rows
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / INDEX_NAME, index, allow_pickle=True)


# ---- round trip ---------------------------------------------------------------------------------


def test_round_trip(written):
    root, frames = written
    dataset = PanoInfinigen(root, "train")
    assert [view.id for view in dataset.views] == list(frames)
    for item, (name, frame) in zip((dataset[i] for i in range(4)), frames.items(), strict=True):
        assert item["id"] == name
        assert torch.equal(item["rgb"], torch.from_numpy(frame.rgb).movedim(-1, 0))
        assert torch.equal(item["depth"], torch.from_numpy(frame.depth)[None])
        normals = torch.from_numpy(frame.normals).movedim(-1, 0)
        torch.testing.assert_close(item["normals"], normals, atol=1e-3, rtol=0)  # stored as float16
        assert item["depth"].dtype == item["normals"].dtype == torch.float32


@pytest.mark.parametrize(("scenes", "count"), [("indoor", 3), ("outdoor", 1), ("both", 4)])
def test_scenes(scenes, count, written):
    assert len(PanoInfinigen(written[0], "train", scenes)) == count


def test_one_of_the_two_folders_is_enough(written):
    root, _ = written
    (root / "PanoInfinigen/outdoor/train" / INDEX_NAME).unlink()
    assert len(PanoInfinigen(root, "train")) == 3
    with pytest.raises(FileNotFoundError, match="no PanoInfinigen train data"):
        PanoInfinigen(root, "train", "outdoor")


def test_layout_of_the_original(tmp_path):
    """Two shards, JPEG colour, float64 depth: read although we write neither."""
    folder = tmp_path / "PanoInfinigen/indoor/val"
    frame = make_frame(5)
    for shard, scene in ((3, "a41c9e"), (12, "ff")):
        path = folder / f"shard_{shard:05d}.lmdb"
        path.mkdir(parents=True)
        environment = lmdb.open(str(path), map_size=1 << 24)
        with environment, environment.begin(write=True) as transaction:
            buffer = io.BytesIO()
            Image.fromarray(frame.rgb).save(buffer, "JPEG", quality=95)
            transaction.put(f"{scene}/0000#rgb".encode(), buffer.getvalue())
            arrays = {"depth": frame.depth.astype(np.float64), "normal": frame.normals}
            for name, array in arrays.items():
                buffer = io.BytesIO()
                np.save(buffer, array)
                transaction.put(f"{scene}/0000#{name}".encode(), buffer.getvalue())
    write_index(folder, [[3, "a41c9e", 1], [12, "ff", 1]])
    dataset = PanoInfinigen(tmp_path, "val")
    assert [view.id for view in dataset.views] == [
        "val_shard00003_a41c9e_view0000", "val_shard00012_ff_view0000",
    ]  # fmt: skip
    for item in (dataset[0], dataset[1]):
        assert np.array_equal(item["depth"][0].numpy(), frame.depth)
        assert item["depth"].dtype == torch.float32


def test_workers_read_what_the_parent_reads(written):
    dataset = PanoInfinigen(written[0], "train")
    alone = dataset[0]  # opens the shard before the workers start
    loader = DataLoader(dataset, 2, collate_fn=stack_samples, num_workers=1)
    batches = list(loader)
    assert torch.equal(batches[0]["rgb"][0], alone["rgb"])
    assert [name for batch in batches for name in batch["id"]] == list(written[1])
    assert torch.equal(dataset[0]["rgb"], alone["rgb"])
    second = PanoInfinigen(written[0], "train")  # the same shards, open already
    assert torch.equal(second[0]["rgb"], alone["rgb"])
    copy = pickle.loads(pickle.dumps(dataset))  # noqa: S301 (our own bytes)
    assert torch.equal(copy[0]["depth"], alone["depth"])


def test_rewritten_split_is_read_anew(tmp_path):
    folder = tmp_path / "PanoInfinigen/indoor/train"
    for value in (1, 2):
        frame = make_frame(value)
        write_split(folder, [("s", [frame])])
        depth = PanoInfinigen(tmp_path, "train")[0]["depth"]
        assert np.array_equal(depth[0].numpy(), frame.depth)


def test_thinned_validation(tmp_path):
    frames = [make_frame(0)] * 20
    write_split(tmp_path / "PanoInfinigen/indoor/val", [("s", frames)])
    full, thinned = PanoInfinigen(tmp_path, "val"), PanoInfinigen(tmp_path, "tiny_val")
    assert len(full) == 20
    assert [v.id for v in thinned.views] == [v.id for v in full.views[::2]]


def test_batches_of_different_sizes_are_refused(tmp_path):
    frames = [make_frame(0), make_frame(1, (18, 36))]
    write_split(tmp_path / "PanoInfinigen/indoor/train", [("s", frames)])
    dataset = PanoInfinigen(tmp_path, "train")
    with pytest.raises(ValueError, match=r"different sizes .* in one batch; use --batch_size 1"):
        stack_samples([dataset[0], dataset[1]])


# ---- hostile and damaged files ------------------------------------------------------------------


class _Attack:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("where", ["element", "whole file"])
def test_index_with_code_is_refused(where, tmp_path):
    folder, trace = tmp_path / "PanoInfinigen/indoor/train", tmp_path / "executed"
    if where == "element":
        write_index(folder, [[0, _Attack(trace), 1]])
    else:
        folder.mkdir(parents=True)
        (folder / INDEX_NAME).write_bytes(pickle.dumps(_Attack(trace)))
    with pytest.raises(ValueError, match="is not a PanoInfinigen index"):
        PanoInfinigen(tmp_path, "train")
    assert not trace.exists()


@pytest.mark.parametrize("function", ["numpy.load", "numpy.testing.runstring", "builtins.eval"])
def test_index_with_functions_of_numpy_is_refused(function, tmp_path):
    folder = tmp_path / "PanoInfinigen/indoor/train"
    write_index(folder, [[0, "s", 1]])
    data = (folder / INDEX_NAME).read_bytes()
    header = data[: data.index(b"\n") + 1]
    module, name = function.rsplit(".", 1)
    body = b"c" + module.encode() + b"\n" + name.encode() + b"\n(Vpass\ntR."
    (folder / INDEX_NAME).write_bytes(header + body)
    with pytest.raises(ValueError, match="has no place in a PanoInfinigen index"):
        PanoInfinigen(tmp_path, "train")


@pytest.mark.parametrize("damage", ["empty", "truncated", "text"])
def test_damaged_index(damage, written):
    root, _ = written
    path = root / "PanoInfinigen/indoor/train" / INDEX_NAME
    content = {"empty": b"", "truncated": path.read_bytes()[:-20], "text": b"shard scene views"}
    path.write_bytes(content[damage])
    with pytest.raises(ValueError, match=r"index.npy is not a PanoInfinigen index"):
        PanoInfinigen(root, "train")


def test_index_of_strings_is_read(written):
    root, _ = written
    path = root / "PanoInfinigen/indoor/train" / INDEX_NAME
    np.save(path, np.array([["0", "b7", "1"]]))
    assert [v.id for v in PanoInfinigen(root, "train", "indoor").views] == [
        "train_shard00000_b7_view0000"
    ]


def test_missing_entry_names_the_key(written):
    root, _ = written
    write_index(root / "PanoInfinigen/indoor/train", [[0, "b7", 2]])
    with pytest.raises(ValueError, match=r"shard_00000.lmdb: no entry b7/0001#rgb; rebuild"):
        PanoInfinigen(root, "train", "indoor")[1]


# ---- procedural data ----------------------------------------------------------------------------


def test_splits_and_kinds_never_share_a_scene():
    count = 100_000  # as many as a split of one seed can hold
    chosen = [
        seed for split in ("train", "val", "test") for kind in KINDS
        for seed in split_seeds(split, kind, count)
    ]  # fmt: skip
    assert len(set(chosen)) == len(chosen) == 9 * count
    other = {s for kind in KINDS for s in split_seeds("train", kind, count, seed=9)}
    assert other.isdisjoint(chosen)


def test_frames_are_measurements_in_the_pager_frame():
    directions = erp_directions((32, 64)).numpy()
    for kind in KINDS:
        frame = render_frame(split_seeds("train", kind, 1)[0], kind, 0, (32, 64))
        assert (frame.rgb.shape, frame.rgb.dtype) == ((32, 64, 3), np.uint8)
        assert frame.depth.shape == (32, 64)
        surface = np.isfinite(frame.depth)
        assert surface.mean() > (0.4 if kind == "outdoor" else 0.9999)
        assert frame.depth[surface].min() > 0.1
        lengths = np.linalg.norm(frame.normals, axis=-1)
        np.testing.assert_allclose(lengths[surface], 1, atol=1e-5)
        facing = np.einsum("hwc,chw->hw", frame.normals, directions)
        assert facing[surface].max() < 1e-3  # surfaces face the camera
        floor = frame.normals[-1]  # below the camera: up is the second axis
        assert floor[:, 1].min() > 0.99
        assert directions[1, -1].max() < -0.99


def test_written_data_is_the_rendered_data(data_path):
    dataset = PanoInfinigen(data_path, "train")
    seed = split_seeds("train", "corridor", 1)[0]
    index = next(i for i, v in enumerate(dataset.views) if f"corridor{seed:08d}" in v.id)
    frame, item = render_frame(seed, "corridor", 0, (32, 64)), dataset[index]
    assert np.array_equal(item["rgb"].movedim(0, -1).numpy(), frame.rgb)
    assert np.array_equal(item["depth"][0].numpy(), frame.depth)


def test_finished_splits_are_kept(tmp_path, capsys):
    flags = ["--data_path", str(tmp_path), "--rooms", "1", "--corridors", "0", "--outdoors", "1",
             "--height", "16", "--views", "2"]  # fmt: skip
    assert procedural.main(flags) == 0
    assert "4 panoramas written below" in capsys.readouterr().out
    index = tmp_path / "PanoInfinigen/indoor/train" / INDEX_NAME
    before = index.stat().st_mtime_ns
    (tmp_path / "PanoInfinigen/outdoor/train" / INDEX_NAME).unlink()  # as after a killed run
    assert procedural.main(flags) == 0
    assert "2 panoramas written below" in capsys.readouterr().out
    assert index.stat().st_mtime_ns == before
    assert procedural.main([*flags, "--overwrite"]) == 0
    assert len(PanoInfinigen(tmp_path, "train")) == 4
    assert procedural.main([*flags, "--height", "3"]) == 2
    assert "need height >= 16" in capsys.readouterr().err


def test_interrupted_rendering_leaves_no_split(tmp_path, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("stopped")

    monkeypatch.setattr("pager.data.procedural.render_scene", broken)
    counts = {"room": 1}
    with pytest.raises(RuntimeError, match="stopped"):
        write_procedural(tmp_path, split="train", scenes_per_kind=counts, size=(16, 32))  # type: ignore[arg-type]
    assert not list(tmp_path.rglob(INDEX_NAME))
    monkeypatch.undo()
    assert (
        write_procedural(tmp_path, split="train", scenes_per_kind={"room": 1}, size=(16, 32)) == 1
    )
    assert len(PanoInfinigen(tmp_path, "train")) == 1
