"""Flags of the two training commands, their presets, messages and shell scripts."""

import argparse
import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dit360.cli import train as command
from dit360.embedded import TINY_HEIGHT, TINY_MODEL
from dit360.training.options import MIX_DEFAULTS, PRESETS, TrainOptions, resolve

ROOT = Path(__file__).parents[1]

# Flags of the original train.py with their defaults (spec 2.3); of the required one the dead default.
ORIGINAL: dict[str, Any] = {
    "pretrained_model_name_or_path": "black-forest-labs/FLUX.1-dev", "variant": None,
    "revision": None, "learning_rate": 5e-5, "seed": 0, "adam_beta1": 0.9, "adam_beta2": 0.999,
    "adam_weight_decay": 0, "adam_epsilon": 1e-6, "weighting_scheme": "none", "logit_mean": 0,
    "logit_std": 1, "mode_scale": 1.29, "guidance_scale": 1.0, "resume_from_checkpoint": None,
    "load_ckpt": None, "rank": 64, "lora_alpha": 64, "lora_bias": "none",
    "gaussian_init_lora": False, "lora_drop_out": 0.05, "resolution": 1024, "train_batch_size": 10,
    "dataloader_num_workers": 24, "topk": -1, "devices": "0", "max_epochs": 50, "precision": "16",
    "accumulate_grad_batches": 1, "lambda_cube": 0.5, "lambda_yaw": 0.5, "padding_n": 1,
}  # fmt: skip
# What the mix script changes (spec 2.4), but for its padding_n of 0.
ORIGINAL_MIX: dict[str, Any] = ORIGINAL | {
    "panorama_data": None, "perspective_data": None, "data_size": None, "learning_rate": 2e-5,
    "adam_weight_decay": 1e-2, "guidance_scale": 3.5, "rank": 256, "lora_alpha": 64,
    "lambda_cube": 0, "lambda_yaw": 0,
}  # fmt: skip
TRAIN_SH = {
    "learning_rate": 5e-5, "seed": 0, "adam_weight_decay": 1e-5, "adam_epsilon": 1e-6,
    "guidance_scale": 1.0, "rank": 64, "lora_alpha": 64, "gaussian_init_lora": True,
    "lora_drop_out": 0.05, "resolution": 1024, "train_batch_size": 1, "dataloader_num_workers": 25,
    "max_epochs": 25, "precision": "16-mixed", "accumulate_grad_batches": 4, "lambda_cube": 0.5,
    "lambda_yaw": 0.5, "padding_n": 1,
}  # fmt: skip


def parsed(*arguments: str, mix: bool = False) -> TrainOptions:
    given = vars(command.build_parser(mix=mix).parse_args(arguments))
    return resolve(given, MIX_DEFAULTS if mix else {})


def values(options: TrainOptions, names: Any) -> dict[str, Any]:
    return {name: getattr(options, name) for name in names}


def test_flags_and_defaults_of_the_original() -> None:
    assert values(parsed(), ORIGINAL) == ORIGINAL
    assert values(parsed(mix=True), ORIGINAL_MIX) == ORIGINAL_MIX
    assert parsed(mix=True).padding_n == 1  # D3
    assert str(parsed().save_dir) == "."


def test_original_command_line() -> None:
    """The flags as `train.sh` of the original passes them."""
    arguments = []
    for name, value in TRAIN_SH.items():
        arguments += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    options = parsed(*arguments, "--save_dir", "model_saved", "--devices", "1")
    assert values(options, TRAIN_SH) == TRAIN_SH
    assert parsed("--gaussian_init_lora", "--no-gaussian_init_lora").gaussian_init_lora is False


def test_preset_of_the_panorama_script() -> None:
    options = parsed("--preset", "released-panorama")
    assert values(options, TRAIN_SH) == TRAIN_SH
    assert (options.lr_schedule, options.aux_from_epoch, options.aux_until_epoch) == (
        "warmup", 2, None,
    )  # fmt: skip


def test_preset_of_the_mix_script() -> None:
    options = parsed("--preset", "released-mix", mix=True)
    expected = TRAIN_SH | {
        "accumulate_grad_batches": 5, "lambda_cube": 0, "lambda_yaw": 0, "padding_n": 0,
    }  # fmt: skip
    assert values(options, expected) == expected
    assert (options.lr_schedule, options.aux_until_epoch) == ("epochs", 3)
    assert (options.perspective_weight, options.perspective_reduction) == (0.5, "cells")


