"""Extraction from checkpoints of the original (DeepSpeed) and ours (Lightning), and bad files."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.core.saving import save_hparams_to_yaml
from peft import LoraConfig
from torch import Tensor

from dit360.cli.extract import main
from dit360.lora import CONFIG_NAME, WEIGHTS_NAME, read_lora
from dit360.training.extract import extract_lora, read_checkpoint

ROOT = Path(__file__).parents[1]
MODULES = ("single_transformer_blocks.0.attn.to_k", "transformer_blocks.1.attn.to_out.0")
CONFIG = LoraConfig(r=4, lora_alpha=2, target_modules=["attn.to_k", "attn.to_out.0"])
ARGS = argparse.Namespace(
    rank=4, lora_alpha=2, padding_n=1, lora_drop_out=0.05, save_dir=Path("model_saved")
)
HYPER = {"args": ARGS, "lora_config": CONFIG, "ckpt": None}  # as the original saves them


def training_state() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    state = {"vae.decoder.conv_in.weight": torch.zeros(2, 2)}
    for module in MODULES:
        key = f"flux_transformer.{module}"
        state[f"{key}.base_layer.weight"] = torch.zeros(8, 8).half()
        state[f"{key}.lora_A.default.weight"] = torch.randn(4, 8, generator=generator).half()
        state[f"{key}.lora_B.default.weight"] = torch.randn(8, 4, generator=generator).half()
    return state


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """`version_0` of a training of the original, without its checkpoint."""
    folder = tmp_path / "checkpoints" / "lightning_logs" / "version_0"
    (folder / "checkpoints" / "vsclip_epoch=00.ckpt" / "checkpoint").mkdir(parents=True)
    return folder


def save_deepspeed(run: Path, **content: Any) -> Path:
    folder = run / "checkpoints" / "vsclip_epoch=00.ckpt"
    path = folder / "checkpoint" / "mp_rank_00_model_states.pt"
    torch.save({"module": training_state(), "buffer_names": [], **content}, path)
    return path


def check(folder: Path) -> None:
    """Tensors unchanged, under the keys of the original's result."""
    weights = read_lora(folder)
    assert (weights.rank, weights.alpha, weights.padding_n) == (4, 2, 1)
    state = training_state()
    expected = {
        f"transformer.{module}.lora_{side}.weight": state[
            f"flux_transformer.{module}.lora_{side}.default.weight"
        ]
        for module in MODULES
        for side in "AB"
    }
    assert weights.state.keys() == expected.keys()
    for key, tensor in expected.items():
        assert weights.state[key].dtype == torch.float16
        assert torch.equal(weights.state[key], tensor)
    assert json.loads((folder / CONFIG_NAME).read_text())["r"] == 4


def test_deepspeed_with_hyper_parameters_inside(run: Path, tmp_path: Path) -> None:
    path = save_deepspeed(run, hyper_parameters=HYPER, epoch=0)
    extract_lora(path, tmp_path / "a")
    check(tmp_path / "a")
    extract_lora(path.parents[1], tmp_path / "b")  # the .ckpt directory
    check(tmp_path / "b")


def test_deepspeed_with_hparams_yaml(run: Path, tmp_path: Path) -> None:
    save_hparams_to_yaml(str(run / "hparams.yaml"), HYPER)
    assert "!!python/object:argparse.Namespace" in (run / "hparams.yaml").read_text()
    extract_lora(save_deepspeed(run), tmp_path / "out")
    check(tmp_path / "out")


def test_lightning_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    plain = {"args": dict(vars(ARGS), save_dir="x"), "lora_config": None}
    torch.save({"state_dict": training_state(), "hyper_parameters": plain}, path)
    extract_lora(path, tmp_path / "out")
    check(tmp_path / "out")


def test_arguments_beat_what_was_recorded(run: Path, tmp_path: Path) -> None:
    path = save_deepspeed(run, hyper_parameters=HYPER)
    extract_lora(path, tmp_path, alpha=8, padding_n=0)
    weights = read_lora(tmp_path)
    assert (weights.alpha, weights.padding_n) == (8, 0)


