"""Clips on disk: finding and reading them, windows, procedural walks, video files."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from genex_explorer.data import procedural
from genex_explorer.data.clips import (
    find_clips,
    natural_key,
    read_clip,
    stable_hash,
    to_unit,
)
from genex_explorer.data.procedural import (
    CLIP_SEEDS,
    KINDS,
    SPLITS,
    ClipOptions,
    find_walk,
    first_seed,
    render_erp,
    write_clips,
)
from genex_explorer.data.windows import ClipWindows, window_starts
from genex_explorer.video import read_frames, read_video, write_gif, write_video
from shared_pano_utils.imageio import read_image, write_image
from shared_pano_utils.metadata import read_gpano, read_spherical_video
from shared_pano_utils.synthetic import Pose, Scene

TINY = ClipOptions(frames=3, step_m=0.2, size=(32, 16))


def write_clip_of(folder: Path, count: int, *, pattern: str = "frame_{:04d}.jpg") -> None:
    """A clip whose frames are grey: frame k (from 0) has the value 4 k."""
    for k in range(count):
        write_image(folder / pattern.format(k + 1), np.full((8, 16, 3), 4 * k, np.uint8))


# ---- finding clips ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [
        ["frame_2.png", "frame_10.png", "frame_011.png"],
        ["scene2_frame_9", "scene2_frame_10", "scene10_frame_1"],  # the original: all equal
        ["0.png", "9.png", "10.png", "a.png"],
        ["video_frame1", "video_frame2", "Video_Frame10"],
        ["1\u00b2", "2\u00b2", "10\u00b2"],  # a superscript is no decimal digit
    ],
)
def test_natural_order(names: list[str]):
    mixed = names[::-1]
    assert sorted(mixed, key=natural_key) == names


def test_both_layouts_are_found_and_everything_else_is_passed_over(tmp_path: Path):
    for folder in ("clip10", "clip9", "realistic/video_00001", "a/b/c/deep"):
        write_clip_of(tmp_path / folder, 3)
    write_clip_of(tmp_path / ".cache/clip", 3)
    write_clip_of(tmp_path / "flat_video0", 11, pattern="{}.PNG")
    (tmp_path / "flat_video0/.0.png").touch()
    (tmp_path / "flat_video0/source.json").touch()
    (tmp_path / "realistic/a.mp4").touch()
    (tmp_path / ".gitattributes").touch()
    clips = find_clips(tmp_path)
    assert [clip.id for clip in clips] == [
        "a/b/c/deep", "clip9", "clip10", "flat_video0", "realistic/video_00001",
    ]  # fmt: skip
    assert [path.name for path in clips[3].frames] == [f"{k}.PNG" for k in range(1, 12)]


def test_linked_scenes_are_followed(tmp_path: Path):
    write_clip_of(tmp_path / "disk/video_00000", 2)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/realistic").symlink_to(tmp_path / "disk")
    assert [clip.id for clip in find_clips(tmp_path / "data")] == ["realistic/video_00000"]


def test_the_root_may_be_a_clip(tmp_path: Path):
    write_clip_of(tmp_path, 2)
    assert [clip.id for clip in find_clips(tmp_path)] == ["."]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_frames": 4}, "clip has 3 frames, a window needs 4; use a smaller --num_frames"),
        ({"strict_frames": 50}, "clip has 3 frames, --strict_frames asks for 50"),
        ({"strict_frames": 2}, "clip has 3 frames, --strict_frames asks for 2"),
    ],
)
def test_lengths_are_checked(tmp_path: Path, options: dict, message: str):
    write_clip_of(tmp_path / "clip", 3)
    assert len(find_clips(tmp_path, min_frames=3, strict_frames=3)) == 1
    with pytest.raises(ValueError, match=message):
        find_clips(tmp_path, **options)


@pytest.mark.parametrize("twin", ["frame_2.jpg", "frame_0002.png", "video2.jpg"])
def test_two_frames_of_one_number(tmp_path: Path, twin: str):
    write_clip_of(tmp_path / "clip", 3)
    write_image(tmp_path / "clip" / twin, np.zeros((8, 16, 3), np.uint8))
    with pytest.raises(ValueError, match="have the same number; keep one of them"):
        find_clips(tmp_path)


def test_nothing_to_find(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        find_clips(tmp_path / "away")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(FileNotFoundError, match=r"frames$"):
        find_clips(tmp_path)
    (tmp_path / "walk.MP4").touch()
    with pytest.raises(FileNotFoundError, match=r"it holds videos: run prepare_dataset\.py first"):
        find_clips(tmp_path)


# ---- reading clips ------------------------------------------------------------------------------


def test_frames_are_resized_as_pillow_does(tmp_path: Path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 16, 32, 3), np.uint8)
    paths = tuple(tmp_path / f"{k}.png" for k in range(2))
    for path, image in zip(paths, images, strict=True):
        write_image(path, image)
    np.testing.assert_array_equal(read_clip(paths), images)
    np.testing.assert_array_equal(read_clip(paths, (32, 16)), images)
    small = [np.asarray(Image.open(path).convert("RGB").resize((8, 6))) for path in paths]
    np.testing.assert_array_equal(read_clip(paths, (8, 6)), small)


def test_grey_and_transparent_frames_become_colour(tmp_path: Path):
    Image.new("L", (8, 4), 7).save(tmp_path / "0.png")
    Image.new("RGBA", (8, 4), (7, 7, 7, 99)).save(tmp_path / "1.png")
    clip = read_clip((tmp_path / "0.png", tmp_path / "1.png"))
    np.testing.assert_array_equal(clip, np.full((2, 4, 8, 3), 7))


def test_frames_of_two_sizes(tmp_path: Path):
    Image.new("RGB", (8, 4)).save(tmp_path / "0.png")
    Image.new("RGB", (16, 8)).save(tmp_path / "1.png")
    paths = (tmp_path / "0.png", tmp_path / "1.png")
    with pytest.raises(ValueError, match=r"1\.png is 16x8, 0\.png before it is 8x4"):
        read_clip(paths)
    with pytest.raises(ValueError, match="frames of one size"):
        read_clip(paths, (8, 4))


def test_a_frame_that_is_no_image(tmp_path: Path):
    (tmp_path / "0.jpg").write_text("hello")
    with pytest.raises(ValueError, match=r"0\.jpg: not a readable image"):
        read_clip((tmp_path / "0.jpg",))


def test_range_of_the_network():
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, -1)
    unit = to_unit(images)
    assert unit.shape == (1, 3, 16, 16)
    assert unit.dtype == torch.float32
    expected = np.arange(256) / 127.5 - 1  # float64
    np.testing.assert_allclose(unit[0, 1].flatten().numpy(), expected, atol=2e-7)
    assert unit.min() == -1
    assert unit.max() == 1


# ---- windows ------------------------------------------------------------------------------------


def test_windows_of_the_original():  # spec 11.1, row 18
    assert window_starts(50, 25) == 26
    assert window_starts(25, 25) == 1
    assert window_starts(50, 25, stride=2) == 2


def test_hash_is_the_same_everywhere():
    assert stable_hash(7, "window", 3) == 603106953441653107  # blake2b of "7/window/3"
    values = {stable_hash(seed, word, k) for seed in range(5) for word in "ab" for k in range(100)}
    assert len(values) == 1000
    assert min(values) >= 0
    assert max(values) < 2**63


@pytest.fixture
def windows(tmp_path: Path):
    for number, length in enumerate((50, 10, 7)):
        write_clip_of(tmp_path / f"video_{number:05d}", length)
    clips = find_clips(tmp_path)

    def make(num_frames: int = 5, **options) -> ClipWindows:
        return ClipWindows(clips, num_frames=num_frames, size=(16, 8), **options)

    return make


def test_every_clip_comes_once_in_a_round(windows):
    data = windows(samples=30)
    rounds = [[data.locate(i)[0].id for i in range(k, k + 3)] for k in range(0, 30, 3)]
    assert all(len(set(ids)) == 3 for ids in rounds)
    assert len(set(map(tuple, rounds))) > 2  # in changing order


def test_starts_are_uniform_over_all_windows(windows):
    data = windows(num_frames=5, samples=9000)
    starts = Counter(
        start for clip, start in map(data.locate, range(9000)) if clip.id == "video_00001"
    )
    assert sorted(starts) == list(range(6))  # 0 and 5 = 10 - 5 included
    expected = 3000 / 6
    chi_square = sum((count - expected) ** 2 / expected for count in starts.values())
    assert chi_square < 20.5  # 0.1 % point with 5 degrees of freedom


def test_a_sample_depends_on_seed_and_index_only(windows):
    one, two, other = windows(seed=1), windows(seed=1), windows(seed=2)
    places = [(clip.id, start) for clip, start in map(one.locate, range(60))]
    assert [(c.id, s) for c, s in map(two.locate, reversed(range(60)))] == places[::-1]
    assert [(c.id, s) for c, s in map(other.locate, range(60))] != places
    ranks = [places[rank::2] for rank in range(2)]  # the original: the same on all ranks
    assert ranks[0] != ranks[1]


@pytest.mark.parametrize("stride", [1, 3])
def test_a_sample_holds_consecutive_frames(windows, stride: int):
    data = windows(num_frames=3, stride=stride, samples=12)
    for index in range(12):
        sample = data[index]
        torch.testing.assert_close(sample["first_frame"], sample["pixel_values"][0])
        clip, start = data.locate(index)
        assert (sample["clip_id"], sample["start"], sample["index"]) == (clip.id, start, index)
        values = (sample["pixel_values"].mean((1, 2, 3)) + 1) * 127.5 / 4
        np.testing.assert_allclose(values, start + stride * np.arange(3), atol=0.3)  # JPEG
    assert sample["pixel_values"].shape == (3, 3, 8, 16)


def test_half_of_the_windows_are_mirrored(tmp_path: Path):
    erp = np.zeros((8, 16, 3), np.uint8)
    erp[:, 8:] = 255  # bright on the right
    for k in range(3):
        write_image(tmp_path / f"{k}.png", erp)
    data = ClipWindows(find_clips(tmp_path), num_frames=2, size=(16, 8), samples=400, mirror=True)
    on_the_left = [bool((sample["pixel_values"][..., :8] == 1).all()) for sample in data]
    on_the_right = [bool((sample["pixel_values"][..., 8:] == 1).all()) for sample in data]
    assert on_the_left == [not right for right in on_the_right]
    assert abs(sum(on_the_left) - 200) < 40  # four standard deviations


def test_the_data_set_has_an_end(windows):
    data = windows(samples=3)
    assert len(data) == 3
    assert len(list(data)) == 3
    with pytest.raises(IndexError, match="sample -1 of 3"):
        data.locate(-1)


# ---- procedural walks ---------------------------------------------------------------------------


def test_seeds_are_never_shared():
    seeds = [
        first_seed(split, kind, index) + k
        for split in SPLITS
        for kind in KINDS
        for index in (0, 1, 1_000_000 // CLIP_SEEDS - 1)
        for k in range(CLIP_SEEDS)
    ]
    assert len(seeds) == len(set(seeds))
    with pytest.raises(ValueError, match="clip number 31250"):
        first_seed("train", "room", 31250)


@pytest.mark.parametrize("kind", KINDS)
def test_a_walk_goes_straight_towards_the_centre_of_the_image(kind):
    _, poses = find_walk("test", kind, 0, ClipOptions(frames=5, step_m=0.3))
    forward = poses[0].R[:, 2]  # z of the camera: the centre column
    for k, pose in enumerate(poses):
        torch.testing.assert_close(pose.R, poses[0].R)
        torch.testing.assert_close(pose.t, poses[0].t + 0.3 * k * forward, atol=1e-5, rtol=0)


def test_walking_brings_what_is_ahead_nearer():
    scene, poses = find_walk("test", "room", 0, ClipOptions(frames=4, step_m=0.2))
    ahead = []
    for pose in poses:
        distance = scene.render(pose, (64, 128), outputs=("depth",), aa=1).depth
        assert distance is not None
        ahead.append(distance.squeeze()[31:33, 63:65].mean())
    nearer = -torch.stack(ahead).diff()
    torch.testing.assert_close(nearer, torch.full((3,), 0.2), atol=0.01, rtol=0)


def test_a_walk_that_does_not_fit(monkeypatch):
    monkeypatch.setattr(procedural, "CLIP_SEEDS", 2)
    with pytest.raises(ValueError, match=r"straight free path of 196\.0 m among 2 seeds"):
        find_walk("test", "room", 0, ClipOptions(frames=50, step_m=4))


def test_clips_are_rendered_once_and_the_same_by_any_number_of_processes(tmp_path: Path):
    counts: dict[procedural.SceneKind, int] = {"room": 2, "outdoor": 1}
    assert write_clips(tmp_path / "one", counts, split="val", options=TINY) == 3
    clips = find_clips(tmp_path / "one", strict_frames=3)
    assert [c.id for c in clips] == ["outdoor/video_00000", "room/video_00000", "room/video_00001"]
    assert read_gpano(clips[0].frames[0])
    assert write_clips(tmp_path / "one", {**counts, "room": 3}, split="val", options=TINY) == 1
    (tmp_path / "one/room/video_00001/clip.json").unlink()  # stopped before it was whole
    assert write_clips(tmp_path / "one", counts, split="val", options=TINY) == 1
    assert write_clips(tmp_path / "two", counts, split="val", options=TINY, workers=2) == 3
    for path in (tmp_path / "two").rglob("*.jpg"):
        assert (
            path.read_bytes()
            == (tmp_path / "one" / path.relative_to(tmp_path / "two")).read_bytes()
        )


def test_the_record_renders_the_clip_again(tmp_path: Path):
    write_clips(tmp_path, {"corridor": 1}, split="test", options=TINY)
    folder = tmp_path / "corridor/video_00000"
    record = json.loads((folder / "clip.json").read_text())
    start = Pose(torch.tensor(record["start"]["R"]), torch.tensor(record["start"]["t"]))
    third = Pose(start.R, start.t + 2 * record["step_m"] * start.R[:, 2])
    erp = render_erp(Scene.random(record["seed"], record["kind"]), third, TINY)
    write_image(tmp_path / "again.jpg", erp)
    again = read_image(tmp_path / "again.jpg")
    np.testing.assert_array_equal(read_image(folder / "frame_0003.jpg"), again)
    assert np.abs(read_image(folder / "frame_0002.jpg").astype(int) - again).mean() > 2


def test_walks_as_videos(tmp_path: Path):
    options = replace(TINY, file_format="mp4")
    for expected in (1, 0):
        assert write_clips(tmp_path, {"room": 1}, split="test", options=options) == expected
    write_clips(tmp_path / "frames", {"room": 1}, split="test", options=TINY)
    video = read_video(tmp_path / "room/video_00000.mp4")
    frames = read_clip(find_clips(tmp_path / "frames")[0].frames)
    assert np.abs(video.astype(int) - frames).mean() < 6  # colour at half resolution


# ---- video files --------------------------------------------------------------------------------


def smooth_frames(count: int = 5, height: int = 32, width: int = 64) -> np.ndarray:
    """Gradients that move, (F, H, W, 3) uint8."""
    y, x = np.mgrid[:height, :width]
    layers = [(x * 3, y * 5, 2 * x + y + 7 * k) for k in range(count)]
    return np.stack([np.stack(layer, -1) for layer in layers]).astype(np.uint8)


@pytest.mark.parametrize(("height", "width"), [(32, 64), (31, 63), (32, 63)])
def test_video_round_trip(tmp_path: Path, height: int, width: int):
    frames = smooth_frames(height=height, width=width)
    write_video(tmp_path / "new/a.mp4", frames, fps=10)
    video = read_video(tmp_path / "new/a.mp4")
    assert video.shape == (5, height + height % 2, width + width % 2, 3)
    error = np.abs(video[:, :height, :width].astype(int) - frames)
    assert error.mean() < 2.5  # yuv420p and CRF 14
    streamed = list(read_frames(tmp_path / "new/a.mp4"))
    np.testing.assert_array_equal(np.stack(streamed), video)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.mp4"]


def test_rate_format_and_sphere(tmp_path: Path):
    write_video(tmp_path / "a.mp4", smooth_frames(), fps=29.97)
    write_video(tmp_path / "b.mp4", smooth_frames(), fps=7, spherical=False)
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert float(stream.average_rate or 0) == pytest.approx(29.97)
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
    assert read_spherical_video((tmp_path / "a.mp4").read_bytes())
    assert not read_spherical_video((tmp_path / "b.mp4").read_bytes())


def test_a_failed_write_leaves_the_old_video(tmp_path: Path):
    write_video(tmp_path / "a.mp4", smooth_frames(), fps=10)
    before = (tmp_path / "a.mp4").read_bytes()
    with pytest.raises(ValueError, match="uint8"):
        write_video(tmp_path / "a.mp4", np.zeros((2, 16, 32, 3), np.float32), fps=10)
    assert (tmp_path / "a.mp4").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_videos_that_cannot_be_read(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_video(tmp_path / "away.mp4")
    write_video(tmp_path / "a.mp4", smooth_frames(20), fps=10)
    data = (tmp_path / "a.mp4").read_bytes()
    for content in (b"", b"hello" * 50, data[: len(data) // 2]):
        (tmp_path / "a.mp4").write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.mp4 is not a readable video"):
            read_video(tmp_path / "a.mp4")


def test_a_video_without_its_end(tmp_path: Path):
    noise = np.random.default_rng(0).integers(0, 256, (20, 32, 64, 3), np.uint8)
    with av.open(str(tmp_path / "a.avi"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        for image in noise:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    data = (tmp_path / "a.avi").read_bytes()
    (tmp_path / "a.avi").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="ends in the middle"):
        read_video(tmp_path / "a.avi")


def test_a_video_without_frames(tmp_path: Path):
    with pytest.raises(ValueError, match="there is no frame to write"):
        write_video(tmp_path / "a.mp4", np.zeros((0, 16, 32, 3), np.uint8), fps=10)
    assert not list(tmp_path.iterdir())


def test_gif(tmp_path: Path):
    write_gif(tmp_path / "a.gif", smooth_frames(4), fps=5)
    with Image.open(tmp_path / "a.gif") as image:
        assert (image.size, image.n_frames) == ((64, 32), 4)  # pyright: ignore
        assert image.info["loop"] == 0
        for k in range(4):
            image.seek(k)
            assert image.info["duration"] == 200
