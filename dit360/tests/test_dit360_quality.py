"""The embedded checkpoint reaches what the README states, on captions it was never trained on."""

from typing import Any

import numpy as np
import pytest
import torch

from dit360.embedded import (
    TINY_ASSETS,
    TINY_HEIGHT,
    TINY_LORA,
    TINY_MODEL,
    TINY_STEPS,
    TINY_TEXT_LENGTH,
)
from dit360.loading import LoadOptions, open_pipeline
from dit360.quality import (
    evaluate_captions,
    evaluate_outpainting,
    held_out_worlds,
    seam_ratio,
    shuffled,
)

SIZES = {"height": TINY_HEIGHT, "steps": TINY_STEPS, "text_length": TINY_TEXT_LENGTH}


@pytest.fixture(scope="module")
def pipeline() -> Any:
    pipeline = open_pipeline(LoadOptions(model=str(TINY_MODEL), lora=str(TINY_LORA), device="cpu"))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_captions_come_true(pipeline: Any) -> None:
    rows = evaluate_captions(pipeline, held_out_worlds(32), **SIZES)
    assert rows["truth"]["all"] > 0.97
    assert rows["generated"]["all"] > 0.75
    assert rows["generated"]["all"] > rows["chance"]["all"] + 0.4
    assert rows["generated"]["seam"] < 1.1 < rows["generated"]["seam_plain"]


def test_photos_are_kept_and_continued(pipeline: Any) -> None:
    values = evaluate_outpainting(pipeline, held_out_worlds(4), **SIZES)
    assert values["kept"] > 30
    assert values["border"] < values["border_paste"]


def test_chance_takes_pictures_of_the_same_kind() -> None:
    worlds = held_out_worlds(12)
    order = shuffled(worlds)
    assert all(k != i for i, k in enumerate(order))
    assert [worlds[k].outdoor for k in order] == [world.outdoor for world in worlds]


def test_seam_ratio_of_known_pictures() -> None:
    ramp = np.tile(np.arange(64, dtype=np.uint8)[None, :, None], (32, 1, 3))
    assert seam_ratio(ramp[None]) == pytest.approx(63, rel=0.02)  # 63 back to 0 against steps of 1


def test_seam_ratio_looks_at_the_columns_beside_the_seam_alone() -> None:
    erp = np.zeros((1, 32, 64, 3), np.uint8)
    erp[:, :, 31:33] = 255  # the only steps are far from the seam
    erp[:, :, :3] = (10, 10, 10)
    erp[:, :, 1:3] = (11, 11, 11)
    erp[:, :, 2:3] = (12, 12, 12)
    erp[:, :, -3:] = (18, 18, 18)
    erp[:, :, -2:] = (19, 19, 19)
    erp[:, :, -1:] = (20, 20, 20)
    assert seam_ratio(erp) == pytest.approx(10, rel=0.02)  # 20 to 10 against steps of 1


def test_size_and_origin_of_the_shipped_files() -> None:
    files = [path for path in TINY_ASSETS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 10e6
    assert (TINY_ASSETS / "README.md").is_file()
    for path in TINY_ASSETS.rglob("*.json"):
        assert '"_name_or_path"' not in path.read_text(encoding="utf-8")


def test_stock_pipeline_reads_it() -> None:
    from diffusers import DiffusionPipeline, FluxPipeline

    pipeline: Any = DiffusionPipeline.from_pretrained(TINY_MODEL, dtype=torch.float32)
    assert type(pipeline) is FluxPipeline
    assert all(torch.isfinite(p).all() for p in pipeline.transformer.parameters())
