"""Several processes over gloo, and the commands of the original README as they stand there."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from genex_explorer.conditioning import clip_tokens
from genex_explorer.data.clips import find_clips
from genex_explorer.data.windows import ClipWindows
from genex_explorer.edm import denoise, precondition, weighted_error
from genex_explorer.loading import load_pipeline
from genex_explorer.parameters import select_trainable
from genex_explorer.training.noising import make_batch, sample_generator
from genex_explorer.training.options import TrainOptions
from genex_explorer.vae import encode_moments

ROOT = Path(__file__).parents[1]
# An epsilon far above every gradient makes the first AdamW step -rate / epsilon times the gradient.
RATE, EPSILON = 1e9, 1e8


def launch(arguments: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``accelerate launch`` from the root of the subproject."""
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", *arguments]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", **environment}
    return subprocess.run(
        command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False
    )


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """UNet weights of a folder."""
    return load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")


def mean_gradient(model: Path, clips: Path, seed: int, samples: list[int]) -> dict[str, Any]:
    """Gradient of the mean loss over samples, network and losses in float64."""
    pipeline = load_pipeline(str(model))
    options = TrainOptions(num_frames=4, width=64, height=32)
    windows = ClipWindows(find_clips(clips), num_frames=4, size=(64, 32), seed=seed, samples=2)
    trained = dict(select_trainable(pipeline.unet, "temporal_transformer"))
    batches = []
    for number in samples:
        raw = windows[number]
        with torch.no_grad():
            moments = encode_moments(pipeline.vae, raw["pixel_values"])[None]
            token = clip_tokens(
                pipeline.image_encoder, pipeline.feature_extractor, raw["first_frame"][None]
            )
            first, source = raw["first_frame"][None], [sample_generator(seed, number)]
            batches.append(make_batch(pipeline.vae, moments, first, token, options, source))
    unet: Any = pipeline.unet.double()
    losses = []
    for batch in batches:
        sigma = batch.sigma.double()
        v = unet(
            batch.network_input.double(), precondition(sigma).c_noise, batch.context.double(),
            batch.ids.double(),
        ).sample  # fmt: skip
        estimate = denoise(v, batch.noisy.double(), sigma)
        losses.append(weighted_error(estimate, batch.latents.double(), sigma).mean())
    torch.stack(losses).mean().backward()
    return {name: parameter.grad for name, parameter in trained.items()}


