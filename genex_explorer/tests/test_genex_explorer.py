"""Walking: frame counts, turns, poses, branches, seeds, the stock pipeline, the original's class."""

import importlib.util
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion import (
    StableVideoDiffusionPipeline,
)
from PIL import Image

from genex_explorer import explorer as explorer_module
from genex_explorer.data.clips import stable_hash
from genex_explorer.data.procedural import ClipOptions, find_walk, render_erp
from genex_explorer.explorer import Explorer, choose_dtype, load_explorer
from genex_explorer.legacy import legacy_cubemap
from genex_explorer.paths import Move, parse_actions
from genex_explorer.pipeline import GenexPipeline
from genex_explorer.rotation import turn
from genex_explorer.tiny import tiny_pipeline
from genex_explorer.video import read_video
from genex_explorer.walk import View, WalkSettings, resize_erp, walk, walk_together

torch.set_num_threads(1)

SETTINGS = WalkSettings(width=128, height=64, num_inference_steps=2, max_guidance=1.0)


class Brightener:
    """Stands in for the pipeline: every frame of a clip is one grey level brighter than the last.

    The first frame is the start, as it is for a perfect model, so that a frame that is repeated
    or left out shows as a step other than 1.
    """

    vae_scale_factor = 4

    def __init__(self, frames: int = 8) -> None:
        config = SimpleNamespace(num_frames=frames, block_out_channels=(32, 64, 96))
        self.unet = SimpleNamespace(config=config)
        self.batches: list[np.ndarray] = []
        self.seeds: list[list[int]] = []

    def __call__(
        self, images: Sequence[Image.Image], *, num_frames: int | None, generator: Any, **_: Any
    ) -> SimpleNamespace:
        starts = np.stack([np.asarray(image) for image in images])
        self.batches.append(starts)
        self.seeds.append([one.initial_seed() for one in generator])
        steps = np.arange(num_frames or self.unet.config.num_frames)[:, None, None, None]
        return SimpleNamespace(frames=(starts[:, None] + steps) / 255)


@pytest.fixture(scope="module")
def pipeline() -> GenexPipeline:
    """Random weights, 8 frames of 64x128."""
    pipeline = GenexPipeline(**tiny_pipeline().components)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def room() -> np.ndarray:
    """A procedural room, (64, 128, 3) uint8."""
    options = ClipOptions(frames=1, size=(128, 64))
    scene, poses = find_walk("test", "room", 0, options)
    return render_erp(scene, poses[0], options)


@pytest.fixture
def noise() -> np.ndarray:
    """(64, 128, 3) uint8 below 100, every column different."""
    return np.random.default_rng(0).integers(0, 100, (64, 128, 3), dtype=np.uint8)


def brightness(frames: np.ndarray) -> np.ndarray:
    return frames.astype(float).mean((1, 2, 3))


# ---- frames -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model_frames", "distance", "clips"),
    [
        (8, 1, 1),
        (8, 7, 1),
        (8, 8, 2),
        (8, 15, 3),
        (8, 20, 3),
        (25, 24, 1),
        (25, 25, 2),
        (25, 60, 3),
    ],
)
def test_a_walk_has_every_frame_once(
    noise: np.ndarray, model_frames: int, distance: int, clips: int
) -> None:
    model = Brightener(model_frames)
    result = walk(model, noise, [Move(0.0, distance)], SETTINGS)
    frames = result.frames((128, 64))
    assert len(frames) == distance + 1
    np.testing.assert_array_equal(frames[0], noise)
    np.testing.assert_allclose(np.diff(brightness(frames)), 1.0)  # nothing twice, nothing left out
    assert len(model.batches) == clips
    assert result.last_frames()[-1] == distance


def test_every_clip_starts_from_the_last_frame(noise: np.ndarray) -> None:
    model = Brightener()
    result = walk(model, noise, [Move(0.0, 9)], SETTINGS)
    np.testing.assert_array_equal(model.batches[1][0], result.segments[0].frames[-1])


def test_num_frames_overrides_the_model(noise: np.ndarray) -> None:
    model = Brightener(25)
    result = walk(model, noise, [Move(0.0, 6)], replace(SETTINGS, num_frames=4))
    assert [part.move.frames for part in result.segments] == [3, 3]
    assert len(result.frames((128, 64))) == 7


