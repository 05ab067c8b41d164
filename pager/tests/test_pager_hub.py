"""Published checkpoints: exact round trips, a true model card, an upload of the layout alone."""

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from huggingface_hub import ModelCard
from huggingface_hub.errors import HFValidationError, HTTPError
from safetensors.torch import load_file

from pager import hub
from pager.checkpoint import CONFIG_NAME, UNET_WEIGHTS, locate
from pager.pipeline import PagerPipeline

OFFICIAL_BASE = "GonzaloMG/marigold-e2e-ft-depth"
LAYOUT = {"README.md", "config.yaml", "unet/config.json", f"unet/{UNET_WEIGHTS}"}
BASE_LAYOUT = {
    "base/scheduler/scheduler_config.json",
    "base/vae/config.json",
    f"base/vae/{UNET_WEIGHTS}",
    "base/empty_prompt.safetensors",
}


@pytest.fixture
def depth(checkpoints) -> PagerPipeline:
    return PagerPipeline.from_pretrained(checkpoints["depth"], device="cpu")


@pytest.fixture
def normals(checkpoints) -> PagerPipeline:
    return PagerPipeline.from_pretrained(checkpoints["normals"], device="cpu")


def with_config(pipeline: PagerPipeline, **options) -> PagerPipeline:
    pipeline.model.config = dataclasses.replace(pipeline.model.config, **options)
    return pipeline


