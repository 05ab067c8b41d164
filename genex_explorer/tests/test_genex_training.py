"""Training: parity of one step with the published equations, resuming, processes, subsets."""

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from genex_explorer.cli.train import build_parser, main, resolve
from genex_explorer.data.clips import find_clips, read_clip
from genex_explorer.data.windows import ClipWindows, RunSampler
from genex_explorer.loading import load_pipeline
from genex_explorer.training.noising import draw, make_batch, sample_generator
from genex_explorer.training.options import TrainOptions
from genex_explorer.training.setup import build_pipeline
from genex_explorer.training.trainer import Trainer
from genex_explorer.training.validation import Validator
from genex_explorer.vae import encode_moments

ASSETS = Path(__file__).parent / "assets"


def flags(model: Path, clips: Path, output: Path, *more: str) -> list[str]:
    """Command line of a run of a few seconds."""
    return [
        f"--pretrained_model_name_or_path={model}", f"--base_folder={clips}",
        f"--output_dir={output}", "--width=64", "--height=32", "--num_frames=4",
        "--num_workers=0", "--report_to=none", "--seed=3", "--learning_rate=1e-3",
        "--max_train_steps=4", "--checkpointing_steps=2", *more,
    ]  # fmt: skip


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """UNet weights of a folder."""
    return load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")


def read_log(folder: Path) -> list[dict[str, float]]:
    """Rows of log.jsonl."""
    lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def options_of(model: Path, clips: Path, output: Path, *more: str) -> TrainOptions:
    """Options of the same command line."""
    return resolve(vars(build_parser().parse_args(flags(model, clips, output, *more))))


def test_original_flags_are_all_there_with_their_defaults() -> None:
    parser_flags = {a.option_strings[0]: a for a in build_parser()._actions}
    defaults = TrainOptions()
    for line in (ASSETS / "flags_train.txt").read_text(encoding="utf-8").splitlines():
        name, default = line.split(maxsplit=1)
        assert f"--{name}" in parser_flags, name
        assert str(getattr(defaults, name)) == default, name


@pytest.fixture(scope="module")
def straight(micro_model: Path, micro_clips: Path, tmp_path_factory: Any) -> Path:
    """An unbroken run of four updates with EMA and accumulation."""
    output = tmp_path_factory.mktemp("straight")
    more = ["--use_ema", "--gradient_accumulation_steps=2", "--lr_scheduler=linear",
            "--lr_warmup_steps=1"]  # fmt: skip
    assert main(flags(micro_model, micro_clips, output / "run", *more)) == 0
    return output / "run"


def test_only_temporal_transformer_blocks_change(straight: Path, micro_model: Path) -> None:
    before, after = weights(micro_model), weights(straight / "checkpoint-4")
    assert before.keys() == after.keys()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    trained = {key for key in before if "temporal_transformer_block" in key}
    assert len(trained) == 104
    assert changed == trained  # weight decay moves also those without gradient
    log = read_log(straight)
    assert [row["step"] for row in log] == [1, 2, 3, 4]
    assert log[1]["lr"] == pytest.approx(1e-3 * 2 / 3)  # after warm-up, linear to zero at 4


def test_resumed_run_equals_the_unbroken_one(
    straight: Path, micro_model: Path, micro_clips: Path, tmp_path: Path
) -> None:
    import shutil

    more = ["--use_ema", "--gradient_accumulation_steps=2", "--lr_scheduler=linear",
            "--lr_warmup_steps=1"]  # fmt: skip
    run = tmp_path / "run"
    run.mkdir()
    shutil.copytree(straight / "checkpoint-2", run / "checkpoint-2")
    shutil.copy(straight / "run.json", run)
    arguments = flags(micro_model, micro_clips, run, *more, "--resume_from_checkpoint=latest")
    arguments.remove("--seed=3")  # comes back from run.json
    assert main(arguments) == 0
    for folder in ("checkpoint-4/unet", "checkpoint-4/unet_ema", "unet"):
        ours = load_file(run / folder / "diffusion_pytorch_model.safetensors")
        theirs = load_file(straight / folder / "diffusion_pytorch_model.safetensors")
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs), folder