def test_a_path_without_moves_is_the_start(noise: np.ndarray) -> None:
    result = walk(Brightener(), noise, [Move(0.0, 0)], SETTINGS)
    assert result.segments == ()
    np.testing.assert_array_equal(result.frames((128, 64)), noise[None])


# ---- turns --------------------------------------------------------------------------------------


def test_turns_of_whole_columns_are_rolls_and_a_circle_is_the_identity(noise: np.ndarray) -> None:
    result = walk(Brightener(), noise, [Move(45.0, 0)] * 8, SETTINGS)
    for number, segment in enumerate(result.segments, 1):
        np.testing.assert_array_equal(segment.frames[0], np.roll(noise, -16 * number, 1))
    np.testing.assert_array_equal(result.segments[-1].frames[0], noise)


def test_fractional_turns_add_up_before_they_blur(room: np.ndarray) -> None:
    """Ten turns by 36 degrees, 12.8 columns each: the original gets 37 dB, here nothing is lost."""
    result = walk(Brightener(), room, [Move(36.0, 0)] * 10, SETTINGS)
    np.testing.assert_array_equal(result.segments[0].frames[0], turn(room, 36))
    np.testing.assert_array_equal(result.segments[1].frames[0], turn(room, 72))
    np.testing.assert_array_equal(result.segments[9].frames[0], room)


def test_a_clip_starts_from_the_turned_last_frame(noise: np.ndarray) -> None:
    model = Brightener()
    moves = [Move(0.0, 3), Move(10.0, 0), Move(80.0, 2), Move(-90.0, 1)]
    result = walk(model, noise, moves, SETTINGS)
    np.testing.assert_array_equal(model.batches[1][0], np.roll(noise + 3, -32, 1))
    np.testing.assert_array_equal(model.batches[2][0], noise + 5)
    np.testing.assert_array_equal(result.end().render(), noise + 6)
    assert [len(part.frames) for part in result.segments] == [3, 1, 2, 1]


def test_the_end_of_a_walk_keeps_the_angle_of_its_last_turns(room: np.ndarray) -> None:
    result = walk(Brightener(), room, [Move(0.0, 2), Move(1.0, 0), Move(1.5, 0)], SETTINGS)
    end = result.end()
    assert end.yaw_deg == 2.5
    np.testing.assert_array_equal(end.erp, result.segments[0].frames[-1])


# ---- poses --------------------------------------------------------------------------------------


def test_poses_of_a_square(noise: np.ndarray) -> None:
    result = walk(Brightener(), noise, [Move(0.0, 10), *[Move(90.0, 10)] * 3], SETTINGS)
    poses = result.poses()
    assert len(poses) == len(result.frames((128, 64))) == 41
    place = np.array([(pose.x_m, pose.z_m, pose.heading_deg) for pose in poses])
    steps = 0.4 * np.arange(1, 11)
    four = np.full(10, 4.0)
    expected = np.concatenate([
        [[0, 0, 0]],
        np.stack([0 * steps, steps, 0 * steps], 1),
        np.stack([steps, four, 0 * steps + 90], 1),
        np.stack([four, 4 - steps, 0 * steps + 180], 1),
        np.stack([4 - steps, 0 * steps, 0 * steps + 270], 1),
    ])  # fmt: skip
    np.testing.assert_allclose(place, expected, atol=1e-12)


def test_a_turn_without_a_walk_is_a_frame_with_a_pose(noise: np.ndarray) -> None:
    moves = parse_actions("forward 2, left 30, turn 60, forward 1")
    result = walk(Brightener(), noise, moves, SETTINGS)
    headings = [pose.heading_deg for pose in result.poses()]
    assert headings == [0.0, 0.0, 0.0, 330.0, 30.0]
    assert result.last_frames() == [2, 3, 4]


# ---- branches and seeds -------------------------------------------------------------------------