def files_of(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def card_of(folder: Path) -> ModelCard:
    return ModelCard.load(folder / "README.md")


def table_of(card: ModelCard, title: str) -> dict[str, str]:
    """Rows of the section `title`: first cell -> the others."""
    section = card.text.split(f"## {title}\n")[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line[:1] == "|"]
    return {row[0].strip(): " | ".join(row[1:]) for row in rows}


# ---- round trips --------------------------------------------------------------------------------


def test_float32_predictions_are_bit_equal_wherever_the_folder_goes(
    depth, normals, panorama, tmp_path
):
    """The base model of these is a local folder, so it has to travel with them."""
    for pipeline in (depth, normals):
        before = pipeline(panorama)
        hub.save_pretrained(pipeline, tmp_path / "saved")
        moved = shutil.move(tmp_path / "saved", tmp_path / "elsewhere" / pipeline.modality)
        assert files_of(moved) == LAYOUT | BASE_LAYOUT
        assert locate(moved).config.pretrained_path == "base"
        after = PagerPipeline.from_pretrained(moved, device="cpu")(panorama)
        for name in ("depth", "normals"):
            np.testing.assert_array_equal(getattr(after, name), getattr(before, name))


def test_a_saved_checkpoint_can_be_saved_again(depth, panorama, tmp_path):
    hub.save_pretrained(depth, tmp_path)
    again = PagerPipeline.from_pretrained(tmp_path, device="cpu")
    hub.save_pretrained(again, tmp_path)  # in place
    result = PagerPipeline.from_pretrained(tmp_path, device="cpu")(panorama).depth
    np.testing.assert_array_equal(result, depth(panorama).depth)


def test_float16_halves_the_files_and_stays_close(depth, panorama, tmp_path):
    hub.save_pretrained(depth.model, tmp_path, dtype=torch.float16)
    for name in (f"unet/{UNET_WEIGHTS}", f"base/vae/{UNET_WEIGHTS}"):
        assert {v.dtype for v in load_file(tmp_path / name).values()} == {torch.float16}
    assert "stored as float16" in table_of(card_of(tmp_path), "Model")["parameters"]
    reloaded = PagerPipeline.from_pretrained(tmp_path, device="cpu")
    exact, close = depth(panorama).depth, reloaded(panorama).depth
    assert exact is not None
    assert close is not None
    assert not np.array_equal(close, exact)
    # float16 rounds weights to 2^-11; the random network and the log depth amplify it.
    np.testing.assert_allclose(close, exact, rtol=0.05)


def test_no_path_of_this_machine_is_published(depth, base, checkpoints, tmp_path):
    with_config(depth, checkpoint_path=str(checkpoints["depth"]))
    hub.save_pretrained(depth, tmp_path)
    for name in ("config.yaml", "unet/config.json", "base/vae/config.json", "README.md"):
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert str(base.parent) not in text, name
        assert str(checkpoints["depth"].parent) not in text, name
    assert locate(tmp_path).config.checkpoint_path is None
    assert "_class_name" in json.loads((tmp_path / "unet" / "config.json").read_text())


def test_an_official_base_is_named_not_copied(depth, tmp_path):
    with_config(depth, pretrained_path=OFFICIAL_BASE, checkpoint_path="prs-eth/PaGeR-depth")
    hub.save_pretrained(depth, tmp_path)
    assert files_of(tmp_path) == LAYOUT
    config = locate(tmp_path).config
    assert (config.pretrained_path, config.checkpoint_path) == (
        OFFICIAL_BASE, "prs-eth/PaGeR-depth",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (OFFICIAL_BASE, True), ("prs-eth/PaGeR-v1.1", True), ("../base", False), ("base", False),
        ("./a/b", False), ("a/b/c", False), ("/a/b", False), (".cache/base", False),
    ],
)  # fmt: skip
def test_hub_ids(name, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert hub.is_hub_id(name) is expected
    if expected:
        (tmp_path / name).mkdir(parents=True)
        assert not hub.is_hub_id(name)  # a folder here is meant


# ---- model card ---------------------------------------------------------------------------------


def test_card_of_relative_depth(depth, tmp_path):
    with_config(depth, pretrained_path=OFFICIAL_BASE, max_depth=15.0)
    hub.save_pretrained(
        depth,
        tmp_path,
        repo_id="someone/rooms",
        metrics={"Replica": {"AbsRel": 0.04567, "RMSE (m)": 0.25}, "ours": {"AbsRel": 0.1}},
        training={"steps": 12000, "data": "PanoInfinigen"},
    )
    card = card_of(tmp_path)
    header = card.data.to_dict()
    assert header.pop("tags") == [
        "pager", "panorama", "360-degree", "equirectangular", "diffusion",
        "monocular-depth-estimation",
    ]  # fmt: skip
    assert header == {
        "license": "openrail++",
        "library_name": "pager",
        "pipeline_tag": "depth-estimation",
        "base_model": OFFICIAL_BASE,
    }
    model = table_of(card, "Model")
    assert model["predicts"] == "relative depth (up to one factor)"
    assert model["depth range"] == "0.01 to 15 m, logarithmic"
    assert model["cube faces"] == "16 x 16 pixels"
    assert model["positional encoding"] == "RoPE"
    assert model["UNet"] == "`UNet2DConditionModel`, 8 inputs, channels 16, 32"
    unet, vae = (
        sum(p.numel() for p in network.parameters()) / 1e6
        for network in (depth.model.unet, depth.model.vae)
    )
    assert model["parameters"] == f"{unet:.2f} M UNet (stored as float32), {vae:.2f} M VAE (frozen)"
    assert OFFICIAL_BASE in model["VAE, scheduler, prompt"]
    assert "radial" in card.text
    assert "Values from 14.25 m are the end of the range" in card.text
    assert "multiply by one factor" in card.text
    assert "--checkpoint_path someone/rooms " in card.text
    assert 'PagerPipeline.from_pretrained("someone/rooms")' in card.text
    results = table_of(card, "Results")
    assert results["AbsRel"] == "RMSE (m)"  # the header
    assert results["Replica"] == "0.04567 | 0.25"
    assert results["ours"].startswith("0.1")
    assert table_of(card, "Training")["steps"] == "12000"
    assert "RAIL++-M" in card.text


def test_card_of_metric_depth_and_of_normals(depth, normals, tmp_path):
    hub.save_pretrained(with_config(depth, metric_depth=True, log_scale=False), tmp_path / "d")
    card = card_of(tmp_path / "d")
    assert table_of(card, "Model")["predicts"] == "metric depth"
    assert table_of(card, "Model")["depth range"] == "0.01 to 75 m, linear"
    assert "float32, metres, along the ray" in card.text
    assert "multiply by one factor" not in card.text

    with_config(normals, normals_frame="structured3d")
    hub.save_pretrained(normals, tmp_path / "n", license_id="apache-2.0")
    card = card_of(tmp_path / "n")
    assert card.data.pipeline_tag == "image-to-image"
    assert card.data.license == "apache-2.0"
    assert "surface-normals" in (card.data.tags or [])
    assert "depth range" not in table_of(card, "Model")
    assert "x forward (centre of the panorama), y up, z left" in card.text
    assert "x right, y up, z backward" in card.text


def test_own_networks_carry_no_inherited_licence(depth, tmp_path):
    hub.save_pretrained(depth, tmp_path)
    card = card_of(tmp_path)
    assert card.data.license == "unknown"
    assert card.data.base_model is None
    assert "RAIL" not in card.text
    assert "has not stated a licence" in card.text
    assert "`base/` in this repository" in card.text
    assert "## Results" not in card.text
    assert "## Training" not in card.text
    assert f"--checkpoint_path {tmp_path.name} " in card.text


def test_a_network_of_the_shape_of_stable_diffusion_2_inherits(depth):
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            in_channels=8, cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20),  # pyright: ignore[reportArgumentType]
        )  # fmt: skip
    assert not hub.is_sd2_derivative(depth.model)
    depth.model.unet = unet
    assert hub.is_sd2_derivative(depth.model)