def test_two_processes_average_the_gradients_of_different_clips(
    micro_model: Path, micro_clips: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    result = launch(
        ["--multi_gpu", "--num_processes=2", "train_world_explorer.py",
         f"--pretrained_model_name_or_path={micro_model}", f"--base_folder={micro_clips}",
         f"--output_dir={run}", "--width=64", "--height=32", "--num_frames=4", "--num_workers=0",
         "--report_to=none", f"--learning_rate={RATE}", "--max_train_steps=1",
         f"--adam_epsilon={EPSILON}", "--adam_weight_decay=0", "--max_grad_norm=0"],
        ACCELERATE_USE_CPU="true",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    before, after = weights(micro_model), weights(run)
    # No --seed: the processes must agree on the one that they draw.
    seed = json.loads((run / "run.json").read_text(encoding="utf-8"))["options"]["seed"]
    expected = mean_gradient(micro_model, micro_clips, seed, [0, 1])
    alone = mean_gradient(micro_model, micro_clips, seed, [0])
    worst = 0.0
    for name, gradient in expected.items():
        change = (after[name].double() - before[name].double()) * (-EPSILON / RATE)
        worst = max(worst, (change - gradient).abs().max().item())
    largest = max(gradient.abs().max().item() for gradient in expected.values())
    apart = max((expected[n] - alone[n]).abs().max().item() for n in expected)
    assert worst < 1e-4 * largest  # the run's networks compute in float32
    assert apart > 0.1 * largest  # the second process contributed another clip


def test_processes_that_do_not_find_each_other_are_refused(
    micro_model: Path, micro_clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    from genex_explorer.cli.train import main

    monkeypatch.setenv("WORLD_SIZE", "2")
    code = main(
        [f"--pretrained_model_name_or_path={micro_model}", f"--base_folder={micro_clips}",
         f"--output_dir={tmp_path / 'run'}", "--report_to=none"]
    )  # fmt: skip
    assert code == 2
    assert "ACCELERATE_USE_CPU=true" in capsys.readouterr().err


# The three training commands of the original README, as printed there.
COMMANDS = [
    """accelerate launch train_world_explorer
    --base_folder=./Genex-DB
    --pretrained_model_name_or_path=stabilityai/stable-video-diffusion-img2vid-xt-1-1
    --num_frames=25 --width=1024 --height=576 --output_dir=./models/genex_explorer_realistic""",
    """accelerate launch --config_file /path/to/accelerate_config.yaml train_world_explorer
    --base_folder=/path/to/dataset --pretrained_model_name_or_path=/path/to/svd/model
    --num_frames=25 --width=1024 --height=576 --output_dir=/path/to/output --per_gpu_batch_size=1
    --gradient_accumulation_steps=1 --max_train_steps=1000 --checkpointing_steps=500
    --checkpoints_total_limit=1 --learning_rate=5e-5 --lr_warmup_steps=0 --seed=123
    --mixed_precision="fp16" --validation_steps=100 --report_to=wandb --lr_scheduler=constant
    --num_validation_images=1 --validation_images_folder=/path/to/validation/images""",
    """accelerate launch --config_file ./accelerate_config.yaml train_world_explorer.py
    --base_folder=./data/panoramic_scenes
    --pretrained_model_name_or_path=stabilityai/stable-video-diffusion-img2vid-xt-1-1
    --num_frames=25 --width=1024 --height=576 --output_dir=./models/genex_explorer_v1
    --per_gpu_batch_size=1 --gradient_accumulation_steps=4 --max_train_steps=5000
    --checkpointing_steps=500 --checkpoints_total_limit=3 --learning_rate=5e-5
    --lr_warmup_steps=100 --seed=42 --mixed_precision="fp16" --validation_steps=200
    --report_to=wandb --lr_scheduler=constant --num_validation_images=2
    --validation_images_folder=./evaluation/demo_images --scl_loss --num_scl_samples=3""",
]


@pytest.mark.parametrize("number", [0, 1, 2])
def test_commands_of_the_original_readme(
    micro_model: Path, micro_clips: Path, tmp_path: Path, number: int
) -> None:
    """As printed but for paths, sizes and lengths, which a test cannot afford."""
    images = next(path for path in (micro_clips / "room").iterdir() if path.is_dir())
    replaced = {
        "base_folder": micro_clips, "pretrained_model_name_or_path": micro_model,
        "output_dir": tmp_path / "run", "validation_images_folder": images, "num_frames": 3,
        "width": 64, "height": 32, "max_train_steps": 1,
    }  # fmt: skip
    words = shlex.split(COMMANDS[number])[2:]
    arguments = [
        f"--{match[1]}={replaced[match[1]]}"
        if (match := re.fullmatch(r"--(\w+)=.*", word)) and match[1] in replaced
        else word.replace("/path/to/accelerate_config.yaml", "configs/accelerate/cpu.yaml")
        for word in words
    ]
    # Steps that the first command leaves to an epoch; 25 denoising steps and worker processes.
    arguments += ["--max_train_steps=1", "--validation_inference_steps=1", "--num_workers=0"]
    result = launch(arguments, WANDB_DIR=str(tmp_path))
    assert result.returncode == 0, result.stderr[-3000:]
    assert (tmp_path / "run/model_index.json").is_file()
    videos = list((tmp_path / "run/validation_images").glob("*.mp4")) if number else []
    assert len(videos) == number