def test_preset_of_the_paper() -> None:  # spec 6.2
    options = parsed("--preset", "paper", mix=True)
    expected = {
        "learning_rate": 2e-5, "max_epochs": 20, "accumulate_grad_batches": 3, "guidance_scale": 1,
        "aux_from_epoch": 0, "yaw_angles": "any", "perspective_start_epoch": 0,
        "perspective_decay": 1, "perspective_weight": 1, "perspective_reduction": "grid",
        "padding_n": 1, "rank": 64,
    }  # fmt: skip
    assert values(options, expected) == expected


def test_order_of_precedence() -> None:
    options = parsed("--preset", "paper", "--tiny", "--max_epochs", "3")
    assert (options.max_epochs, options.rank, options.learning_rate) == (3, 4, 2e-5)
    assert options.resolution == TINY_HEIGHT
    assert options.pretrained_model_name_or_path == str(TINY_MODEL)
    assert options.precision == "32"


def test_presets_name_options() -> None:
    names = {field.name for field in dataclasses.fields(TrainOptions)}
    for preset in (*PRESETS.values(), MIX_DEFAULTS):
        assert preset.keys() <= names


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rank", "0"], "--rank is 0, it must be positive"),
        (["--lambda_yaw", "-1"], "--lambda_yaw is -1.0, it must not be negative"),
        (["--lora_drop_out", "1"], "--lora_drop_out is 1.0, use 0 or more and less than 1"),
        (["--resolution", "100"], "--resolution is 100, use a multiple of 16"),
        (["--max_steps", "0"], "--max_steps is 0"),
        (["--topk", "-2"], "--topk is -2"),
        (["--perspective_decay", "2"], "--perspective_decay is 2.0"),
        (["--ema_decay", "0.9", "--strategy", "fsdp"], "use --strategy ddp"),
        (["--validation_prompts", "x", "--strategy", "fsdp"], "FSDP splits"),
        (["--load_ckpt", "a", "--resume_from_checkpoint", "b"], "give one"),
        (["--devices", "two"], "use a count"),
        (["--devices", "-1", "--accelerator", "cpu"], "--devices -1 cannot be had here"),
        (["--lora_bias", "all"], "a LoRA file cannot hold"),
        (["--panorama_data", "nothing.jsonl"], "does not exist"),
        (["--validation_prompts", "nothing.txt"], "nothing.txt does not exist"),
        (["--resume_from_checkpoint", "nothing"], "nothing does not exist"),
        (["--strategy", "deepspeed_stage_2", "--accelerator", "cpu"], "runs on CUDA only"),
        (["--precision", "16", "--accelerator", "cpu"], "use 32 or bf16-mixed"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], message: str, micro_flux: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    data = tmp_path / "data.jsonl"
    _write_row(tmp_path, data)
    common = [
        "--tiny", f"--pretrained_model_name_or_path={micro_flux}", f"--panorama_data={data}",
        "--train_batch_size=1", f"--save_dir={tmp_path / 'run'}", "--resolution=32",
    ]  # fmt: skip
    assert command.main([*common, *arguments]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error
    assert not list((tmp_path / "run").rglob("*.ckpt"))


def _write_row(folder: Path, data: Path) -> None:
    import numpy as np
    from PIL import Image

    Image.fromarray(np.zeros((32, 64, 3), np.uint8)).save(folder / "row.png")
    data.write_text(json.dumps({"image": "row.png", "caption": "a room"}))


@pytest.mark.parametrize("is_training", [True, False])
def test_ctrl_c_is_one_line(
    is_training: bool, micro_flux: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """In the first step Lightning takes it for itself, and leaves the signal ignored."""
    from dit360.training import run
    from dit360.training.module import DiT360Training

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(
        *(DiT360Training, "predict") if is_training else (run, "build_module"), stop
    )
    handler = signal.getsignal(signal.SIGINT)
    try:
        code = command.main(
            ["--tiny", f"--pretrained_model_name_or_path={micro_flux}", "--resolution=32",
             "--accelerator=cpu", f"--save_dir={tmp_path}"]
        )  # fmt: skip
    finally:
        signal.signal(signal.SIGINT, handler)
    assert code == 130
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("interrupted; ")
    assert ("--resume_from_checkpoint last" in line) == is_training


def test_mix_needs_photos(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main_mix(["--panorama_data", "x.jsonl"]) == 2
    assert "--perspective_data is missing" in capsys.readouterr().err


def test_dry_run_of_the_tiny_mix(
    micro_flux: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = command.main_mix(
        ["--tiny", "--dry_run", f"--pretrained_model_name_or_path={micro_flux}",
         "--resolution=32", f"--save_dir={tmp_path}"]
    )  # fmt: skip
    report = json.loads(capsys.readouterr().out)
    assert code == 0
    assert report["panoramas"] == command.TINY_WORLDS
    assert report["photos_by_epoch"][:4] == [0, 0, 8, 4]
    assert report["options"]["roll"] == "none"
    assert not (tmp_path / "lightning_logs").exists()


def test_help_shows_the_defaults_of_the_command() -> None:
    assert "(default 256)" in command.build_parser(mix=True).format_help()
    assert "(default 256)" not in command.build_parser().format_help()
    # Every flag has a help text.
    actions = [a for a in command.build_parser()._actions if a.option_strings]
    assert all(a.help and a.help is not argparse.SUPPRESS for a in actions)


@pytest.mark.parametrize(
    ("script", "preset", "epochs"),
    [
        ("train.sh", "released-panorama", "7"),
        ("train_mix_staged_lora_dynamic.sh", "released-mix", "7"),
    ],
)
def test_shell_scripts_pass_variables_and_flags(
    script: str, preset: str, epochs: str, tmp_path: Path
) -> None:
    """The variables of the original (spec 2.5), with a stand-in that prints its arguments."""
    fake = tmp_path / "some python"
    fake.write_text(f'#!/bin/sh\n"{sys.executable}" -c "import json, os, sys; print(json.dumps('
                    "[sys.argv[1:], os.environ['CUDA_VISIBLE_DEVICES']]))\" \"$@\"\n")  # fmt: skip
    fake.chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    variables = {
        **kept, "PYTHON": str(fake), "FLUX": "my flux", "SAVE_DIR": "my dir",
        "PANORAMA_DATA": "p.jsonl", "PERSPECTIVE_DATA": "q.jsonl", "CUDA_DEVICE": "3",
    }  # fmt: skip
    result = subprocess.run(
        ["bash", str(ROOT / script), "--max_epochs", epochs], env=variables, cwd=tmp_path,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    (entry, *arguments), devices = json.loads(result.stdout)
    is_mix = "mix" in script
    assert Path(entry) == ROOT / script.replace(".sh", ".py")
    assert devices == "0,"
    options = parsed(*arguments, mix=is_mix)
    assert options.preset == preset
    assert options.pretrained_model_name_or_path == "my flux"
    assert str(options.save_dir) == "my dir"
    assert (options.devices, options.max_epochs, options.padding_n) == ("3", 7, 1)
    if is_mix:
        assert (options.panorama_data, options.perspective_data) == ("p.jsonl", "q.jsonl")
    plain = {name: value for name, value in variables.items() if name in kept or name == "PYTHON"}
    result = subprocess.run(
        ["bash", str(ROOT / script)], env=plain, cwd=tmp_path, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    options = parsed(*json.loads(result.stdout)[0][1:], mix=is_mix)
    assert (options.devices, str(options.save_dir)) == ("1", "model_saved")
    assert options.pretrained_model_name_or_path == "black-forest-labs/FLUX.1-dev"


def test_tour_deletes_only_what_a_tour_has_made(tmp_path: Path) -> None:
    """It gets no further than its first command here."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo.png").touch()

    def tour() -> int:
        command = ["bash", str(ROOT / "scripts" / "tour.sh"), "mine"]
        result = subprocess.run(
            command, cwd=tmp_path, env={**os.environ, "PYTHON": "false"}, capture_output=True
        )
        return result.returncode

    assert tour() == 2
    assert (tmp_path / "mine" / "photo.png").is_file()
    (tmp_path / "mine" / ".tour").touch()
    assert tour() == 1
    assert [path.name for path in (tmp_path / "mine").iterdir()] == [".tour"]


def test_root_file_shows_its_help() -> None:
    result = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "--help"], capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert "--lambda_cube" in result.stdout
    code = "import sys; import dit360.cli.train; print('torch' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "False"  # nothing heavy before the flags are read