def test_shipped_checkpoint_as_published(tmp_path):
    """`assets/tiny` stores ``../base``, which would point outside of a repository."""
    from pager.embedded import TINY_ASSETS

    pipeline = PagerPipeline.from_pretrained(TINY_ASSETS / "normals", device="cpu")
    hub.save_pretrained(pipeline, tmp_path, dtype=torch.float16, license_id="apache-2.0")
    stored, ours = (
        load_file(folder / "unet" / UNET_WEIGHTS) for folder in (TINY_ASSETS / "normals", tmp_path)
    )
    assert all(torch.equal(stored[key], ours[key]) for key in stored)
    assert hub.layout_files(tmp_path)


# ---- upload -------------------------------------------------------------------------------------


class StubApi:
    """Records what `HfApi` is asked for, and which files it would upload."""

    def __init__(self, calls: list) -> None:
        self.calls = calls

    def __call__(self, token: str | None = None) -> "StubApi":
        self.calls.append(SimpleNamespace(name="login", token=token))
        return self

    def create_repo(self, repo_id, **options):
        self.calls.append(SimpleNamespace(name="create_repo", repo_id=repo_id, options=options))
        return f"https://huggingface.co/{repo_id}"

    def create_branch(self, repo_id, **options):
        self.calls.append(SimpleNamespace(name="create_branch", repo_id=repo_id, options=options))

    def upload_folder(self, *, folder_path, allow_patterns, **options):
        from huggingface_hub.utils import filter_repo_objects

        found = sorted(files_of(Path(folder_path)))
        sent = set(filter_repo_objects(found, allow_patterns=allow_patterns))
        card = (Path(folder_path) / "README.md").read_text(encoding="utf-8")
        self.calls.append(
            SimpleNamespace(name="upload_folder", files=sent, card=card, options=options)
        )


@pytest.fixture
def calls(monkeypatch) -> list:
    calls: list = []
    monkeypatch.setattr(hub, "HfApi", StubApi(calls))
    return calls


