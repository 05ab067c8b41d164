"""The benchmark measures what it says: unmodified stock networks, own processes, true ratios."""

import dataclasses
import json
import runpy
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.models.attention_processor import AttnProcessor2_0

from pager import bench
from pager.layers import CubeConv2d, CubeGroupNorm
from pager.pipeline import PagerPipeline

CPU = torch.device("cpu")
MINI = bench.Size(unet=(32, 64), vae=(32, 32), text_width=32, face_size=16)
needs_status = pytest.mark.skipif(
    not bench.CLEAR_REFS.exists(), reason="needs a system that tells resident memory"
)
SCRIPT = Path(__file__).parents[1] / "benchmarks" / "run.py"


# ---- networks -----------------------------------------------------------------------------------


def test_stock_networks_are_unmodified_and_have_the_same_weights():
    ours, stock = (bench.build_model(MINI, CPU, stock=stock) for stock in (False, True))
    assert any(isinstance(module, CubeConv2d) for module in ours.modules())
    assert not any(isinstance(m, CubeConv2d | CubeGroupNorm) for m in stock.modules())
    assert {type(p) for p in stock.unet.attn_processors.values()} == {AttnProcessor2_0}
    states = ours.state_dict(), stock.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not any(p.requires_grad for p in stock.vae.parameters())
    # A stock network sees six separate images: permuting them permutes the result, and only there.
    faces = torch.rand(1, 6, 3, 16, 16)
    order = [1, 0, 2, 3, 4, 5]
    with torch.no_grad():
        apart, joined = (
            (m(faces[:, order]) - m(faces)[:, order]).abs().max() for m in (stock, ours)
        )
    assert apart < 1e-5
    assert joined > 1e-3


def test_building_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    bench.build_model(MINI, CPU, stock=True)
    assert torch.equal(torch.get_rng_state(), before)


def test_real_size_has_the_parameters_of_stable_diffusion_2():
    unet, vae = bench._networks(bench.REAL, torch.device("meta"))
    assert isinstance(vae, AutoencoderKL)
    assert sum(p.numel() for p in unet.parameters()) == 865_922_244
    assert sum(p.numel() for p in vae.parameters()) == 83_653_863


@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_step_changes_the_attention_blocks_alone(checkpointing):
    model = bench.build_model(MINI, CPU)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    step = bench.training_step(model, CPU, checkpointing=checkpointing)
    losses = [step() for _ in range(3)]
    assert losses[2] < losses[0]
    changed = {k for k, value in model.state_dict().items() if not torch.equal(value, before[k])}
    assert changed
    assert all("transformer_blocks" in key for key in changed)
    assert model.unet.is_gradient_checkpointing is checkpointing


def test_modes_reach_the_pipeline(monkeypatch):
    seen = []

    def record(_self, _model, _device, dtype, **options):
        seen.append((dtype, options))

    monkeypatch.setattr(PagerPipeline, "__init__", record)
    for case in (*bench.CUDA_MODES, *bench.COMPILED):
        bench.prepare(case, MINI, CPU)
    single, half = torch.float32, torch.bfloat16
    compiled = {"compile_backend": "inductor"}
    both = {"offload": True, "stream_vae": True}
    assert seen == [
        (single, {}), (single, {}), (half, {}), (single, {"offload": True}),
        (single, {"stream_vae": True}), (half, {"offload": True}), (half, {"stream_vae": True}),
        (half, both), (single, compiled), (half, compiled),
    ]  # fmt: skip


# ---- measurements -------------------------------------------------------------------------------


def test_ratios_are_to_the_stock_row_of_the_same_kind():
    rows = bench._with_ratios(
        {
            case: {"name": case.name, "seconds": seconds}
            for case, seconds in zip(bench.STEPS, (2.0, 3.0, 4.0, 10.0), strict=True)
        }
    )
    assert [row["ratio"] for row in rows] == [1.0, 1.5, 1.0, 2.5]
    rows = bench._with_ratios(
        {bench.MODES[0]: {"skipped": "out of memory"}, bench.PLAIN: {"seconds": 1.0}}
    )
    assert "ratio" not in rows[1]


def test_error_against_float32():
    half = bench.measure_error(bench.MODES[2], CPU)
    assert 1e-5 < half["mean_error"] < half["max_error"] < 0.05
    assert bench.measure_error(bench.MODES[3], CPU) == {"max_error": 0.0, "mean_error": 0.0}
    assert bench.measure_error(bench.PLAIN, CPU) == {}


