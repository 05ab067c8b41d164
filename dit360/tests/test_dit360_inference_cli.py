"""`inference.py` in process: files, second runs, prompt files, shards, pages, mistakes."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dit360 import generate as generate_module
from dit360 import loading
from dit360.captions import TRIGGER
from dit360.cli import inference
from dit360.generate import Settings, generate_image, read_made_with
from dit360.pipeline import DiT360Pipeline
from dit360.vae import set_vae_wrap
from shared_pano_utils.imageio import read_image
from shared_pano_utils.metadata import read_gpano
from shared_pano_utils.metrics import seam_error

OPEN_PIPELINE = loading.open_pipeline
ROOT = Path(__file__).parents[1]
BLUE = f"{TRIGGER} A blue room."
SMALL = Settings(height=32, width=64, num_inference_steps=1, max_sequence_length=12)


@pytest.fixture(scope="module")
def pipeline(micro_flux: Path) -> DiT360Pipeline:
    pipeline = DiT360Pipeline.from_pretrained(micro_flux)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(autouse=True)
def opened(monkeypatch: pytest.MonkeyPatch, pipeline: DiT360Pipeline) -> list[Any]:
    """Use one pipeline in memory; the list holds what each command asked for."""
    asked = []

    def open_pipeline(options: Any, **_: Any) -> DiT360Pipeline:
        asked.append(options)
        return pipeline

    monkeypatch.setattr(loading, "open_pipeline", open_pipeline)
    return asked


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def run(*flags: str | Path) -> int:
    small = ["--height", "32", "--num_inference_steps", "1", "--max_sequence_length", "12"]
    return inference.main([*small, *map(str, flags)])


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def expected(pipeline: DiT360Pipeline, prompt: str, seed: int = 0) -> np.ndarray:
    return generate_image(pipeline, prompt, seed, SMALL)


# ---- one panorama -------------------------------------------------------------------------------


def test_one_prompt(
    out: Path, pipeline: DiT360Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    image = out / "blue.png"
    assert run("--prompt", "A blue room.", "--seed", 3, "--output", image) == 0
    assert files(out) == {"blue.png", "run.json"}
    written = read_image(image)
    assert written.shape == (32, 64, 3)
    stock = pipeline(
        BLUE, height=32, width=64, num_inference_steps=1, guidance_scale=2.8,
        max_sequence_length=12, generator=torch.Generator().manual_seed(3),
    ).images[0]  # fmt: skip
    assert np.array_equal(written, np.asarray(stock))
    assert read_gpano(image)["ProjectionType"] == "equirectangular"
    assert read_gpano(image)["FullPanoWidthPixels"] == "64"
    with Image.open(image) as opened_image:
        text = dict(opened_image.info)
    assert text["prompt"] == BLUE
    assert text["seed"] == "3"
    settings = json.loads(text["settings"])
    assert settings["guidance_scale"] == 2.8
    assert (settings["height"], settings["width"]) == (32, 64)
    ratio = float(seam_error(written)["wrap_ratio"])
    assert f"{image}: seam ratio {ratio:.2f}, " in capsys.readouterr().out
    log = json.loads((out / "run.json").read_text())
    assert log["options"]["seed"] == 3
    assert {"dit360", "torch", "diffusers"} <= set(log["versions"])


def test_model_and_lora_from_folders(
    out: Path, micro_flux: Path, micro_lora: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is replaced; against the same put together by hand, LoRA at alpha / r = 0.5."""
    monkeypatch.setattr(loading, "open_pipeline", OPEN_PIPELINE)
    model = ["--pretrained_model_name_or_path", micro_flux, "--lora", micro_lora, "--device", "cpu"]
    assert run("--prompt", BLUE, "--output", out / "a.png", *model) == 0
    by_hand = DiT360Pipeline.from_pretrained(micro_flux)
    by_hand.load_lora_weights(micro_lora, weight_name="adapter_model.safetensors")
    by_hand.set_adapters(by_hand.get_active_adapters(), 0.5)
    by_hand.set_progress_bar_config(disable=True)
    set_vae_wrap(by_hand.vae, "circular")
    difference = read_image(out / "a.png").astype(int) - expected(by_hand, BLUE)
    assert np.abs(difference).max() <= 1  # fusing rounds otherwise
    by_hand.set_adapters(by_hand.get_active_adapters(), 1.0)
    assert np.abs(read_image(out / "a.png").astype(int) - expected(by_hand, BLUE)).max() > 1


