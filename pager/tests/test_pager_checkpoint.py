"""Checkpoint layouts, refusals in one sentence, and bit-equal round trips."""

import dataclasses
import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from pager.checkpoint import (
    CONFIG_NAME,
    EMPTY_PROMPT,
    UNET_WEIGHTS,
    base_model_path,
    empty_prompt_embedding,
    load_base_model,
    load_model,
    locate,
    save_checkpoint,
)
from pager.cli import inference
from pager.model import ModelConfig, PagerModel


@pytest.fixture
def faces() -> torch.Tensor:
    return torch.rand(1, 6, 3, 16, 16) * 2 - 1


@torch.no_grad()
def predict(model: PagerModel, faces: torch.Tensor) -> torch.Tensor:
    return model(faces)


def edit_config(folder: Path, **values) -> None:
    """Set or remove (None) keys of the `model:` section."""
    stored = OmegaConf.load(folder / CONFIG_NAME)
    section = {**stored.model, **values}
    stored.model = {k: v for k, v in section.items() if v is not None}
    OmegaConf.save(stored, folder / CONFIG_NAME)


# ---- layouts ------------------------------------------------------------------------------------


def test_round_trip_is_bit_equal(checkpoints, make_unet, model_config, faces):
    model = load_model(checkpoints["depth"])
    state, original = model.unet.state_dict(), make_unet().state_dict()
    assert state.keys() == original.keys()
    assert all(torch.equal(state[key], original[key]) for key in state)
    assert model.config == model_config()
    assert not model.training
    assert predict(model, faces).shape == (1, 6, 1, 16, 16)
    normals = load_model(checkpoints["normals"])
    assert predict(normals, faces).shape == (1, 6, 3, 16, 16)
    assert not any(p.requires_grad for p in model.vae.parameters())


def test_hub_layout_of_the_original_loads(tmp_path, base, make_unet, faces, checkpoints):
    """A whole training config, a key of the vendored UNet, no depth range."""
    unet = make_unet()
    unet.save_pretrained(tmp_path / "unet")
    config_path = tmp_path / "unet" / "config.json"
    config_path.write_text(json.dumps({**json.loads(config_path.read_text()), "use_RoPE": True}))
    section = {
        "modality": "depth", "pretrained_path": str(base), "checkpoint_path": None,
        "unet_positional_encoding": "RoPE", "vae_use_RoPE": True, "metric_depth": True,
        "log_scale": True,
    }  # fmt: skip
    OmegaConf.save({"model": section, "training": {"debug": False}}, tmp_path / CONFIG_NAME)
    model = load_model(tmp_path, overrides={"face_size": 16})
    assert model.config == ModelConfig(pretrained_path=str(base), metric_depth=True, face_size=16)
    assert model.config.depth_range.max_m == 75
    assert torch.equal(predict(model, faces), predict(load_model(checkpoints["depth"]), faces))


@pytest.mark.parametrize("levels", [0, 1, 2, 3])
def test_flat_folder_with_the_config_above(levels, tmp_path, checkpoints, faces):
    flat = tmp_path.joinpath(*["checkpoint-best", "EMA", "weights"][:levels])
    shutil.copytree(checkpoints["depth"] / "unet", flat, dirs_exist_ok=True)
    shutil.copy(checkpoints["depth"] / CONFIG_NAME, tmp_path)
    files = locate(flat)
    assert files.unet_dir == flat
    expected = predict(load_model(checkpoints["depth"]), faces)
    assert torch.equal(predict(load_model(flat), faces), expected)