def test_branches_run_in_one_batch(noise: np.ndarray) -> None:
    model, finished = Brightener(), []
    paths = [[Move(angle, 9), Move(5.0, 0), Move(5.0, 2)] for angle in (-60.0, 0.0, 60.0)]
    walk_together(model, [noise] * 3, paths, SETTINGS, on_clips=finished.append)
    assert [len(batch) for batch in model.batches] == [3, 3, 3]
    assert finished == [3, 3, 3]


def test_paths_of_other_lengths_share_what_they_can(noise: np.ndarray) -> None:
    model = Brightener()
    paths = [parse_actions("forward 8"), parse_actions("right 90"), parse_actions("forward 2")]
    walks = walk_together(model, [noise, noise, noise + 50], paths, SETTINGS)
    assert [len(batch) for batch in model.batches] == [2, 1]
    assert [len(each.frames((128, 64))) for each in walks] == [9, 2, 3]
    np.testing.assert_array_equal(walks[2].segments[0].frames[-1], noise + 52)
    for path, each, start in zip(paths, walks, (noise, noise, noise + 50), strict=True):
        alone = walk(Brightener(), start, path, SETTINGS)
        np.testing.assert_array_equal(alone.frames((128, 64)), each.frames((128, 64)))


def test_every_clip_has_its_own_seed_whatever_walks_beside_it(noise: np.ndarray) -> None:
    alone, together = Brightener(), Brightener()
    path = [Move(0.0, 3), Move(10.0, 0), Move(0.0, 3)]
    walk(alone, noise, path, SETTINGS)
    walk_together(together, [noise] * 2, [[Move(9.0, 1)], path], SETTINGS)
    assert alone.seeds == [[stable_hash(0, 0)], [stable_hash(0, 2)]]
    assert together.seeds == [[stable_hash(0, 0)] * 2, [stable_hash(0, 2)]]
    other = Brightener()
    walk(other, noise, path, replace(SETTINGS, seed=1))
    assert other.seeds[0] != alone.seeds[0]


def test_a_branch_is_the_same_alone_and_in_a_batch(
    pipeline: GenexPipeline, room: np.ndarray
) -> None:
    """Batched convolutions round differently: a level here and there."""
    paths = [[Move(angle, 4)] for angle in (-60.0, 60.0)]
    together = walk_together(pipeline, [room] * 2, paths, SETTINGS)
    alone = walk(pipeline, room, paths[1], SETTINGS)
    difference = np.abs(
        alone.segments[0].frames.astype(int) - together[1].segments[0].frames.astype(int)
    )
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.01
    apart = together[0].segments[0].frames.astype(int) - together[1].segments[0].frames
    assert np.abs(apart).mean() > 1


def test_global_generators_and_the_path_stay_as_they_were(
    pipeline: GenexPipeline, room: np.ndarray
) -> None:
    """Defects 21 and 22 of the original."""
    torch.manual_seed(5)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    path = [{"turn_angle": 0.0, "move_distance": 2}]
    explorer = ready(pipeline)
    explorer.navigate_path(path, Image.fromarray(room), num_inference_steps=1)
    assert path == [{"turn_angle": 0.0, "move_distance": 2}]
    assert torch.equal(torch.get_rng_state(), states[0])
    np.testing.assert_array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
    assert random.getstate() == states[2]


# ---- the stock pipeline -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stock_clip(pipeline: GenexPipeline, room: np.ndarray) -> np.ndarray:
    """A clip of the stock class, called as the original called it; (8, 64, 128, 3) uint8."""
    stock = StableVideoDiffusionPipeline(**pipeline.components)
    stock.set_progress_bar_config(disable=True)
    images = stock(
        Image.fromarray(room), height=64, width=128, num_frames=8, num_inference_steps=2,
        fps=7, motion_bucket_id=127, noise_aug_strength=0.02, decode_chunk_size=8,
        generator=torch.Generator().manual_seed(stable_hash(3, 0)),
    ).frames[0]  # fmt: skip
    return np.stack([np.asarray(image) for image in images])


