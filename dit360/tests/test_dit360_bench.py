"""The benchmark measures what it says: stock parts, the options of each row, true ratios."""

import gc
import itertools
import json
import runpy
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dit360 import bench, bench_cases, bench_counts
from dit360.bench_cases import QUICK, TABLES, Case, Prepared, Table
from dit360.tiny import micro_pipeline

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "run.py"


def table_of(title: str) -> Table:
    (found,) = (table for table in TABLES if table.title == title)
    return found


# ---- what is run --------------------------------------------------------------------------------


def test_stock_generation_is_that_of_the_stock_pipeline() -> None:
    stock, ours, padded = (
        case.prepare(QUICK).run() for case in table_of("one denoising step").cases
    )
    pipeline: Any = micro_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    embeds = torch.randn(1, QUICK.text_length, 32, generator=generator)
    pooled = torch.randn(1, 32, generator=generator)
    expected = pipeline(
        prompt_embeds=embeds, pooled_prompt_embeds=pooled, height=64, width=128,
        num_inference_steps=2, generator=generator, output_type="latent",
    ).images  # fmt: skip
    assert np.array_equal(stock, expected.numpy())
    assert np.array_equal(ours, stock)
    assert padded.shape == stock.shape
    assert not np.allclose(padded, stock, atol=1e-3)


def test_storage_counts_the_weights_that_stay() -> None:
    cases = table_of("one denoising step, by storage of the weights").cases
    weights = [case.prepare(QUICK).facts["weights_mib"] * 2**20 for case in cases]
    network = micro_pipeline().transformer
    modulation = sum(
        p.nbytes for name, p in network.named_parameters()
        if "norm" in name and ".linear." in name
    )  # fmt: skip
    whole, planned, small, both = weights
    assert whole == sum(p.nbytes for p in network.parameters())
    assert whole - planned == small - both == modulation
    # Norms and both ends of the network stay in float32, the rest takes a quarter.
    kept = sum(
        p.nbytes for name, p in network.named_parameters() if "norm" in name or "embed" in name
    ) + sum(p.nbytes for p in network.proj_out.parameters())
    assert small == kept + (whole - kept) / 4


def test_edits_count_the_evaluations_of_the_network() -> None:
    original, general, fast = (
        case.prepare(replace(QUICK, steps=4)) for case in table_of("one edit").cases
    )
    results = [prepared.run() for prepared in (original, general, fast)]
    # 32 tokens: noise levels 1, 0.83, 0.62, 0.35; the last is below tau and the threshold.
    assert [p.facts["evaluations"] for p in (original, general, fast)] == [12, 11, 7]
    for result in results[1:]:
        np.testing.assert_allclose(result, results[0], atol=1e-4)


def test_one_residual_has_the_gradient_of_three_samples() -> None:
    three, one = (case.prepare(replace(QUICK, height=128)).run()
                  for case in table_of("yaw and cube loss with gradient").cases)  # fmt: skip
    assert np.abs(three).max() > 0
    np.testing.assert_allclose(one, three, rtol=1e-4, atol=1e-6 * np.abs(three).max())


def test_training_steps_learn_and_checkpointing_changes_nothing() -> None:
    state = torch.get_rng_state()
    plain, checkpointed, without_dropout = (
        case.prepare(QUICK) for case in table_of("one training step").cases
    )
    losses = [float(plain.run()) for _ in range(4)]
    assert losses[-1] < losses[0]
    assert [float(checkpointed.run()) for _ in range(4)] == pytest.approx(losses, rel=1e-5)
    assert float(without_dropout.run()) == losses[0]  # B starts at zero
    assert float(without_dropout.run()) != losses[1]
    assert torch.equal(torch.get_rng_state(), state)


