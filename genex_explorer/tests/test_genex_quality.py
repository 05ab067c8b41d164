"""The embedded checkpoint reaches what the README states, in places it was never trained on."""

from typing import Any

import numpy as np
import pytest
import torch

from genex_explorer.data.procedural import ClipOptions, find_walk, render_erp
from genex_explorer.embedded import TINY_ASSETS
from genex_explorer.explorer import TINY_SETTINGS, open_pipeline
from genex_explorer.paths import trace
from genex_explorer.quality import (
    evaluate_clips,
    evaluate_loops,
    find_loop,
    loop_moves,
    move_by_depth,
    summarize,
)
from genex_explorer.walk import WalkSettings

SETTINGS = WalkSettings(**TINY_SETTINGS)


@pytest.fixture(scope="module")
def pipeline() -> Any:
    pipeline = open_pipeline(str(TINY_ASSETS), device="cpu")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_clips_beat_the_copied_frame(pipeline: Any) -> None:
    rows = evaluate_clips(pipeline, SETTINGS, {"room": 4, "corridor": 2, "outdoor": 2})
    values = summarize(rows)["all"]
    assert values["psnr"] > values["copy_first"] + 4
    assert values["psnr"] > values["true_depth"] - 0.6
    assert values["vae_ceiling"] > values["true_depth"]
    assert values["seam_ratio"] < 1.3


def test_a_first_frame_moved_by_depth_is_the_truth_where_nothing_was_hidden() -> None:
    options = ClipOptions(frames=2, size=(128, 64))
    scene, poses = find_walk("test", "room", 0, options)
    first, second = (
        torch.from_numpy(render_erp(scene, pose, options)).movedim(-1, 0) / 255 for pose in poses
    )
    stayed, moved = move_by_depth(first, scene, [poses[0], poses[0], poses[1]])
    assert torch.allclose(stayed, first, atol=1e-4)
    error, copied = (moved - second).abs().mean(0), (first - second).abs().mean(0)
    assert error.median() < 0.01 < copied.median()
    assert error.mean() < copied.mean() / 2


def test_loops_are_nearer_to_the_truth_than_a_turned_start(pipeline: Any) -> None:
    # Indoors: in open landscapes little changes within the loop.
    values = summarize(evaluate_loops(pipeline, SETTINGS, {"room": 2, "corridor": 2, "outdoor": 0}))
    assert values["all"]["psnr"] > values["all"]["turned"]
    assert values["all"]["closing"] > 20


def test_the_loop_comes_back_to_its_start() -> None:
    end = trace(loop_moves())[-1]
    assert (end.x_m, end.z_m, end.heading_deg) == pytest.approx((0, 0, 0), abs=1e-9)
    place = find_loop("room", 0, 3)
    again = find_loop("room", 0, 3)
    assert np.array_equal(place.start.t.numpy(), again.start.t.numpy())


def test_size_and_origin_of_the_shipped_files() -> None:
    files = [path for path in TINY_ASSETS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 10e6
    assert (TINY_ASSETS / "README.md").is_file()
    for path in TINY_ASSETS.rglob("*.json"):
        assert "_name_or_path" not in path.read_text(encoding="utf-8")


def test_stock_pipeline_reads_it() -> None:
    from diffusers import DiffusionPipeline, StableVideoDiffusionPipeline

    pipeline: Any = DiffusionPipeline.from_pretrained(TINY_ASSETS, dtype=torch.float32)
    assert type(pipeline) is StableVideoDiffusionPipeline
    assert all(torch.isfinite(p).all() for p in pipeline.unet.parameters())
