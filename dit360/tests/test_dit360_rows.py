"""Reading rows from every kind of source, checking them, and comparing sets by viewpoint."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dit360.cli.prepare_data import main
from dit360.data.check import check_rows, find_problem, preview_sheet
from dit360.data.overlap import find_overlap
from dit360.data.rows import find_uuid, longest_caption, open_rows, scan_rows
from shared_pano_utils.imageio import write_image

UUIDS = [f"{k:032x}" for k in range(6)]


def panorama(k: int, height: int = 16) -> np.ndarray:
    return np.random.default_rng(k).integers(0, 256, (height, 2 * height, 3), dtype=np.uint8)


def write_lines(path: Path, *records: object) -> Path:
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three panoramas with Matterport names, and a mask of the right half."""
    for k in range(3):
        write_image(tmp_path / f"{UUIDS[k]}_clean_big_dc.png", panorama(k))
    mask = np.zeros((16, 32), np.uint8)
    mask[:, 16:] = 255
    write_image(tmp_path / "mask.png", mask)
    return tmp_path


@pytest.fixture
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    library = pytest.importorskip("datasets")
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", str(tmp_path / "hf_cache"))
    library.disable_progress_bars()
    return library


def image_name(k: int) -> str:
    return f"{UUIDS[k]}_clean_big_dc.png"


# ---- jsonl --------------------------------------------------------------------------------------


def test_jsonl_rows(folder: Path) -> None:
    rows = open_rows(
        write_lines(
            folder / "a.jsonl",
            {"image": image_name(0), "caption": ["short", "the longest of them", "middle"]},
            "",
            {"file_name": str(folder / image_name(1)), "caption": " b ", "mask": "mask.png"},
        )
    )
    assert [row.caption for row in rows] == ["the longest of them", "b"]
    assert [row.uuid for row in rows] == UUIDS[:2]
    assert [row.where for row in rows] == ["a.jsonl line 1", "a.jsonl line 3"]
    assert np.array_equal(np.asarray(rows[1].read_image()), panorama(1))
    mask = rows[1].read_supervised()
    assert rows[0].read_supervised() is None
    assert mask is not None
    assert np.asarray(mask)[:, 16:].min() == 255
    assert np.asarray(mask)[:, :16].max() == 0