def test_frames_are_those_of_the_stock_pipeline(
    pipeline: GenexPipeline, room: np.ndarray, stock_clip: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Difference 0 with seams as they are; the default guidance 1 to 3, fps id 6."""
    settings = WalkSettings(width=128, height=64, num_inference_steps=2, seed=3)
    monkeypatch.setattr(pipeline, "seam_mode", "none")
    result = walk(pipeline, room, [Move(0.0, 7)], settings)
    np.testing.assert_array_equal(result.segments[0].frames, stock_clip[1:])


def test_the_fps_id_reaches_the_network(
    pipeline: GenexPipeline, room: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed = []
    stock = pipeline._get_add_time_ids

    def record(*args: Any) -> torch.Tensor:
        fed.append(args[:3])
        return stock(*args)

    monkeypatch.setattr(pipeline, "_get_add_time_ids", record)
    for fps_id in (6, 7):
        settings = replace(SETTINGS, num_inference_steps=1, fps_id=fps_id, motion_bucket_id=90)
        walk(pipeline, room, [Move(0.0, 1)], settings)
    assert fed == [(6, 90, 0.02), (7, 90, 0.02)]


# ---- sizes and mistakes -------------------------------------------------------------------------


def test_resize_wraps_around(noise: np.ndarray) -> None:
    """Turning first or last is the same; a resize that clamps differs beside the seam."""
    small = resize_erp(noise, (64, 36))
    assert small.shape == (36, 64, 3)
    np.testing.assert_array_equal(
        resize_erp(np.roll(noise, 50, 1), (64, 36)), np.roll(small, 25, 1)
    )
    clamped = np.asarray(Image.fromarray(noise).resize((64, 36), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(small[:, 2:-2], clamped[:, 2:-2])
    assert (small[:, :2] != clamped[:, :2]).any()
    large = resize_erp(noise, (256, 64))
    np.testing.assert_array_equal(resize_erp(np.roll(noise, 3, 1), (256, 64)), np.roll(large, 6, 1))


def test_any_input_size_is_walked_at_the_models(room: np.ndarray) -> None:
    model = Brightener()
    wide = resize_erp(room, (512, 256))
    result = walk(model, wide, [Move(90.0, 1)], SETTINGS)
    np.testing.assert_array_equal(
        model.batches[0][0], resize_erp(np.roll(wide, -128, 1), (128, 64))
    )
    assert result.frames((64, 32)).shape == (2, 32, 64, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_inference_steps": 0}, "num_inference_steps is 0"),
        ({"decode_chunk": 0}, "decode_chunk is 0"),
        ({"noise_aug_strength": -1.0}, "noise_aug_strength is -1.0"),
        ({"min_guidance": 2.0}, "guidance goes from 2.0 to 1.0"),
        ({"width": 124}, "model size is 124x64; width and height must be multiples of 8"),
        ({"num_frames": 1}, "model of 1 frames cannot walk"),
    ],
)
def test_bad_settings(noise: np.ndarray, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        walk(Brightener(), noise, [Move(0.0, 1)], replace(SETTINGS, **change))


def test_nan_is_not_written_as_black(noise: np.ndarray) -> None:
    class Overflowing(Brightener):
        def __call__(self, *args: Any, **kwargs: Any) -> SimpleNamespace:
            return SimpleNamespace(frames=np.nan * super().__call__(*args, **kwargs).frames)

    with pytest.raises(FloatingPointError, match="use dtype bfloat16 or float32"):
        walk(Overflowing(), noise, [Move(0.0, 1)], SETTINGS)


def test_dtype_follows_the_device() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert choose_dtype("auto", cpu) == torch.float32
    assert choose_dtype("auto", cuda) == torch.float16
    assert choose_dtype("bfloat16", cuda) == torch.bfloat16


# ---- the original's class -----------------------------------------------------------------------


def ready(pipeline: Any) -> Explorer:
    explorer = Explorer()
    explorer.pipeline, explorer.settings, explorer.image_size = pipeline, SETTINGS, (128, 64)
    return explorer


def pixels(segments: list[list[Image.Image]]) -> np.ndarray:
    return np.stack([np.asarray(frame) for segment in segments for frame in segment])


PATH = [
    {"turn_angle": 90.0, "move_distance": 9, "new_position": [0.0, 9.0], "new_angle": 90.0},
    {"turn_angle": 270.0, "move_distance": 0, "new_position": [0.0, 9.0], "new_angle": 0.0},
]


def test_navigate_path_is_a_walk(noise: np.ndarray) -> None:
    explorer = ready(Brightener())
    start = Image.fromarray(noise)
    for _ in range(2):  # the second call forgets the first
        segments = explorer.navigate_path(PATH, start)
    expected = walk(Brightener(), noise, [Move(90.0, 9), Move(270.0, 0)], SETTINGS)
    assert [len(segment) for segment in segments] == [7, 2, 1]
    assert segments == explorer.get_all_frames()
    np.testing.assert_array_equal(pixels(segments), expected.frames((128, 64))[1:])
    np.testing.assert_array_equal(np.asarray(explorer.get_current_image()), noise + 9)


def test_moves_one_by_one_are_the_same_walk(noise: np.ndarray) -> None:
    model, explorer = Brightener(), ready(Brightener())
    explorer.pipeline = model  # type: ignore[assignment]
    explorer.set_current_image(Image.fromarray(noise))
    frames = explorer.move_forward(num_frames=4)
    assert len(frames) == 4  # the start and three new ones
    np.testing.assert_array_equal(np.asarray(frames[0]), noise)
    turned = explorer.rotate_panorama(rotation_degrees=45)
    np.testing.assert_array_equal(np.asarray(turned), np.roll(noise + 3, -16, 1))
    assert len(explorer.move_forward(num_steps=2)) == 3
    np.testing.assert_array_equal(
        np.asarray(explorer.get_current_image()), np.roll(noise + 5, -16, 1)
    )
    assert [len(segment) for segment in explorer.get_all_frames()] == [3, 1, 2]
    assert model.seeds == [[stable_hash(0, 0)], [stable_hash(0, 2)]]
    assert len(explorer.move_forward()) == 8  # a whole clip
    explorer.clear_movements()
    assert explorer.get_all_frames() == []


def test_turns_add_up_across_calls(room: np.ndarray) -> None:
    explorer = ready(Brightener())
    explorer.set_current_image(Image.fromarray(room))
    for _ in range(10):
        last = explorer.rotate_panorama(rotation_degrees=36)
    np.testing.assert_array_equal(np.asarray(last), room)


def test_results_have_the_size_of_the_input(room: np.ndarray) -> None:
    explorer = ready(Brightener())
    wide = Image.fromarray(resize_erp(room, (200, 100)))
    frames = explorer.move_forward(image=wide, num_steps=1)
    assert [frame.size for frame in frames] == [(200, 100)] * 2
    assert explorer.get_current_image().size == (200, 100)


def test_save_video_and_gif(noise: np.ndarray, tmp_path: Path) -> None:
    explorer = ready(Brightener())
    with pytest.raises(ValueError, match="walk first"):
        explorer.save_video(tmp_path / "walk.mp4")
    explorer.navigate_path(PATH, Image.fromarray(np.full_like(noise, 90)))
    explorer.save_video(tmp_path / "walk.mp4")
    explorer.save_gif(tmp_path / "walk.gif")
    video = read_video(tmp_path / "walk.mp4")
    assert video.shape == (11, 64, 128, 3)
    np.testing.assert_allclose(brightness(video), [*range(90, 100), 99], atol=1.0)  # limited range
    assert b"spherical" in (tmp_path / "walk.mp4").read_bytes().lower()
    with Image.open(tmp_path / "walk.gif") as gif:
        assert gif.n_frames >= 10  # Pillow joins equal neighbours
        assert gif.info["duration"] == 100


def test_cubemap_faces_and_back(room: np.ndarray) -> None:
    explorer = ready(Brightener())
    image = Image.fromarray(resize_erp(room, (256, 128)))
    cross, faces = explorer.convert_panorama_to_cubemap(image)
    assert cross.size == (256, 192)
    assert {face.size for face in faces.values()} == {(128, 128)}
    theirs, _ = legacy_cubemap(np.asarray(image))
    assert psnr(np.asarray(cross), theirs) > 25  # the original's is shifted by half a pixel
    again = explorer.cubemap_to_equirectangular(faces, 256, 128)
    assert psnr(np.asarray(again), np.asarray(image)) > 32
    front = explorer.extract_normal_view(image, 90, 90, 0, 0, 0, 128, 128)
    assert psnr(np.asarray(front), np.asarray(faces["front"])) > 45
    right = explorer.extract_normal_view(image, 90, 90, 90, 0, 0, 128, 128)
    assert psnr(np.asarray(right), np.asarray(faces["right"])) > 45


def psnr(one: np.ndarray, two: np.ndarray) -> float:
    mse = np.square(one.astype(float) - two).mean()
    return float(10 * np.log10(255**2 / max(mse, 1e-9)))


def test_mistakes_of_the_class(noise: np.ndarray) -> None:
    explorer = Explorer()
    with pytest.raises(ValueError, match="call set_current_image"):
        explorer.get_current_image()
    with pytest.raises(ValueError, match="panorama is 1536x640; width must be 2 x height"):
        explorer.set_current_image(Image.new("RGB", (1536, 640)))
    explorer.set_current_image(Image.new("RGB", (1024, 576)))  # the model's own frames
    with pytest.raises(ValueError, match="call get_pipeline"):
        explorer.move_forward()
    with pytest.raises(ValueError, match="path is empty"):
        ready(Brightener()).navigate_path([], Image.fromarray(noise))


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory, pipeline: GenexPipeline) -> str:
    folder = tmp_path_factory.mktemp("model")
    pipeline.stock().save_pretrained(folder)
    return str(folder)


def test_loading(
    model_folder: str, pipeline: GenexPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    explorer = Explorer()
    explorer.get_pipeline(
        model_folder, model_folder, num_frames=5, fps=8, progress_bar=False, image_width=64,
        image_height=32, model_width=128, model_height=64,
    )  # fmt: skip
    assert explorer.settings == WalkSettings(width=128, height=64, num_frames=5, fps_id=7)
    assert explorer.image_size == (64, 32)
    loaded = explorer.pipeline
    assert loaded is not None
    assert all(
        torch.equal(one, two)
        for one, two in zip(loaded.unet.parameters(), pipeline.unet.parameters(), strict=True)
    )
    monkeypatch.setattr(explorer_module, "TINY_ASSETS", Path(model_folder))
    tiny = load_explorer(svd_path="not/used", tiny=True, device="cpu")
    assert (tiny.settings.width, tiny.settings.height, tiny.image_size) == (64, 32, (64, 32))
    assert load_explorer(unet_path=model_folder, svd_path=model_folder).image_size == (1024, 512)


def test_the_module_path_of_the_original() -> None:
    path = Path(__file__).parents[1] / "inference" / "explorer.py"
    spec = importlib.util.spec_from_file_location("original_explorer", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.Explorer is Explorer


def test_a_view_is_never_turned_twice(room: np.ndarray) -> None:
    view = View(room).turned(1.0).turned(2.0)
    np.testing.assert_array_equal(view.render(), turn(room, 3.0))
    assert view.erp is room


def test_legacy_mode_is_the_originals_image_maths() -> None:
    from genex_explorer.legacy import legacy_cubemap, legacy_erp, legacy_rotate, legacy_view

    u = np.arange(128) * 2 * np.pi / 128
    rows = np.linspace(0.5, 1, 64)[:, None]
    erp = np.stack([127 + 100 * rows * np.sin(u + k) for k in range(3)], -1).astype(np.uint8)
    image = Image.fromarray(erp)
    old, new = Explorer(legacy=True), Explorer()
    turned = [explorer.rotate_panorama(image, 33.3) for explorer in (old, new)]
    assert np.array_equal(turned[0], legacy_rotate(erp, 33.3))
    cross, faces = old.convert_panorama_to_cubemap(image)
    expected = legacy_cubemap(erp)
    assert np.array_equal(cross, expected[0])
    assert {k: f.size for k, f in faces.items()} == dict.fromkeys(expected[1], (64, 64))
    again = old.cubemap_to_equirectangular(faces, 128, 64)
    assert np.array_equal(again, legacy_erp(expected[1], (64, 128)))
    angles = (90, 90, 20, 10, 5)
    view = old.extract_normal_view(image, *angles, 40, 30)
    assert np.array_equal(view, legacy_view(erp, *angles, (30, 40)))
    assert not np.array_equal(view, new.extract_normal_view(image, *angles, 40, 30))
    assert not np.array_equal(*turned)
