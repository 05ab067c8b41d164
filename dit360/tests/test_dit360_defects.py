"""Defects of the original that belong to no module alone; docs/defects.md lists them all."""

import ast
import dataclasses
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dit360.editing import EditSettings, edit
from dit360.pipeline import DiT360Pipeline
from dit360.training import build
from dit360.training import module as training
from dit360.training.datamodule import read_rows
from dit360.training.options import TINY_DEFAULTS, TrainOptions
from dit360.training.run import train

ROOT = Path(__file__).parents[1]
HEIGHT = 32
CAPTIONS = ("a red room", "a field", "a red room", "a field")


@pytest.fixture
def options(micro_flux: Path, tmp_path: Path) -> Any:
    """Makes options of a small run on four panoramas with two captions."""
    rng = np.random.default_rng(0)
    lines = []
    for k, caption in enumerate(CAPTIONS):
        pixels = rng.integers(0, 256, (HEIGHT, 2 * HEIGHT, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{k}.png")
        lines.append(json.dumps({"image": f"{k}.png", "caption": caption}))
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))

    def make(**given: Any) -> TrainOptions:
        small: dict[str, Any] = {
            "pretrained_model_name_or_path": str(micro_flux), "resolution": HEIGHT,
            "panorama_data": str(tmp_path / "rows.jsonl"), "save_dir": tmp_path / "run",
            "max_sequence_length": 16, "train_batch_size": 2, "accelerator": "cpu",
            "aux_from_epoch": 0,
        }  # fmt: skip
        return TrainOptions(**(TINY_DEFAULTS | small | given))

    return make