def test_paths_as_given_win_over_the_folder_of_the_file(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path_factory.mktemp("cwd")
    source = write_lines(folder / "a.jsonl", {"image": image_name(0), "caption": "a"})
    monkeypatch.chdir(elsewhere)
    assert np.array_equal(np.asarray(open_rows(source)[0].read_image()), panorama(0))
    write_image(elsewhere / image_name(0), panorama(9))
    assert np.array_equal(np.asarray(open_rows(source)[0].read_image()), panorama(9))


def test_bad_rows_are_named_in_one_line(folder: Path) -> None:
    good = {"image": image_name(0), "caption": "a"}
    source = write_lines(
        folder / "a.jsonl",
        good,
        "{torn",
        [1],
        {"image": "nowhere.png", "caption": "a"},
        {"image": image_name(1), "caption": "  "},
        {"caption": "a"},
        {"image": image_name(1), "caption": 3},
        {"image": image_name(1), "caption": "a", "mask": "none.png"},
    )
    rows, problems = scan_rows(source)
    assert len(rows) == 1
    assert [problem.where for problem in problems] == [f"a.jsonl line {k}" for k in range(2, 9)]
    reasons = ["not JSON", "not a JSON object", "nowhere.png does not exist", "is empty"]
    reasons += ["it needs image", "caption is 3", "mask none.png does not exist"]
    assert all(part in problem.reason for part, problem in zip(reasons, problems, strict=True))
    with pytest.raises(
        ValueError, match=r"^7 unusable rows: a.jsonl line 2: .*and 2 more; mend"
    ) as e:
        open_rows(source)
    assert "\n" not in str(e.value)
    with pytest.raises(ValueError, match=r"1 unusable rows: a.jsonl line 1: has no mask"):
        open_rows(write_lines(source, good), need_mask=True)


def test_encodings_of_jsonl(folder: Path) -> None:
    line = json.dumps({"image": image_name(0), "caption": "é"}, ensure_ascii=False)
    source = folder / "a.jsonl"
    source.write_text(f"{line}\r\n{line}\n", encoding="utf-8-sig")
    assert [row.caption for row in open_rows(source)] == ["é", "é"]
    source.write_text(f"{line}\n", encoding="latin-1")
    with pytest.raises(ValueError, match=r"unusable rows: a.jsonl line 1: not UTF-8 text \("):
        open_rows(source)


def test_sources_that_do_not_exist(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist; pass a folder"):
        open_rows(tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match=r"is a \.csv, expected \.jsonl"):
        open_rows(write_lines(tmp_path / "a.csv", "x"))
    with pytest.raises(ValueError, match="holds no row"):
        open_rows(write_lines(tmp_path / "a.jsonl"))


def test_longest_caption() -> None:
    assert longest_caption(["bb", "ccc", "a"]) == "ccc"
    for bad in ([], ["", " "], "", None, [1]):
        with pytest.raises(ValueError, match="caption is"):
            longest_caption(bad)


# ---- folders and tables -------------------------------------------------------------------------


def test_image_folder_with_metadata(folder: Path) -> None:
    write_lines(folder / "metadata.jsonl", {"file_name": image_name(2), "caption": "c"})
    (row,) = open_rows(folder)
    assert (row.caption, row.uuid) == ("c", UUIDS[2])


def test_table_uses_the_split_train(folder: Path, datasets) -> None:
    """D1: the released mix training indexes the DatasetDict itself and cannot start."""
    values = {
        "image": [str(folder / image_name(k)) for k in range(3)],
        "caption": ["a", "b", "c"],
    }
    table = datasets.Dataset.from_dict(values).cast_column("image", datasets.Image())
    table.to_parquet(folder / "t.parquet")
    rows = open_rows(folder / "t.parquet")
    assert [row.caption for row in rows] == ["a", "b", "c"]
    assert [row.uuid for row in rows] == UUIDS[:3]
    for k, row in enumerate(rows):
        assert np.array_equal(np.asarray(row.read_image()), panorama(k))
    datasets.DatasetDict({"train": table.select([1])}).save_to_disk(folder / "saved")
    (row,) = open_rows(folder / "saved")
    assert (row.caption, row.uuid) == ("b", UUIDS[1])
    datasets.DatasetDict({"test": table}).save_to_disk(folder / "other")
    with pytest.raises(ValueError, match="needs 'train'"):
        open_rows(folder / "other")


def test_table_with_paths_and_masks(folder: Path, datasets) -> None:
    values = {
        "image": [image_name(0), image_name(1)],
        "caption": [["a", "longer"], ["b"]],
        "mask": ["mask.png", None],
    }
    datasets.Dataset.from_dict(values).to_parquet(folder / "t.parquet")
    rows = open_rows(folder / "t.parquet")
    assert [row.caption for row in rows] == ["longer", "b"]
    assert np.array_equal(np.asarray(rows[1].read_image()), panorama(1))
    assert [row.read_supervised() is None for row in rows] == [False, True]
    with pytest.raises(ValueError, match=r"row 1: has no mask"):
        open_rows(folder / "t.parquet", need_mask=True)
    datasets.Dataset.from_dict({"picture": ["a"], "caption": ["b"]}).to_parquet(
        folder / "u.parquet"
    )
    with pytest.raises(ValueError, match="has the columns picture, caption"):
        open_rows(folder / "u.parquet")
    (folder / "v.parquet").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"v.parquet cannot be loaded as a data set \("):
        open_rows(folder / "v.parquet")


# ---- checking -----------------------------------------------------------------------------------


def test_check_finds_every_kind_of_damage(folder: Path) -> None:
    write_image(folder / "wide.png", np.zeros((16, 40, 3), np.uint8))
    write_image(folder / "tall_mask.png", np.full((32, 32), 255, np.uint8))
    write_image(folder / "dark_mask.png", np.full((16, 32), 128, np.uint8))
    whole = (folder / image_name(0)).read_bytes()
    (folder / "torn.png").write_bytes(whole[: len(whole) // 2])
    masks = [None, None, None, "tall_mask.png", "dark_mask.png", "mask.png"]
    images = [image_name(0), "wide.png", "torn.png", *[image_name(1)] * 3]
    records = [
        {"image": image, "caption": "a", "mask": mask}
        for image, mask in zip(images, masks, strict=True)
    ]
    source = write_lines(folder / "a.jsonl", *records)
    rows = open_rows(source)  # the files exist, so only decoding tells
    reasons = [find_problem(row) for row in rows]
    assert reasons[0] is None
    assert reasons[5] is None
    assert "40x16, its width must be twice" in str(reasons[1])
    assert "not a readable image" in str(reasons[2])
    assert "mask is 32x32" in str(reasons[3])
    assert "nowhere white" in str(reasons[4])
    report = folder / "report.txt"
    with pytest.raises(ValueError, match=r"4 unusable rows: .* \(all in .*report.txt\)"):
        check_rows(rows, report=report)
    assert len(report.read_text().splitlines()) == 4
    check_rows([rows[0], rows[5]], report=folder / "none.txt")
    assert not (folder / "none.txt").exists()


def test_check_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_lines(
        folder / "a.jsonl",
        {"image": image_name(0), "caption": "a", "mask": "mask.png"},
        {"image": "gone.png", "caption": "a"},
    )
    report, sheet = folder / "report.txt", folder / "sheet.png"
    argv = ["check", str(source), "--report", str(report), "--preview", str(sheet)]
    assert main(argv) == 1
    shown = capsys.readouterr()
    assert "1 usable rows, 1 unusable" in shown.out
    assert "a.jsonl line 2: image gone.png does not exist" in shown.err
    assert report.read_text().count("\n") == 1
    assert sheet.is_file()
    write_lines(source, {"image": image_name(0), "caption": "a"})
    assert main(["check", str(source), "--quick"]) == 0
    assert main(["check", str(source), "--perspective", "--quick"]) == 1


def test_preview_dims_what_is_not_supervised(folder: Path) -> None:
    write_image(folder / "grey.png", np.full((16, 32, 3), 200, np.uint8))
    source = write_lines(
        folder / "a.jsonl", {"image": "grey.png", "caption": "a " * 200, "mask": "mask.png"}
    )
    sheet = preview_sheet(open_rows(source), height=64)
    assert sheet.shape[2] == 3
    assert np.array_equal(np.unique(sheet[:64, :64]), [50])
    assert np.array_equal(np.unique(sheet[:64, 64:128]), [200])


# ---- overlap ------------------------------------------------------------------------------------


def test_uuid_of_file_names() -> None:
    assert find_uuid(f"x/{UUIDS[3]}_clean_big_dc.png") == UUIDS[3]
    assert find_uuid(f"{UUIDS[3]}.png") == UUIDS[3]
    assert find_uuid(UUIDS[3]) == UUIDS[3]
    assert find_uuid(f"{UUIDS[3]}0_clean.png") is None
    assert find_uuid("panorama.png") is None


def test_overlap_of_a_list_and_a_data_set(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = [{"image": image_name(k), "caption": "a"} for k in range(3)]
    source = write_lines(folder / "a.jsonl", *records)
    listed = write_lines(folder / "test.txt", UUIDS[2], f"{UUIDS[5]}.png", "not_an_id.png")
    overlap = find_overlap(source, listed)
    assert overlap.shared == [UUIDS[2]]
    assert (overlap.second.total, len(overlap.second.uuids)) == (3, 2)
    assert find_overlap(folder, listed).shared == [UUIDS[2]]
    assert main(["overlap", str(source), str(listed), "--list"]) == 0
    assert UUIDS[2] in capsys.readouterr().out
    assert main(["overlap", str(source), str(listed), "--fail"]) == 1
    assert main(["overlap", str(source), str(write_lines(listed, UUIDS[4])), "--fail"]) == 0
    write_lines(listed, "a.png")
    assert main(["overlap", str(source), str(listed)]) == 2
    assert "none of the 1 images" in capsys.readouterr().err


def test_images_of_palette_and_grey_become_colour(folder: Path) -> None:
    grey = Image.fromarray(panorama(0)[..., 0])
    grey.save(folder / "grey.png")
    source = write_lines(folder / "a.jsonl", {"image": "grey.png", "caption": "a"})
    image = open_rows(source)[0].read_image()
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image)[..., 1], panorama(0)[..., 0])
