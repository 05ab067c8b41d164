"""Training: low-rank adapters, reports, several processes, debugging runs, the original's options."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pager.checkpoint import UNET_WEIGHTS, load_model
from pager.cli import train
from pager.config import leaves, resolve_config
from pager.layers import cubify
from pager.training.batches import prepare_batch
from pager.training.parameters import LORA_WEIGHTS, add_lora, merged_state
from pager.training.report import batch_pictures, mosaic
from pager.training.trainer import Trainer

ROOT = Path(__file__).parents[1]

# Flags of the original's train.py; `--logging_path` is there without effect.
ORIGINAL_FLAGS = set(
    """
config resume_path pretrained_path checkpoint_path data_path tracker_project_name save_path
logging_path run_name seed num_train_epochs max_train_steps gradient_accumulation_steps batch_size
save_frequency loss_report_frequency img_report_frequency tiny_val_frequency learning_rate
lr_exp_warmup_steps adam_beta1 adam_beta2 adam_weight_decay adam_epsilon max_grad_norm
l1_loss_weight grad_loss_weight normals_consistency_loss_weight invalid_mask_weight debug
enable_xformers use_EMA gradient_checkpointing only_train_attention_layers use_data_augmentation
metric_depth log_scale clip_grad_norm run_validation run_tiny_validation vae_use_RoPE modality
unet_positional_encoding dataset scenes report_to
""".split()  # noqa: SIM905 (a table of names)
)


def test_every_flag_of_the_original_is_known():
    known = {action.dest for action in train.build_parser()._actions}
    assert known >= ORIGINAL_FLAGS


def test_yaml_of_the_original_is_read(tmp_path):
    yaml = tmp_path / "base.yaml"
    yaml.write_text(
        "logging: {tracker_project_name: P, model_save_frequency: 3,\n"
        "  tensorboard: {log_path: tb}, wandb: {run_name: night}}\n"
    )
    logging = resolve_config(str(yaml), {}, []).logging
    assert (logging.save_frequency, logging.logging_path, logging.run_name) == (3, "tb", "night")
    assert logging.tracker_project_name == "P"
    yaml.write_text("model: {enable_xformers: true, modality: normals}")
    config = resolve_config(str(yaml), {}, [])
    assert (config.enable_xformers, config.model.modality) == (True, "normals")
    yaml.write_text("logging: {wandb: {entity: me}}")
    with pytest.raises(ValueError, match="wandb"):
        resolve_config(str(yaml), {}, [])
    yaml.write_text("logging: {wandb: [")
    with pytest.raises(ValueError, match="is not a readable YAML file"):
        resolve_config(str(yaml), {}, [])


# ---- low-rank adapters --------------------------------------------------------------------------


def run_unet(unet: torch.nn.Module) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(6, 8, 8, 8, generator=generator)
    text = torch.randn(1, 77, 32, generator=generator).expand(6, -1, -1)
    with torch.no_grad():
        return unet(latents, 999, text).sample


def test_lora_starts_neutral_and_merges_exactly(make_unet):
    unet = make_unet()
    cubify(unet, use_rope=True)
    keys, before = set(unet.state_dict()), run_unet(unet)
    add_lora(unet, 4)
    torch.testing.assert_close(run_unet(unet), before, atol=0, rtol=0)
    for name, parameter in unet.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, 0, 0.1)
    changed = run_unet(unet)
    assert (changed - before).abs().max() > 1e-3
    merged = make_unet()
    cubify(merged, use_rope=True)
    state = merged_state(unet)
    assert set(state) == keys
    merged.load_state_dict(state)
    torch.testing.assert_close(run_unet(merged), changed, atol=1e-5, rtol=1e-5)


def test_lora_training_moves_adapters_only_and_stores_both_forms(tmp_path, train_config):
    config = train_config(max_train_steps=3, lora_rank=2, use_EMA=False, learning_rate=0.01)
    trainer = Trainer(config, tmp_path)
    assert all(p.numel() < 200 for p in trainer.trained)
    trainer.run()
    start = load_file(Path(config.model.pretrained_path) / "unet" / UNET_WEIGHTS)
    end = load_file(tmp_path / "checkpoint-last/unet" / UNET_WEIGHTS)
    assert start.keys() == end.keys()
    moved = {key for key in start if not torch.equal(start[key], end[key])}
    pattern = re.compile(r"\.attn[12]\.to_(q|k|v|out\.0)\.weight$")
    assert moved
    assert all(pattern.search(key) for key in moved)
    assert len(moved) == sum(bool(pattern.search(key)) for key in start)
    # A rank-2 difference, and the stock loader adds the same one.
    key = min(moved)
    assert torch.linalg.matrix_rank((end[key] - start[key]).double(), rtol=1e-3) == 2
    stock = UNet2DConditionModel.from_pretrained(Path(config.model.pretrained_path) / "unet")
    stock.load_lora_adapter(
        tmp_path / "checkpoint-last/lora", weight_name=LORA_WEIGHTS, prefix="unet"
    )
    loaded = merged_state_of(stock)
    for key in moved:
        torch.testing.assert_close(loaded[key], end[key], atol=1e-6, rtol=1e-5)
    # The checkpoint is an ordinary one.
    assert load_model(tmp_path / "checkpoint-last").config.modality == "depth"


def merged_state_of(unet: UNet2DConditionModel) -> dict[str, torch.Tensor]:
    unet.fuse_lora()
    return {
        k.replace(".base_layer", ""): v for k, v in unet.state_dict().items() if ".lora_" not in k
    }


# ---- reports ------------------------------------------------------------------------------------


def test_tensorboard_gets_losses_and_pictures(tmp_path, train_config):
    config = train_config(
        max_train_steps=4, report_to="tensorboard", img_report_frequency=2, run_name="r",
        run_tiny_validation=True, tiny_val_frequency=4,
    )  # fmt: skip
    Trainer(config, tmp_path).run()
    events = EventAccumulator(str(tmp_path / "logs" / "Pager")).Reload()
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    logged = {e.step: e.value for e in events.Scalars("l1")}
    assert logged == pytest.approx({row["step"]: row["l1"] for row in rows if "l1" in row})
    assert [e.step for e in events.Images("train")] == [2, 4]
    assert [e.step for e in events.Images("tiny_val")] == [4]
    assert sorted(p.name for p in (tmp_path / "images").iterdir()) == [
        "tiny_val_0000004.jpg", "train_0000002.jpg", "train_0000004.jpg",
    ]  # fmt: skip
    sizes = {"train_0000002.jpg": (512, 3 * 256), "tiny_val_0000004.jpg": (2 * 512, 3 * 256)}
    for name, size in sizes.items():
        with Image.open(tmp_path / "images" / name) as picture:
            assert picture.size == size


@pytest.mark.parametrize("modality", ["depth", "normals"])
def test_pictures_show_input_truth_and_prediction(modality, train_config, tmp_path):
    trainer = Trainer(train_config(modality=modality, batch_size=2), tmp_path)
    batch = prepare_batch(
        next(iter(trainer.train_loader)), trainer.model.config, torch.device("cpu")
    )
    same, other = (
        batch_pictures(batch, pred, trainer.model.config) for pred in (batch.target, -batch.target)
    )
    assert len(same) == 2
    rgb, truth, prediction = np.split(same[1], 3)
    assert np.array_equal(truth, prediction)
    assert not np.array_equal(truth, np.split(other[1], 3)[2])
    assert np.array_equal(truth, np.split(other[1], 3)[1])
    # Grey-level agreement of the first row with the panorama the batch was made of.
    faces_mean = (batch.faces[1].mean() + 1) * 127.5
    assert abs(rgb.mean() - float(faces_mean)) < 12


def test_mosaic_layouts():
    tiles = [np.full((2, 3, 3), value, np.uint8) for value in (1, 2, 3, 4)]
    assert np.array_equal(mosaic(tiles[:1]), tiles[0])
    assert mosaic(tiles[:2])[0, :, 0].tolist() == [1, 1, 1, 2, 2, 2]
    sheet = mosaic(tiles[:3])
    assert sheet[::2, ::3, 0].tolist() == [[1, 2], [3, 0]]
    assert mosaic(tiles)[::2, ::3, 0].tolist() == [[1, 2], [3, 4]]


# ---- several processes --------------------------------------------------------------------------


def test_two_processes_equal_one_with_twice_the_batch(tmp_path, train_config):
    """`accelerate launch` over gloo: gradients are averaged and validation is shared out."""
    options = {
        "max_train_steps": 4, "num_train_epochs": 2,
        "lr_exp_warmup_steps": 0.0, "run_validation": True,
    }  # fmt: skip
    Trainer(train_config(batch_size=2, **options), tmp_path / "one").run()
    config = train_config(batch_size=1, **options)
    flags = [
        f"--{leaf}={str(value).lower() if isinstance(value, bool) else value}"
        for section in ("model", "data", "training", "optimization", "validation", "logging")
        for leaf, value in dataclasses.asdict(getattr(config, section)).items()
        if value is not None and leaf not in ("save_path", "run_name")
    ]
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu",
              "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no",
              "--dynamo_backend", "no", "--main_process_port", "0"]  # fmt: skip
    run = subprocess.run(
        [*launch, ROOT / "train.py", *flags, "--save_path", tmp_path, "--run_name", "two"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    one, two = (
        load_file(tmp_path / name / "checkpoint-last/original/unet" / UNET_WEIGHTS)
        for name in ("one", "two")
    )
    start = load_file(Path(config.model.pretrained_path) / "unet" / UNET_WEIGHTS)
    moved = sum(float((one[key] - start[key]).norm()) for key in one)
    apart = sum(float((one[key] - two[key]).norm()) for key in one)
    assert moved > 0
    assert apart < 0.01 * moved
    val_loss = [
        [
            row["val_loss"]
            for row in map(json.loads, path.read_text().splitlines())
            if "val_loss" in row
        ]
        for path in (tmp_path / "one/log.jsonl", tmp_path / "two/log.jsonl")
    ]
    assert val_loss[0] == pytest.approx(val_loss[1], rel=1e-3)
    assert len(val_loss[0]) == 2


def test_processes_that_do_not_find_each_other_stop(tmp_path, train_config, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"2 processes were launched.*ACCELERATE_USE_CPU=true"):
        Trainer(train_config(), tmp_path)


# ---- short and seeded runs ----------------------------------------------------------------------


def test_debug_run_is_small_and_keeps_its_rate(tmp_path, train_config, monkeypatch):
    monkeypatch.setattr("pager.training.trainer.DEBUG_PANORAMAS", 2)
    trainer = Trainer(train_config(debug=True, num_train_epochs=2), tmp_path)
    assert len(trainer.train_loader) == 2
    trainer.run()
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["lr"] for row in rows] == [1e-3] * 4


def test_no_seed_draws_one_and_keeps_it(tmp_path, base, data_path, capsys):
    flags = [
        "--pretrained_path", str(base), "--data_path", str(data_path), "--face_size", "16",
        "--num_workers", "0", "--max_train_steps", "1", "--no-run_validation", "--report_to", "none",
        "--no-run_tiny_validation", "--save_path", str(tmp_path), "--seed", "0",
    ]  # fmt: skip
    seeds = set()
    for name in ("a", "b"):
        assert train.main([*flags, "--run_name", name]) == 0
        seeds.add(resolve_config(str(tmp_path / name / "config.yaml"), {}, []).seed)
    assert len(seeds) == 2
    assert 0 not in seeds
    capsys.readouterr()


def test_leaf_names_are_unique():
    names = [leaf for leaf, _ in leaves()]
    assert len(names) == len(set(names))