def test_checkpointing_is_what_the_rows_say(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(
        bench_cases, "DiT360Training", lambda _options, network, *_: made.append(network)
    )
    for case in table_of("one training step").cases:
        with pytest.raises(AttributeError):  # there is no module to go on with
            case.prepare(QUICK)
    assert [network.is_gradient_checkpointing for network in made] == [False, True, False]
    dropouts = [
        [type(layer).__name__ for name, layer in network.named_modules() if "dropout." in name]
        for network in made
    ]
    assert [set(names) for names in dropouts] == [{"Dropout"}, {"Dropout"}, {"Identity"}]


def test_decoding_wraps_and_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    decode = bench_cases.vae.decode

    def record(network: Any, latents: torch.Tensor, *, tile_columns: int) -> torch.Tensor:
        is_circular = bench_cases.vae.is_circular(network)
        seen.append((is_circular, latents.shape[-1], tile_columns))
        return decode(network, latents, tile_columns=tile_columns)

    monkeypatch.setattr(bench_cases.vae, "decode", record)
    shapes = {case.prepare(QUICK).run().shape for case in table_of("decoding").cases}
    assert shapes == {(1, 3, 64, 128)}
    assert seen == [(False, 16, 16), (True, 16, 16), (True, 16, 8), (True, 16, 4)]


def test_cached_text_is_that_of_the_encoders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    encoded, cached = (case.prepare(QUICK).run() for case in table_of("one prompt").cases)
    gc.collect()
    assert not list(tmp_path.iterdir())
    assert encoded.shape == (QUICK.text_length * 32 + 32,)
    np.testing.assert_allclose(cached, encoded, rtol=2**-8, atol=1e-6)  # stored in bfloat16


# ---- measurements -------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Fake(Case):
    """A case with a known row."""

    build: Any = None
    row: Any = None
    result: Any = None


def test_rows_are_related_to_the_first_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "_measure_apart", lambda case, _: (dict(case.row), case.result))
    cases = (
        Fake(name="stock", row={"seconds": 2.0, "peak_mib": 100.0}, result=np.array([1.0, -4.0])),
        Fake(name="ours", row={"seconds": 3.0, "peak_mib": 25.0}, result=np.array([1.5, -4.0])),
        Fake(name="other", row={"seconds": 1.0}, result=np.zeros(3), is_compared=False),
    )
    made = Table(title="T", size=QUICK, tells=("panorama", "blocks"), cases=cases)
    found = bench.measure_table(made, QUICK, apart=True)
    assert found["title"] == "T: 64x128 pixels, batch 1, 2 + 3 blocks of width 64"
    stock, ours, other = found["rows"]
    assert (stock["ratio"], stock["peak_ratio"]) == (1, 1)
    assert "difference" not in stock
    assert (ours["ratio"], ours["peak_ratio"], ours["difference"]) == (1.5, 0.25, 0.125)
    assert other == {"name": "other", "seconds": 1.0, "ratio": 0.5}