def make_batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return {
        "pixel_values": 2 * torch.rand(2, 3, HEIGHT, 2 * HEIGHT, generator=generator) - 1,
        "supervised": torch.ones(2, HEIGHT // 8, HEIGHT // 4, dtype=torch.bool),
        "prompt_embeds": torch.randn(2, 16, 32, generator=generator),
        "pooled_prompt_embeds": torch.randn(2, 32, generator=generator),
        "index": torch.arange(2),
    }


def make_module(options: TrainOptions) -> Any:
    """With a LoRA that does something, and without a log."""
    made: Any = build.build_module(options, "auto")
    made.log_dict = lambda *_, **__: None
    generator = torch.Generator().manual_seed(1)
    for name, parameter in made.flux_transformer.named_parameters():
        if "lora_" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    return made


def test_d11_offloaded_parts_edit_as_resident_ones(micro_flux: Path) -> None:
    """Weights on the meta device between calls: `pipeline.device` is no place to compute."""
    from accelerate import cpu_offload

    pipeline = DiT360Pipeline.from_pretrained(micro_flux)
    pipeline.set_progress_bar_config(disable=True)
    source = np.random.default_rng(0).integers(0, 256, (64, 128, 3), np.uint8)
    keep = np.zeros((64, 128), bool)
    keep[16:48, 32:96] = True
    settings = EditSettings(
        prompt="a room", num_inference_steps=2, max_sequence_length=12, gamma=0.5, reconstruct=True
    )
    expected = edit(pipeline, source, keep, settings)
    for part in (pipeline.transformer, pipeline.vae, pipeline.text_encoder):
        cpu_offload(part, torch.device("cpu"), offload_buffers=True)
    assert pipeline.vae.device.type == pipeline.transformer.device.type == "meta"
    found = edit(pipeline, source, keep, settings)
    assert np.array_equal(found.image, expected.image)


def test_d12_d18_half_precision_ends_at_the_transformer(
    options: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a bfloat16 network: pixels, noise, residual and sampling grids are float32.

    One residual goes through each resampling, where the original sends three tensors.
    """
    made = make_module(options(precision="bf16-mixed"))
    batch = make_batch()
    dtypes: dict[str, list[torch.dtype]] = {"tokens": [], "noise": [], "residual": [], "grids": []}

    def spy(owner: Any, name: str, look: Any) -> None:
        function = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            look(result, *args, **kwargs)
            return result

        monkeypatch.setattr(owner, name, call)

    def look_at_sampling(_result: Any, residual: Any, place: Any, *_: Any, **__: Any) -> None:
        dtypes["grids"] += [residual.dtype, place.dtype]

    def look_at_pixels(_result: Any, images: torch.Tensor, **_: Any) -> None:
        assert torch.equal(images, batch["pixel_values"])  # equal only without rounding

    spy(made.flux_transformer, "forward",
        lambda _, **given: dtypes["tokens"].append(given["hidden_states"].dtype))  # fmt: skip
    spy(made.vae, "encode", look_at_pixels)
    spy(made, "draw", lambda draws, *_: dtypes["noise"].append(draws.noise.dtype))
    spy(made, "measure", lambda _, residual, *__: dtypes["residual"].append(residual.dtype))
    spy(training.losses.F, "grid_sample", look_at_sampling)
    with torch.autocast("cpu", torch.bfloat16):
        loss = made.training_step(batch, 0)
    assert loss.dtype == torch.float32
    assert dtypes["tokens"] == [torch.bfloat16]
    assert dtypes["noise"] == dtypes["residual"] == [torch.float32]
    assert dtypes["grids"] == [torch.float32] * 4  # residual and grid, of yaw and of cube


def test_d13_a_caption_is_encoded_once_in_a_run(
    options: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers import FluxPipeline

    encoded: list[str] = []
    encode = FluxPipeline.encode_prompt

    def spy(self: Any, prompt: str, *args: Any, **kwargs: Any) -> Any:
        encoded.append(prompt)
        return encode(self, prompt, *args, **kwargs)

    monkeypatch.setattr(FluxPipeline, "encode_prompt", spy)
    train(options(max_epochs=3))  # 12 samples
    assert sorted(encoded) == sorted(set(CAPTIONS))


def test_d14_checkpointing_is_on_by_default_and_changes_no_gradient(options: Any) -> None:
    gradients = []
    for given in ({}, {"gradient_checkpointing": False}):
        made = make_module(options(lora_drop_out=0.1, **given))
        assert made.flux_transformer.is_gradient_checkpointing == (not given)
        loss = made.training_step(make_batch(), 0)
        trained = [p for p in made.parameters() if p.requires_grad]
        loss.backward()
        gradients.append([p.grad for p in trained])
    for one, two in zip(*gradients, strict=True):
        assert one.abs().max() > 0
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-7)


def test_d20_flags_that_the_original_never_read(
    options: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    panoramas, _ = read_rows(options(data_size=3))
    assert [row.caption for row in panoramas] == list(CAPTIONS[:3])
    asked: list[tuple[Any, Any]] = []

    def replace_loader(owner: Any, result: torch.nn.Module | None = None) -> None:
        def load(*_args: Any, **given: Any) -> torch.nn.Module:
            asked.append((given["variant"], given["revision"]))
            if result is None:
                raise LookupError
            return result

        monkeypatch.setattr(owner, "from_pretrained", load)

    replace_loader(build.AutoencoderKL, torch.nn.Module())
    replace_loader(build.FluxTransformer2DModel)
    replace_loader(build.FluxPipeline)
    flags = options(variant="fp16", revision="a1b2")
    with pytest.raises(LookupError):
        build.build_module(flags, "auto")
    with pytest.raises(LookupError):
        build.prepare_texts(flags, "a")
    assert asked == [("fp16", "a1b2")] * 3


def test_d20_every_training_flag_is_read() -> None:
    package = ROOT / "src" / "dit360"
    files = [package / "cli" / "train.py", *(package / "training").glob("*.py")]
    code = "".join(path.read_text() for path in files)
    for field in dataclasses.fields(TrainOptions):
        read = rf"(options|args)\.{field.name}\b|given(\.get\(|\[)\"{field.name}\""
        assert re.search(read, code), field.name


def test_d23_dependencies_come_from_the_index_and_have_one_lightning() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    listed = [*project["dependencies"], *(name for extra in extras for name in extra)]
    assert not [name for name in listed if "://" in name or "@" in name]
    assert not [name for name in imported() if name.startswith("pytorch_lightning")]


def test_d25_names_are_imported_one_by_one_and_messages_are_english() -> None:
    assert "*" not in imported()
    for path in sources():
        chinese = [c for c in path.read_text() if "\u3000" <= c <= "\u9fff"]
        assert not chinese, path


def test_every_test_that_the_table_names_exists() -> None:
    table = (ROOT / "docs" / "defects.md").read_text()
    named = 0
    for line in table.splitlines():
        file = ""
        for match in re.finditer(r"`([\w/]+\.py)?::(\w+)`", line):
            file = match[1] or file  # `::name` is in the file of the name before it
            assert f"def {match[2]}(" in (ROOT / "tests" / file).read_text(), match[0]
            named += 1
    assert named > 70
    assert [f"| D{k} |" in table for k in range(1, 26)] == [True] * 25


def sources() -> list[Path]:
    return [*(ROOT / "src").rglob("*.py"), *ROOT.glob("*.py"), *(ROOT / "scripts").glob("*.py")]


def imported() -> set[str]:
    """Modules and names of all import statements."""
    nodes = [node for path in sources() for node in ast.walk(ast.parse(path.read_text()))]
    found = {a.name for n in nodes if isinstance(n, ast.Import | ast.ImportFrom) for a in n.names}
    return found | {n.module for n in nodes if isinstance(n, ast.ImportFrom) and n.module}
