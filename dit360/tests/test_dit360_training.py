"""Steps, order of samples, checkpoints and callbacks of the trainer, on a micro FLUX."""

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from lightning.pytorch.loops.progress import _ProcessedTracker
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from PIL import Image
from safetensors.torch import load_file, save_file

from dit360 import flow
from dit360.data.rows import open_rows
from dit360.lora import read_lora
from dit360.textcache import TextCache
from dit360.training import build, run
from dit360.training.checkpoint import find_checkpoint
from dit360.training.datamodule import TrainData, batches_done
from dit360.training.extract import extract_lora, read_checkpoint
from dit360.training.module import DiT360Training
from dit360.training.options import MIX_DEFAULTS, TINY_DEFAULTS, TrainOptions, resolve
from dit360.training.run import dry_run, train
from dit360.training.schedule import SAMPLE, aux_is_on, epoch_order, lr_scheduler, stream
from dit360.training.strategy import (
    choose_strategy,
    deepspeed_strategy,
    frozen_dtype,
    fsdp_strategy,
    lightning_precision,
    parse_devices,
    trainer_arguments,
)
from dit360.training.validation import read_prompts

HEIGHT = 32


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six panoramas and four photos on a canvas, as jsonl files."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for kind, count in (("panoramas", 6), ("photos", 4)):
        lines = []
        for k in range(count):
            name = f"{kind}{k}.png"
            pixels = rng.integers(0, 256, (HEIGHT, 2 * HEIGHT, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name)
            mask = np.full((HEIGHT, 2 * HEIGHT), 255 * (kind == "panoramas"), np.uint8)
            mask[8:24, 16:40] = 255
            Image.fromarray(mask).save(folder / f"mask_{name}")
            record = {"image": name, "caption": f"{kind} {k}", "mask": f"mask_{name}"}
            lines.append(json.dumps(record))
        (folder / f"{kind}.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture
def options(micro_flux: Path, data: Path, tmp_path: Path) -> Any:
    """Makes options of a small run."""

    def make(**given: Any) -> TrainOptions:
        small: dict[str, Any] = {
            "pretrained_model_name_or_path": str(micro_flux),
            "panorama_data": str(data / "panoramas.jsonl"),
            "save_dir": tmp_path / "run",
            "resolution": HEIGHT,
            "max_sequence_length": 16,
            "rank": 2,
            "lora_alpha": 4,
            "train_batch_size": 2,
            "learning_rate": 1e-2,
            "lr_schedule": "constant",
            "aux_from_epoch": 0,
            "max_epochs": 1,
            "accelerator": "cpu",
            "log_every_n_steps": 1,
        }
        defaults = {**TINY_DEFAULTS, **small}
        return resolve(defaults | given, {})

    return make


@pytest.fixture
def module(options: Any) -> Any:
    """Makes a training module with a LoRA that does something."""

    def make(**given: Any) -> Any:
        torch.manual_seed(0)
        made = build.build_module(options(**given), "auto")
        generator = torch.Generator().manual_seed(1)
        for name, parameter in made.flux_transformer.named_parameters():
            if "lora_B" in name:
                parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
        return made

    return make


def checkpoints(folder: Path) -> Path:
    return folder / "checkpoints"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoints(folder) / "lora/adapter_model.safetensors")


def difference(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> float:
    assert one.keys() == two.keys()
    return max((one[key] - two[key]).abs().max().item() for key in one)


# ---- a step -------------------------------------------------------------------------------------


def make_batch(count: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return {
        "pixel_values": 2 * torch.rand(count, 3, HEIGHT, 2 * HEIGHT, generator=generator) - 1,
        "supervised": torch.ones(count, HEIGHT // 8, HEIGHT // 4, dtype=torch.bool),
        "prompt_embeds": torch.randn(count, 16, 32, generator=generator),
        "pooled_prompt_embeds": torch.randn(count, 32, generator=generator),
        "index": torch.arange(count),
    }


def by_hand(module: Any, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The published step in its three-sample form, sample by sample, in plain tensor code."""
    options, transformer, vae = module.options, module.flux_transformer, module.vae
    terms: dict[str, list[torch.Tensor]] = {"v": [], "yaw": [], "cube": []}
    for k, index in enumerate(batch["index"].tolist()):
        source = stream(options.seed, SAMPLE, 0, index)
        posterior = vae.encode(batch["pixel_values"][k : k + 1]).latent_dist
        unit = torch.randn(posterior.mean.shape, generator=source)
        z = posterior.mean + posterior.std * unit
        x0 = (z - 0.1159) * 0.3611
        noise = torch.randn(x0.shape[1:], generator=source)[None]
        u = float(torch.rand(1, generator=source))
        sigma = (1000 - math.floor(1000 * u)) / 1000
        angle = (60.0, 180.0, 300.0)[int(3 * float(torch.rand((), generator=source)))]
        x = (1 - sigma) * x0 + sigma * noise
        rows, columns = x.shape[2] // 2, x.shape[3] // 2
        tokens = x.view(1, 16, rows, 2, columns, 2).permute(0, 2, 4, 1, 3, 5)
        tokens = tokens.reshape(1, rows, columns, 64)
        ids = torch.zeros(rows, columns, 3)
        ids[..., 1] = torch.arange(rows)[:, None]
        ids[..., 2] = torch.arange(columns)
        tokens = torch.cat([tokens[:, :, -1:], tokens, tokens[:, :, :1]], 2)
        ids = torch.cat([ids[:, -1:], ids, ids[:, :1]], 1)
        v = transformer(
            hidden_states=tokens.flatten(1, 2),
            timestep=torch.tensor([sigma]),
            guidance=torch.tensor([options.guidance_scale]),
            encoder_hidden_states=batch["prompt_embeds"][k : k + 1],
            pooled_projections=batch["pooled_prompt_embeds"][k : k + 1],
            txt_ids=torch.zeros(16, 3),
            img_ids=ids.flatten(0, 1),
        ).sample
        v = v.view(1, rows, columns + 2, 64)[:, :, 1:-1]
        v = v.reshape(1, rows, columns, 16, 2, 2).permute(0, 3, 1, 4, 2, 5)
        v = v.reshape(1, 16, 2 * rows, 2 * columns)
        y = noise - x0
        terms["v"].append((v - y).square().mean())
        from dit360.losses import cube_residual, yaw_residual

        turn = [yaw_residual(part, torch.tensor([angle])) for part in (v, noise, x0)]
        cube = [cube_residual(part) for part in (v, noise, x0)]
        terms["yaw"].append((turn[0] - (turn[1] - turn[2])).square().mean())
        terms["cube"].append((cube[0] - (cube[1] - cube[2])).square().mean())
    return {name: torch.stack(values).mean() for name, values in terms.items()}


@pytest.mark.parametrize("aux_from", [0, 1])
def test_step_equals_the_published_one_written_out(module: Any, aux_from: int) -> None:
    made = module(lora_drop_out=0.0, aux_from_epoch=aux_from, vae_wrap="none", guidance_scale=3.5)
    logged: dict[str, torch.Tensor] = {}
    made.log_dict = lambda values, **_: logged.update(values)
    made._trainer = None
    batch = make_batch()
    trained = [p for p in made.parameters() if p.requires_grad]
    loss = made.training_step(batch, 0)
    gradients = torch.autograd.grad(loss, trained)
    terms = by_hand(made, batch)
    weight = 0.0 if aux_from else 0.5
    expected = terms["v"] + weight * terms["yaw"] + weight * terms["cube"]
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert logged["loss_v"].item() == pytest.approx(terms["v"].item(), rel=1e-5)
    for name in ("yaw", "cube"):
        wanted = 0 if aux_from else terms[name].item()
        assert logged[f"loss_{name}"].item() == pytest.approx(wanted, rel=1e-4)
    for ours, theirs in zip(gradients, torch.autograd.grad(expected, trained), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-6 * theirs.abs().max())


def test_photo_and_panorama_in_one_step(module: Any) -> None:
    made = module(lora_drop_out=0.0, aux_from_epoch=9, perspective_weight=0.5)
    made.log_dict = lambda *_, **__: None
    batch = make_batch()
    mask = torch.zeros(4, 8, dtype=torch.bool)
    mask[1:3, 2:5] = True
    batch["supervised"][1] = mask
    losses = [
        made.training_step({key: value[chosen] for key, value in batch.items()}, 0).item()
        for chosen in ([0, 1], [0], [1])
    ]
    assert losses[0] == pytest.approx((losses[1] + losses[2]) / 2, rel=1e-5)
    # The photo alone by hand.
    source = [stream(0, SAMPLE, 0, 1)]
    clean = made.encode(batch["pixel_values"][1:], source)
    draws = made.draw(clean, source)
    noisy = flow.interpolate(clean, draws.noise, draws.sigma)
    v = made.predict(
        noisy, draws.sigma, batch["prompt_embeds"][1:], batch["pooled_prompt_embeds"][1:]
    )
    error = (v - (draws.noise - clean)).square()[0][:, mask]
    assert losses[2] == pytest.approx(0.5 * error.mean().item(), rel=1e-5)


def test_draws_depend_on_seed_epoch_and_sample_alone(module: Any) -> None:
    made = module()

    def noise(epoch: int, indices: list[int]) -> torch.Tensor:
        sources = [stream(0, SAMPLE, epoch, index) for index in indices]
        return made.draw(torch.zeros(len(indices), 16, 4, 8), sources).noise

    both = noise(0, [3, 5])
    assert torch.equal(both[1:], noise(0, [5]))
    assert not torch.equal(both[0], both[1])
    assert not torch.equal(noise(0, [3]), noise(1, [3]))


def test_any_yaw_angle_and_shifted_levels(module: Any) -> None:
    made = module(yaw_angles="any", timestep_shift="inference")
    sources = [stream(0, SAMPLE, 0, index) for index in range(200)]
    draws = made.draw(torch.zeros(200, 16, 4, 8), sources)
    assert draws.angles_deg.unique().numel() > 150
    assert 0 <= draws.angles_deg.min() < 20
    assert 340 < draws.angles_deg.max() < 360
    # mu of 2 x (4 + 2) tokens: the median level 0.5 goes to e^mu / (e^mu + 1).
    mu = flow.schedule_mu(12)
    assert draws.sigma.median().item() == pytest.approx(math.exp(mu) / (math.exp(mu) + 1), abs=0.08)


def test_released_angles_are_the_three(module: Any) -> None:
    sources = [stream(0, SAMPLE, 0, index) for index in range(60)]
    draws = module().draw(torch.zeros(60, 16, 4, 8), sources)
    assert sorted(draws.angles_deg.unique().tolist()) == [60, 180, 300]


def test_only_the_adapter_is_trained(module: Any) -> None:
    made = module()
    assert len(made.trained) == 34  # P4
    assert all("lora_" in name for name in made.trained)
    everything = module(trainable="all")
    assert len(everything.trained) == len(list(everything.flux_transformer.parameters()))
    assert not any(name.startswith("vae") for name in everything.trained)


def test_frozen_weights_are_halved_and_trained_ones_are_not(options: Any) -> None:
    made = build.build_module(options(precision="bf16-mixed"), "auto")
    for name, parameter in made.named_parameters():
        is_half = name.startswith("flux") and "lora_" not in name
        assert parameter.dtype == (torch.bfloat16 if is_half else torch.float32), name
    assert frozen_dtype(options(precision="16"), "auto") == torch.float16
    assert frozen_dtype(options(precision="bf16", trainable="all"), "ddp") == torch.float32
    assert frozen_dtype(options(precision="bf16"), "fsdp") == torch.float32


def test_vae_stays_in_float32_under_autocast(module: Any) -> None:
    made = module()
    pixels = make_batch()["pixel_values"]
    plain = made.encode(pixels, [stream(0, 0), stream(0, 1)])
    with torch.autocast("cpu", torch.bfloat16):
        mixed = made.encode(pixels, [stream(0, 0), stream(0, 1)])
    assert mixed.dtype == torch.float32
    assert torch.equal(plain, mixed)


# ---- schedule and data --------------------------------------------------------------------------


def test_order_of_an_epoch(options: Any) -> None:
    made = options(seed=3)
    assert sorted(epoch_order(made, 10, 8, 0)) == list(range(10))
    second = epoch_order(made, 10, 8, 2)
    assert sorted(second)[:10] == list(range(10))
    assert len(second) == 14  # half of the photos, P22
    assert second == epoch_order(made, 10, 8, 2)
    photos = [{n for n in epoch_order(made, 10, 8, epoch) if n >= 10} for epoch in (2, 3)]
    assert [len(chosen) for chosen in photos] == [4, 2]
    redrawn = {
        tuple(sorted(n for n in epoch_order(options(seed=s), 10, 8, 2) if n >= 10))
        for s in range(6)
    }
    assert len(redrawn) > 1


class FakeTrainer:
    def __init__(self, rank: int, world: int, epoch: int = 0) -> None:
        self.global_rank, self.world_size, self.current_epoch = rank, world, epoch


def test_ranks_share_an_epoch_without_overlap(options: Any) -> None:
    made = options(train_batch_size=1)
    rows = open_rows(made.panorama_data)
    texts = build.TextMemory({row.caption: (torch.zeros(1, 1), torch.zeros(1)) for row in rows})
    parts = []
    for rank in range(2):
        loader = TrainData(made, rows, [], texts)
        loader.trainer = FakeTrainer(rank, 2)  # pyright: ignore[reportAttributeAccessIssue]
        parts.append([int(b["index"]) for b in loader.train_dataloader()])
    assert sorted(parts[0] + parts[1]) == list(range(6))
    whole = epoch_order(made, 6, 0, 0)
    assert parts == [whole[0::2], whole[1::2]]  # a step of both is a batch of two of one


def test_updates_count_ranks_accumulation_and_photos(options: Any, data: Path) -> None:  # D17
    rows = open_rows(str(data / "panoramas.jsonl"))
    photos = open_rows(str(data / "photos.jsonl"))
    for world, expected in ((1, 3 + 3 + 4 + 3), (2, 1 + 1 + 2 + 1)):
        loader = TrainData(options(max_epochs=4), rows, photos, build.TextMemory())
        loader.trainer = FakeTrainer(0, world)  # pyright: ignore[reportAttributeAccessIssue]
        assert loader.updates() == expected
    loader = TrainData(
        options(max_epochs=4, accumulate_grad_batches=2), rows, [], build.TextMemory()
    )
    loader.trainer = FakeTrainer(0, 1)  # pyright: ignore[reportAttributeAccessIssue]
    assert loader.updates() == 4 * 2


def test_too_few_samples_are_named(options: Any) -> None:
    with pytest.raises(ValueError, match="epoch 0 has 6 samples, fewer than the 8 of one step"):
        train(options(train_batch_size=8))


def test_staging(options: Any) -> None:
    panorama, mix = options(aux_from_epoch=2), options(**MIX_DEFAULTS)
    assert [aux_is_on(panorama, epoch) for epoch in range(4)] == [False, False, True, True]
    assert [aux_is_on(mix, epoch) for epoch in range(5)] == [True, True, True, False, False]


def test_learning_rates(options: Any) -> None:
    def rates(steps: int, **given: Any) -> list[float]:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        schedule = lr_scheduler(options(**given), optimizer, 100)["scheduler"]
        found = []
        for _ in range(steps):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        return found

    warm = rates(8, lr_schedule="warmup")  # floor(0.05 * 100) = 5
    assert warm == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1, 1, 1])
    assert rates(3, lr_schedule="constant") == [1, 1, 1]
    assert rates(4, lr_schedule="epochs", max_epochs=25) == pytest.approx([0.2, 0.6, 1, 1])  # P23


# ---- runs ---------------------------------------------------------------------------------------


def test_run_writes_small_checkpoints_and_a_lora_that_loads(options: Any, tmp_path: Path) -> None:
    made = options(max_epochs=2, topk=1, pad_ids="extended")
    folder = train(made)
    assert folder == tmp_path / "run/lightning_logs/version_0"
    names = sorted(path.name for path in checkpoints(folder).iterdir())
    assert len(names) == 3
    assert names[:2] == ["last.ckpt", "lora"]
    assert names[2].startswith("vsclip_epoch=01_train_loss=")
    checkpoint = torch.load(checkpoints(folder) / "last.ckpt", weights_only=True)
    assert len(checkpoint["state_dict"]) == 34
    first = "flux_transformer.single_transformer_blocks.0.attn.to_k.lora_A.default.weight"
    assert first in checkpoint["state_dict"]  # the original's names
    assert checkpoint["hyper_parameters"]["args"]["padding_n"] == 1
    assert checkpoint["hyper_parameters"]["lora_config"]["lora_alpha"] == 4
    lora = read_lora(checkpoints(folder) / "lora")
    assert (lora.rank, lora.alpha, lora.padding_n, lora.pad_ids) == (2, 4.0, 1, "extended")
    extracted = extract_lora(checkpoints(folder) / "last.ckpt", tmp_path / "out")
    assert extracted.alpha == 4
    assert read_lora(extracted.path).pad_ids == "extended"
    assert difference(load_file(extracted.path), weights(folder)) == 0
    info = json.loads((folder / "run.json").read_text())
    assert info["options"]["rank"] == 2
    assert (folder / "hparams.yaml").is_file()
    # Something was learnt: B starts at zero.
    assert all(value.abs().max() > 0 for name, value in weights(folder).items() if "lora_B" in name)


def test_resumed_run_repeats_an_unbroken_one(options: Any, data: Path, tmp_path: Path) -> None:
    common: dict[str, Any] = {
        "lora_drop_out": 0.1, "ema_decay": 0.9, "lr_schedule": "epochs",
        "perspective_data": str(data / "photos.jsonl"), "perspective_start_epoch": 1,
    }  # fmt: skip
    whole = train(options(max_epochs=2, save_dir=tmp_path / "whole", **common))
    train(options(max_epochs=2, max_steps=2, save_dir=tmp_path / "parts", **common))
    # In the middle of epoch 0, then of epoch 1, then to the end; the folder's newest each time.
    again: dict[str, Any] = {"resume_from_checkpoint": "last", "save_dir": tmp_path / "parts"}
    train(options(max_epochs=2, max_steps=5, **again, **common))
    broken = train(options(max_epochs=2, **again, **common))
    one, two = (
        torch.load(checkpoints(folder) / "last.ckpt", weights_only=True)
        for folder in (whole, broken)
    )
    assert one["global_step"] == two["global_step"] == 3 + 4
    assert difference(one["state_dict"], two["state_dict"]) == 0
    for a, b in zip(one["optimizer_states"], two["optimizer_states"], strict=True):
        for key, moments in a["state"].items():
            assert all(torch.equal(v, b["state"][key][n]) for n, v in moments.items())
    assert one["lr_schedulers"] == two["lr_schedulers"]
    assert difference(weights(whole), weights(broken)) == 0  # the averages
    averages = [state for state in one["callbacks"].values() if "updates" in state]
    assert averages[0]["updates"] == 7


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
@pytest.mark.parametrize("steps", [2, 3])
def test_epoch_goes_on_with_another_number_of_samples_a_step(
    options: Any, monkeypatch: pytest.MonkeyPatch, before: int, after: int, steps: int
) -> None:
    """A batch of two stands for two ranks: what is done is neither repeated nor left out."""
    seen: list[int] = []
    step = DiT360Training.training_step

    def spy(self: Any, batch: Any, batch_idx: int) -> Any:
        seen.extend(batch["index"].tolist())
        return step(self, batch, batch_idx)

    monkeypatch.setattr(DiT360Training, "training_step", spy)
    monkeypatch.setattr(run, "SAME_ON_RESUME", ())
    train(options(max_epochs=2, max_steps=steps, train_batch_size=before))
    done = steps * before // after * after
    assert len(seen) == steps * before
    del seen[done:]  # one that fills no step of the new size is repeated
    folder = train(options(max_epochs=2, train_batch_size=after, resume_from_checkpoint="last"))
    assert seen == epoch_order(options(), 6, 0, 0) + epoch_order(options(), 6, 0, 1)
    assert (checkpoints(folder) / "last.ckpt").is_file()


def test_ranks_go_on_with_what_other_ranks_have_left(options: Any) -> None:
    made = options(train_batch_size=1)
    rows = open_rows(made.panorama_data)
    texts = build.TextMemory({row.caption: (torch.zeros(1, 1), torch.zeros(1)) for row in rows})
    order = epoch_order(made, 6, 0, 0)

    def loader(rank: int, world: int, done: int) -> Any:
        data = TrainData(made, rows, [], texts)
        trainer: Any = FakeTrainer(rank, world)
        progress = _ProcessedTracker(done, done, done, done)
        trainer.fit_loop = MagicMock()
        trainer.fit_loop.epoch_loop.batch_progress.current = progress
        data.trainer = trainer
        return data.train_dataloader()

    for (world, done), (new_world, new_done) in (((1, 2), (2, 1)), ((3, 1), (1, 3))):
        state = loader(0, world, done).state_dict()
        for rank in range(new_world):
            resumed = loader(rank, new_world, done)
            resumed.load_state_dict(state)
            assert [int(b["index"]) for b in resumed] == order[world * done :][rank::new_world]
            assert batches_done(resumed.data.trainer) == new_done


def test_step_checkpoint_resumes_inside_an_epoch(options: Any, tmp_path: Path) -> None:
    common: dict[str, Any] = {"max_epochs": 2, "lora_drop_out": 0.1, "save_every_n_steps": 2}
    whole = train(options(max_steps=4, save_dir=tmp_path / "a", **common))
    state = torch.load(checkpoints(whole) / "step.ckpt", weights_only=True)
    assert (state["epoch"], state["global_step"]) == (1, 4)
    first = train(options(max_steps=2, save_dir=tmp_path / "b", **common))
    resumed = train(
        options(
            max_steps=4, save_dir=tmp_path / "b",
            resume_from_checkpoint=str(checkpoints(first) / "step.ckpt"), **common,
        )
    )  # fmt: skip
    assert difference(weights(whole), weights(resumed)) == 0
    assert difference(weights(whole), weights(first)) > 0


@pytest.mark.parametrize("topk", [-1, 0])
def test_run_cut_short_leaves_one_checkpoint(options: Any, topk: int) -> None:
    folder = train(options(max_steps=2, max_epochs=2, topk=topk))
    assert sorted(path.name for path in checkpoints(folder).iterdir()) == ["last.ckpt", "lora"]
    state = torch.load(checkpoints(folder) / "last.ckpt", weights_only=True)
    assert (state["epoch"], state["global_step"]) == (0, 2)
    resumed = train(options(max_epochs=2, topk=topk, resume_from_checkpoint="last"))
    state = torch.load(checkpoints(resumed) / "last.ckpt", weights_only=True)
    assert (state["epoch"], state["global_step"]) == (1, 6)  # of whole epochs too


@pytest.mark.parametrize("steps", [2, 3])
def test_run_with_all_updates_makes_no_more(
    options: Any, steps: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Stopped inside its first epoch of three updates, and at its end."""
    common: dict[str, Any] = {"max_steps": steps, "max_epochs": 2}
    last = checkpoints(train(options(**common))) / "last.ckpt"
    again = train(options(**common, resume_from_checkpoint="last"))
    assert f"last.ckpt has {steps} updates, --max_steps is {steps}: nothing is left" in caplog.text
    assert not list(again.rglob("*.ckpt"))
    assert find_checkpoint(options(resume_from_checkpoint="last")) == str(last)


def test_average_lies_between_start_and_end(
    options: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = train(options(max_epochs=1, ema_decay=0.99))
    last = torch.load(checkpoints(folder) / "last.ckpt", weights_only=True)["state_dict"]
    for name, value in weights(folder).items():
        if "lora_B" in name:
            trained = last["flux_" + name.replace(".weight", ".default.weight")]
            assert 0 < value.norm() < trained.norm()
    assert "--ema_decay" not in caplog.text
    extract_lora(checkpoints(folder) / "last.ckpt", tmp_path / "out")
    assert "trained with --ema_decay: these are the weights themselves" in caplog.text


def test_resume_with_other_options_is_refused(options: Any, tmp_path: Path) -> None:
    folder = train(options())
    last = str(checkpoints(folder) / "last.ckpt")
    with pytest.raises(ValueError, match="made with --rank 2, not 4"):
        train(options(rank=4, resume_from_checkpoint=last))
    with pytest.raises(ValueError, match="--seed 0, not 1"):
        train(options(seed=1, resume_from_checkpoint=last))
    with pytest.raises(FileNotFoundError, match="nothing does not exist"):
        find_checkpoint(options(resume_from_checkpoint="nothing"))
    with pytest.raises(FileNotFoundError, match="no checkpoint to resume from"):
        find_checkpoint(options(resume_from_checkpoint="last", save_dir=tmp_path / "empty"))


def test_unusable_checkpoint_is_refused_before_anything_is_encoded(
    options: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "prepare_texts", lambda *_: pytest.fail("prompts were encoded"))
    path = tmp_path / "some.ckpt"

    def refused(message: str) -> None:
        for command in (train, dry_run):
            with pytest.raises(ValueError, match=message):
                command(options(resume_from_checkpoint=str(path)))

    args = {"pad_ids": "extended", "vae_wrap": "circular"}
    torch.save({"hyper_parameters": {"args": args}, "weight": torch.zeros(999)}, path)
    refused("made with --pad_ids extended, not source")
    whole = path.read_bytes()
    for damaged in (b"", b"no checkpoint", whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        refused("is not a training checkpoint that can be read")
    torch.save({"weight": torch.zeros(1)}, path)
    refused("some.ckpt holds no options of a run")
    original = {"hyper_parameters": {"args": argparse.Namespace(vae_wrap="none")}}
    torch.save(original, path)
    refused("some.ckpt holds no options of a run")  # Lightning does not unpickle them
    path.unlink()
    (path / "checkpoint").mkdir(parents=True)
    torch.save(original, path / "checkpoint" / "mp_rank_00_model_states.pt")  # DeepSpeed does
    refused("made with --vae_wrap none, not circular")


def test_full_checkpoint_holds_everything(options: Any) -> None:
    folder = train(options(save_full=True, max_steps=1))
    state = torch.load(checkpoints(folder) / "last.ckpt", weights_only=True)["state_dict"]
    assert "flux_transformer.transformer_blocks.0.attn.to_q.base_layer.weight" in state
    assert any(name.startswith("vae.") for name in state)


def test_whole_transformer_is_written_as_a_folder(options: Any, micro_flux: Path) -> None:
    from diffusers import FluxTransformer2DModel

    folder = train(options(trainable="all", max_steps=3, learning_rate=1e-3))
    written = FluxTransformer2DModel.from_pretrained(checkpoints(folder) / "transformer")
    base = FluxTransformer2DModel.from_pretrained(micro_flux, subfolder="transformer")
    change = difference(dict(written.state_dict()), dict(base.state_dict()))
    assert 5e-4 < change < 5e-3  # AdamW: about the rate per update


def test_mix_run_sees_photos(options: Any, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    step = DiT360Training.training_step

    def spy(self: Any, batch: Any, batch_idx: int) -> Any:
        seen.extend((self.current_epoch, index) for index in batch["index"].tolist())
        return step(self, batch, batch_idx)

    monkeypatch.setattr(DiT360Training, "training_step", spy)
    train(options(perspective_data=str(data / "photos.jsonl"), max_epochs=4))
    photos = [sum(index >= 6 for e, index in seen if e == epoch) for epoch in range(4)]
    assert photos[:3] == [0, 0, 2]
    assert photos[3] <= 1  # 6 panoramas and one photo in batches of two: one sample is left out
    assert [sum(e == epoch for e, _ in seen) for epoch in range(4)] == [6, 6, 8, 6]


def test_loss_that_is_not_finite_stops_the_run(
    options: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict = DiT360Training.predict
    monkeypatch.setattr(DiT360Training, "predict", lambda *a: predict(*a) * math.nan)
    with pytest.raises(FloatingPointError, match="loss is nan at epoch 0, batch 0"):
        train(options())


def test_validation_writes_panoramas_and_the_seam(
    options: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: dict[str, Any] = {}
    log = DiT360Training.log
    monkeypatch.setattr(
        DiT360Training,
        "log",
        lambda self, name, value, **k: (logged.update({name: value}), log(self, name, value, **k)),
    )
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\ufeffa red room\n\nThis is a panorama. A field\n", encoding="utf-8")
    assert read_prompts(prompts) == [
        "This is a panorama. a red room",
        "This is a panorama. A field",
    ]
    train(
        options(
            validation_prompts=prompts, validation_epochs=2, max_epochs=2,
            validation_inference_steps=2,
        )
    )  # fmt: skip
    names = sorted(path.name for path in (tmp_path / "run/validation").iterdir())
    assert names == ["epoch=01_prompt=0.png", "epoch=01_prompt=1.png"]
    with Image.open(tmp_path / "run/validation" / names[0]) as image:
        assert image.size == (2 * HEIGHT, HEIGHT)
    assert logged["val_seam_ratio"] > 0


def test_texts_come_from_the_cache(
    options: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = options(text_cache=tmp_path / "texts", max_steps=1)
    plain = build.prepare_texts(options(), ["one", "two", "one"])
    cached = build.prepare_texts(made, ["one", "two"])
    for prompt in ("one", "two"):
        for a, b in zip(plain.get(prompt), cached.get(prompt), strict=True):
            assert a.shape == b.shape
            assert torch.allclose(a.float(), b.float(), atol=0.02, rtol=0.01)  # stored in bfloat16
    assert plain.get("one")[0].shape == (16, 32)
    monkeypatch.setattr(build, "_text_pipeline", lambda _: pytest.fail("encoders were loaded"))
    assert build.prepare_texts(made, ["two"]).get("two")[0].shape == (16, 32)


def test_processes_share_texts_and_the_work(
    options: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 0)  # which Lightning sets
    encoded: list[list[str]] = []
    encode_all = TextCache.encode_all

    def spy(self: Any, pipeline: Any, prompts: list[str]) -> int:
        encoded.append(prompts)
        return encode_all(self, pipeline, prompts)

    monkeypatch.setattr(TextCache, "encode_all", spy)
    monkeypatch.setenv("LOCAL_RANK", "1")
    texts = build.prepare_texts(options(devices="2"), ["c", "b", "a", "d"])
    assert encoded == [["b", "d"], ["a", "b", "c", "d"]]
    assert isinstance(texts, TextCache)
    assert texts.folder == tmp_path / "run/text_cache"
    assert texts.get("a")[0].shape == (16, 32)


# ---- starting weights ---------------------------------------------------------------------------


def test_load_ckpt_takes_lora_checkpoint_and_state_dict(options: Any, tmp_path: Path) -> None:
    folder = train(options(max_steps=2))
    trained = weights(folder)
    made = build.build_module(options(), "auto")
    whole = {
        name.replace(".weight", ".weight"): value
        for name, value in made.flux_transformer.state_dict().items()
    }
    lora = {
        name.removeprefix("transformer.").replace(".weight", ".default.weight"): value
        for name, value in trained.items()
    }
    torch.save(whole | lora, tmp_path / "whole.pt")  # the original's form
    for source in (
        checkpoints(folder) / "lora", checkpoints(folder) / "last.ckpt", tmp_path / "whole.pt"
    ):  # fmt: skip
        started = build.build_module(options(load_ckpt=str(source)), "auto")
        state = started.flux_transformer.state_dict()
        assert all(torch.equal(state[name], value) for name, value in lora.items()), source


def test_load_ckpt_that_does_not_fit_is_named(
    options: Any, micro_lora: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="rank 4 and alpha 2; pass --rank 4 --lora_alpha 2"):
        build.build_module(options(load_ckpt=str(micro_lora)), "auto")
    made = build.build_module(options(rank=4, lora_alpha=2, load_ckpt=str(micro_lora)), "auto")
    name = "single_transformer_blocks.0.attn.to_k.lora_B"
    loaded = made.flux_transformer.state_dict()[f"{name}.default.weight"]
    assert torch.equal(loaded, read_lora(micro_lora).state[f"transformer.{name}.weight"])
    save_file({"other": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="lacks 34 tensors"):
        build.build_module(options(load_ckpt=str(tmp_path / "other.safetensors")), "auto")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_checkpoint(tmp_path / "nothing.ckpt")
    (tmp_path / "damaged").write_bytes(b"no weights")
    with pytest.raises(ValueError, match="damaged is no safetensors file, or damaged"):
        build.build_module(options(load_ckpt=str(tmp_path / "damaged")), "auto")


# ---- devices ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("devices", "accelerator", "expected"),
    [("0", "cuda", 1), ("1", "cuda", 1), ("2", "cpu", 2), ("0,", "cuda", [0]), ("0,1", "cuda", [0, 1]),
     ("0,1", "cpu", 2), ("-1", "cuda", -1), ("auto", "cpu", "auto")],
)  # fmt: skip
def test_devices(devices: str, accelerator: str, expected: Any) -> None:
    assert parse_devices(devices, accelerator) == expected


@pytest.mark.parametrize(
    ("devices", "rank", "device", "processes"),
    [("0", 0, 0, 1), ("1,", 0, 1, 1), ("1,3", 1, 3, 2), ("2", 1, 1, 2), ("-1", 2, 2, 4)],
)
def test_device_of_a_process(
    options: Any, devices: str, rank: int, device: int, processes: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(rank_zero_only, "rank", 0)  # which Lightning sets
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("lightning.fabric.accelerators.cuda.num_cuda_devices", lambda: 4)
    monkeypatch.setenv("LOCAL_RANK", str(rank))
    made = build.find_devices(options(accelerator="gpu", devices=devices))
    assert (made.device, made.global_rank) == (torch.device("cuda", device), rank)
    assert made.world_size == processes


@pytest.mark.parametrize(
    ("devices", "count", "message"),
    [("1", 0, "No supported gpu backend"), ("3", 2, "only has: [0, 1]"), ("7,", 2, "gpu: [7]")],
)
def test_missing_devices_are_named_before_anything_is_encoded(
    options: Any, devices: str, count: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "prepare_texts", lambda *_: pytest.fail("prompts were encoded"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr("lightning.fabric.accelerators.cuda.num_cuda_devices", lambda: count)
    with pytest.raises(ValueError, match="cannot be had here") as caught:
        train(options(accelerator="gpu", devices=devices, strategy="ddp"))
    assert message in str(caught.value)


@pytest.mark.parametrize("devices", ["two", "-3", "1 2", ""])
def test_other_devices_are_refused(devices: str) -> None:
    with pytest.raises(ValueError, match="use a count"):
        parse_devices(devices, "cuda")


def test_precision_names(options: Any) -> None:
    names = {"16": "16-mixed", "16-mixed": "16-mixed", "bf16-mixed": "bf16-mixed", "32": "32-true"}
    for given, expected in names.items():
        assert lightning_precision(options(precision=given)) == expected


def test_strategy_needs_cuda(options: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_strategy(options(accelerator="auto")) in ("auto", "deepspeed_stage_2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("deepspeed_stage_2", "fsdp"):
        with pytest.raises(ValueError, match=f"{name} runs on CUDA only"):
            choose_strategy(options(strategy=name))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "deepspeed")
    gpu: dict[str, Any] = {"accelerator": "auto"}
    assert choose_strategy(options(**gpu)) == "deepspeed_stage_2"
    assert choose_strategy(options(**gpu, ema_decay=0.9)) == "auto"
    assert choose_strategy(options(**gpu, strategy="ddp")) == "ddp"
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert choose_strategy(options(**gpu)) == "auto"
    with pytest.raises(ValueError, match="needs deepspeed: pip install"):
        choose_strategy(options(**gpu, strategy="deepspeed_stage_2"))


def test_half_precision_needs_a_gpu(options: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    for accelerator in ("cpu", "auto"):
        half: dict[str, Any] = {"accelerator": accelerator, "precision": "16"}
        with pytest.raises(ValueError, match="precision 16 runs on GPUs only; use 32 or bf16-mix"):
            choose_strategy(options(**half))
        choose_strategy(options(**half, dry_run=True))
        choose_strategy(options(**half | {"precision": "bf16-mixed"}))
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    choose_strategy(options(accelerator="auto", precision="16"))


def test_deepspeed_configuration(options: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What can be looked at without CUDA: stage 2, LoRA-only checkpoints, pixels not rounded."""
    monkeypatch.setitem(sys.modules, "deepspeed", MagicMock())  # tells its logger to be quiet
    for fact in ("_DEEPSPEED_AVAILABLE", "_DEEPSPEED_GREATER_EQUAL_0_16"):
        monkeypatch.setattr(f"lightning.pytorch.strategies.deepspeed.{fact}", True)
    strategy: Any = deepspeed_strategy(options())
    assert strategy.config["zero_optimization"]["stage"] == 2
    assert "offload_optimizer" not in strategy.config["zero_optimization"]
    assert strategy.exclude_frozen_parameters
    assert not deepspeed_strategy(options(save_full=True)).exclude_frozen_parameters  # pyright: ignore[reportAttributeAccessIssue]
    arguments = trainer_arguments(options(precision="16"), "deepspeed_stage_2", None)
    assert "precision" not in arguments
    (plugin,) = arguments["plugins"]
    assert plugin.precision == "16-mixed"
    pixels = torch.tensor([1 / 3])
    assert torch.equal(plugin.convert_input({"pixel_values": pixels})["pixel_values"], pixels)


def test_fsdp_configuration(module: Any) -> None:
    made = module()
    strategy: Any = fsdp_strategy("bf16-mixed", made.vae)
    assert strategy.mixed_precision_config.param_dtype == torch.bfloat16
    assert not strategy.mixed_precision_config.cast_root_forward_inputs
    assert strategy.kwargs["ignored_modules"] == [made.vae]


def test_dry_run_counts(options: Any, data: Path) -> None:
    report = dry_run(options(perspective_data=str(data / "photos.jsonl"), max_epochs=4))
    assert report["panoramas"] == 6
    assert report["photos_by_epoch"] == [0, 0, 2, 1]
    assert report["trained_parameters"] == 17 * 2 * (64 + 64)
    json.dumps(report)


def test_dry_run_reads_every_image(options: Any, data: Path, tmp_path: Path) -> None:
    lines = (data / "panoramas.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    Image.new("RGB", (48, 32)).save(tmp_path / "narrow.png")
    (tmp_path / "empty.png").touch()
    for record, name in zip(records[3:], ("narrow.png", "empty.png"), strict=False):
        record.update(image=str(tmp_path / name))
    mixed = data / "mixed.jsonl"
    mixed.write_text("\n".join(map(json.dumps, records)))
    with pytest.raises(ValueError, match=r"2 unusable rows: mixed\.jsonl line 4: image is 48x32"):
        dry_run(options(panorama_data=str(mixed)))
