"""Two processes over gloo against one with twice the batch."""

import json
import multiprocessing
import os
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from dit360.training.options import TINY_DEFAULTS, TrainOptions
from dit360.training.run import train

# An epsilon far above every gradient makes an AdamW step -rate / epsilon times the gradient.
RATE, EPSILON = 1e9, 1e8


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    lines = []
    for k in range(4):
        pixels = rng.integers(0, 256, (32, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{k}.png")
        lines.append(json.dumps({"image": f"{k}.png", "caption": f"scene {k}"}))
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    return tmp_path / "rows.jsonl"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def options(model: Path, data: Path, folder: Path, batch: int, devices: str) -> TrainOptions:
    small = {
        "pretrained_model_name_or_path": str(model), "panorama_data": str(data),
        "save_dir": folder, "resolution": 32, "max_sequence_length": 16, "train_batch_size": batch,
        "devices": devices, "strategy": "ddp" if devices != "1" else "auto", "accelerator": "cpu",
        "learning_rate": RATE, "adam_epsilon": EPSILON, "lr_schedule": "constant",
        "lora_drop_out": 0.0, "aux_from_epoch": 0, "max_epochs": 1,
    }  # fmt: skip
    return TrainOptions(**{**TINY_DEFAULTS, **small})


def rank_run(rank: int, port: int, made: TrainOptions, folder: Path) -> None:
    """What torchrun does for a process, with the samples and noise that it saw."""
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
        "GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "test",
    }  # fmt: skip
    from dit360.training.module import DiT360Training

    seen: list[tuple[int, float]] = []
    draw = DiT360Training.draw
    step = DiT360Training.training_step

    def spy_step(self, batch, batch_idx):
        seen.extend((index, 0.0) for index in batch["index"].tolist())
        return step(self, batch, batch_idx)

    def spy_draw(self, clean, streams):
        draws = draw(self, clean, streams)
        seen[-1] = (seen[-1][0], draws.noise.sum().item())
        return draws

    DiT360Training.training_step = spy_step
    DiT360Training.draw = spy_draw
    train(made)
    (folder / f"rank{rank}.json").write_text(json.dumps(seen))


def test_two_processes_equal_one_with_twice_the_batch(
    micro_flux: Path, data: Path, tmp_path: Path
) -> None:
    one = train(options(micro_flux, data, tmp_path / "one", 2, "1"))
    context = multiprocessing.get_context("fork")  # shares the imports
    port = free_port()
    made = options(micro_flux, data, tmp_path / "two", 1, "2")
    ranks = [
        context.Process(target=rank_run, args=(rank, port, made, tmp_path)) for rank in range(2)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(120)
    assert [process.exitcode for process in ranks] == [0, 0]
    seen = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    assert sorted(index for part in seen for index, _ in part) == [0, 1, 2, 3]
    assert len({noise for part in seen for _, noise in part}) == 4  # D16
    (two,) = (tmp_path / "two/lightning_logs").glob("version_*/checkpoints")
    states = [
        torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]
        for folder in (one / "checkpoints", two)
    ]
    # B starts at zero: its values are the summed gradients, whose float32 sums differ in order.
    learnt = {name: value for name, value in states[0].items() if "lora_B" in name}
    largest = max(value.abs().max().item() for value in learnt.values())
    assert largest > 1e-3
    for name, value in states[0].items():
        assert (value - states[1][name]).abs().max().item() < 1e-4 * largest, name
    assert len(load_file(two / "lora/adapter_model.safetensors")) == 34