def test_final_folder_is_the_stock_pipeline_with_the_average(straight: Path) -> None:
    from diffusers import DiffusionPipeline, StableVideoDiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(straight)
    assert type(pipeline) is StableVideoDiffusionPipeline
    average = load_file(straight / "checkpoint-4/unet_ema/diffusion_pytorch_model.safetensors")
    state = pipeline.unet.state_dict()
    assert all(torch.equal(state[key], average[key]) for key in average)
    last = weights(straight / "checkpoint-4")
    key = next(key for key in last if "temporal_transformer_block" in key)
    assert not torch.equal(last[key], average[key])


def test_small_checkpoints_and_rotation(
    straight: Path, micro_model: Path, micro_clips: Path, tmp_path: Path
) -> None:
    more = ["--use_ema", "--gradient_accumulation_steps=2", "--lr_scheduler=linear",
            "--lr_warmup_steps=1", "--save_trainable_only", "--checkpoints_total_limit=1"]  # fmt: skip
    assert main(flags(micro_model, micro_clips, tmp_path / "run", *more)) == 0
    kept = sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*"))
    assert kept == ["checkpoint-4"]
    small = load_file(tmp_path / "run/checkpoint-4/trained.safetensors")
    whole = weights(straight / "checkpoint-4")
    assert len(small) == 104
    assert all(torch.equal(small[key], whole[key]) for key in small)


def test_step_equals_the_published_equations(micro_model: Path, micro_clips: Path) -> None:
    """One fp32 step by the spec's section 5, in float64 where numbers are only combined."""
    options = options_of(micro_model, micro_clips, Path("unused"))
    pipeline = load_pipeline(str(micro_model))
    windows = ClipWindows(find_clips(micro_clips), num_frames=4, size=(64, 32), seed=3, samples=4)
    pixels = windows[0]["pixel_values"]
    vae: Any = pipeline.vae
    with torch.no_grad():
        moments = encode_moments(vae, pixels)
        torch.manual_seed(11)  # the order of section 5.8, with the libraries' own calls
        z = vae.encode(pixels).latent_dist.sample() * vae.config.scaling_factor
        noise = torch.randn(z[None].shape)  # randn_like draws otherwise where strides differ
        u = torch.rand(1) * (1 - 2e-7) + 1e-7
        aug = torch.distributions.Normal(-3.0, 0.5).icdf(u).exp()
        noisy_first = pixels[:1] + aug * torch.randn_like(pixels[:1])
        condition = vae.encode(noisy_first).latent_dist.sample()
        u = torch.rand(1) * (1 - 2e-7) + 1e-7
        sigma = torch.distributions.Normal(0.7, 1.6).icdf(u).exp()
        torch.manual_seed(11)
        token = torch.ones(1, 32)
        batch = make_batch(vae, moments[None], pixels[:1], token, options, [None])
    torch.testing.assert_close(batch.latents[0], z, rtol=0, atol=1e-6)
    torch.testing.assert_close(batch.sigma, sigma, rtol=1e-6, atol=0)
    torch.testing.assert_close(batch.noisy, z[None] + sigma * noise, rtol=1e-6, atol=1e-6)
    kept = batch.network_input[0, :, 4:]
    assert torch.allclose(kept, condition.expand_as(kept), atol=1e-6) or not kept.any()
    c_in = 1 / (sigma.double() ** 2 + 1).sqrt()
    torch.testing.assert_close(
        batch.network_input[0, :, :4].double(), c_in * batch.noisy[0].double(), rtol=1e-6, atol=1e-6
    )
    assert batch.ids[0].tolist() == pytest.approx([7, 127, aug.item()])


def test_every_clip_of_a_batch_has_its_own_noise_level(
    micro_model: Path, micro_clips: Path
) -> None:
    options = options_of(micro_model, micro_clips, Path("unused"))
    moments = torch.zeros(4, 8, 8, 16)
    rows = [draw(moments, 1.0, (32, 64), options, sample_generator(3, i)) for i in range(3)]
    assert len({row.noise_aug.item() for row in rows}) == 3
    again = draw(moments, 1.0, (32, 64), options, sample_generator(3, 1))
    assert torch.equal(again.noise, rows[1].noise)