def test_config_four_levels_above_is_not_found(tmp_path, checkpoints):
    flat = tmp_path / "a" / "b" / "c" / "d"
    shutil.copytree(checkpoints["depth"] / "unet", flat)
    shutil.copy(checkpoints["depth"] / CONFIG_NAME, tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no config.yaml in .* or the 3 folders above"):
        load_model(flat)


@pytest.mark.parametrize("as_folder", [False, True], ids=["file", "folder"])
@pytest.mark.parametrize("prefix", ["", "unet."])
def test_single_half_precision_file(as_folder, prefix, tmp_path, checkpoints, faces):
    state = load_file(checkpoints["depth"] / "unet" / UNET_WEIGHTS)
    half = {prefix + key: value.half() for key, value in state.items()}
    save_file(half, tmp_path / "pager_depth_fp16.safetensors")
    shutil.copy(checkpoints["depth"] / CONFIG_NAME, tmp_path)
    model = load_model(tmp_path if as_folder else tmp_path / "pager_depth_fp16.safetensors")
    loaded = model.unet.state_dict()
    assert all(torch.equal(loaded[key], state[key].half().float()) for key in state)
    assert model.unet.dtype == torch.float32
    full = predict(load_model(checkpoints["depth"]), faces)
    torch.testing.assert_close(predict(model, faces), full, atol=0.02, rtol=0)


def test_half_precision_storage(tmp_path, checkpoints, make_unet, model_config):
    save_checkpoint(tmp_path, make_unet(), model_config(), dtype=torch.float16)
    assert {v.dtype for v in load_file(tmp_path / "unet" / UNET_WEIGHTS).values()} == {torch.half}
    assert load_model(tmp_path).unet.dtype == torch.float32
    assert load_model(tmp_path, dtype=torch.bfloat16).unet.dtype == torch.bfloat16
    small = (tmp_path / "unet" / UNET_WEIGHTS).stat().st_size
    assert small < 0.6 * (checkpoints["depth"] / "unet" / UNET_WEIGHTS).stat().st_size
    assert not list(tmp_path.rglob(".*"))


def test_base_model_beside_the_checkpoint(tmp_path, base, checkpoints, faces):
    shutil.copytree(base, tmp_path / "base")
    shutil.copytree(checkpoints["depth"], tmp_path / "depth")
    edit_config(tmp_path / "depth", pretrained_path="../base")
    assert Path(base_model_path(locate(tmp_path / "depth"))).resolve() == tmp_path / "base"
    expected = predict(load_model(checkpoints["depth"]), faces)
    assert torch.equal(predict(load_model(tmp_path / "depth"), faces), expected)
    edit_config(tmp_path / "depth", pretrained_path="nowhere/to-be-found")
    with pytest.raises(FileNotFoundError, match="nowhere/to-be-found is not a local folder"):
        load_model(tmp_path / "depth")
    override = load_model(tmp_path / "depth", pretrained_path=str(base))
    assert torch.equal(predict(override, faces), expected)


# ---- options ------------------------------------------------------------------------------------


def test_unknown_model_keys_are_errors(tmp_path, checkpoints):
    shutil.copytree(checkpoints["depth"], tmp_path / "c")
    edit_config(tmp_path / "c", metric_dept=True)
    with pytest.raises(ValueError, match=r"unknown model keys \['metric_dept'\]; known are"):
        locate(tmp_path / "c")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 3", "no `model:` section"),
        ("- model", "no `model:` section"),
        ("model: depth", "no `model:` section"),
        ("model: [", "not a readable YAML file"),
        ("model: {modality: '${nowhere}'}", "not a readable YAML file"),
        ("model: {modality: dept}", "modality is 'dept'; use one of depth, normals"),
        ("model: {unet_positional_encoding: rope}", "use one of RoPE, uv, none"),
        ("model: {normals_frame: opengl}", "use one of pager, structured3d"),
        ("model: {max_depth: 0.001}", "0 < min < max"),
    ],
)
def test_damaged_or_foreign_config(text, message, tmp_path, checkpoints):
    shutil.copytree(checkpoints["depth"], tmp_path / "c")
    (tmp_path / "c" / CONFIG_NAME).write_text(text)
    with pytest.raises(ValueError, match=message):
        locate(tmp_path / "c")


def test_absent_encoding_means_none(tmp_path, checkpoints):
    shutil.copytree(checkpoints["depth"], tmp_path / "c")
    edit_config(tmp_path / "c", unet_positional_encoding=None)
    assert locate(tmp_path / "c").config.unet_positional_encoding == "none"


