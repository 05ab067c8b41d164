"""The embedded checkpoints reach the quality that the README states, on scenes never trained on."""

import numpy as np
import pytest

from pager.embedded import TINY_ASSETS
from pager.pipeline import PagerPipeline
from pager.quality import evaluate_tiny, summarize

COUNTS = {"room": 8, "corridor": 4, "outdoor": 4}


@pytest.fixture(scope="module")
def table():
    pipelines = [PagerPipeline.from_pretrained(TINY_ASSETS / m) for m in ("depth", "normals")]
    return evaluate_tiny(pipelines, (128, 256), COUNTS)


def test_depth_beats_the_mean_map_three_times(table):
    model = summarize(table["depth"]["model"])["all"]
    baseline = summarize(table["depth"]["baseline"])["all"]
    # 16 of the README's 64 panoramas: the margin over 0.10 allows for the smaller sample.
    assert model["abs_relative_difference"] <= 0.12
    assert 3 * model["abs_relative_difference"] <= baseline["abs_relative_difference"]


def test_depth_has_no_seam_at_the_back(table):
    ratios = [row.values["wrap_ratio"] for row in table["depth"]["model"]]
    assert np.mean(ratios) <= 1.1


def test_normals_mean_error(table):
    model = summarize(table["normals"]["model"])["all"]
    baseline = summarize(table["normals"]["baseline"])["all"]
    assert model["mean"] <= 17.0
    assert model["mean"] < baseline["mean"] / 2