def test_processes_share_out_the_samples() -> None:
    alone = list(RunSampler(0, 3, 4, 0, 1))
    pairs = [list(RunSampler(0, 3, 2, rank, 2)) for rank in range(2)]
    together = [n for step in range(3) for rank in range(2) for n in pairs[rank][2 * step :][:2]]
    assert together == alone
    assert list(RunSampler(2, 3, 2, 1, 2)) == pairs[1][4:]


@pytest.mark.parametrize("scope", ["full", "stock"])
def test_checkpointed_training_is_the_same(
    micro_model: Path, micro_clips: Path, tmp_path: Path, scope: str
) -> None:
    plain = tmp_path / "plain"
    main(flags(micro_model, micro_clips, plain, "--max_train_steps=1"))
    more = ["--gradient_checkpointing", f"--checkpoint_scope={scope}", "--max_train_steps=1"]
    main(flags(micro_model, micro_clips, tmp_path / "saved", *more))
    a, b = weights(plain), weights(tmp_path / "saved")
    assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("mode", ["pixel", "pixel_strip", "latent"])
def test_consistency_loss_moves_the_weights(
    micro_model: Path, micro_clips: Path, tmp_path: Path, mode: str
) -> None:
    more = ["--scl_loss", f"--scl_mode={mode}", "--max_train_steps=1", "--scl_schedule=paper",
            "--scl_max_weight=0.5", "--num_scl_samples=" + ("1" if mode == "latent" else "2")]  # fmt: skip
    main(flags(micro_model, micro_clips, tmp_path / "scl", *more))
    main(flags(micro_model, micro_clips, tmp_path / "plain", "--max_train_steps=1"))
    row = read_log(tmp_path / "scl")[0]
    assert row["scl_loss"] > 0
    assert row["scl_weight"] == 0.5
    a, b = weights(tmp_path / "scl"), weights(tmp_path / "plain")
    assert any(not torch.equal(a[key], b[key]) for key in a)


def test_latent_cache_gives_the_same_training(
    micro_model: Path, micro_clips: Path, tmp_path: Path
) -> None:
    more = [f"--latent_cache={tmp_path / 'cache'}", "--build_latent_cache"]
    assert main(flags(micro_model, micro_clips, tmp_path / "cached", *more)) == 0
    assert main(flags(micro_model, micro_clips, tmp_path / "plain")) == 0
    rows = [
        [row["train_loss"] for row in read_log(tmp_path / name)] for name in ("cached", "plain")
    ]
    assert rows[0] == pytest.approx(rows[1], rel=2e-3)  # moments and tokens lie there in float16