def test_without_any_record_alpha_is_asked_for(run: Path, tmp_path: Path) -> None:
    path = save_deepspeed(run)
    with pytest.raises(ValueError, match=r"does not record lora_alpha .* pass --alpha"):
        extract_lora(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    done = extract_lora(path, tmp_path / "out", alpha=2)
    assert (done.rank, done.tensors) == (4, 4)


def test_rank_comes_from_the_tensors(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = save_deepspeed(run, hyper_parameters={"rank": 64, "lora_alpha": 64})
    assert extract_lora(path, tmp_path / "out").rank == 4
    assert "the options say rank 64, the tensors have 4" in caplog.text


# ---- files that are not to be trusted -----------------------------------------------------------


class Attack:
    """A pickle that writes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


class Trap:
    """An object whose state would matter if its class were used."""

    def __setstate__(self, state: Any) -> None:
        raise AssertionError("code of the file's classes ran")


def test_system_calls_are_refused(run: Path, tmp_path: Path) -> None:
    path = save_deepspeed(run, extra=Attack(tmp_path / "pwned"))
    with pytest.raises(ValueError, match=r"could run code \(posix.system\)"):
        extract_lora(path, tmp_path / "out", alpha=2)
    assert not (tmp_path / "pwned").exists()


def test_objects_of_any_class_become_placeholders(run: Path) -> None:
    trap = Trap()
    trap.value = 3  # pyright: ignore[reportAttributeAccessIssue]
    checkpoint = read_checkpoint(save_deepspeed(run, trap=trap, hyper_parameters=HYPER))
    assert type(checkpoint["trap"]).__name__ == "Inert"
    assert checkpoint["trap"].content == {"value": 3}
    assert checkpoint["hyper_parameters"]["args"].content["lora_alpha"] == 2


def test_yaml_makes_no_objects(run: Path, tmp_path: Path) -> None:
    target = tmp_path / "pwned"
    (run / "hparams.yaml").write_text(
        f"x: !!python/object/apply:os.system ['touch {target}']\nlora_alpha: 2\npadding_n: 1\n"
    )
    extract_lora(save_deepspeed(run), tmp_path / "out")
    check(tmp_path / "out")
    assert not target.exists()


def test_broken_yaml(run: Path, tmp_path: Path) -> None:
    (run / "hparams.yaml").write_text("a: [1\n")
    with pytest.raises(ValueError, match="not readable YAML"):
        extract_lora(save_deepspeed(run), tmp_path / "out")


def test_truncated_and_foreign_files(run: Path, tmp_path: Path) -> None:
    path = save_deepspeed(run)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="or it is truncated"):
        read_checkpoint(path)
    path.write_bytes(b"hello")
    with pytest.raises(ValueError, match="not a training checkpoint"):
        read_checkpoint(path)
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match="holds a list, expected a dict"):
        read_checkpoint(path)
    with pytest.raises(FileNotFoundError, match=r"none\.pt does not exist"):
        read_checkpoint(tmp_path / "none.pt")


def test_checkpoints_without_lora(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save({"module": {"flux_transformer.x.weight": torch.zeros(1)}}, path)
    with pytest.raises(ValueError, match=r"has no LoRA tensors .* among its 1;"):
        extract_lora(path, tmp_path / "out", alpha=1)
    torch.save({"weights": {}}, path)
    with pytest.raises(ValueError, match="neither module nor state_dict"):
        extract_lora(path, tmp_path / "out", alpha=1)


# ---- command ------------------------------------------------------------------------------------


def test_command(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = str(save_deepspeed(run, hyper_parameters=HYPER)), tmp_path / "out"
    assert main([path, str(out)]) == 0
    assert (
        "4 tensors, rank 4, alpha 2 (strength 0.5); use it with --lora" in capsys.readouterr().out
    )
    check(out)
    assert {p.name for p in out.iterdir()} == {WEIGHTS_NAME, CONFIG_NAME, "run.json"}
    assert main([path, str(out), "--alpha", "4"]) == 2
    assert "exists; pass --overwrite" in capsys.readouterr().err
    assert main([path, str(out), "--alpha", "4", "--overwrite"]) == 0
    assert read_lora(out).alpha == 4


def test_root_file_writes_lora_output_by_default(run: Path, tmp_path: Path) -> None:
    path = save_deepspeed(run, hyper_parameters=HYPER)
    command = [sys.executable, str(ROOT / "get_lora_weights.py"), str(path)]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    check(tmp_path / "lora_output")
