"""The benchmark measures what it says: stock parts, the options of each row, true ratios."""

import json
import runpy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from genex_explorer import bench, bench_cases
from genex_explorer.bench_cases import (
    CAST,
    CUDA_STEPS,
    QUICK,
    REAL,
    SCL_STEPS,
    SEGMENTS,
    SHORTCUT,
    STEPS,
    STOCK,
)
from genex_explorer.checkpointing import CheckpointedTemporalBlock
from genex_explorer.cross_attention import idle_parameters

CPU = torch.device("cpu")
SCRIPT = Path(__file__).parents[1] / "benchmarks" / "run.py"


# ---- what is run --------------------------------------------------------------------------------


def test_real_size_is_that_of_svd():
    pipeline = bench_cases.random_pipeline(REAL, torch.device("meta"))
    parts = pipeline.unet, pipeline.vae, pipeline.image_encoder
    counts = [sum(p.numel() for p in part.parameters()) for part in parts]
    assert counts == [1_524_623_082, 97_742_847, 632_076_800]
    assert counts[1] + counts[2] == bench.ENCODER_PARAMETERS
    assert pipeline.unet.config.num_attention_heads == (5, 10, 20, 20)


@pytest.fixture
def built(monkeypatch):
    """Pipelines that the cases build."""
    pipelines = []

    def build(*args):
        pipelines.append(make(*args))
        return pipelines[-1]

    make = bench_cases.random_pipeline
    monkeypatch.setattr(bench_cases, "random_pipeline", build)
    return pipelines


@pytest.mark.parametrize("case", [STOCK, SHORTCUT, CAST], ids=lambda case: case.name)
def test_a_step_trains_the_temporal_blocks_alone(case, built, monkeypatch):
    state = torch.get_rng_state()
    encode, passes = bench_cases.encode_moments, []
    monkeypatch.setattr(
        bench_cases, "encode_moments", lambda *a, **k: passes.append(k["chunk"]) or encode(*a, **k)
    )
    step = case.prepare(QUICK, CPU)
    unet = built[0].unet
    before = {key: value.clone() for key, value in unet.state_dict().items()}
    losses = [step() for _ in range(3)]
    assert losses[2] < losses[0]
    changed = {k for k, value in unet.state_dict().items() if not torch.equal(value, before[k])}
    # Weight decay moves queries and keys too, unless the shortcut leaves them out.
    idle = ("norm2", "attn2.to_q", "attn2.to_k") if case.shortcut else ()
    assert changed == {
        key for key in before
        if "temporal_transformer_block" in key and not any(f".{part}." in key for part in idle)
    }  # fmt: skip
    frozen = torch.bfloat16 if case == CAST else torch.float32
    assert unet.conv_in.weight.dtype == frozen
    assert {before[key].dtype for key in changed} == {torch.float32}
    assert unet.is_gradient_checkpointing == (case != STOCK)
    assert any(isinstance(m, CheckpointedTemporalBlock) for m in unet.modules()) == (case != STOCK)
    assert passes == ([5] if case.cached else [25, 25, 25])
    assert torch.equal(torch.get_rng_state(), state)


def test_rows_add_up():
    full = {"gradient_checkpointing": True, "checkpoint_scope": "full", "vae_chunk": 5}
    assert [(step.cached, step.shortcut) for step in STEPS] == [
        (False, False), (False, False), (False, False), (True, False), (True, True), (True, True)
    ]  # fmt: skip
    assert STEPS[0].options == {"vae_chunk": 25}
    assert STEPS[4].options == full
    last = {"mixed_precision": "bf16", "cast_frozen": True, "use_8bit_adam": True}
    assert CUDA_STEPS[-1].options == full | last
    assert {step.options["mixed_precision"] for step in CUDA_STEPS} == {"bf16"}


def test_consistency_rows_reach_the_loss(monkeypatch):
    seen = []

    def record(_vae, estimate, *_, mode, columns, **_options):
        seen.append((mode, len(columns[0])))
        return estimate.flatten(1).mean(1)

    monkeypatch.setattr(bench_cases, "scl_loss", record)
    for case in SCL_STEPS:
        result = case.prepare(QUICK, CPU)()
        assert (result is None) == (case.name != "plain step")
    assert seen == [("pixel", 1), ("pixel", 3), ("pixel_strip", 1), ("latent", 1)]


def test_segments_reach_the_pipeline(monkeypatch):
    seen = []

    def record(pipeline, views, _seeds, settings):
        is_short = bool(idle_parameters(pipeline.unet))
        seen.append((len(views), settings.decode_chunk, pipeline.seam_mode, is_short))
        return np.zeros((len(views), 2, 32, 64, 3), dtype=np.uint8)

    monkeypatch.setattr(bench_cases, "generate_clips", record)
    for case in SEGMENTS[1:]:
        case.prepare(QUICK, CPU)()
    plain = (1, 8, "none", False)
    assert seen == [
        plain, (1, 8, "none", True), (1, 2, "none", False), (1, 8, "vae", False),
        plain, plain, plain, (3, 8, "none", False),
    ]  # fmt: skip


def test_memory_budget_of_the_real_size():
    """As published at least 110 GiB; 24 are enough with checkpointing and 8-bit Adam."""
    unet = bench_cases.random_unet(REAL, torch.device("meta"))
    rows = bench.count_budget(unet, bench.EXPECTED_GIB)
    published, full, _, lean, _ = rows
    trained = 397_620_480
    assert published["weights_gib"] == (1_524_623_082 * 4 + trained * 2) / 2**30
    assert published["gradients_gib"] == pytest.approx(1.48, abs=0.01)
    assert published["moments_gib"] == pytest.approx(2.96, abs=0.01)
    assert published["sum_gib"] == pytest.approx(110, abs=1)
    assert full["recomputed_gib"] == pytest.approx(6.5, abs=0.3)
    assert lean["weights_gib"] == pytest.approx(2.1 + 1.5 + 0.7, abs=0.05)
    assert lean["moments_gib"] == pytest.approx(0.75, abs=0.02)
    sums = [row["sum_gib"] for row in rows]
    assert sums == sorted(sums, reverse=True)
    assert sums[1] > 24 > sums[2]
    parts = [value for key, value in lean.items() if key not in ("name", "sum_gib")]
    assert lean["sum_gib"] == pytest.approx(sum(parts))