def test_indoor_range_with_a_notice(tmp_path, checkpoints, caplog):
    folder = tmp_path / "PaGeR-depth-indoor"
    shutil.copytree(checkpoints["depth"], folder)
    edit_config(folder, max_depth=None)
    with caplog.at_level(logging.WARNING):
        assert locate(folder).config.max_depth == 15
    assert "assuming the indoor range up to 15 m (override: --max_depth)" in caplog.text
    assert load_model(folder, overrides={"max_depth": 40.0}).config.depth_range.max_m == 40
    caplog.clear()
    edit_config(folder, max_depth=20.0)
    assert locate(folder).config.max_depth == 20
    assert not caplog.records


# ---- refusals -----------------------------------------------------------------------------------


def test_depth_anything_checkpoint_is_named(tmp_path, capsys):
    save_file({"backbone.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    (tmp_path / CONFIG_NAME).write_text("model: {scene_mode: auto}")
    with pytest.raises(ValueError, match="holds a Depth-Anything-3 version of PaGeR"):
        load_model(tmp_path)
    assert inference.main(["--input", __file__, "--checkpoint_path", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "--revision" in message


def test_network_of_another_size_is_refused(tmp_path, make_unet, model_config, checkpoints):
    save_checkpoint(tmp_path, make_unet(), model_config())
    shutil.copy(checkpoints["depth"] / "unet" / UNET_WEIGHTS, tmp_path / "unet")
    make_unet(widths=(16, 48)).save_config(tmp_path / "unet")
    with pytest.raises(ValueError, match="is the checkpoint of another model"):
        load_model(tmp_path)


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape"])
@pytest.mark.parametrize("single", [True, False], ids=["file", "folder"])
def test_foreign_state_dicts_are_refused(change, single, tmp_path, checkpoints):
    folder = tmp_path / "c"
    shutil.copytree(checkpoints["depth"], folder)
    state = load_file(folder / "unet" / UNET_WEIGHTS)
    if change == "missing":
        state.pop("conv_in.weight")
    elif change == "unexpected":
        state["backbone.weight"] = torch.zeros(1)
    else:
        state["conv_in.bias"] = torch.zeros(3)
    if single:
        shutil.rmtree(folder / "unet")
        save_file(state, folder / "weights.safetensors")
    else:
        save_file(state, folder / "unet" / UNET_WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="checkpoint of another model") as caught:
        load_model(folder)
    key = {"missing": "conv_in.weight", "unexpected": "backbone.weight", "shape": "conv_in.bias"}
    assert key[change] in str(caught.value)


def test_vae_in_place_of_the_network_is_refused(tmp_path, base, checkpoints):
    shutil.copy(checkpoints["depth"] / CONFIG_NAME, tmp_path)
    shutil.copytree(base / "vae", tmp_path / "unet")
    with pytest.raises(ValueError, match="another model"):
        load_model(tmp_path)


@pytest.mark.parametrize("single", [True, False], ids=["file", "folder"])
def test_damaged_weights_are_one_line(single, tmp_path, checkpoints, capsys, write_panoramas):
    folder = tmp_path / "c"
    shutil.copytree(checkpoints["depth"], folder)
    weights = folder / "unet" / UNET_WEIGHTS
    weights.write_bytes(weights.read_bytes()[:5000])
    (image,) = write_panoramas(tmp_path, 1)
    flags = ["--input", str(image), "--checkpoint_path", str(weights if single else folder)]
    assert inference.main([*flags, "--results_path", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert str(folder) in message


def test_encoding_of_another_network_is_refused(tmp_path, checkpoints):
    shutil.copytree(checkpoints["depth"], tmp_path / "c")
    edit_config(tmp_path / "c", unet_positional_encoding="uv")
    with pytest.raises(ValueError, match="takes 8 channels, but unet_positional_encoding='uv'"):
        load_model(tmp_path / "c")


def test_epsilon_base_model_is_refused(tmp_path, base, checkpoints):
    shutil.copytree(base, tmp_path / "base")
    scheduler = DDPMScheduler.from_pretrained(base / "scheduler", prediction_type="epsilon")
    scheduler.save_pretrained(tmp_path / "base" / "scheduler")
    with pytest.raises(ValueError, match="needs a v_prediction base model"):
        load_model(checkpoints["depth"], pretrained_path=str(tmp_path / "base"))


def test_places_without_a_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match="not a local folder and could not be fetched"):
        locate(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="could not be fetched"):
        locate("prs-eth/PaGeR-depth")  # offline
    (tmp_path / "weights.ckpt").touch()
    with pytest.raises(ValueError, match=r"not a \.safetensors file"):
        locate(tmp_path / "weights.ckpt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no UNet"):
        locate(tmp_path / "empty")


# ---- start of a training ------------------------------------------------------------------------


def test_uv_extension_starts_without_effect(make_model, faces):
    plain = make_model(unet_positional_encoding="none")
    extended = make_model(unet_positional_encoding="uv")
    assert extended.unet.conv_in.in_channels == 10
    assert extended.unet.config["in_channels"] == 10
    assert not extended.unet.conv_in.weight[:, 8:].any()
    torch.testing.assert_close(predict(extended, faces), predict(plain, faces), atol=1e-5, rtol=0)


def test_uv_checkpoint_round_trip(tmp_path, make_model, faces):
    model = make_model(unet_positional_encoding="uv")
    torch.nn.init.normal_(model.unet.conv_in.weight)
    save_checkpoint(tmp_path, model.unet, model.config)
    assert torch.equal(predict(load_model(tmp_path), faces), predict(model, faces))


def test_empty_prompt_comes_from_the_encoder_or_its_cache(tmp_path, base, checkpoints, faces):
    cached = empty_prompt_embedding(str(base), base)
    assert cached.shape == (1, 77, 32)
    folder = tmp_path / "base"
    shutil.copytree(base, folder)
    (folder / EMPTY_PROMPT).unlink()
    torch.testing.assert_close(empty_prompt_embedding(str(folder), folder), cached)
    assert not (folder / EMPTY_PROMPT).exists()  # somebody else's folder
    uncached = load_model(checkpoints["depth"], pretrained_path=str(tmp_path / "base"))
    expected = predict(load_model(checkpoints["depth"]), faces)
    torch.testing.assert_close(predict(uncached, faces), expected)


def test_text_encoder_of_a_hub_base_runs_once(tmp_path, base, monkeypatch):
    """A snapshot of the hub without text encoder: fetched once, its embedding kept."""
    folder = tmp_path / "models--x--y" / "snapshots" / "0123abcd"
    folder.mkdir(parents=True)
    fetched = []

    def fetch(name, patterns):
        fetched.append((name, patterns))
        return base

    monkeypatch.setattr("pager.checkpoint.fetch", fetch)
    monkeypatch.setattr("pager.checkpoint.PROMPT_CACHE", tmp_path / "cache")
    first = empty_prompt_embedding("x/y", folder)
    assert fetched == [("x/y", ["tokenizer/*", "text_encoder/*"])]
    assert torch.equal(empty_prompt_embedding("x/y", folder), first)
    assert len(fetched) == 1
    assert [p.name for p in (tmp_path / "cache").iterdir()] == ["0123abcd.safetensors"]
    # A cache that cannot be written costs time, not the result.
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("pager.checkpoint.PROMPT_CACHE", tmp_path / "file" / "cache")
    assert torch.equal(empty_prompt_embedding("x/y", folder), first)
    assert len(fetched) == 2


def test_embedded_architecture_is_stock_and_of_the_released_shape():
    from pager.tiny import tiny_scheduler, tiny_unet, tiny_vae

    unet, vae = tiny_unet(), tiny_vae()
    assert type(unet) is UNet2DConditionModel
    assert type(vae) is AutoencoderKL
    assert (unet.config["in_channels"], unet.config["out_channels"]) == (8, 4)
    assert vae.config["latent_channels"] == 4
    assert tiny_scheduler().config["prediction_type"] == "v_prediction"
    half_precision_bytes = 2 * sum(p.numel() for m in (unet, unet, vae) for p in m.parameters())
    assert half_precision_bytes < 10e6  # both modalities and the base model


def test_base_model_with_options(model_config):
    model = load_base_model(model_config(modality="normals", log_scale=False, max_depth=30.0))
    assert model.config.modality == "normals"
    assert dataclasses.asdict(model.config.depth_range) == {
        "min_m": 0.01, "max_m": 30.0, "log_scale": False,
    }  # fmt: skip
