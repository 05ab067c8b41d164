"""Inference over many panoramas and processes, and options from YAML files."""

import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from pager.cli import inference
from pager.cli.common import read_flag_values
from pager.cli.inference import build_parser, launched_shard

ROOT = Path(__file__).parents[1]


def contents(folder: Path) -> dict[str, bytes]:
    files = (p for p in folder.rglob("*") if p.is_file() and p.name != "run.json")
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


@pytest.fixture
def flags(checkpoints, write_panoramas, tmp_path) -> list[str]:
    write_panoramas(tmp_path / "in", 3)
    return [
        "--depth_checkpoint_path", str(checkpoints["depth"]), "--normals_checkpoint_path",
        str(checkpoints["normals"]), "--input", str(tmp_path / "in"),
    ]  # fmt: skip


def test_two_launched_processes_write_the_same_bytes_as_one(flags, tmp_path):
    assert inference.main([*flags, "--results_path", str(tmp_path / "one")]) == 0
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu",
              "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no",
              "--dynamo_backend", "no", "--main_process_port", "0"]  # fmt: skip
    run = subprocess.run(
        [*launch, ROOT / "inference.py", *flags, "--results_path", tmp_path / "two"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    assert sorted(line for line in run.stdout.splitlines() if "written" in line) == [
        f"1 of 1 panoramas written to {tmp_path / 'two'}",
        f"2 of 2 panoramas written to {tmp_path / 'two'}",
    ]
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    assert (tmp_path / "two" / "run.json").is_file()


def test_launched_share():
    assert launched_shard({}) == (0, 1)
    assert launched_shard({"RANK": "2", "WORLD_SIZE": "3"}) == (2, 3)


def test_ray_runs_every_shard_once(flags, tmp_path, monkeypatch):
    """With a stand-in for Ray that runs a task when it is asked for."""
    started: list[int] = []

    class Task:
        def __init__(self, function):
            self.remote = function

    def remote(**options):
        started.append(options["num_gpus"])
        return Task

    fake = types.SimpleNamespace(
        init=lambda **_: None, cluster_resources=lambda: {"CPU": 2.0}, remote=remote, get=list
    )
    monkeypatch.setitem(sys.modules, "ray", fake)
    one, many = tmp_path / "one", tmp_path / "many"
    assert inference.main([*flags, "--results_path", str(one)]) == 0
    ray = ["--executor", "ray", "--num_workers", "2"]
    assert inference.main([*flags, "--results_path", str(many), *ray]) == 0
    assert started == [0]
    assert contents(many) == contents(one)
    (tmp_path / "in" / "bad.png").write_text("no image")
    assert inference.main([*flags, "--results_path", str(many), *ray]) == 1


def test_ray_is_named_when_it_is_missing(flags, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert inference.main([*flags, "--executor", "ray"]) == 2
    assert "pip install 'ray[default]'" in capsys.readouterr().err


# ---- options from a file ------------------------------------------------------------------------


def test_shipped_files_set_flags():
    parser = build_parser()
    values = read_flag_values(str(ROOT / "configs/inference.yaml"), parser)
    assert values["generate_eval"] is True
    assert values["dataset"] == "PanoInfinigen"
    # A training file sets what inference shares with it and leaves the rest alone.
    shared = read_flag_values(str(ROOT / "configs/base.yaml"), parser)
    assert shared == {
        "data_path": Path("data"), "dataset": "PanoInfinigen", "scenes": "both",
        "enable_xformers": False, "img_report_frequency": 200, "num_workers": 2,
    }  # fmt: skip


@pytest.mark.parametrize("alias", ["--config", "--configs"])
def test_command_line_wins_over_the_file(alias, flags, tmp_path):
    yaml = tmp_path / "c.yaml"
    yaml.write_text(f"a: {{b: {{points: glb, html: true}}}}\nresults_path: {tmp_path / 'file'}\n")
    assert inference.main([alias, str(yaml), *flags, "--results_path", str(tmp_path / "cli")]) == 0
    assert not (tmp_path / "file").exists()
    names = {p.name for p in (tmp_path / "cli" / "pano00").iterdir()}
    assert {"points.glb", "index.html"} <= names


@pytest.mark.parametrize(("text", "message"), [
    ("pointz: glb", "unknown key pointz; did you mean points?"),
    ("points: obj", "points is 'obj'; use one of ply, glb, none"),
    ("html: please", "html is 'please'; use true or false"),
    ("face_size: wide", "face_size is 'wide'"),
    ("face_size: true", "face_size is True; use a value"),
    ("- 1", "not a readable YAML file"),
    ("a: [", "not a readable YAML file"),
])  # fmt: skip
def test_mistakes_in_the_file_are_one_line(text, message, flags, tmp_path, capsys):
    yaml = tmp_path / "c.yaml"
    yaml.write_text(text)
    assert inference.main(["--config", str(yaml), *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {yaml}")
    assert message in error
    assert error.count("\n") == 1