def test_seconds_are_the_median_of_the_runs_of_one_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the runs after the warm-up and the one for the memory; quickly, of a single one."""
    ticks = itertools.accumulate([0, 0.5, 0, 0.1, 0, 0.3])
    monkeypatch.setattr(bench.time, "perf_counter", lambda: next(ticks))
    monkeypatch.setattr(bench, "TELLS_MEMORY", False)
    calls = itertools.count()
    prepared = Prepared(lambda: np.array(next(calls)), units=2, facts={"evaluations": 7})
    case = Case(name="x", build=lambda _: prepared)
    row, results = bench._measure(case, QUICK, apart=True)
    assert row == {"seconds": pytest.approx(0.15), "evaluations": 7}
    assert results.tolist() == [0, 1]
    assert next(calls) == 4
    ticks = itertools.accumulate([0, 0.5])
    assert bench._measure(case, QUICK)[0]["seconds"] == 0.25


def needs_100_mib(_size: Any) -> Prepared:
    torch.ones(300 << 18)  # 300 MiB, freed before the run
    return Prepared(lambda: torch.ones(100 << 18)[:1].numpy().copy())


@pytest.mark.skipif(not bench.TELLS_MEMORY, reason="needs a system that tells memory")
def test_memory_of_the_run_without_that_of_building() -> None:
    row, _ = bench._measure(Case(name="x", build=needs_100_mib), QUICK, apart=True)
    assert row["peak_mib"] == pytest.approx(100, abs=5)


@pytest.mark.skipif(not bench.TELLS_MEMORY, reason="needs a system that tells memory")
def test_each_row_has_a_process_of_its_own() -> None:
    ballast = torch.ones(400 << 18)  # 400 MiB that are not there
    case = table_of("one training step").cases[0]
    row, losses = bench._measure_apart(case, QUICK)
    _, here = bench._measure(case, QUICK)
    np.testing.assert_array_equal(losses, here)
    assert losses.shape == (2,)
    assert 2 < row["peak_mib"] < 200  # at least the weights; no libraries
    assert len(ballast)


# ---- counts -------------------------------------------------------------------------------------


def test_counts_of_the_released_model() -> None:
    modes, edits, parameters = (table["rows"] for table in bench_counts.count_tables())
    by_mode = {row["name"]: row for row in modes}
    assert by_mode["full"]["device_gb"] == pytest.approx(33.74, abs=0.01)  # spec 12.2
    shed = by_mode["full"]["device_gb"] - by_mode["full --precompute_modulation"]["device_gb"]
    assert shed == pytest.approx(6.495, abs=0.001)
    assert by_mode["balanced"]["device_gb"] == by_mode["low"]["device_gb"] < 0.2
    assert by_mode["low"]["host_gb"] < 22 < 33 < by_mode["balanced"]["host_gb"]
    assert by_mode["int8"]["device_gb"] == pytest.approx(17.3, abs=0.05)
    assert by_mode["4bit"]["device_gb"] == pytest.approx(10.0, abs=0.1)
    evaluations = {row["name"]: (row["injected"], row["fast"], row["original"]) for row in edits}
    # The source is in the batch for the steps that inject (P20), and 50 steps have the edit.
    assert evaluations == {
        "20": (49, 99, 150), "50 (default)": (44, 94, 150), "80": (31, 81, 150),
        "98": (6, 56, 150),
    }  # fmt: skip
    assert {row["name"]: row["parameters"] for row in parameters} == {  # P1, P2
        "transformer": 11_901_408_320, "vae": 83_819_683, "text_encoder": 123_060_480,
        "text_encoder_2": 4_762_310_656, "LoRA of rank 64": 74_711_040,
    }  # fmt: skip
    assert parameters[0]["bytes_gb"] == pytest.approx(23.80, abs=0.01)


# ---- command ------------------------------------------------------------------------------------


def test_quick_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main = runpy.run_path(str(SCRIPT))["main"]
    assert main(["--quick", "--json", str(tmp_path / "bench.json")]) == 0
    report = json.loads((tmp_path / "bench.json").read_text())
    assert capsys.readouterr().out == bench.format_report(report)
    assert len(report["tables"]) == len(TABLES) + 3
    rows = {row["name"]: row for table in report["tables"][: len(TABLES)] for row in table["rows"]}
    for row in rows.values():
        assert row["seconds"] > 0
        assert "peak_mib" not in row
    assert rows["ours, padding 0"]["difference"] == 0
    assert rows["precomputed modulation"]["difference"] < 1e-5
    assert 1e-5 < rows["8 bits"]["difference"] < 0.05
    assert rows["fast path (gamma = eta = 1, default)"]["difference"] < 1e-4
    assert rows["one residual"]["difference"] < 1e-5
    assert rows["gradient checkpointing (default)"]["difference"] < 1e-5


def test_report_is_markdown_in_columns() -> None:
    rows = [
        {"name": "stock", "seconds": 1.0, "ratio": 1.0, "peak_mib": 812.3},
        {"name": "ours", "seconds": 12.345, "ratio": 12.345, "difference": 0.0012},
    ]
    about = {"cpu": "A", "cores": 2, "threads": 1, "versions": {"torch": "2"}}
    report = {"machine": about, "tables": [{"title": "T", "rows": rows}]}
    assert bench.format_report(report) == (
        "A, 2 cores, 1 threads; torch 2\n\nT\n\n"
        "|       |    s | x of first | peak MiB | largest difference |\n"
        "| ----- | ---: | ---------: | -------: | -----------------: |\n"
        "| stock |    1 |          1 |      812 |                    |\n"
        "| ours  | 12.3 |       12.3 |          |            1.2e-03 |\n"
    )