@needs_status
def test_memory_is_that_of_another_process():
    ballast = torch.ones(200 << 18)  # 200 MiB that are not there
    here = bench._status_mib("VmRSS")
    memory = bench.resident_memory(bench.PLAIN, dataclasses.replace(MINI, face_size=128))
    assert memory["rest_mib"] + 100 < here
    # Six faces of 128 x 128 x 32 channels in float32 are 12 MiB; several are alive at a time.
    assert 24 < memory["peak_mib"] - memory["rest_mib"] < 400
    assert len(ballast)


@needs_status
def test_memory_of_the_run_without_that_of_building(monkeypatch):
    def prepare(*_case):
        torch.ones(300 << 18)  # 300 MiB, freed before the run
        return lambda: torch.ones(100 << 18)

    monkeypatch.setattr(bench, "prepare", prepare)
    memory = bench._resident_memory(bench.PLAIN, MINI, torch.get_num_threads())
    assert memory["peak_mib"] - memory["rest_mib"] == pytest.approx(100, abs=20)


def test_only_failures_of_compilers_and_memory_are_rows(monkeypatch):
    def fail(case, _size, _device):
        if case != bench.PLAIN:
            raise RuntimeError("no C++ compiler\nhint")
        return lambda: None

    monkeypatch.setattr(bench, "prepare", fail)
    cases = (bench.PLAIN, bench.COMPILED[0])
    rows = bench.measure_cpu(cases, MINI, 1, with_memory=False)
    assert rows[1] == {"name": "compiled", "skipped": "no C++ compiler hint"}
    with pytest.raises(RuntimeError, match="no C"):
        bench.measure_cpu(bench.MODES[:1], MINI, 1, with_memory=False)
    assert bench._reason(bench.PLAIN, torch.OutOfMemoryError("CUDA ...")) == "out of memory"


# ---- command ------------------------------------------------------------------------------------


@pytest.fixture
def command(monkeypatch):
    monkeypatch.setattr(bench, "QUICK", MINI)
    monkeypatch.setattr(bench, "MODES", bench.MODES[:3])
    return runpy.run_path(str(SCRIPT))["main"]


def test_quick_run(command, tmp_path, capsys):
    assert command(["--quick", "--device", "cpu", "--json", str(tmp_path / "bench.json")]) == 0
    text = capsys.readouterr().out
    report = json.loads((tmp_path / "bench.json").read_text())
    assert text == bench.format_report(report)
    assert f"{torch.get_num_threads()} threads" in text
    assert f"torch {torch.__version__.split('+')[0]}" in text
    inference, training = (table["rows"] for table in report["tables"])
    assert [row["name"] for row in inference] == ["stock classes, float32", "float32", "bfloat16"]
    assert inference[0]["ratio"] == 1.0
    for row in (*inference, *training):
        assert row["seconds"] > 0
        assert "peak_mib" not in row
    assert inference[1]["ratio"] == inference[1]["seconds"] / inference[0]["seconds"]
    assert "compiled networks skipped" in text


def test_report_is_markdown_in_columns():
    rows = [
        {"name": "stock", "seconds": 1.0, "ratio": 1.0, "peak_mib": 812.3},
        {"name": "ours", "seconds": 12.345, "ratio": 12.345, "max_error": 0.0012},
        {"name": "compiled", "skipped": "no compiler"},
    ]
    about = {"cpu": "A", "cores": 2, "threads": 1, "gpu": None, "versions": {"torch": "2"}}
    report = {"machine": about, "tables": [{"title": "T", "rows": rows}], "notes": ["N"]}
    assert bench.format_report(report) == (
        "A, 2 cores, 1 threads, GPU: none; torch 2\n\nT\n\n"
        "|       |     s | x of stock | MiB at peak | max rel. error |\n"
        "| ----- | ----: | ---------: | ----------: | -------------: |\n"
        "| stock |  1.00 |       1.00 |         812 |                |\n"
        "| ours  | 12.35 |      12.35 |             |        1.2e-03 |\n\n"
        "compiled: skipped, no compiler\n\nN\n"
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_must_exist_if_asked_for(command, capsys):
    assert command(["--device", "cuda"]) == 2
    assert "device cuda is not available" in capsys.readouterr().err
