"""Training: exact resume, schedule, EMA, augmentation, guards, options."""

import dataclasses
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from torch import Tensor

from pager import losses
from pager.checkpoint import UNET_WEIGHTS, load_model
from pager.cli import train
from pager.config import TrainConfig, leaves, resolve_config
from pager.data.panoinfinigen import Frame, PanoInfinigen, stack_samples, write_split
from pager.data.procedural import render_frame
from pager.runinfo import STATE_FOLDER
from pager.training.batches import (
    EpochSampler,
    depth_target,
    prepare_batch,
    rgb_to_unit,
    stable_hash,
    yaw_augment,
)
from pager.training.objective import loss_terms
from pager.training.parameters import trainable_parameters
from pager.training.trainer import Trainer
from shared_pano_utils.geometry import PY360_E2X, rays

ROOT = Path(__file__).parents[1]


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "unet" / UNET_WEIGHTS)


def assert_equal_weights(first: Path, second: Path) -> None:
    a, b = weights(first), weights(second)
    assert a.keys() == b.keys()
    different = [key for key in a if not torch.equal(a[key], b[key])]
    assert not different


def read_log(output: Path, key: str) -> dict[int, float]:
    rows = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    return {row["step"]: row[key] for row in rows if key in row}


class Killed(Exception):
    """Stands for any abrupt end."""


def interrupt(trainer: Trainer, after: int) -> None:
    """Let the trainer die in the middle of the micro-step after `after` others."""
    step, done = trainer._train_step, []

    def dying(batch):
        if len(done) == after:
            raise Killed
        done.append(None)
        return step(batch)

    trainer._train_step = dying  # type: ignore[method-assign]


# ---- exactness ----------------------------------------------------------------------------------

# Four panoramas: an epoch has 4 micro-steps. (options, saved at, killed after micro-steps)
RESUMES = {
    "mid-epoch": ({}, 2, 3),
    "epoch boundary": ({}, 4, 5),
    "second epoch": ({}, 5, 5),
    "two batches a step": ({"gradient_accumulation_steps": 2}, 1, 3),
    "validation between": ({"run_validation": True, "run_tiny_validation": True,
                            "tiny_val_frequency": 1}, 3, 3),
    "normals, batch 2, no EMA": ({"modality": "normals", "batch_size": 2, "use_EMA": False}, 3, 3),
    "attention only": ({"only_train_attention_layers": True, "gradient_checkpointing": True}, 2, 2),
}  # fmt: skip


@pytest.mark.parametrize("case", RESUMES)
def test_resumed_run_equals_an_uninterrupted_one(case, tmp_path, train_config):
    options, save_steps, killed_after = RESUMES[case]
    options = {"max_train_steps": 6, "save_steps": save_steps, **options}
    Trainer(train_config(**options), tmp_path / "whole").run()

    trainer = Trainer(train_config(**options), tmp_path / "parts")
    interrupt(trainer, killed_after)
    with pytest.raises(Killed):
        trainer.run()
    saved = tmp_path / "parts" / STATE_FOLDER
    assert saved.is_dir()
    torch.manual_seed(12345)  # a new process knows nothing of the old generators
    resumed = Trainer(train_config(**options), tmp_path / "parts")
    resumed.run(saved)
    assert resumed.state.step == 6
    assert_equal_weights(tmp_path / "whole/checkpoint-last", tmp_path / "parts/checkpoint-last")
    if options.get("use_EMA", True):
        assert_equal_weights(
            tmp_path / "whole/checkpoint-last/original", tmp_path / "parts/checkpoint-last/original"
        )
    for key in ("lr", "val_loss", "tiny_val_loss"):
        whole, parts = (read_log(tmp_path / name, key) for name in ("whole", "parts"))
        assert whole == parts


def test_two_runs_are_equal_and_seeds_matter(tmp_path, train_config):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        Trainer(train_config(max_train_steps=2, seed=seed), tmp_path / name).run()
    assert_equal_weights(tmp_path / "a/checkpoint-last", tmp_path / "b/checkpoint-last")
    with pytest.raises(AssertionError):
        assert_equal_weights(tmp_path / "a/checkpoint-last", tmp_path / "c/checkpoint-last")