def test_jpeg_says_how_it_was_made(out: Path) -> None:
    image = out / "blue.jpg"
    assert run("--prompt", BLUE, "--output", image) == 0
    made_with = read_made_with(image)
    assert made_with is not None
    assert (made_with["prompt"], made_with["seed"]) == (BLUE, 0)
    assert read_gpano(image)["ProjectionType"] == "equirectangular"
    assert run("--prompt", BLUE, "--output", image) == 0  # is recognised as finished


def test_trigger(out: Path) -> None:
    for name, flags in (("a", []), ("b", ["--trigger"]), ("c", ["--no_trigger"])):
        assert run("--prompt", "A café in Zürich", "--output", out / f"{name}.png", *flags) == 0
    prompts = [(read_made_with(out / f"{name}.png") or {})["prompt"] for name in "abc"]
    assert prompts == [f"{TRIGGER} A café in Zürich"] * 2 + ["A café in Zürich"]


def test_second_run_skips(out: Path, opened: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--prompt", BLUE, "--output", out / "a.png"]
    assert run(*command) == 0
    before = (out / "a.png").stat().st_mtime_ns
    assert run(*command) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert (out / "a.png").stat().st_mtime_ns == before
    assert len(opened) == 1
    assert run(*command, "--overwrite") == 0
    assert (out / "a.png").stat().st_mtime_ns > before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--prompt", "red"], "made with prompt"),
        (["--prompt", BLUE, "--seed", "1"], "made with seed 0, not 1"),
        (["--prompt", BLUE, "--guidance_scale", "3"], "made with guidance_scale 2.8, not 3.0"),
        (["--prompt", BLUE, "--padding_n", "0"], "made with padding_n 1, not 0"),
    ],
)
def test_other_work_is_not_taken_for_finished(
    out: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert run("--prompt", BLUE, "--output", out / "a.png") == 0
    before = (out / "a.png").read_bytes()
    assert run("--output", out / "a.png", *flags) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("\n") == 1
    assert (out / "a.png").read_bytes() == before


def test_a_foreign_image_is_kept(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out.mkdir()
    Image.new("RGB", (64, 32)).save(out / "a.png")
    assert run("--output", out / "a.png") == 2
    assert "does not say how it was made" in capsys.readouterr().err


def test_name_of_the_device_and_token_do_not_matter(out: Path, opened: list[Any]) -> None:
    assert run("--prompt", BLUE, "--output", out / "a.png", "--token", "hf_secret") == 0
    assert run("--prompt", BLUE, "--output", out / "a.png", "--device", "cpu") == 0
    assert len(opened) == 1
    assert b"hf_secret" not in (out / "a.png").read_bytes()
    assert "hf_secret" not in (out / "run.json").read_text()


def test_local_weights_are_stored_by_name_and_content(
    out: Path, tmp_path: Path, opened: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    files = {
        "--lora": tmp_path / "lora_output" / "adapter_model.safetensors",
        "--pretrained_model_name_or_path": tmp_path / "flux" / "transformer" / "a.safetensors",
    }
    command = ["--prompt", BLUE, "--output", out / "a.png"]
    for flag, file in files.items():
        file.parent.mkdir(parents=True)
        file.write_bytes(b"weights")
        command += [flag, tmp_path / file.relative_to(tmp_path).parts[0]]
    assert run(*command) == 0
    made_with = read_made_with(out / "a.png") or {}
    assert made_with["lora"] == f"lora_output ({hashlib.sha256(b'weights').hexdigest()[:16]})"
    assert made_with["model"].startswith("flux (")
    assert str(tmp_path).encode() not in (out / "a.png").read_bytes()
    assert run(*command) == 0
    assert len(opened) == 1
    for name, file in zip(("lora", "model"), files.values(), strict=True):
        capsys.readouterr()
        file.write_bytes(b"Weights")  # as long as before
        assert run(*command) == 2
        assert f"was made with {name} '{made_with[name]}', not" in capsys.readouterr().err
        file.write_bytes(b"weights")
    file = files["--lora"]
    (file.parent / "adapter_config.json").write_text('{"lora_alpha": 2}')
    assert run(*command) == 2


def test_a_lora_file_is_known_by_its_content(out: Path, tmp_path: Path) -> None:
    for text in ("a", "b"):
        (tmp_path / "lora.safetensors").write_text(text)
        command = ["--prompt", BLUE, "--output", out / "a.png", "--lora"]
        assert run(*command, tmp_path / "lora.safetensors") == (0 if text == "a" else 2)


def test_the_kind_of_device_matters(
    out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Noise is drawn on the device: another picture for the same seed."""
    command = ["--prompt", BLUE, "--output", out / "a.png"]
    assert run(*command) == 0
    monkeypatch.setattr(generate_module, "choose_device", lambda _: torch.device("cuda:1"))
    assert run(*command) == 2
    assert "was made with device 'cpu', not 'cuda'" in capsys.readouterr().err


def test_only_the_memory_modes_that_round_matter(
    out: Path, opened: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--prompt", BLUE, "--output", out / "a.png", "--memory"]
    for mode in ("full", "balanced"):
        assert run(*command, mode) == 0
    assert len(opened) == 1
    for mode in ("low", "int8", "4bit"):
        assert run(*command, mode) == 2
        assert f"was made with memory 'full', not '{mode}'" in capsys.readouterr().err


# ---- several panoramas --------------------------------------------------------------------------


def test_several_seeds(out: Path, pipeline: DiT360Pipeline) -> None:
    flags = ["--prompt", BLUE, "--seed", 5, "--num_images", 2]
    assert run(*flags, "--output", out / "blue.png") == 0
    assert files(out / "blue") == {"seed5.png", "seed6.png", "run.json"}
    assert np.array_equal(read_image(out / "blue" / "seed6.png"), expected(pipeline, BLUE, 6))


def test_a_text_file_of_prompts(out: Path, tmp_path: Path, pipeline: DiT360Pipeline) -> None:
    source = tmp_path / "prompts.txt"
    source.write_text(f"\ufeffA blue room.\n\n  {BLUE}  \nA red one.\n", encoding="utf-8")
    assert run("--prompt_file", source, "--output", out) == 0
    assert files(out) == {"0001.png", "0002.png", "0003.png", "run.json"}
    first = read_image(out / "0001.png")
    assert np.array_equal(first, read_image(out / "0002.png"))
    assert np.array_equal(first, expected(pipeline, BLUE))
    third = read_image(out / "0003.png")
    assert np.array_equal(third, expected(pipeline, f"{TRIGGER} A red one."))


def test_a_jsonl_file_of_prompts(out: Path, tmp_path: Path, pipeline: DiT360Pipeline) -> None:
    source = tmp_path / "prompts.jsonl"
    rows = [{"prompt": "A blue room.", "seed": 7, "name": "room"}, {"prompt": "A red one."}]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run("--prompt_file", source, "--seed", 2, "--output", out / "set.jpg") == 0
    assert files(out / "set") == {"room.jpg", "0002.jpg", "run.json"}
    assert (read_made_with(out / "set" / "0002.jpg") or {})["seed"] == 2
    assert run("--prompt_file", source, "--num_images", 2, "--output", out / "two") == 0
    names = {"room_seed7.png", "room_seed8.png", "0002_seed0.png", "0002_seed1.png"}
    assert files(out / "two") == names | {"run.json"}
    written = read_image(out / "two" / "room_seed8.png")
    assert np.array_equal(written, expected(pipeline, BLUE, 8))


def test_shards_share_the_work(
    out: Path, opened: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--prompt", BLUE, "--num_images", 3, "--output", out]
    assert run(*flags, "--shard", "1/2") == 0
    assert files(out) == {"seed1.png", "run.json"}
    assert run(*flags, "--shard", "0/2") == 0
    assert files(out) == {"seed0.png", "seed1.png", "seed2.png", "run.json"}
    assert len(opened) == 2
    capsys.readouterr()
    assert run(*flags, "--shard", "4/5") == 0
    assert "nothing to do: --shard 4/5 has none of the 3 panoramas" in capsys.readouterr().out


def test_an_interrupted_run_goes_on(
    out: Path, monkeypatch: pytest.MonkeyPatch, opened: list[Any]
) -> None:
    flags = ["--prompt", BLUE, "--num_images", 3, "--output", out]
    made = []
    stock = generate_module.generate_image

    def interrupt(pipeline: Any, prompt: str, seed: int, settings: Settings) -> np.ndarray:
        if seed == 2 and len(made) == 2:
            raise KeyboardInterrupt
        made.append(seed)
        return stock(pipeline, prompt, seed, settings)

    monkeypatch.setattr(generate_module, "generate_image", interrupt)
    assert run(*flags) == 130
    assert files(out) == {"seed0.png", "seed1.png", "run.json"}
    made += [None]
    assert run(*flags) == 0
    assert made == [0, 1, None, 2]
    assert len(opened) == 2


def test_one_foreign_file_among_many(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out.mkdir()
    Image.new("RGB", (64, 32)).save(out / "seed1.png")
    assert run("--prompt", BLUE, "--num_images", 3, "--output", out) == 1
    assert files(out) == {"seed0.png", "seed1.png", "seed2.png", "run.json"}
    assert "refused: " in capsys.readouterr().err


def test_pages(out: Path) -> None:
    assert run("--prompt", BLUE, "--output", out / "a.png", "--html") == 0
    page = (out / "a.html").read_text()
    assert "A blue room." in page
    assert page.count("data:image/jpeg;base64,") == 1
    flags = ["--prompt", BLUE, "--num_images", 3, "--output", out / "set"]
    assert run(*flags) == 0
    assert run(*flags, "--shard", "0/3", "--html") == 0  # everything is there already
    assert (out / "set" / "index.html").read_text().count("data:image/jpeg;base64,") == 3
    idle = ["--prompt", BLUE, "--output", out / "b.png", "--html", "--shard", "1/2"]
    assert run(*idle) == 0
    assert not (out / "b.html").exists()


# ---- mistakes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--height", "40"], "height is 40; use a multiple of 16, such as 32"),
        (["--width", "128"], "--width 128 is not twice --height 32; leave --width out, or pass"),
        (["--width", "128", "--any_aspect", "--html"], "--html shows full spheres only"),
        (["--num_inference_steps", "0"], "num_inference_steps is 0; use 1 or more"),
        (["--max_sequence_length", "513"], "max_sequence_length is 513; use 512 or less"),
        (["--true_cfg_scale", "2"], "true_cfg_scale is 2.0, which needs a negative_prompt"),
        (["--prompt", " "], "--prompt is empty; describe the panorama"),
        (["--device", "foo"], "--device foo is unknown; use auto, cpu"),
        (["--num_images", "0"], "--num_images is 0; use 1 or more"),
        (["--seed", "-1"], "--seed is -1; use 0 to"),
        (["--shard", "2/2"], "--shard 2/2: expected I/N with 0 <= I < N"),
        (["--output", "a.webp"], "a.webp is not a PNG or JPEG file"),
        (["--prompt_file", "missing.txt"], "--prompt_file missing.txt does not exist"),
    ],
)
def test_mistakes_are_one_line_before_the_model_is_loaded(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    opened: list[Any],
    flags: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(*flags) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("\n") == 1
    assert not opened
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "text", "messages"),
    [
        ("a.txt", " \n\n", ["a.txt holds no prompt"]),
        ("a.jsonl", "", ["a.jsonl holds no prompt"]),
        ("a.txt", b"\xff\xfe\xfa", ["a.txt is not UTF-8 text"]),
        (
            "a.jsonl",
            '{"prompt": "a"}\n{"prompt": \n[1]\n{"promt": "b"}\n{"prompt": " "}\n',
            ["a.jsonl line 2: not JSON", "line 3: not a JSON object", "line 4: unknown key 'promt'",
             "line 5: prompt must be a text"],
        ),
        (
            "a.jsonl",
            '{"prompt": "a", "seed": 1.5}\n{"prompt": "a", "seed": true}\n\n'  # noqa: ISC004
            '{"prompt": "a", "seed": -1}\n{"prompt": "a", "name": "../b"}\n',
            ["line 1: seed is 1.5", "line 2: seed is True", "line 4: seed is -1",
             "line 5: name is '../b'"],
        ),
        (
            "a.jsonl",
            '{"prompt": "a", "name": "0002"}\n{"prompt": "b"}\n',
            ["a.jsonl line 2: the name '0002' is that of a.jsonl line 1"],
        ),
    ],
)  # fmt: skip
def test_broken_prompt_files(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    opened: list[Any],
    name: str,
    text: str | bytes,
    messages: list[str],
) -> None:
    source = tmp_path / name
    source.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert run("--prompt_file", source, "--output", tmp_path / "out") == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    for message in messages:
        assert message in errors
    assert not opened
    assert not (tmp_path / "out").exists()


def test_other_aspects_are_no_spheres(out: Path) -> None:
    assert run("--output", out / "a.png", "--width", 48, "--any_aspect") == 0
    assert read_image(out / "a.png").shape == (32, 48, 3)
    assert read_gpano(out / "a.png") == {}
    assert read_made_with(out / "a.png") is not None


def test_panoramas_that_are_not_finite(
    out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    black = torch.full((1, 3, 32, 64), torch.nan)
    monkeypatch.setattr("dit360.vae.decode", lambda *_, **__: black)
    assert run("--output", out / "a.png") == 2
    assert "the panorama of seed 0 is not finite in torch.float32" in capsys.readouterr().err
    assert files(out) == {"run.json"}


# ---- defaults -----------------------------------------------------------------------------------


def test_without_arguments_it_does_what_the_original_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    calls = []

    def generate(_pipeline: Any, jobs: Any, settings: Settings, folder: Path) -> Any:
        calls.append((jobs, settings, folder))
        return iter(())

    monkeypatch.setattr(generate_module, "generate", generate)
    assert inference.main([]) == 0
    (job,), settings, folder = calls[0]
    assert settings == Settings(
        height=1024, width=2048, num_inference_steps=28, guidance_scale=2.8, negative_prompt="",
        true_cfg_scale=1.0, max_sequence_length=512,
    )  # fmt: skip
    assert job.prompt.startswith("This is a panorama. ")
    assert job.prompt.count(TRIGGER) == 1
    assert "castle" in job.prompt
    assert "autumn" in job.prompt
    assert (job.seed, job.name, folder) == (0, "result.png", Path())
    assert job.made_with["lora"] == "Insta360-Research/DiT360-Panorama-Image-Generation"
    assert job.made_with["padding_n"] == 1
    assert job.made_with["vae_wrap"] == "circular"


def test_tiny_knows_its_prompt(out: Path, pipeline: DiT360Pipeline) -> None:
    assert inference.main(["--tiny", "--num_inference_steps", "1", "--output", f"{out}/a.png"]) == 0
    made_with = read_made_with(out / "a.png") or {}
    assert read_image(out / "a.png").shape == (96, 192, 3)
    assert made_with["num_inference_steps"] == 1  # what is given wins
    pieces = pipeline.tokenizer_2.tokenize(made_with["prompt"])
    assert len(pieces) < 48
    assert sum(len(piece) > 1 for piece in pieces) > 10


def test_settings_are_checked_in_python_too() -> None:
    with pytest.raises(ValueError, match="width is 100; use a multiple of 16, such as 96"):
        Settings(height=32, width=100)


def test_steps_are_reported(pipeline: DiT360Pipeline) -> None:
    steps = []
    settings = Settings(height=32, width=64, num_inference_steps=3, max_sequence_length=12)
    generate_image(pipeline, BLUE, 0, settings, on_step=steps.append)
    assert steps == [0, 1, 2]


def test_root_file_shows_help_quickly() -> None:
    code = (
        "import runpy, sys; sys.argv = ['inference.py', '--help']\n"
        "try: runpy.run_path('inference.py', run_name='__main__')\n"
        "except SystemExit as stop: assert not stop.code\n"
        "assert 'torch' not in sys.modules and 'diffusers' not in sys.modules"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "--prompt_file" in result.stdout
