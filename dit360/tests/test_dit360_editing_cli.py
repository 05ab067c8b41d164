"""`editing.py` end to end on the micro model, and what it refuses before it loads one."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from PIL import Image

from dit360.cli.editing import build_parser, fill_in, main, read_inputs
from dit360.editing.masks import resize_keep
from dit360.editing.place import PHOTO_ERODE, place_photo
from dit360.editing.settings import EditSettings
from dit360.embedded import TINY_HEIGHT, TINY_MODEL
from dit360.generate import read_made_with
from shared_pano_utils.metadata import read_gpano

HEIGHT, WIDTH = 64, 128
ROOT = Path(__file__).parents[1]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with a panorama, a mask of its middle and a photo."""
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)).save(tmp_path / "erp.png")
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[16:48, 32:96] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    Image.fromarray(rng.integers(0, 256, (80, 80, 3), np.uint8)).save(tmp_path / "photo.png")
    return tmp_path


def arguments(files: Path, model: Path, *more: str) -> list[str]:
    return [
        "--image", str(files / "erp.png"), "--mask", str(files / "mask.png"),
        "--pretrained_model_name_or_path", str(model), "--lora", "none", "--device", "cpu",
        "--height", str(HEIGHT), "--num_inference_steps", "3", "--max_sequence_length", "12",
        "--prompt", "A red room.", "--output", str(files / "out" / "result.png"), *more,
    ]  # fmt: skip


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def test_outpainting_writes_the_panorama_and_everything_asked_for(
    files: Path, micro_flux: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = arguments(files, micro_flux, "--save_source_reconstruction", "--html", "--paste", "4")
    assert main(flags) == 0
    out = files / "out"
    names = {"result.png", "result_source.png", "result.html", "run.json"}
    assert {path.name for path in out.iterdir()} == names
    image, source = pixels(out / "result.png"), pixels(files / "erp.png")
    assert image.shape == (HEIGHT, WIDTH, 3)
    assert np.array_equal(image[20:44, 36:92], source[20:44, 36:92])
    assert (image[:, :32] != source[:, :32]).mean() > 0.9
    assert read_gpano(out / "result.png")["FullPanoWidthPixels"] == str(WIDTH)
    assert read_gpano(out / "result_source.png")
    made_with = read_made_with(out / "result.png")
    assert made_with is not None
    assert made_with["prompt"] == "This is a panorama. A red room."
    assert made_with["model"].startswith(f"{micro_flux.name} (")
    assert json.loads((out / "run.json").read_text())["options"]["tau"] == 50.0
    line, page = capsys.readouterr().out.splitlines()[-2:]
    assert page == str(out / "result.html")
    assert "seam ratio" in line
    assert "border step" in line
    assert "dB before pasting" in line
    assert line.endswith("network evaluations")


def test_a_second_run_skips_refuses_or_overwrites(
    files: Path, micro_flux: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = arguments(files, micro_flux)
    assert main(flags) == 0
    written = (files / "out" / "result.png").stat().st_mtime_ns
    assert main(flags) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert main([*flags, "--tau", "20"]) == 2
    assert "was made with tau 50.0, not 20.0" in capsys.readouterr().err
    assert main([*flags, "--mask_erode", "1"]) == 2
    assert "was made with source_and_mask" in capsys.readouterr().err
    assert (files / "out" / "result.png").stat().st_mtime_ns == written


def test_a_page_of_a_finished_edit(
    files: Path, micro_flux: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = arguments(files, micro_flux, "--save_source_reconstruction")
    assert main(flags) == 0
    monkeypatch.setattr("dit360.loading.open_pipeline", lambda *_, **__: pytest.fail("loads"))
    assert main([*flags, "--html"]) == 0
    page = (files / "out" / "result.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 3  # edited, source, source branch
    assert "A red room." in page


def test_another_lora_of_the_same_name_is_another_edit(
    files: Path, micro_flux: Path, micro_lora: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lora = files / "lora_output"
    shutil.copytree(micro_lora, lora)
    flags = arguments(files, micro_flux, "--lora", str(lora))
    assert main(flags) == 0
    assert main(flags) == 0
    assert "nothing to do" in capsys.readouterr().out
    with (lora / "adapter_model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x00")
    assert main(flags) == 2
    assert "was made with lora 'lora_output (" in capsys.readouterr().err


def test_inpainting_paints_the_white_part(files: Path, micro_flux: Path) -> None:
    for method in ("inject", "inpaint"):
        name = str(files / f"{method}.png")
        flags = ["--task", "inpaint", "--method", method, "--output", name, "--paste", "1"]
        assert main(arguments(files, micro_flux, *flags)) == 0
        image, source = pixels(files / f"{method}.png"), pixels(files / "erp.png")
        hole = pixels(files / "mask.png")[..., 0] == 255
        assert np.array_equal(image[~hole], source[~hole])
        assert (image[hole] != source[hole]).mean() > 0.9


def test_a_photo_becomes_a_panorama(files: Path, micro_flux: Path) -> None:
    flags = arguments(files, micro_flux, "--perspective", str(files / "photo.png"))[4:]
    assert main([*flags, "--fov", "120", "--yaw", "180", "--paste", "0"]) == 0
    bare = pixels(files / "out" / "result.png")
    assert main([*flags, "--fov", "120", "--yaw", "180", "--paste", "4", "--overwrite"]) == 0
    pasted = pixels(files / "out" / "result.png")
    changed = (bare != pasted).any(-1)
    assert changed[32, [0, 127]].all()  # behind
    assert not changed[:, 48:80].any()


def test_the_border_of_a_photo_is_painted_anew(files: Path, micro_flux: Path) -> None:
    flags = arguments(files, micro_flux, "--perspective", str(files / "photo.png"))[4:]
    _, seen = place_photo(pixels(files / "photo.png"), HEIGHT, fov_deg=120)
    for more, cells in (([], PHOTO_ERODE), (["--mask_erode", "0"], 0)):
        args = build_parser().parse_args([*flags, "--fov", "120", *more])
        fill_in(args)
        _, keep = read_inputs(args)
        assert np.array_equal(keep, resize_keep(seen, -cells))


def test_fill_runs_a_fill_model(files: Path, micro_flux: Path, tmp_path: Path) -> None:
    pipeline = FluxPipeline.from_pretrained(micro_flux)
    config = dict(pipeline.transformer.config) | {"in_channels": 384, "out_channels": 64}
    torch.manual_seed(0)
    pipeline.transformer = FluxTransformer2DModel.from_config(config)
    pipeline.save_pretrained(tmp_path / "fill")
    flags = arguments(files, tmp_path / "fill", "--method", "fill")
    assert main(flags) == 0
    made_with = read_made_with(files / "out" / "result.png")
    assert made_with is not None
    assert made_with["guidance_scale"] == 30.0


def test_fill_refuses_another_model(
    files: Path, micro_flux: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(files, micro_flux, "--method", "fill")) == 2
    assert "384" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--image", "missing.png"], "missing.png: no such file"),
        (["--mask", "missing.png"], "missing.png: no such file"),
        (["--image", "photo.png"], "width must be 2 x height"),
        (["--mask", "photo.png"], "the mask is 80x80; it must be twice as wide"),
        (["--mask", "black.png"], "the mask is black everywhere"),
        (["--mask", "white.png"], "the mask is white everywhere"),
        (["--mask_erode", "9"], "nothing of the source is kept"),
        (["--mask_dilate", "9"], "nothing is left to paint"),
        (["--mask_erode", "-1"], "--mask_erode and --mask_dilate are 0 or more"),
        (["--mask_threshold", "0"], "--mask_threshold is 0"),
        (["--height", "100"], "the height is 100; use a multiple of 16"),
        (["--tau", "120"], "tau is 120"),
        (["--output", "result.exr"], "not a PNG or JPEG file"),
        (["--perspective", "photo.png"], "leave --image, --mask and --task out"),
        (["--prompt", ""], "--prompt is empty; describe the panorama"),
        (["--device", "foo"], "--device foo is unknown"),
        (["--yaw", "0"], "--yaw is for --perspective; pass a photo, or leave it out"),
        (["--method", "inpaint", "--tau", "50"], "--tau is for --method inject, not for inpaint"),
        (["--method", "fill", "--source_prompt", "a"], "--source_prompt is for --method inject"),
        (["--method", "fill", "--tiny"], "no embedded FLUX.1-Fill"),
        (["--method", "inpaint", "--save_source_reconstruction"], "by method inject only"),
    ],
)
def test_mistakes_are_one_line_before_a_model_is_loaded(
    files: Path,
    flags: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_args: Any, **_kwargs: Any) -> None:
        pytest.fail("a model is loaded")

    monkeypatch.setattr("dit360.loading.open_pipeline", refuse)
    monkeypatch.chdir(files)
    for value in (0, 255):
        name = "white.png" if value else "black.png"
        Image.fromarray(np.full((HEIGHT, WIDTH), value, np.uint8)).save(name)
    before = sorted(files.iterdir())
    assert main([*arguments(files, Path("model")), *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert sorted(files.iterdir()) == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--image", "erp.png"], "--image erp.png needs --mask and --prompt of its own"),
        (["--image", "erp.png", "--mask", "mask.png"], "--image erp.png needs --prompt of its own"),
        (["--image", "erp.png", "--prompt", "a"], "--image erp.png needs --mask of its own"),
        (["--perspective", "photo.png"], "--perspective needs --prompt; say what the panorama"),
    ],
)
def test_the_prompt_and_mask_of_the_example_are_for_it_alone(
    files: Path,
    flags: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(files)
    assert main(["--tiny", *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_defaults_are_the_constants_of_the_original() -> None:
    args = build_parser().parse_args([])
    fill_in(args)
    original = {
        "image": Path("example/example.png"), "mask": Path("example/masks/mask0.png"),
        "output": Path("result.png"), "task": "outpaint", "num_inference_steps": 50, "seed": 0,
        "guidance_scale": 3.5, "tau": 50.0, "gamma": 1.0, "eta": 1.0, "start_timestep": 0.0,
        "stop_timestep": 0.99, "blend_t": 0.5, "source_prompt": None, "height": 1024,
    }  # fmt: skip
    assert {name: getattr(args, name) for name in original} == original
    assert EditSettings(prompt="").paste == args.paste
    named = build_parser().parse_args(["--image", str(Path("example/example.png").resolve())])
    fill_in(named)
    assert (named.mask, named.prompt) == (args.mask, args.prompt)
    photo = build_parser().parse_args(["--perspective", "photo.png", "--prompt", "a"])
    fill_in(photo)
    assert (photo.fov, photo.yaw, photo.pitch, photo.roll) == (90, 0, 0, 0)


def test_the_root_file_prints_its_help_without_torch() -> None:
    code = (
        "import runpy, sys\n"
        "sys.argv = ['editing.py', '--help']\n"
        "try:\n    runpy.run_path('editing.py', run_name='__main__')\n"
        "except SystemExit as stop:\n    assert not stop.code\n"
        "assert 'torch' not in sys.modules and 'diffusers' not in sys.modules\n"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for flag in ("--perspective", "--mask_erode", "--save_source_reconstruction", "--tiny"):
        assert flag in shown
    assert f"(default: 0, {PHOTO_ERODE} with --perspective)" in " ".join(shown.split())


@pytest.mark.skipif(not TINY_MODEL.is_dir(), reason="the embedded model is not built")
def test_the_embedded_model_edits_in_its_own_size(files: Path) -> None:
    for method in ("inject", "inpaint"):
        output = files / f"{method}.png"
        assert main(
            ["--tiny", "--image", str(files / "erp.png"), "--mask", str(files / "mask.png"),
             "--prompt", "A room with red walls.", "--method", method, "--output", str(output),
             "--device", "cpu"]
        ) == 0  # fmt: skip
        assert pixels(output).shape == (TINY_HEIGHT, 2 * TINY_HEIGHT, 3)