def test_cache_of_another_model_is_refused(
    micro_model: Path, micro_clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = f"--latent_cache={tmp_path / 'cache'}"
    assert main(flags(micro_model, micro_clips, tmp_path / "a", cache)) == 2
    assert "--build_latent_cache" in capsys.readouterr().err
    more = [cache, "--build_latent_cache", "--max_train_steps=1"]
    assert main(flags(micro_model, micro_clips, tmp_path / "b", *more)) == 0
    assert main(flags(micro_model, micro_clips, tmp_path / "c", cache, "--vae_wrap=2")) == 2
    assert "was made with other vae_wrap" in capsys.readouterr().err


def test_lora_run_stores_adapter_and_merged_pipeline(
    micro_model: Path, micro_clips: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    more = ["--trainable=lora", "--lora_rank=2", "--max_train_steps=2"]
    assert main(flags(micro_model, micro_clips, run, *more)) == 0
    assert (run / "lora/adapter_model.safetensors").is_file()
    before, after = weights(micro_model), weights(run)
    assert before.keys() == after.keys()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed
    assert all(re.search(r"temporal_transformer_blocks\.0\.(attn|ff\.)", key) for key in changed)
    resume = [*more, "--max_train_steps=3", "--resume_from_checkpoint=latest"]
    assert main(flags(micro_model, micro_clips, run, *resume)) == 0


def test_validation_writes_videos_and_numbers_and_changes_nothing(
    micro_model: Path, micro_clips: Path, tmp_path: Path, straight: Path
) -> None:
    from genex_explorer.video import read_video

    run = tmp_path / "run"
    clip = next(path for path in (micro_clips / "room").iterdir() if path.is_dir())
    more = [f"--validation_images_folder={clip}", "--num_validation_images=2",
            f"--val_folder_videos={micro_clips}", "--num_val_videos=1", "--validation_steps=2",
            "--validation_inference_steps=1", "--validation_guidance=1.0", "--use_ema",
            "--gradient_accumulation_steps=2", "--lr_scheduler=linear", "--lr_warmup_steps=1"]  # fmt: skip
    assert main(flags(micro_model, micro_clips, run, *more)) == 0
    videos = sorted(path.name for path in (run / "validation_images").iterdir())
    assert videos == sorted(
        [f"step_{n}_val_img_{k}.mp4" for n in (1, 2, 4) for k in (0, 1)]
        + [f"step_{n}_truth_above.mp4" for n in (1, 2, 4)]
    )
    assert read_video(run / "validation_images/step_1_truth_above.mp4").shape == (4, 64, 64, 3)
    values = [row for row in read_log(run) if "val_psnr" in row]
    assert [row["step"] for row in values] == [1, 2, 4]
    best = json.loads((run / "best/validation.json").read_text())
    assert best["psnr"] == max(row["val_psnr"] for row in values)
    a, b = weights(run), weights(straight)
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_loss_that_is_not_finite_stops_the_run(
    micro_model: Path, micro_clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def broken(self: Trainer, raw: Any) -> Any:
        batch = original(self, raw)
        return batch._replace(noisy=batch.noisy * float("nan"))

    original = Trainer._noisy_batch
    monkeypatch.setattr(Trainer, "_noisy_batch", broken)
    assert main(flags(micro_model, micro_clips, tmp_path / "run")) == 2
    assert "loss is nan at step 0" in capsys.readouterr().err


BAD = {
    "--width=60": "multiples of 8",
    "--num_frames=9": "a window needs 9",
    "--max_train_steps=0": "must be positive",
    "--strict_frames=50": "--strict_frames asks for 50",
    "--validation_images_folder=nowhere": "does not exist",
    "--scl_max_weight=2": "--scl_max_weight",
    "--cast_frozen": "--mixed_precision",
    "--resume_from_checkpoint=latest": "no checkpoint to resume from",
    "--pretrain_unet=nowhere/at/all": "unet",
    "--conditioning_dropout_prob=0.5": "three regions",
    "--val_folder_videos=nowhere": "nowhere does not exist; pass a folder of clips",
    "--num_workers=-1": "--num_workers",
}


@pytest.mark.parametrize("flag", BAD)
def test_bad_options_are_one_line(
    micro_model: Path, micro_clips: Path, tmp_path: Path, flag: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert main(flags(micro_model, micro_clips, tmp_path / "run", flag)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert BAD[flag] in error


def test_folder_of_a_run_is_not_replaced_silently(
    straight: Path, micro_model: Path, micro_clips: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert main(flags(micro_model, micro_clips, straight)) == 2
    assert "holds a run" in capsys.readouterr().err
    run = tmp_path / "run"
    assert main(flags(micro_model, micro_clips, run, "--max_train_steps=1")) == 0
    (run / "notes.txt").write_text("mine")
    again = flags(micro_model, micro_clips, run, "--max_train_steps=1", "--overwrite")
    assert main(again) == 0
    assert (run / "notes.txt").read_text() == "mine"
    assert len(read_log(run)) == 1


def test_run_that_failed_before_its_first_checkpoint_can_start_again(
    micro_model: Path, micro_clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    from PIL import Image

    clips = tmp_path / "clips"
    shutil.copytree(micro_clips / "corridor/video_00000", clips / "a")
    frame = sorted((clips / "a").glob("*.jpg"))[2]
    Image.new("RGB", (50, 25)).save(frame)
    run = tmp_path / "run"
    assert main(flags(micro_model, clips, run, "--max_train_steps=1", "--num_frames=6")) == 2
    assert "a clip has frames of one size" in capsys.readouterr().err
    assert main(flags(micro_model, micro_clips, run, "--max_train_steps=1")) == 0


def test_clips_of_another_length_than_documented_are_named(
    micro_model: Path, micro_clips: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    main(flags(micro_model, micro_clips, tmp_path / "run", "--max_train_steps=1"))
    assert "5 of 5 clips have not the documented 50 frames" in caplog.text


def test_unknown_flag_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--foo"])
    assert stop.value.code == 2
    assert capsys.readouterr().err == (
        "error: unrecognized arguments: --foo (see train_world_explorer.py --help)\n"
    )


def test_gradient_norm_is_clipped(micro_model: Path, micro_clips: Path, tmp_path: Path) -> None:
    # With an epsilon far above every gradient AdamW's first step is -rate / epsilon * gradient.
    more = ["--learning_rate=1e9", "--adam_epsilon=1e8", "--adam_weight_decay=0",
            "--max_train_steps=1"]  # fmt: skip
    before = weights(micro_model)
    norms = []
    for limit in ("0", "1e-4"):
        run = tmp_path / limit
        assert main(flags(micro_model, micro_clips, run, *more, f"--max_grad_norm={limit}")) == 0
        after = weights(run)
        squares = [(after[key].double() - before[key].double()).square().sum() for key in before]
        norms.append(torch.stack(squares).sum().sqrt().item() / 10)
    assert norms[0] > 1e-3
    assert norms[1] == pytest.approx(1e-4, rel=1e-2)


def test_validation_feeds_the_numbers_of_training(micro_model: Path, micro_clips: Path) -> None:
    more = ["--fps_id=7", "--motion_bucket_id=90", "--validation_guidance=1",
            "--validation_inference_steps=1"]  # fmt: skip
    options = options_of(micro_model, micro_clips, Path("unused"), *more)
    pipeline: Any = load_pipeline(str(micro_model))
    seen = []
    pipeline.unet.register_forward_pre_hook(
        lambda _, __, kwargs: seen.append(kwargs["added_time_ids"]), with_kwargs=True
    )
    clip = read_clip(find_clips(micro_clips)[0].frames[:1])[0]
    frames = Validator(options).generate(pipeline, clip, 0)
    assert frames.shape == (4, 32, 64, 3)
    assert seen[0].tolist() == [pytest.approx([7, 90, 0.02])]


@pytest.mark.parametrize(("precision", "dtype"), [("fp16", "float32"), ("bf16", "bfloat16")])
def test_frozen_parts_never_run_in_half_precision(
    micro_model: Path, micro_clips: Path, precision: str, dtype: str
) -> None:
    options = options_of(micro_model, micro_clips, Path("unused"), "--cast_frozen",
                         f"--mixed_precision={precision}")  # fmt: skip
    stand_in: Any = SimpleNamespace(device=torch.device("cpu"), mixed_precision=precision)
    pipeline, names = build_pipeline(options, stand_in)
    assert {p.dtype for p in pipeline.vae.parameters()} == {getattr(torch, dtype)}
    assert {p.dtype for p in pipeline.image_encoder.parameters()} == {getattr(torch, dtype)}
    trained = {p.dtype for n, p in pipeline.unet.named_parameters() if n in names}
    frozen = {p.dtype for n, p in pipeline.unet.named_parameters() if n not in names}
    low = torch.float16 if precision == "fp16" else torch.bfloat16
    assert (trained, frozen) == ({torch.float32}, {low})


def test_bfloat16_run_with_cast_frozen_weights_stores_them_as_loaded(
    micro_model: Path, micro_clips: Path, tmp_path: Path
) -> None:
    """In a process of its own: Accelerate keeps the precision of the first run of a process."""
    run = tmp_path / "run"
    arguments = flags(micro_model, micro_clips, run, "--mixed_precision=bf16", "--cast_frozen",
                      "--max_train_steps=1")  # fmt: skip
    script = "import sys; from genex_explorer.cli.train import main; sys.exit(main(sys.argv[1:]))"
    result = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr[-2000:]
    before, after = weights(micro_model), weights(run)
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == {key for key in before if "temporal_transformer_block" in key}


def test_overwrite_deletes_nothing_before_all_is_checked(
    micro_model: Path, micro_clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(flags(micro_model, micro_clips, run, "--max_train_steps=1")) == 0
    assert main(flags(micro_model, Path("typo"), run, "--overwrite")) == 2
    assert (run / "checkpoint-1/unet").is_dir()
    assert main(flags(run, micro_clips, run, "--overwrite")) == 2
    assert "write to another folder" in capsys.readouterr().err
    assert (run / "model_index.json").is_file()


def test_resuming_elsewhere_and_from_before(
    straight: Path, micro_model: Path, micro_clips: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    more = ["--use_ema", "--gradient_accumulation_steps=2", "--lr_scheduler=linear",
            "--lr_warmup_steps=1"]  # fmt: skip
    resume = [*more, f"--resume_from_checkpoint={straight / 'checkpoint-2'}"]
    there = tmp_path / "there"
    arguments = flags(micro_model, micro_clips, there, *resume)
    arguments.remove("--seed=3")  # comes from the run.json beside the checkpoint
    assert main(arguments) == 0
    ours, theirs = weights(there), weights(straight)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert (there / "run.json").is_file()
    assert main(flags(micro_model, micro_clips, straight, *resume)) == 2
    assert "later checkpoints (checkpoint-4)" in capsys.readouterr().err
    other = flags(micro_model, micro_clips, tmp_path / "other", *resume, "--learning_rate=5e-2")
    assert main(other) == 2
    assert "made with learning_rate 0.001, not 0.05" in capsys.readouterr().err


def test_cache_knows_its_frames(
    micro_model: Path, micro_clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    from PIL import Image

    clips = tmp_path / "clips"
    shutil.copytree(micro_clips / "room/video_00000", clips / "a")
    cache = f"--latent_cache={tmp_path / 'cache'}"
    short = ["--max_train_steps=1", cache]
    assert main(flags(micro_model, clips, tmp_path / "a", *short, "--build_latent_cache")) == 0
    for frame in (clips / "a").glob("*.jpg"):
        Image.open(frame).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(frame)
    assert main(flags(micro_model, clips, tmp_path / "b", *short)) == 2
    assert "not in the latent cache" in capsys.readouterr().err
    assert main(flags(micro_model, clips, tmp_path / "b", *short, "--build_latent_cache")) == 0


def test_static_validation_clip_counts_100_db(
    micro_model: Path, micro_clips: Path, tmp_path: Path
) -> None:
    import shutil

    frame = next((micro_clips / "room/video_00000").glob("*.jpg"))
    (tmp_path / "val/a").mkdir(parents=True)
    for number in range(4):
        shutil.copy(frame, tmp_path / f"val/a/frame_{number}.jpg")
    more = ["--max_train_steps=1", f"--val_folder_videos={tmp_path / 'val'}",
            "--validation_inference_steps=1"]  # fmt: skip
    assert main(flags(micro_model, micro_clips, tmp_path / "run", *more)) == 0
    assert json.loads((tmp_path / "run/best/validation.json").read_text())["copy_first_psnr"] == 100


def test_weights_never_become_nan(
    micro_model: Path, micro_clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    import genex_explorer.training.trainer as module

    monkeypatch.setattr(
        module, "scl_loss", lambda _, estimate, *__, **___: estimate.mean((1, 2, 3, 4)) * torch.nan
    )
    more = ["--scl_loss", "--scl_mode=latent", "--scl_max_weight=0.5"]
    assert main(flags(micro_model, micro_clips, tmp_path / "run", *more)) == 2
    assert "loss is nan" in capsys.readouterr().err
    assert not list((tmp_path / "run").glob("checkpoint-*"))


def test_error_in_a_worker_is_one_line(
    micro_model: Path, micro_clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    clips = tmp_path / "clips"
    shutil.copytree(micro_clips / "room/video_00000", clips / "a")
    for frame in (clips / "a").glob("*.jpg"):
        frame.write_bytes(frame.read_bytes()[:200])
    arguments = flags(micro_model, clips, tmp_path / "run")
    arguments[arguments.index("--num_workers=0")] = "--num_workers=1"
    assert main(arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert "not a readable image" in error
    assert "Traceback" not in error