def test_a_folder_is_uploaded_without_what_else_lies_there(depth, calls, tmp_path):
    hub.save_pretrained(with_config(depth, pretrained_path=OFFICIAL_BASE), tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "original" / "unet").mkdir(parents=True)
    (tmp_path / "original" / "unet" / UNET_WEIGHTS).write_bytes(b"")
    url = hub.push_to_hub(
        tmp_path,
        "someone/rooms",
        private=True,
        revision="v2",
        commit_message="More",
        token="secret",
    )
    assert url == "https://huggingface.co/someone/rooms"
    assert [call.name for call in calls] == [
        "login", "create_repo", "create_branch", "upload_folder",
    ]  # fmt: skip
    assert calls[0].token == "secret"
    assert calls[1].options == {"private": True, "exist_ok": True}
    assert calls[2].options == {"branch": "v2", "exist_ok": True}
    assert calls[3].files == LAYOUT
    assert calls[3].options == {
        "repo_id": "someone/rooms", "revision": "v2", "commit_message": "More",
    }  # fmt: skip


def test_a_pipeline_is_uploaded_with_its_base(depth, calls):
    hub.push_to_hub(depth, "someone/rooms")
    assert [call.name for call in calls] == ["login", "create_repo", "upload_folder"]
    assert calls[-1].files == LAYOUT | BASE_LAYOUT
    assert calls[-1].options["commit_message"] == "Upload PaGeR checkpoint (depth)"
    assert "--checkpoint_path someone/rooms " in calls[-1].card


def test_incomplete_folders_are_refused_before_any_call(depth, checkpoints, calls, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no README.md; write the folder with save"):
        hub.push_to_hub(checkpoints["depth"], "someone/rooms")  # of a training: no card
    with pytest.raises(FileNotFoundError, match=r"has no README.md, config.yaml, unet/config"):
        hub.push_to_hub(tmp_path / "nowhere", "someone/rooms")
    hub.save_pretrained(depth, tmp_path / "a")
    (tmp_path / "a" / "base" / "empty_prompt.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no base/empty_prompt.safetensors"):
        hub.push_to_hub(tmp_path / "a", "someone/rooms")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    shutil.copy(checkpoints["depth"] / CONFIG_NAME, tmp_path / "b" / CONFIG_NAME)
    with pytest.raises(ValueError, match="exists only on this machine"):
        hub.push_to_hub(tmp_path / "b", "someone/rooms")
    assert calls == []


@pytest.mark.parametrize(
    ("raised", "kind", "message"),
    [
        (
            HTTPError("[Errno 111] Connection refused"), ConnectionError,
            r"someone/rooms could not be uploaded \(\[Errno 111\] Connection refused\); check the",
        ),
        (OSError(), ConnectionError, r"could not be uploaded \(OSError\)"),
        (PermissionError("401\n\nRequest ID: x"), ConnectionError, r"uploaded \(401\); check"),
        (HFValidationError("Repo id"), ValueError, r"repo_id is 'someone/rooms'; use owner/name"),
    ],
)  # fmt: skip
def test_failures_are_one_line(raised, kind, message, depth, calls, monkeypatch):
    def fail(*_args, **_options):
        raise raised

    monkeypatch.setattr(StubApi, "create_repo", fail)
    with pytest.raises(kind, match=message) as caught:
        hub.push_to_hub(depth, "someone/rooms")
    assert "\n" not in str(caught.value)
    assert [call.name for call in calls] == ["login"]


def test_offline_is_said(depth):
    """The real client, which these tests keep offline."""
    with pytest.raises(ConnectionError, match="offline mode is enabled") as caught:
        hub.push_to_hub(depth, "someone/rooms", token="secret")
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_pipeline_saves_and_pushes_itself(checkpoints, tmp_path, panorama, monkeypatch):
    pipeline = PagerPipeline.from_pretrained(checkpoints["depth"])
    pipeline.save_pretrained(tmp_path / "copy")
    again = PagerPipeline.from_pretrained(tmp_path / "copy")
    assert np.array_equal(again(panorama).depth, pipeline(panorama).depth)
    calls = []
    monkeypatch.setattr("pager.hub.push_to_hub", lambda *a, **k: calls.append((a, k)) or "url")
    assert pipeline.push_to_hub("me/pano", private=True) == "url"
    assert calls == [((pipeline, "me/pano"), {"private": True})]