# ---- measurements -------------------------------------------------------------------------------


@dataclass
class Fake:
    """A case that is not a network."""

    name: str
    row: Any = None
    result: Any = None

    def prepare(self, *_):
        torch.ones(300 << 18)  # 300 MiB, freed before the run
        return lambda: torch.ones(100 << 18)[:1].numpy().copy()


@pytest.mark.skipif(not bench.TELLS_MEMORY, reason="needs a system that tells memory")
def test_memory_of_the_run_without_that_of_building():
    row, _ = bench._measure(Fake("fake"), QUICK, CPU, apart=True)
    assert row["peak_mib"] == pytest.approx(100, abs=5)


@pytest.mark.skipif(not bench.TELLS_MEMORY, reason="needs a system that tells memory")
def test_each_row_has_a_process_of_its_own():
    ballast = torch.ones(400 << 18)  # 400 MiB that are not there
    row, losses = bench._measure_apart(STOCK, QUICK, CPU)
    _, here = bench._measure(STOCK, QUICK, CPU)
    np.testing.assert_array_equal(losses, here)
    assert len(losses) == 2
    # 3.0 M weights, gradients and moments of the temporal blocks, activations; no libraries.
    assert 20 < row["peak_mib"] < 200
    assert len(ballast)


def test_rows_are_related_to_the_first_one(monkeypatch):
    def measure(case, *_):
        if isinstance(case.row, Exception):
            raise case.row
        return dict(case.row), case.result

    monkeypatch.setattr(bench, "_measure_apart", measure)
    cases = [
        Fake("stock", {"seconds": 2.0, "peak_mib": 100.0}, np.array([1.0, 4.0])),
        Fake("ours", {"seconds": 3.0, "peak_mib": 25.0}, np.array([1.5, 4.0])),
        Fake("other", {"seconds": 1.0, "peak_mib": 50.0}),
        Fake("large", torch.OutOfMemoryError("CUDA out of memory")),
        Fake("small", ImportError("needs bitsandbytes")),
    ]
    stock, ours, other, large, small = bench.measure_table(cases, QUICK, CPU, apart=True)
    assert (stock["ratio"], stock["peak_ratio"]) == (1, 1)
    assert "difference" not in stock
    assert (ours["ratio"], ours["peak_ratio"], ours["difference"]) == (1.5, 0.25, 0.125)
    assert (other["ratio"], other["peak_ratio"]) == (0.5, 0.5)
    assert "difference" not in other
    assert large == {"name": "large", "skipped": "CUDA out of memory"}
    assert small["skipped"] == "needs bitsandbytes"
    rows = bench.measure_table(cases[3:0:-1], QUICK, CPU, apart=True)
    assert rows[2] == {"name": "ours", "seconds": 3.0, "peak_mib": 25.0}


# ---- command ------------------------------------------------------------------------------------


def test_quick_run(tmp_path, capsys):
    main = runpy.run_path(str(SCRIPT))["main"]
    assert main(["--quick", "--json", str(tmp_path / "bench.json")]) == 0
    report = json.loads((tmp_path / "bench.json").read_text())
    assert capsys.readouterr().out == bench.format_report(report)
    steps, scl, segments = (table["rows"] for table in report["tables"])
    for rows in (steps, scl, segments):
        assert rows[0]["ratio"] == 1
        assert all(row["seconds"] > 0 and "peak_mib" not in row for row in rows)
    differences = [row["difference"] for row in steps[1:]]
    assert differences[:2] == [0, pytest.approx(0, abs=1e-6)]  # encoded in other chunks
    assert differences[2] < 1e-3  # the cache is stored in half precision
    assert differences[3] == pytest.approx(differences[2], abs=1e-5)
    assert 1e-6 < differences[4] < 0.05
    by_name = {row["name"]: row.get("difference") for row in segments}
    assert by_name["ours, seam_mode none"] == 0
    assert by_name["three branches, one after the other"] == 0
    assert by_name["single-token shortcut"] <= 2 / 255
    assert by_name["three branches in one batch"] <= 2 / 255
    assert by_name["seam_mode vae (default)"] is None


def test_report_is_markdown_in_columns():
    rows = [
        {"name": "stock", "seconds": 1.0, "ratio": 1.0, "peak_mib": 812.3},
        {"name": "ours", "seconds": 12.345, "ratio": 12.345, "difference": 0.0012},
        {"name": "lean", "skipped": "out of memory"},
    ]
    about = {"cpu": "A", "cores": 2, "threads": 1, "gpu": None, "versions": {"torch": "2"}}
    report = {"machine": about, "tables": [{"title": "T", "rows": rows}]}
    assert bench.format_report(report) == (
        "A, 2 cores, 1 threads, GPU: none, GPU rows skipped; torch 2\n\nT\n\n"
        "|       |     s | x of first | peak MiB | largest difference |\n"
        "| ----- | ----: | ---------: | -------: | -----------------: |\n"
        "| stock |  1.00 |       1.00 |      812 |                    |\n"
        "| ours  | 12.35 |      12.35 |          |            1.2e-03 |\n\n"
        "lean: skipped, out of memory\n"
    )
