"""`prepare_dataset.py`: which frames are taken, from which files, and what a second run does."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from genex_explorer.cli.prepare import build_parser, main
from genex_explorer.data import extract
from genex_explorer.data.clips import find_clips
from genex_explorer.data.extract import (
    ClipJob,
    ExtractOptions,
    extract_clip,
    extract_clips,
    frame_indices,
)
from genex_explorer.data.procedural import ClipOptions, write_clips
from genex_explorer.data.sources import find_scenes, scene_key
from genex_explorer.embedded import TINY_FRAMES, TINY_HEIGHT, TINY_WIDTH
from genex_explorer.video import read_video, write_video
from shared_pano_utils.imageio import read_image
from shared_pano_utils.metadata import read_gpano

GREY_STEP = 4  # grey of frame i is 4 i: H.264 and JPEG move it by less than half of that
ROOT = Path(__file__).parents[1]


def write_greys(path: Path, count: int, size: tuple[int, int] = (32, 16)) -> bytes:
    """A video whose frames tell their index."""
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = size
    greys = np.arange(count, dtype=np.uint8) * GREY_STEP
    frames = np.broadcast_to(greys[:, None, None, None], (count, height, width, 3))
    mp4 = path.with_suffix(".mp4")
    write_video(mp4, frames, fps=10, spherical=False)
    mp4.replace(path)
    return path.read_bytes()


def taken(folder: Path) -> list[int]:
    """Frame indices a clip was made of, read from its pixels in the order of the names."""
    files = next(iter(find_clips(folder))).frames
    return [round(read_image(path).mean() / GREY_STEP) for path in files]


def prepare(root: Path, *flags: object, frames: int = 5, workers: int = 1) -> int:
    return main(
        ["--dataset_path", str(root), "--frames_per_video", str(frames), "--image_size", "32", "16",
         "--num_workers", str(workers), *map(str, flags)]
    )  # fmt: skip


def summary(root: Path) -> dict:
    return json.loads((root / "prepare_summary.json").read_text())["scenes"]


def counts(root: Path, scene: str) -> tuple[int, ...]:
    return tuple(summary(root)[scene][status] for status in extract.STATUSES)


# ---- which frames (spec 11.1, row 17) -----------------------------------------------------------


def test_indices_of_the_original():
    assert frame_indices(100, 50) == list(range(0, 100, 2))
    assert frame_indices(75, 50)[:6] == [0, 1, 3, 4, 6, 7]
    assert frame_indices(75, 50)[-1] == 73
    assert frame_indices(50, 50) == list(range(50))
    assert frame_indices(7, 50) == list(range(7))


@given(total=st.integers(1, 10_000), count=st.integers(1, 200))
def test_indices_rise_from_the_first_frame(total: int, count: int):
    indices = frame_indices(total, count)
    assert len(indices) == min(total, count)
    assert indices[0] == 0
    assert indices[-1] < total
    steps = np.diff(indices)
    assert set(steps) <= {total // count, -(-total // count)} or total <= count
    assert (steps > 0).all()


@pytest.mark.parametrize("suffix", [".mp4", ".MOV"])
def test_frames_of_a_video(tmp_path: Path, suffix: str):
    write_greys(tmp_path / f"Anime/a{suffix}", 12)
    assert prepare(tmp_path, "--scene_types", "anime") == 0
    assert taken(tmp_path / "anime") == [0, 2, 4, 7, 9]
    record = json.loads((tmp_path / "anime/video_00000/source.json").read_text())
    assert record["video"] == f"Anime/a{suffix}"
    assert (record["total"], record["frames"]) == (12, [0, 2, 4, 7, 9])


@pytest.mark.parametrize(("suffix", "codec"), [("mkv", "libx264"), ("avi", "mpeg4")])
def test_other_containers(tmp_path: Path, suffix: str, codec: str):
    (tmp_path / "anime").mkdir()
    with av.open(str(tmp_path / f"anime/a.{suffix}"), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 16, "yuv420p"
        for grey in range(0, 12 * GREY_STEP, GREY_STEP):
            image = np.full((16, 32, 3), grey, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    assert prepare(tmp_path, "--scene_types", "anime") == 0
    assert taken(tmp_path / "anime") == [0, 2, 4, 7, 9]


@pytest.mark.parametrize("claimed", [9, 40])
def test_a_wrong_count_is_corrected(tmp_path: Path, monkeypatch, claimed: int):
    source = tmp_path / "a.mp4"
    write_greys(source, 12)
    monkeypatch.setattr(extract, "_count_packets", lambda _: claimed)
    job = ClipJob(scene="anime", number=0, video="a.mp4", folder=tmp_path / "clip")
    options = ExtractOptions(frames_per_video=5, size=(32, 16))
    assert extract_clip(job, source, options).status == "ok"
    assert taken(tmp_path / "clip") == [0, 2, 4, 7, 9]


# ---- pixels -------------------------------------------------------------------------------------


def test_frames_are_those_of_the_decoder(tmp_path: Path):
    write_clips(tmp_path, {"room": 1}, options=ClipOptions(frames=3, size=(64, 32), step_m=0.2,
                                                           file_format="mp4"))  # fmt: skip
    assert prepare(tmp_path, "--scene_types", "room", "--layout", "flat", frames=3) == 0
    video = read_video(tmp_path / "room/video_00000.mp4")
    for k, frame in enumerate(video):
        small = Image.fromarray(frame).resize((32, 16), Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(read_image(tmp_path / f"room_video0/{k}.png"), small)


def test_fine_detail_is_averaged_not_aliased(tmp_path: Path):
    columns = (np.arange(256) % 3 == 0) * np.uint8(255)  # mean 85; every 8th column: 0 or 255
    frames = np.broadcast_to(columns[None, None, :, None], (2, 128, 256, 3))
    (tmp_path / "anime").mkdir()
    write_video(tmp_path / "anime/a.mp4", frames, fps=10)
    assert prepare(tmp_path, "--scene_types", "anime", frames=2) == 0
    image = read_image(tmp_path / "anime/video_00000/frame_0001.jpg").astype(float)
    assert abs(image.mean() - 85) < 3
    assert image.std() < 12


@pytest.mark.parametrize(("size", "is_panorama"), [((64, 32), True), ((64, 36), False)])
def test_only_full_panoramas_are_marked(tmp_path: Path, size: tuple[int, int], is_panorama: bool):
    write_greys(tmp_path / "anime/a.mp4", 2)
    prepare(tmp_path, "--scene_types", "anime", "--image_size", *size, frames=2)
    frame = tmp_path / "anime/video_00000/frame_0002.jpg"
    assert read_image(frame).shape == (size[1], size[0], 3)
    assert bool(read_gpano(frame)) == is_panorama


# ---- finding scenes and videos ------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Real-World", "real_world", "REAL WORLD", "RealWorld"])
def test_scene_names(name: str):
    assert scene_key(name) == "realworld"


def test_videos_are_numbered_in_natural_order(tmp_path: Path):
    for name in ("clip10.mp4", "clip9.mp4", "CLIP2.MP4", "._clip1.mp4", "notes.txt"):
        (tmp_path / "Anime").mkdir(exist_ok=True)
        (tmp_path / "Anime" / name).touch()
    (scene,) = find_scenes(tmp_path, ["anime"])
    assert [video.path.name for video in scene.videos] == ["CLIP2.MP4", "clip9.mp4", "clip10.mp4"]


def test_the_command_of_the_documentation(tmp_path: Path):
    write_clips(tmp_path / "p", {"room": 2}, options=ClipOptions(frames=6, size=(64, 32),
                                                                 step_m=0.1, file_format="mp4"))  # fmt: skip
    for scene in ("Realistic", "Low-Texture", "Anime", "Real-World"):
        (tmp_path / "db" / scene).mkdir(parents=True)
        for number in range(2):
            video = tmp_path / f"p/room/video_{number:05d}.mp4"
            (tmp_path / "db" / scene / f"walk {number}.mp4").write_bytes(video.read_bytes())
    out = tmp_path / "Genex-DB"
    assert main(
        ["--dataset_path", str(tmp_path / "db"), "--output_dir", str(out), "--scene_types",
         "realistic", "low_texture", "anime", "real_world", "--frames_per_video", "4",
         "--num_workers", "2", "--image_size", "64", "36"]
    ) == 0  # fmt: skip
    clips = find_clips(out, strict_frames=4)
    scenes = ("anime", "low_texture", "real_world", "realistic")
    assert [clip.id for clip in clips] == [f"{s}/video_0000{i}" for s in scenes for i in (0, 1)]
    assert [path.name for path in clips[0].frames] == [f"frame_000{k}.jpg" for k in (1, 2, 3, 4)]
    assert all(counts(out, scene) == (2, 0, 0, 0) for scene in scenes)
    assert not [path for path in out.rglob("*") if ".tmp" in path.name]


def test_processes_do_not_change_the_result(tmp_path: Path):
    for name, count in (("a", 12), ("b", 9), ("c", 3), ("d", 5)):
        write_greys(tmp_path / f"anime/{name}.mp4", count)
    (tmp_path / "anime/bb.mp4").write_bytes(b"no video")
    for workers in (1, 2):
        flags = ("--scene_types", "anime", "--output_dir", tmp_path / str(workers))
        assert prepare(tmp_path, *flags, workers=workers) == 1
    one, two = (
        {p.relative_to(tmp_path / n): p.read_bytes() for p in (tmp_path / n).rglob("*.jpg")}
        for n in ("1", "2")
    )
    assert one == two
    assert len(one) == 15
    assert summary(tmp_path / "1")["anime"]["problems"] == [
        {**p, "clip": p["clip"].replace(str(tmp_path / "2"), str(tmp_path / "1"))}
        for p in summary(tmp_path / "2")["anime"]["problems"]
    ]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--scene_types", "geometry"], "no scene geometry; found: Anime, data2, rows; choose by"),
        (["--scene_types", "anime", "Anime"], "'anime' is given twice"),
        (["--scene_types", "../anime"], "is no folder name"),
        (["--scene_types", "rows"], "no column 'video', only id, clip"),
        (["--image_size", "0", "16"], "at least 1"),
        (["--frames_per_video", "0"], "--frames_per_video 0: use 1 or more"),
        (["--num_workers", "0"], "--num_workers 0: use 1 or more"),
        (["--dataset_path", "nowhere"], "--dataset_path nowhere is not a folder"),
        (["--scene_types", "data2"], "both"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, capfd, flags: list[str], message: str):
    (tmp_path / "Anime").mkdir()
    (tmp_path / "Anime/a.mp4").touch()
    (tmp_path / "rows.csv").write_text("id,clip\n1,a.mp4\n")
    (tmp_path / "data2").mkdir()
    (tmp_path / "data2/a.mp4").touch()
    (tmp_path / "Data-2.csv").write_text("video\na.mp4\n")
    assert main(["--dataset_path", str(tmp_path), "--scene_types", "anime", *flags]) == 2
    error = capfd.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error


# ---- rows of files ------------------------------------------------------------------------------


@pytest.fixture
def videos(tmp_path: Path) -> list[bytes]:
    """Videos of 5, 6, 7 frames: the last frame taken of five tells them apart."""
    return [write_greys(tmp_path / f"videos/{count}.mp4", count) for count in (5, 6, 7)]


LAST_FRAMES = [4, 4, 5]  # floor(4 * total / 5)
TOTALS = [5, 6, 7]


def totals(folder: Path) -> list[int]:
    records = sorted(folder.glob("video_*/source.json"))
    return [json.loads(path.read_text())["total"] for path in records]


def as_struct(data: list[bytes]) -> pa.Array:
    return pa.array([{"bytes": value, "path": "x.mp4"} for value in data])


@pytest.mark.parametrize("with_struct", [True, False])
@pytest.mark.parametrize("group", [1, 2, 3])
def test_parquet(tmp_path: Path, videos, with_struct: bool, group: int):
    column = as_struct(videos) if with_struct else pa.array(videos)
    table = pa.table({"id": [1, 2, 3], "video": column})
    pq.write_table(table, tmp_path / "low_texture.parquet", row_group_size=group)
    assert prepare(tmp_path, "--scene_types", "low_texture") == 0
    assert totals(tmp_path / "low_texture") == TOTALS
    assert [clip[-1] for clip in _taken_all(tmp_path / "low_texture")] == LAST_FRAMES
    # One row in the middle again: the others are passed over, in whatever group they are.
    (tmp_path / "low_texture/video_00001/frame_0001.jpg").unlink()
    assert prepare(tmp_path, "--scene_types", "low_texture") == 0
    assert counts(tmp_path, "low_texture") == (1, 2, 0, 0)
    assert totals(tmp_path / "low_texture") == TOTALS


def _taken_all(folder: Path) -> list[list[int]]:
    return [taken(path) for path in sorted(folder.glob("video_*"))]


@pytest.mark.parametrize(
    "names",
    [
        ["data/anime-00000-of-00002.parquet", "data/anime-00001-of-00002.parquet"],
        ["Anime/train-2.parquet", "Anime/train-10.parquet"],
        ["anime-00000-of-00002.parquet", "anime-00001-of-00002.parquet"],
    ],
)
def test_shards(tmp_path: Path, videos, names: list[str]):
    for name, rows in zip(names, (videos[:2], videos[2:]), strict=True):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pq.write_table(pa.table({"video": as_struct(rows)}), tmp_path / name)
    assert prepare(tmp_path, "--scene_types", "anime") == 0
    assert totals(tmp_path / "anime") == TOTALS


def test_arrow_of_save_to_disk(tmp_path: Path, videos):
    table = pa.table({"video": as_struct(videos)})
    (tmp_path / "anime").mkdir()
    with pa.ipc.new_stream(tmp_path / "anime/data-00000-of-00001.arrow", table.schema) as stream:
        stream.write_table(table, max_chunksize=2)
    assert prepare(tmp_path, "--scene_types", "anime", "--output_dir", tmp_path / "out") == 0
    assert totals(tmp_path / "out/anime") == TOTALS


def test_csv_with_paths_bytes_and_structs(tmp_path: Path, videos):
    with (tmp_path / "anime.csv").open("w", newline="") as file:
        rows = ["videos/5.mp4", repr(videos[1]), repr({"bytes": videos[2], "path": None})]
        csv.writer(file).writerows([["id", "video"], *enumerate(rows)])
    assert prepare(tmp_path, "--scene_types", "anime") == 0
    assert totals(tmp_path / "anime") == TOTALS


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "holds nothing"),
        ("b'broken", "is not readable"),
        ("away.mp4", "No such file"),
        ("b'no video'", "not a readable video"),
    ],
)
def test_a_bad_row_does_not_stop_the_others(tmp_path: Path, videos, capsys, value, message: str):
    assert videos
    rows = ["videos/5.mp4", value, "videos/7.mp4"]
    pq.write_table(pa.table({"video": rows}), tmp_path / "anime.parquet")
    assert prepare(tmp_path, "--scene_types", "anime") == 1
    assert counts(tmp_path, "anime") == (2, 0, 0, 1)
    error = capsys.readouterr().err
    (line,) = (line for line in error.splitlines() if "failed: " in line)
    assert "anime.parquet row 1: " in line
    assert message in line


def test_a_shard_damaged_inside_fails_its_rows(tmp_path: Path, videos):
    (tmp_path / "anime").mkdir()
    for number in (0, 1):
        path = tmp_path / f"anime/{number}.parquet"
        pq.write_table(pa.table({"video": videos}), path, row_group_size=1, compression="snappy")
    path = tmp_path / "anime/0.parquet"
    data = bytearray(path.read_bytes())
    first = pq.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    data[first : first + 60] = bytes(60)
    path.write_bytes(data)
    assert prepare(tmp_path, "--scene_types", "anime") == 1
    assert counts(tmp_path, "anime") == (4, 0, 0, 2)
    assert "0.parquet row 1" in summary(tmp_path)["anime"]["problems"][0]["video"]


def test_a_damaged_file_of_rows_stops_at_once(tmp_path: Path, capsys):
    (tmp_path / "anime.parquet").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid 1")
    assert prepare(tmp_path, "--scene_types", "anime") == 2
    assert "run git lfs pull" in capsys.readouterr().err


def test_parquet_without_pyarrow_names_the_extra(tmp_path: Path, monkeypatch, capsys):
    (tmp_path / "anime.parquet").touch()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert prepare(tmp_path, "--scene_types", "anime") == 2
    assert 'pip install -e ".[data]"' in capsys.readouterr().err


# ---- second runs --------------------------------------------------------------------------------


def test_a_second_run_repeats_only_what_is_incomplete(tmp_path: Path):
    for number in range(4):
        write_greys(tmp_path / f"Anime/{number}.mp4", 10)
    flags = ("--scene_types", "anime")
    assert prepare(tmp_path, *flags) == 0  # into the data set itself, as the original
    scene = tmp_path / "anime"
    before = {path: path.stat().st_mtime_ns for path in scene.rglob("*.jpg")}
    (scene / "video_00001/frame_0003.jpg").unlink()  # lost
    (scene / "video_00002/source.json").unlink()  # never finished
    (scene / ".video_00003.tmp").mkdir()  # what a killed run leaves; its clip was made later
    (scene / ".video_00001.tmp").mkdir()
    (scene / ".video_00001.tmp/frame_0009.jpg").touch()
    assert prepare(tmp_path, *flags) == 0
    assert counts(tmp_path, "anime") == (2, 2, 0, 0)
    again = {path for path, time in before.items() if path.stat().st_mtime_ns != time}
    assert {path.parent.name for path in again} == {"video_00001", "video_00002"}
    assert len(find_clips(tmp_path, strict_frames=5)) == 4
    assert not (scene / ".video_00001.tmp").exists()
    assert prepare(tmp_path, *flags, "--overwrite") == 0
    assert counts(tmp_path, "anime") == (4, 0, 0, 0)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--frames_per_video", "4"], "frames_per_video 5, not 4"),
        (["--image_size", "16", "8"], "size [32, 16], not [16, 8]"),
    ],
)
def test_clips_of_other_options_are_not_mixed(tmp_path: Path, capsys, flags, message: str):
    write_greys(tmp_path / "anime/a.mp4", 10)
    assert prepare(tmp_path, "--scene_types", "anime") == 0
    assert prepare(tmp_path, "--scene_types", "anime", *flags) == 1
    assert message in capsys.readouterr().err
    assert len(taken(tmp_path / "anime")) == 5
    assert prepare(tmp_path, "--scene_types", "anime", *flags, "--overwrite") == 0
    assert find_clips(tmp_path)[0].frames[-1].exists()


def test_a_video_that_moved_up_in_the_list_is_noticed(tmp_path: Path, capsys):
    write_greys(tmp_path / "anime/b.mp4", 10)
    assert prepare(tmp_path, "--scene_types", "anime") == 0
    write_greys(tmp_path / "anime/a.mp4", 10)
    assert prepare(tmp_path, "--scene_types", "anime") == 1
    assert "video anime/b.mp4, not anime/a.mp4; pass --overwrite" in capsys.readouterr().err


# ---- short, damaged -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("on_short", "code", "expected", "frames"),
    [("skip", 0, (1, 0, 1, 0), 0), ("keep", 0, (1, 0, 1, 0), 3), ("error", 1, (1, 0, 0, 1), 0)],
)
def test_short_videos(tmp_path: Path, capsys, on_short: str, code: int, expected, frames: int):
    write_greys(tmp_path / "anime/a.mp4", 3)
    write_greys(tmp_path / "anime/b.mp4", 5)
    flags = ("--scene_types", "anime", "--on_short", on_short)
    assert prepare(tmp_path, *flags) == code
    assert counts(tmp_path, "anime") == expected
    assert "anime/a.mp4: " in capsys.readouterr().err
    folder = tmp_path / "anime/video_00000"
    assert len(list(folder.glob("*.jpg"))) == frames
    assert folder.exists() == (frames > 0)
    assert taken(tmp_path / "anime/video_00001") == [0, 1, 2, 3, 4]
    if on_short == "keep":
        assert prepare(tmp_path, *flags) == 0  # finished, not made again in every run
        assert counts(tmp_path, "anime") == (0, 2, 0, 0)
        assert prepare(tmp_path, "--scene_types", "anime") == 1  # exactly N is asked for now
        assert "only 3 frames, stored by --on_short keep" in capsys.readouterr().err


def noise_video(path: Path) -> bytes:
    """Noise, with the index in front, so that half a file still opens."""
    rng = np.random.default_rng(0)
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=10, options={"g": "5"})
        stream.width, stream.height, stream.pix_fmt = 32, 16, "yuv420p"
        for _ in range(20):
            image = rng.integers(0, 256, (16, 32, 3), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path.read_bytes()


def test_damaged_videos_fail_in_one_line_and_the_others_go_on(tmp_path: Path, capsys):
    data = write_greys(tmp_path / "anime/good.mp4", 10)
    streamed = noise_video(tmp_path / "noise.mp4")
    zeroed = bytearray(streamed)
    place = len(zeroed) * 6 // 10  # in a frame that the decoder patches up and marks
    zeroed[place : place + 300] = bytes(300)
    damaged = {
        "cut": (data[: len(data) // 2], "not a readable video"),
        "cut_streamed": (streamed[: len(streamed) // 2], "the video ends after"),
        "empty": (b"", "not a readable video"),
        "pointer": (b"version https://git-lfs.github.com/spec/v1\noid", "run git lfs pull"),
        "text": (b"hello" * 100, "download it again"),
        "zeroed": (bytes(zeroed), "of the video is damaged; download it again"),
    }
    for name, (content, _) in damaged.items():
        (tmp_path / f"anime/{name}.mp4").write_bytes(content)
    assert prepare(tmp_path, "--scene_types", "anime") == 1
    output = capsys.readouterr()
    lines = [line for line in output.err.splitlines() if "failed: " in line]
    for line, (name, (_, message)) in zip(lines, sorted(damaged.items()), strict=True):
        assert f"anime/{name}.mp4: " in line
        assert message in line
    assert "anime: 1 ok, 0 skipped, 0 short, 6 failed" in output.out
    assert [clip.id for clip in find_clips(tmp_path)] == ["anime/video_00003"]
    assert not list((tmp_path / "anime").glob(".*"))


def test_an_output_that_cannot_be_written_stops_the_run(tmp_path: Path, capsys):
    write_greys(tmp_path / "anime/a.mp4", 10)
    (tmp_path / "out").touch()
    assert prepare(tmp_path, "--scene_types", "anime", "--output_dir", tmp_path / "out") == 2
    assert "error: " in capsys.readouterr().err


class _Killer:
    """Ends the process in which it is unpickled."""

    def __reduce__(self):
        return os._exit, (1,)


def test_a_killed_process_is_reported(tmp_path: Path):
    job = ClipJob(scene="anime", number=0, video="a.mp4", folder=tmp_path / "clip")
    with pytest.raises(ChildProcessError, match="--num_workers died"):
        list(extract_clips([(job, _Killer())], ExtractOptions(), workers=2))  # pyright: ignore


# ---- the command line ---------------------------------------------------------------------------


def test_flags_of_the_original():
    args = build_parser().parse_args([])
    assert args.dataset_path == Path("Genex-DB")
    assert args.output_dir is None
    assert args.scene_types == ["realistic", "low_texture", "anime", "real_world"]
    assert (args.frames_per_video, args.num_workers, args.image_size) == (50, 4, [1024, 576])


@pytest.mark.parametrize(
    ("flags", "frames", "size"),
    [
        ([], TINY_FRAMES, (TINY_WIDTH, TINY_HEIGHT)),
        (["--frames_per_video", "3"], 3, (TINY_WIDTH, TINY_HEIGHT)),
        (["--image_size", "32", "16"], TINY_FRAMES, (32, 16)),
    ],
)
def test_tiny_sets_the_sizes_that_are_not_given(tmp_path: Path, flags, frames: int, size):
    write_greys(tmp_path / "anime/a.mp4", TINY_FRAMES + 2)
    common = ["--dataset_path", str(tmp_path), "--scene_types", "anime", "--num_workers", "1"]
    assert main([*common, "--tiny", *flags]) == 0
    (clip,) = find_clips(tmp_path, strict_frames=frames)
    assert read_image(clip.frames[0]).shape == (size[1], size[0], 3)


def test_a_dry_run_writes_nothing(tmp_path: Path, capsys):
    for name in ("a", "b"):
        write_greys(tmp_path / f"Anime/{name}.mp4", 10)
    before = sorted(tmp_path.rglob("*"))
    assert prepare(tmp_path, "--scene_types", "anime", "--dry_run") == 0
    assert sorted(tmp_path.rglob("*")) == before
    out = capsys.readouterr().out
    assert f"2 videos in {tmp_path / 'Anime'}, 0 finished, 2 to extract" in out
    assert str(tmp_path / "anime/video_00000") in out


def test_the_entry_point_is_light():
    environment = {**os.environ, "PYTHONPROFILEIMPORTTIME": "1"}
    command = [sys.executable, str(ROOT / "prepare_dataset.py"), "--help"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "--frames_per_video" in done.stdout
    imported = {line.rsplit("|")[-1].strip() for line in done.stderr.splitlines()}
    assert "genex_explorer.cli.prepare" in imported
    assert not {"torch", "av", "numpy"} & imported


def test_the_tour_deletes_only_what_a_tour_has_made(tmp_path: Path):
    """It gets no further than its first command here."""
    mine = tmp_path / "mine/images/photo.png"
    mine.parent.mkdir(parents=True)
    mine.touch()
    command = ["bash", str(ROOT / "scripts/tour.sh"), "mine"]
    common = {"cwd": tmp_path, "env": {**os.environ, "PYTHON": "false"}, "capture_output": True}
    assert subprocess.run(command, **common).returncode == 2
    assert mine.is_file()
    (tmp_path / "mine/.tour").touch()
    assert subprocess.run(command, **common).returncode == 1
    assert not mine.is_file()