def test_accumulated_batches_equal_one_large_batch(tmp_path, train_config):
    Trainer(train_config(max_train_steps=2, batch_size=2), tmp_path / "large").run()
    options = {"max_train_steps": 2, "gradient_accumulation_steps": 2}
    Trainer(train_config(**options), tmp_path / "two").run()
    large, two = (weights(tmp_path / n / "checkpoint-last/original") for n in ("large", "two"))
    start = load_model_weights(train_config())
    for key, value in large.items():
        # AdamW's first steps have the size of the rate wherever a gradient is not zero.
        moved = (value - start[key]).abs().mean()
        assert (value - two[key]).abs().mean() <= 0.02 * moved + 1e-7


def load_model_weights(config: TrainConfig) -> dict[str, Tensor]:
    return load_file(Path(config.model.pretrained_path) / "unet" / UNET_WEIGHTS)


def test_killed_process_resumes(tmp_path, train_config):
    """SIGKILL of the real command, then `--resume_path`: as if nothing had happened."""
    config = train_config(max_train_steps=30, num_train_epochs=10, save_steps=3)
    flags = [
        f"--{leaf}={str(value).lower() if isinstance(value, bool) else value}"
        for section in ("model", "data", "training", "optimization", "validation", "logging")
        for leaf, value in dataclasses.asdict(getattr(config, section)).items()
        if value is not None and leaf not in ("save_path", "run_name")
    ]
    flags += ["--save_path", str(tmp_path)]
    process = subprocess.Popen(
        [sys.executable, ROOT / "train.py", *flags, "--run_name", "killed"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    state = tmp_path / "killed" / STATE_FOLDER
    deadline = time.monotonic() + 120
    while not state.is_dir() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert train.main(["--resume_path", str(state)]) == 0
    assert train.main([*flags, "--run_name", "whole"]) == 0
    assert_equal_weights(tmp_path / "killed/checkpoint-last", tmp_path / "whole/checkpoint-last")
    assert not list((tmp_path / "killed").glob("*.partial"))


# ---- what a run does ----------------------------------------------------------------------------


def test_one_panorama_is_learned(tmp_path, train_config):
    frame = render_frame(1, "room", 0, (32, 64))
    write_split(tmp_path / "PanoInfinigen/indoor/train", [("room", [frame])])
    config = train_config(
        data_path=str(tmp_path), max_train_steps=60, num_train_epochs=60, learning_rate=3e-4,
        use_EMA=False, save_steps=1000, save_frequency=1000, use_data_augmentation=False,
    )  # fmt: skip
    Trainer(config, tmp_path / "out").run()
    values = list(read_log(tmp_path / "out", "l1").values())
    # The frozen decoder is random, so the depth map cannot be reached, only approached.
    assert np.mean(values[-5:]) < 0.6 * values[0]


@pytest.mark.parametrize("final", [0.01, 0.1])
def test_rates_follow_the_schedule(final, tmp_path, train_config):
    config = train_config(
        max_train_steps=8, learning_rate=0.01, lr_exp_warmup_steps=0.25, lr_exp_final_ratio=final
    )
    Trainer(config, tmp_path).run()
    # Logged after the step: the rate of the next one. Six steps lead from the peak to the end.
    warmup = {1: 0.005, 2: 0.01}
    expected = warmup | {n: 0.01 * final ** ((n - 2) / 6) for n in range(3, 9)}
    assert read_log(tmp_path, "lr") == pytest.approx(expected)


@pytest.mark.parametrize(("epochs", "limit", "accumulate", "total"), [
    (3, None, 1, 12), (3, 5, 1, 5), (3, None, 3, 6), (1, 100, 1, 4),
])  # fmt: skip
def test_number_of_steps(epochs, limit, accumulate, total, tmp_path, train_config):
    config = train_config(
        num_train_epochs=epochs, max_train_steps=limit, gradient_accumulation_steps=accumulate
    )
    assert Trainer(config, tmp_path).total_steps == total


def test_checkpoint_holds_the_moving_average(tmp_path, train_config):
    trainer = Trainer(train_config(max_train_steps=4, EMA_decay=0.3), tmp_path)
    history, step = [], trainer._train_step

    def recording(batch):
        terms = step(batch)
        history.append([p.detach().double() for p in trainer.model.unet.parameters()])
        return terms

    trainer._train_step = recording  # type: ignore[method-assign]
    trainer.run()
    average = history[0]
    for n, parameters in enumerate(history[1:], 1):
        decay = min(0.3, (1 + n) / (10 + n))  # the warm-up of diffusers' EMAModel
        average = [decay * a + (1 - decay) * p for a, p in zip(average, parameters, strict=True)]
    names = [name for name, _ in trainer.model.unet.named_parameters()]
    stored = weights(tmp_path / "checkpoint-last")
    raw = weights(tmp_path / "checkpoint-last" / "original")
    for name, mean, last in zip(names, average, history[-1], strict=True):
        torch.testing.assert_close(stored[name].double(), mean, atol=1e-6, rtol=0)
        assert torch.equal(raw[name].double(), last)
    assert any(not torch.equal(raw[name], stored[name]) for name in names)


def test_validation_keeps_the_best_and_leaves_training_alone(tmp_path, train_config):
    options = {"max_train_steps": 8, "use_data_augmentation": False, "learning_rate": 3e-3}
    Trainer(train_config(**options), tmp_path / "plain").run()
    trainer = Trainer(
        train_config(
            run_validation=True, run_tiny_validation=True, tiny_val_frequency=3, **options
        ),
        tmp_path / "validated",
    )
    trainer.run()
    assert_equal_weights(tmp_path / "plain/checkpoint-last", tmp_path / "validated/checkpoint-last")
    losses_by_step = read_log(tmp_path / "validated", "val_loss")
    assert list(losses_by_step) == [4, 8]
    assert list(read_log(tmp_path / "validated", "tiny_val_loss")) == [3, 6]
    assert trainer.state.best_val_loss == min(losses_by_step.values())
    # The stored best model has the stored loss.
    best = load_model(tmp_path / "validated/checkpoint-best")
    assert trainer.val_loader is not None
    total = 0.0
    for raw in trainer.val_loader:
        batch = prepare_batch(raw, best.config, torch.device("cpu"))
        with torch.no_grad():
            terms = loss_terms(best(batch.faces), batch, best.config, trainer.config)
        total += float(sum(terms.values()))
    assert total / 2 == pytest.approx(min(losses_by_step.values()), rel=1e-4)


def test_only_chosen_weights_move(tmp_path, train_config, make_model):
    config = train_config(max_train_steps=2, only_train_attention_layers=True)
    Trainer(config, tmp_path).run()
    before, after = load_model_weights(config), weights(tmp_path / "checkpoint-last/original")
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert moved
    assert all("transformer_blocks" in key for key in moved)
    assert len(moved) == sum("transformer_blocks" in key for key in before)
    with_uv = make_model(unet_positional_encoding="uv")
    trainable_parameters(with_uv, True)
    chosen = {n for n, p in with_uv.unet.named_parameters() if p.requires_grad}
    assert {n for n in chosen if "transformer_blocks" not in n} == {
        "conv_in.weight",
        "conv_in.bias",
    }


def test_training_continues_from_a_checkpoint(tmp_path, train_config, checkpoints):
    config = train_config(
        checkpoint_path=str(checkpoints["normals"]), modality="normals", max_train_steps=1
    )
    trainer = Trainer(config, tmp_path)
    assert trainer.model.config.modality == "normals"
    trainer.run()
    stored = load_model(tmp_path / "checkpoint-last").config
    assert (stored.modality, stored.face_size) == ("normals", 16)
    assert stored.checkpoint_path == str(checkpoints["normals"])


# ---- guards -------------------------------------------------------------------------------------


def test_divergence_is_named(tmp_path, train_config):
    config = train_config(max_train_steps=8, learning_rate=1e30, lr_exp_warmup_steps=0.0)
    message = r"(loss|gradient norm) is (nan|inf) at step 1 \(terms \{'l1': .*panoramas \['train_"
    with pytest.raises(FloatingPointError, match=message) as caught:
        Trainer(config, tmp_path).run()
    assert "lower --learning_rate or check these panoramas" in str(caught.value)


def write_damaged(root: Path) -> None:
    """Two panoramas: missing measurements as NaN, zero and infinity; nothing valid at all."""
    frame = render_frame(1, "room", 0, (32, 64))
    depth, normals = frame.depth.copy(), frame.normals.copy()
    depth[:8, :20], depth[8:12], depth[:8, 20:40] = np.nan, 0, np.inf
    normals[:12] = np.nan
    nothing = np.full_like(depth, np.inf)
    frames = [Frame(frame.rgb, depth, normals), Frame(frame.rgb, nothing, normals * np.nan)]
    write_split(root / "PanoInfinigen/indoor/train", [("room", frames)])


@pytest.mark.parametrize("modality", ["depth", "normals"])
def test_missing_measurements_do_not_spread(modality, tmp_path, train_config):
    write_damaged(tmp_path)
    config = train_config(
        data_path=str(tmp_path), modality=modality, max_train_steps=4, grad_loss_weight=0.5,
        normals_consistency_loss_weight=0.1, invalid_mask_weight=0.1,
    )  # fmt: skip
    Trainer(config, tmp_path / "out").run()
    assert all(
        value.isfinite().all() for value in weights(tmp_path / "out/checkpoint-last").values()
    )


def test_batch_larger_than_the_data(tmp_path, train_config):
    with pytest.raises(
        ValueError, match=r"fewer panoramas than one batch of 5 .*lower --batch_size"
    ):
        Trainer(train_config(batch_size=5), tmp_path)


# ---- batches ------------------------------------------------------------------------------------


def raw_batch(data_path: Path) -> dict:
    dataset = PanoInfinigen(data_path, "train")
    return stack_samples([dataset[i] for i in range(3)])


def test_yaw_augmentation(data_path):
    batch = raw_batch(data_path)
    rolled = yaw_augment(batch, seed=3, epoch=5)
    width = batch["rgb"].shape[-1]
    shifts = [stable_hash(3, 5, name) % width for name in batch["id"]]
    assert len(set(shifts)) > 1
    for i, shift in enumerate(shifts):
        assert torch.equal(rolled["rgb"][i], batch["rgb"][i].roll(shift, -1))
        assert torch.equal(rolled["depth"][i], batch["depth"][i].roll(shift, -1))

    # Rolled normals agree with the rolled depth as well as the originals with theirs.
    def agreement(data: dict) -> Tensor:
        own = losses.normals_from_radial(data["depth"].clamp(max=75))
        return (own * data["normals"]).sum(1).flatten(1).median(1).values

    torch.testing.assert_close(agreement(rolled), agreement(batch), atol=2e-3, rtol=0)
    assert agreement(batch).min() > 0.98
    wrong = {**rolled, "normals": batch["normals"]}
    assert agreement(wrong).min() < 0.9
    assert not torch.equal(yaw_augment(batch, 3, 6)["rgb"], rolled["rgb"])
    assert torch.equal(yaw_augment(batch, 3, 5)["rgb"], rolled["rgb"])


@pytest.mark.parametrize("modality", ["depth", "normals"])
def test_prepared_batches(modality, data_path, model_config):
    raw, config = raw_batch(data_path), model_config(modality=modality)
    batch = prepare_batch(raw, config, torch.device("cpu"))
    assert batch.faces.shape == (3, 6, 3, 16, 16)
    assert batch.faces.min() >= -1
    assert batch.faces.max() <= 1
    assert batch.mask.dtype == torch.bool
    assert torch.equal(batch.erp_mask, config.depth_range.valid(raw["depth"]))
    # The centre of the front face looks ahead: the mean of the four middle pixels of the panorama.
    lookup = {"depth": config.depth_range.normalize(raw["depth"]), "normals": raw["normals"]}
    middle = lookup[modality][..., 15:17, 31:33].mean((-1, -2))
    face_middle = batch.target[:, 0, :, 7:9, 7:9].mean((-1, -2))
    assert (face_middle - middle).abs().max() < 0.15
    assert batch.target.shape[2] == middle.shape[1]


def test_targets_are_radial_on_every_face(model_config):
    """A sphere stays a sphere: no planar conversion on the faces."""
    raw = {
        "id": ["x"], "rgb": torch.zeros(1, 3, 32, 64, dtype=torch.uint8),
        "depth": torch.full((1, 1, 32, 64), 2.0), "normals": torch.zeros(1, 3, 32, 64),
    }  # fmt: skip
    config = model_config()
    batch = prepare_batch(raw, config, torch.device("cpu"))
    expected = config.depth_range.normalize(torch.tensor(2.0))
    torch.testing.assert_close(batch.target, expected.expand_as(batch.target))
    assert batch.mask.all()
    torch.testing.assert_close(batch.faces, torch.full_like(batch.faces, -1))


def test_fine_panoramas_are_averaged_not_aliased(model_config):
    directions = rays("cube", 16, reg=PY360_E2X)
    rgb = torch.zeros(1, 3, 256, 512, dtype=torch.uint8)
    rgb[..., ::2] = 200  # one-pixel stripes
    raw = {"id": ["x"], "rgb": rgb, "depth": torch.ones(1, 1, 256, 512),
           "normals": torch.zeros(1, 3, 256, 512)}  # fmt: skip
    faces = prepare_batch(raw, model_config(), torch.device("cpu")).faces
    assert faces.shape[-3:-1] == (3, directions.shape[1])
    torch.testing.assert_close(faces, rgb_to_unit(torch.tensor(100.0)).expand_as(faces))


def test_sampler_depends_on_seed_and_epoch_only():
    sampler = EpochSampler(10, seed=4)
    first = list(sampler)
    assert sorted(first) == list(range(10)) == sorted(sampler)
    assert list(sampler) == first
    sampler.set_epoch(1)
    assert list(sampler) != first
    assert list(EpochSampler(10, seed=5)) != first
    assert stable_hash("a", 1) == stable_hash("a", "1") < 2**63  # equal text, equal value


# ---- command line and options -------------------------------------------------------------------


def test_command_trains_resumes_and_records(tmp_path, base, data_path, capsys):
    flags = [
        "--pretrained_path", str(base), "--data_path", str(data_path), "--face_size", "16",
        "--num_workers", "0", "--max_train_steps", "2", "--num_train_epochs", "1",
        "--gradient_checkpointing", "false", "--no-run_validation", "--run_tiny_validation", "no",
        "--save_path", str(tmp_path), "--run_name", "run", "--modality", "normals",
    ]  # fmt: skip
    assert train.main(flags) == 0
    output = tmp_path / "run"
    assert capsys.readouterr().out.strip() == str(output)
    info = json.loads((output / "run.json").read_text())
    assert info["options"]["model"]["modality"] == "normals"
    assert info["options"]["training"]["gradient_checkpointing"] is False
    stored = OmegaConf.load(output / "config.yaml")
    assert stored.data.data_path == str(data_path)
    assert load_model(output / "checkpoint-last").config.modality == "normals"
    # A finished run resumed with more steps goes on with its own options.
    resume = ["--resume_path", str(output / STATE_FOLDER), "--max_train_steps", "4"]
    assert train.main(resume) == 0
    assert max(read_log(output, "lr")) == 4


def test_dry_run_reports_and_writes_nothing(tmp_path, base, data_path, capsys):
    flags = ["--pretrained_path", str(base), "--data_path", str(data_path), "--dry_run"]
    assert train.main([*flags, "--save_path", str(tmp_path / "out")]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["panoramas"] == 4
    assert report["panorama_size"] == [32, 64]
    assert 0 < report["trained_parameters"] < report["unet_parameters"]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("flags", "message"), [
    (["--data_path", "nowhere"], "no PanoInfinigen train data"),
    (["--config", "nowhere.yaml"], "config nowhere.yaml does not exist"),
    (["--resume_path", "nowhere"], "--resume_path nowhere does not exist"),
    (["--checkpoint_path", "nowhere/at-all"], "nowhere/at-all is not a local folder"),
    (["--set", "loss.grad_los_weight=1"], "did you mean grad_loss_weight?"),
    (["--set", "training.num_train_epochs=many"], "training.num_train_epochs"),
    (["--set", "model.modality=colour"], "model.modality is 'colour'; use one of depth, normals"),
])  # fmt: skip
def test_mistakes_are_one_line(flags, message, base, capsys):
    assert train.main(["--pretrained_path", str(base), *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error


@pytest.mark.parametrize("flags", [["--learning_rat", "1", "--nothing"], ["--modality", "colour"],
                                   ["--log_scale", "maybe"], ["--num_workers", "two"]])  # fmt: skip
def test_unknown_flags_and_values(flags, capsys):
    with pytest.raises(SystemExit) as caught:
        train.main(flags)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_precedence_of_options(tmp_path):
    yaml = tmp_path / "c.yaml"
    yaml.write_text(
        "optimization: {learning_rate: 1e-4, adam_beta1: 0.8}\nmodel: {max_depth: 20}\n"
    )
    stored = {"max_depth": 30.0, "modality": "normals", "pretrained_path": "stored", "version": 1}
    assert resolve_config(None, {}, []) == TrainConfig()
    config = resolve_config(str(yaml), {}, [])
    assert config.optimization.learning_rate == 1e-4
    assert (config.optimization.adam_beta1, config.model.max_depth) == (0.8, 20)
    config = resolve_config(str(yaml), {}, [], stored)
    assert (config.model.max_depth, config.model.modality) == (30, "normals")
    assert config.model.pretrained_path == TrainConfig().model.pretrained_path
    flags = {"adam_beta1": 0.7, "face_size": 40, "seed": 7, "run_name": None, "use_EMA": False}
    config = resolve_config(str(yaml), flags, [], {**stored, "face_size": 48})
    assert (config.optimization.adam_beta1, config.model.face_size, config.seed) == (0.7, 40, 7)
    assert resolve_config(None, {}, [], {"face_size": 48}).model.face_size == 48
    assert config.training.use_EMA is False
    config = resolve_config(str(yaml), flags, ["optimization.adam_beta1=0.6", "seed=9"], stored)
    assert (config.optimization.adam_beta1, config.seed) == (0.6, 9)


def test_what_a_checkpoint_predicts_is_not_overridden(caplog):
    stored = {"max_depth": 30.0, "metric_depth": False, "modality": "depth"}
    flags = {"max_depth": 15.0, "modality": "depth"}
    model = resolve_config(None, flags, ["model.metric_depth=true"], stored).model
    assert (model.max_depth, model.metric_depth) == (30, False)
    assert sorted(record.getMessage() for record in caplog.records) == [
        "max_depth=15.0 is ignored: the checkpoint was made with 30.0",
        "metric_depth=True is ignored: the checkpoint was made with False",
    ]


@pytest.mark.parametrize("place", ["flag", "yaml", "set"])
def test_checkpoint_and_its_options_from_any_source(place, tmp_path, checkpoints, data_path):
    """The stored modality and face size hold wherever the path was written."""
    path = checkpoints["normals"]
    yaml = tmp_path / "c.yaml"
    yaml.write_text("model: {face_size: 768, max_depth: 20}" if place != "yaml" else
                    f"model: {{face_size: 768, max_depth: 20, checkpoint_path: {path}}}")  # fmt: skip
    flags = {
        "flag": ["--checkpoint_path", str(path)],
        "set": ["--set", f"model.checkpoint_path={path}"],
        "yaml": [],
    }[place]
    common = [
        "--config", str(yaml), "--data_path", str(data_path), "--save_path", str(tmp_path),
        "--run_name", "r", "--max_train_steps", "1", "--no-run_validation", "--report_to", "none",
        "--no-run_tiny_validation", "--num_workers", "0",
    ]  # fmt: skip
    assert train.main([*common, *flags]) == 0
    stored = load_model(tmp_path / "r/checkpoint-last").config
    assert (stored.modality, stored.face_size) == ("normals", 16)
    run = OmegaConf.load(tmp_path / "r/config.yaml").model
    assert (run.modality, run.face_size, run.max_depth) == ("normals", 16, stored.max_depth)


def test_finished_runs_are_not_overwritten(tmp_path, base, data_path, capsys):
    flags = [
        "--pretrained_path", str(base), "--data_path", str(data_path), "--face_size", "16",
        "--num_workers", "0", "--max_train_steps", "1", "--no-run_validation", "--report_to", "none",
        "--no-run_tiny_validation", "--save_path", str(tmp_path), "--run_name", "run",
    ]  # fmt: skip
    assert train.main(flags) == 0
    before = weights(tmp_path / "run/checkpoint-last")
    capsys.readouterr()
    assert train.main([*flags, "--seed", "9"]) == 2
    error = capsys.readouterr().err
    assert f"--resume_path {tmp_path}/run/{STATE_FOLDER}" in error
    assert error.count("\n") == 1
    after = weights(tmp_path / "run/checkpoint-last")
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert train.main([*flags, "--seed", "9", "--overwrite"]) == 0
    assert len(read_log(tmp_path / "run", "lr")) == 1
    with pytest.raises(AssertionError):
        assert_equal_weights(tmp_path / "run/checkpoint-last/original", base)


def test_state_is_complete_at_every_moment_of_a_save(tmp_path, train_config, monkeypatch):
    """A kill between the two renames of `Trainer.save` loses nothing."""
    Trainer(train_config(max_train_steps=4), tmp_path / "whole").run()
    trainer = Trainer(train_config(max_train_steps=4, save_steps=1), tmp_path / "run")
    rename, seen = Path.rename, []

    def dying(self, target):
        seen.append(self)
        if len(seen) == 3:  # first save: one rename; second save: the old state away, then this
            raise Killed
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", dying)
    with pytest.raises(Killed):
        trainer.run()
    monkeypatch.setattr(Path, "rename", rename)
    state = tmp_path / "run" / STATE_FOLDER
    assert not state.exists()
    assert train.main(["--resume_path", str(state)]) == 0
    assert_equal_weights(tmp_path / "run/checkpoint-last", tmp_path / "whole/checkpoint-last")
    assert sorted(p.name for p in (tmp_path / "run").glob("training*")) == [STATE_FOLDER]


@pytest.mark.parametrize("option", ["logging.save_steps=0", "validation.tiny_val_frequency=0",
                                    "data.batch_size=-1", "model.face_size=0"])  # fmt: skip
def test_counts_are_at_least_one(option):
    with pytest.raises(ValueError, match=r"is -?\d; use 1 or more"):
        resolve_config(None, {}, [option])


def test_linear_targets_span_the_quantiles_unless_metric(model_config):
    depth = torch.linspace(1, 11, 101).view(1, 1, 1, -1).repeat(2, 1, 1, 1)
    depth[1] *= 3
    mask = torch.ones_like(depth, dtype=torch.bool)
    relative = depth_target(depth, mask, model_config(log_scale=False))
    expected = ((torch.linspace(0, 1, 101) - 0.02) / 0.96).clamp(0, 1) * 2 - 1
    torch.testing.assert_close(relative[:, 0, 0], expected.expand(2, -1), atol=1e-5, rtol=0)
    config = model_config(log_scale=False, metric_depth=True)
    assert torch.equal(depth_target(depth, mask, config), config.depth_range.normalize(depth))
    nothing = depth_target(depth, ~mask, model_config(log_scale=False))
    assert nothing.isfinite().all()


@pytest.mark.parametrize(("text", "hint"), [
    ("loss: {l1_loss_wieght: 1}", "did you mean l1_loss_weight?"),
    ("trainig: {}", "trainig"),
    ("training: {num_train_epochs: soon}", "num_train_epochs"),
])  # fmt: skip
def test_mistakes_in_a_config_file(text, hint, tmp_path):
    yaml = tmp_path / "c.yaml"
    yaml.write_text(text)
    with pytest.raises(ValueError, match=hint.replace("?", r"\?")) as caught:
        resolve_config(str(yaml), {}, [])
    assert str(yaml) in str(caught.value)


def test_shipped_config_is_the_schema():
    assert resolve_config(str(ROOT / "configs" / "base.yaml"), {}, []) == TrainConfig()
    names = [leaf for leaf, _ in leaves()]
    assert len(names) == len(set(names))  # a flat flag names one option


def test_booleans_switch_both_ways():
    parse = train.build_parser().parse_args
    assert parse([]).use_EMA is None
    assert parse(["--use_EMA"]).use_EMA is True
    assert parse(["--use_EMA", "False"]).use_EMA is False
    assert parse(["--no-use_EMA"]).use_EMA is False


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_bf16_training_on_a_gpu(tmp_path, train_config):
    Trainer(train_config(max_train_steps=2, mixed_precision="bf16"), tmp_path).run()
    assert (tmp_path / "checkpoint-last").is_dir()
