"""The original's command line and options, and defects of it that no other test would bring back.

`docs/defects.md` lists every defect with the tests that hold it off.
"""

import argparse
import ast
import itertools
import random
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from accelerate import Accelerator
from dataset_writers import (
    Room,
    box_room,
    write_matterport,
    write_replica,
    write_rgb,
    write_scannetpp,
    write_stanford,
    write_structured3d,
)
from diffusers import UNet2DConditionModel
from omegaconf import OmegaConf

from pager.checkpoint import CONFIG_NAME, fetch, load_model, locate, save_checkpoint
from pager.cli import app as app_cli
from pager.cli import evaluate, inference, point_cloud, train
from pager.config import TrainConfig, resolve_config
from pager.data.panoinfinigen import PanoInfinigen, stack_samples
from pager.data.registry import open_dataset
from pager.depth import DepthRange, align
from pager.export import write_prediction
from pager.layers import rope_table
from pager.pipeline import PagerPipeline, Prediction, choose_dtype
from pager.training.batches import depth_target, erp_to_faces, prepare_batch
from pager.training.report import Reporter
from pager.training.trainer import Trainer
from shared_pano_utils import cubemap_to_erp
from shared_pano_utils.geometry import PY360_E2X
from shared_pano_utils.imageio import read_image
from shared_pano_utils.resample import cache_info

ROOT = Path(__file__).parents[1]


def test_table_of_defects_is_complete_and_names_tests_that_exist():
    table = (ROOT / "docs/defects.md").read_text()
    assert set(re.findall(r"^\| \*\*D(\d+)\*\*", table, re.M)) == {str(n) for n in range(1, 24)}
    named = set(re.findall(r"`(test_\w+\.py)::(test_\w+)`", table))
    written = {
        (path.name, name)
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(), re.M)
    }
    assert named <= written
    assert all("`test_" in row for row in table.splitlines() if row.startswith("| **D"))


# ---- flags of the original ----------------------------------------------------------------------

PARSERS = {
    "train.py": train.build_parser(),
    "inference.py": inference.build_parser(),
    "generate_point_cloud.py": point_cloud.build_parser(),
    "app.py": app_cli.build_parser(),
    "evaluation/depth_evaluation.py": evaluate.build_parser("depth"),
    "evaluation/normals_evaluation.py": evaluate.build_parser("normals"),
    "evaluation/edge_evaluation.py": evaluate.build_parser("edge"),
}
SCENES = "indoor outdoor both"
# Script -> flag -> "text", "int", "float", "switch", "bool" (takes a value), or its choices.
GOLDEN = {
    "train.py": {
        **dict.fromkeys(
            ("config", "resume_path", "pretrained_path", "checkpoint_path", "data_path",
             "tracker_project_name", "save_path", "logging_path", "run_name"), "text"),
        **dict.fromkeys(
            ("seed", "num_train_epochs", "max_train_steps", "gradient_accumulation_steps",
             "batch_size", "save_frequency", "loss_report_frequency", "img_report_frequency",
             "tiny_val_frequency"), "int"),
        **dict.fromkeys(
            ("learning_rate", "lr_exp_warmup_steps", "adam_beta1", "adam_beta2",
             "adam_weight_decay", "adam_epsilon", "max_grad_norm", "l1_loss_weight",
             "grad_loss_weight", "normals_consistency_loss_weight", "invalid_mask_weight"), "float"),
        **dict.fromkeys(
            ("debug", "enable_xformers", "use_EMA", "gradient_checkpointing",
             "only_train_attention_layers", "use_data_augmentation", "metric_depth", "log_scale",
             "clip_grad_norm", "run_validation", "run_tiny_validation"), "switch"),
        "vae_use_RoPE": "bool",
        "modality": "depth normals",
        "unet_positional_encoding": "uv RoPE none",
        "dataset": "PanoInfinigen Matterport3D360 Structured3D ScannetPP Structured3D_ScannetPP",
        "scenes": SCENES,
        "report_to": "tensorboard wandb",
    },
    "inference.py": {
        **dict.fromkeys(("config", "checkpoint_path", "data_path", "results_path"), "text"),
        "img_report_frequency": "int",
        **dict.fromkeys(("pred_only", "generate_eval", "enable_xformers"), "switch"),
        "dataset": "PanoInfinigen PanoInTheWild Matterport3D360 Stanford2D3DS Structured3D "
                   "Structured3D_ScannetPP Replica360_4K",
        "scenes": SCENES,
    },
    "generate_point_cloud.py": {
        **dict.fromkeys(("data_path", "depth_path", "normals_path"), "text"),
        "dataset": "PanoInfinigen Matterport3D360 PanoInTheWild Structured3D Stanford2D3DS "
                   "Replica360_4K",
        "color_modality": "rgb normals",
    },
    "app.py": {
        **dict.fromkeys(("depth_checkpoint_path", "normals_checkpoint_path"), "text"),
        "enable_xformers": "switch",
    },
    "evaluation/depth_evaluation.py": {
        **dict.fromkeys(("data_path", "pred_path"), "text"),
        "dataset": "PanoInfinigen Matterport3D360 Stanford2D3DS Structured3D Structured3D_ScannetPP",
        "alignment_type": "metric scale scale_and_shift",
        "save_error_maps": "switch",
        "error_maps_saving_frequency": "int",
    },
    "evaluation/normals_evaluation.py": {
        **dict.fromkeys(("data_path", "pred_path"), "text"),
        "dataset": "PanoInfinigen Structured3D",
    },
    "evaluation/edge_evaluation.py": {
        **dict.fromkeys(("data_path", "pred_path"), "text"),
        "dataset": "PanoInfinigen Structured3D Replica360_4K",
    },
}  # fmt: skip
SAMPLES: dict[str, tuple[list[str], object]] = {
    "text": (["some/where"], "some/where"), "int": (["7"], 7), "float": (["2.5e-3"], 2.5e-3),
    "switch": ([], True), "bool": (["False"], False),
}  # fmt: skip


@pytest.mark.parametrize("script", GOLDEN)
def test_flags_of_the_original_mean_what_they_meant(script):
    parser, flags = PARSERS[script], GOLDEN[script]
    assert (ROOT / script).is_file()
    samples = {
        flag: SAMPLES.get(kind, ([kind.split()[0]], kind.split()[0]))
        for flag, kind in flags.items()
    }
    argv = [word for flag, (words, _) in samples.items() for word in (f"--{flag}", *words)]
    parsed = vars(parser.parse_args(argv))
    found = {flag: parsed[flag] for flag in flags}
    found = {flag: str(v) if isinstance(v, Path) else v for flag, v in found.items()}
    assert found == {flag: value for flag, (_, value) in samples.items()}
    choices = {flag: kind.split() for flag, kind in flags.items() if kind not in SAMPLES}
    actions = {action.dest: action for action in parser._actions}
    for flag, values in choices.items():
        assert set(values) <= set(actions[flag].choices or ())


@pytest.mark.parametrize("script", GOLDEN)
def test_no_flag_of_ours_takes_the_place_of_an_original_one(script):
    """argparse completes prefixes: neither name may begin with the other."""
    actions = PARSERS[script]._option_string_actions
    pairs = {
        (short, long)
        for flag, option in itertools.product(GOLDEN[script], actions)
        for short, long in ((f"--{flag}", option), (option, f"--{flag}"))
        if long.startswith(short) and short.startswith("--") and actions[short] != actions[long]
    }
    assert pairs == ({("--tiny", "--tiny_val_frequency")} if script == "train.py" else set())


def test_the_one_prefix_is_read_whole():
    args = PARSERS["train.py"].parse_args(["--tiny_val_frequency", "50"])
    assert (args.tiny, args.tiny_val_frequency) == (False, 50)
    args = PARSERS["train.py"].parse_args(["--tiny"])
    assert (args.tiny, args.tiny_val_frequency) == (True, None)


def test_names_of_the_original_documentation_work():
    for script in ("train.py", "inference.py"):
        assert PARSERS[script].parse_args(["--configs", "c.yaml"]).config == "c.yaml"
    for name in ("normals_estimation.py", "edge_estimation.py"):
        assert (ROOT / "evaluation" / name).is_file()


def flags_of(parser: argparse.ArgumentParser) -> set[str]:
    return {action.dest for action in parser._actions} - {"help"}


def test_every_flag_is_read():
    """A flag that no code reads would be without effect; one is, see `docs/defects.md`."""
    trees = [ast.parse(path.read_text()) for path in (ROOT / "src").rglob("*.py")]
    read = {n.attr for tree in trees for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
    unread = {flag for parser in PARSERS.values() for flag in flags_of(parser) - read}
    assert unread == {"vae_use_RoPE"}


# ---- configs/base.yaml of the original ----------------------------------------------------------

ORIGINAL_YAML = """
debug: false
seed: 42
enable_xformers: False
training:
  num_train_epochs: 10
  max_train_steps: null
  gradient_accumulation_steps: 1
  only_train_attention_layers: true
  gradient_checkpointing: true
  resume_path: null
  use_EMA: true
model:
  modality: depth
  pretrained_path: GonzaloMG/marigold-e2e-ft-depth
  checkpoint_path: null
  unet_positional_encoding: RoPE
  vae_use_RoPE: true
  metric_depth: false
  log_scale: true
data:
  data_path: /mount/of/the/authors
  dataset: PanoInfinigen
  scenes: both
  batch_size: 1
  use_data_augmentation: true
optimization:
  learning_rate: 3e-4
  lr_exp_warmup_steps: 0.03
  adam_beta1: 0.9
  adam_beta2: 0.999
  adam_weight_decay: 1e-2
  adam_epsilon: 1e-8
  clip_grad_norm: true
  max_grad_norm: 1.0
loss:
  l1_loss_weight: 1.0
  grad_loss_weight: 0.0
  normals_consistency_loss_weight: 0.0
  invalid_mask_weight: 0.0
validation:
  run_validation: true
  run_tiny_validation: true
  tiny_val_frequency: 200
logging:
  tracker_project_name: Pager
  save_path: checkpoints/
  save_frequency: 1
  loss_report_frequency: 1
  img_report_frequency: 200
  report_to: wandb
  tensorboard:
    log_path: logs
  wandb:
    run_name: null
"""
MOVED = {
    "logging.tensorboard.log_path": "logging.logging_path",
    "logging.wandb.run_name": "logging.run_name",
}
OTHER_VALUES = {
    "modality": "normals", "unet_positional_encoding": "uv", "dataset": "ScannetPP",
    "scenes": "indoor", "report_to": "tensorboard", "max_train_steps": 7,
}  # fmt: skip


def walk(tree: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from walk(value, f"{above}{key}.")
        else:
            yield above + key, value


def leaves_of(config: TrainConfig) -> dict[str, Any]:
    return dict(walk(OmegaConf.to_container(OmegaConf.structured(config))))  # type: ignore[arg-type]


def test_yaml_of_the_original_gives_our_defaults(tmp_path):
    (tmp_path / "base.yaml").write_text(ORIGINAL_YAML)
    read = leaves_of(resolve_config(str(tmp_path / "base.yaml"), {}, []))
    differing = {key for key, value in leaves_of(TrainConfig()).items() if read[key] != value}
    assert differing == {"data.data_path", "logging.report_to", "logging.save_path"}
    assert read["data.data_path"] == "/mount/of/the/authors"
    assert (read["logging.report_to"], read["logging.save_path"]) == ("wandb", "checkpoints/")
    assert read["optimization.learning_rate"] == 3e-4  # a number, not the text "3e-4"


def test_every_key_of_the_original_yaml_has_its_effect(tmp_path):
    original: Any = OmegaConf.to_container(OmegaConf.create(ORIGINAL_YAML))
    assert len(dict(walk(original))) == 45
    (tmp_path / "base.yaml").write_text(ORIGINAL_YAML)
    before = leaves_of(resolve_config(str(tmp_path / "base.yaml"), {}, []))
    for key, value in walk(original):
        leaf = key.rpartition(".")[2]
        if isinstance(value, bool):
            other: Any = not value
        else:
            other = OTHER_VALUES.get(leaf, "other" if isinstance(value, str | None) else value + 1)
        changed = OmegaConf.create(original)
        OmegaConf.update(changed, key, other)
        OmegaConf.save(changed, tmp_path / "changed.yaml")
        after = leaves_of(resolve_config(str(tmp_path / "changed.yaml"), {}, []))
        difference = {name: item for name, item in after.items() if item != before[name]}
        assert difference == {MOVED.get(key, key): other}


# ---- models -------------------------------------------------------------------------------------


@torch.no_grad()
def predict(model: torch.nn.Module) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return model(torch.rand(1, 6, 3, 16, 16, generator=generator) * 2 - 1)


@pytest.mark.parametrize("value", [True, "RoPE"])
def test_d2_vae_never_has_rotary_positions(value, tmp_path, make_unet, model_config, checkpoints):
    save_checkpoint(tmp_path, make_unet(), model_config())
    stored = OmegaConf.load(tmp_path / CONFIG_NAME)
    stored.model.vae_use_RoPE = value
    OmegaConf.save(stored, tmp_path / CONFIG_NAME)
    model = load_model(tmp_path)
    assert {p.use_rope for p in model.unet.attn_processors.values()} == {True}
    assert {p.use_rope for p in model.vae.attn_processors.values()} == {False}
    assert torch.equal(predict(model), predict(load_model(checkpoints["depth"])))


def test_d3_coordinates_of_one_model_do_not_leak_into_the_next(make_model):
    alone = predict(make_model(unet_positional_encoding="none", modality="normals"))
    uv = make_model(unet_positional_encoding="uv")
    predict(uv)
    after = make_model(unet_positional_encoding="none", modality="normals")
    channels = [model.unet.conv_in.weight.shape[1] for model in (uv, after)]
    assert channels == [10, 8]
    assert torch.equal(predict(after), alone)
    assert uv.unet.conv_in.weight.is_leaf
    assert uv.unet.conv_in.weight.requires_grad


def test_d4_app_runs_uv_checkpoints_on_the_cpu(tmp_path, make_model, panorama):
    pytest.importorskip("gradio")
    from pager.app import ModelShelf

    model = make_model(unet_positional_encoding="uv")
    torch.nn.init.normal_(model.unet.conv_in.weight, std=0.1)
    save_checkpoint(tmp_path, model.unet, model.config)
    depth = ModelShelf({"Depth": str(tmp_path)}, device="cpu").predict("Depth", panorama).depth
    assert depth is not None
    rgb = torch.from_numpy(panorama).movedim(-1, 0)[None]
    with torch.no_grad():
        faces = model(erp_to_faces(rgb.float() / 127.5 - 1, 16))
        erp = cubemap_to_erp(faces, panorama.shape[:2], reg=PY360_E2X)
        expected = model.config.depth_range.denormalize(erp)[0]
    np.testing.assert_allclose(depth, expected.numpy(), rtol=1e-4)
    assert depth.std() > 0.01 * depth.mean()


def test_d9_depth_of_an_indoor_range():
    """What the original makes of 1, 3 and 10 m that were learned in a range up to 15 m."""
    learned = DepthRange(max_m=15.0).normalize(torch.tensor([1.0, 3, 10], dtype=torch.float64))
    assert DepthRange(max_m=75.0).denormalize(learned).tolist() == pytest.approx(
        [2.755, 10.53, 45.7], rel=1e-3
    )
    assert DepthRange(max_m=15.0).denormalize(learned).tolist() == pytest.approx(
        [1, 3, 10], rel=1e-5
    )


# ---- training -----------------------------------------------------------------------------------


def test_d6_save_frequency_counts_epochs_and_d9_range_is_stored(tmp_path, train_config, caplog):
    config = train_config(num_train_epochs=3, save_frequency=2, max_depth=15.0)
    trainer = Trainer(config, tmp_path)
    save, saved = trainer.save, []

    def recording() -> None:
        saved.append((trainer.state.epoch, trainer.state.step))
        save()

    trainer.save = recording  # type: ignore[method-assign]
    trainer.run()
    assert saved == [(2, 8), (3, 12)]  # four steps an epoch; the end is always saved
    assert locate(tmp_path / "checkpoint-last").config.max_depth == 15
    assert not caplog.records  # stored, not guessed from a name


def test_d7_network_is_final_before_it_is_distributed(tmp_path, train_config, monkeypatch):
    prepare, seen = Accelerator.prepare, []

    def spy(self, *objects):
        for unet in objects:
            if isinstance(unet, UNet2DConditionModel):
                chosen = {name for name, p in unet.named_parameters() if p.requires_grad}
                seen.append((unet.is_gradient_checkpointing, chosen))
        return prepare(self, *objects)

    monkeypatch.setattr(Accelerator, "prepare", spy)
    config = train_config(only_train_attention_layers=True, gradient_checkpointing=True)
    trainer = Trainer(config, tmp_path)
    unet = trainer.model.unet
    names = {name for name, _ in unet.named_parameters() if "transformer_blocks" in name}
    assert seen == [(True, names)]
    # Every trained parameter takes part, so that no process waits for a gradient.
    batch = prepare_batch(
        next(iter(trainer.train_loader)), trainer.model.config, torch.device("cpu")
    )
    trainer.model(batch.faces).square().sum().backward()
    assert {name for name, p in unet.named_parameters() if p.grad is not None} == names


def test_d7_every_process_saves_its_state(tmp_path, train_config):
    trainer = Trainer(train_config(), tmp_path)
    calls: list[str] = []
    trainer.accelerator = SimpleNamespace(  # type: ignore[assignment]
        is_main_process=False,
        wait_for_everyone=lambda: calls.append("wait"),
        save_state=calls.append,
    )
    trainer.save()
    assert calls == ["wait", str(tmp_path / "training_checkpoint.partial"), "wait", "wait"]
    assert list(tmp_path.iterdir()) == []  # weights and renames are the main process's


def test_d8_step_limit_ends_the_run(tmp_path, train_config):
    """The original goes on with one batch and a full validation in every remaining epoch."""
    config = train_config(num_train_epochs=4, max_train_steps=5, run_validation=True)
    trainer = Trainer(config, tmp_path)
    step, validate, done = trainer._train_step, trainer.validate, []

    def training(batch):
        done.append("step")
        return step(batch)

    def validating(loader, name):
        done.append("validation")
        return validate(loader, name)

    trainer._train_step = training  # type: ignore[method-assign]
    trainer.validate = validating  # type: ignore[method-assign]
    trainer.run()
    assert done == [*["step"] * 4, "validation", "step", "validation"]


def test_d16_reports_take_what_there_is_and_four_at_most(tmp_path, train_config):
    alone = SimpleNamespace(is_main_process=True, trackers=[])
    reporter = Reporter(alone, train_config(), tmp_path)  # type: ignore[arg-type]
    picture = np.zeros((20, 30, 3), np.uint8)
    sizes = {1: (20, 30), 2: (20, 60), 3: (40, 60), 4: (40, 60), 5: (40, 60)}
    for count, size in sizes.items():
        reporter.panoramas("val", [picture] * count, count)
        assert read_image(tmp_path / "images" / f"val_{count:07d}.jpg").shape[:2] == size
    reporter.panoramas("val", [], 6)
    assert len(list((tmp_path / "images").iterdir())) == len(sizes)


def test_d20_names_are_portable(monkeypatch):
    """No colon in a folder's name; hub ids stay text, whatever a path makes of their slashes."""
    folder = train._new_folder(TrainConfig(), overwrite=False)
    assert re.fullmatch(r"\d{4}(-\d\d){5}", folder.name)
    asked = []
    monkeypatch.setattr(
        "pager.checkpoint.snapshot_download", lambda name, **_: asked.append(name) or "."
    )
    fetch("owner//name")
    assert asked == ["owner//name"]


def test_d22_more_values_than_torch_quantile_takes(model_config):
    depth = torch.linspace(1, 11, 2**24 + 4096).view(1, 1, -1, 4096)
    with pytest.raises(RuntimeError, match="too large"):
        depth.flatten().quantile(0.5)
    everywhere = torch.ones_like(depth, dtype=torch.bool)
    target = depth_target(depth, everywhere, model_config(log_scale=False))[0, 0]
    # Quantiles 0.02 and 0.98 of 1..11 are 1.2 and 10.8; the middle, 6, is their mean.
    assert target[0, 0] == -1
    assert target[-1, -1] == 1
    middle = target.flatten()[(2**24 + 4096) // 2].item()
    assert middle == pytest.approx(0, abs=1e-5)
    aligned = align(depth, 3 * depth, everywhere, "median")
    assert aligned[0, 0, 0, 0].item() == pytest.approx(3, rel=1e-6)


# ---- data ---------------------------------------------------------------------------------------


def write_each(root: Path, room: Room) -> dict[str, list[str]]:
    """Three panoramas of every data set of files, and the ids in their order."""
    everywhere = np.ones(room.depth.shape, bool)
    for key in "bca":
        write_matterport(root, "test", "s", key, room)
        write_stanford(root, "area_1", f"camera_{key}", room)
        write_structured3d(root, 3250, key, room)
        write_replica(root, "s", key, room, everywhere)
        write_rgb(root / "PanoInTheWild" / f"{key}.png", room.rgb)
        write_rgb(root / "Folder" / f"{key}.png", room.rgb)
        write_scannetpp(root, "val", "s", key, room)
    (root / "ScannetPP/splits/nvs_sem_val.txt").write_text("s\n")
    prefixes = {
        "Matterport3D360": "", "Stanford2D3DS": "camera_", "Structured3D": "scene_03250_",
        "Replica360_4K": "s_", "PanoInTheWild": "", "Folder": "", "ScannetPP": "s_",
    }  # fmt: skip
    return {name: [f"{prefix}{key}" for key in "abc"] for name, prefix in prefixes.items()}


def listed(root: Path, name: str) -> list[str]:
    dataset = open_dataset(name, root / "Folder" if name == "Folder" else root, "test")
    return [view.id for view in dataset.views]


@pytest.mark.parametrize("place", ["a/b/c", "."])
def test_d14_ids_do_not_depend_on_the_folder(place, tmp_path, monkeypatch):
    """The original takes the parts 6 to 8 of the path, which those of `tmp_path` happen to fit."""
    monkeypatch.chdir(tmp_path)
    root = tmp_path / place if place != "." else Path()
    for name, ids in write_each(root, box_room(16)).items():
        assert listed(root, name) == ids


def test_d15_order_of_the_disk_does_not_matter(tmp_path, monkeypatch):
    expected = write_each(tmp_path, box_room(16))
    glob = Path.glob

    def shuffled(self, pattern, **options):
        found = sorted(glob(self, pattern, **options), reverse=True)
        random.Random(len(found)).shuffle(found)
        return iter(found)

    monkeypatch.setattr(Path, "glob", shuffled)
    for name, ids in expected.items():
        assert listed(tmp_path, name) == ids


# ---- inference ----------------------------------------------------------------------------------


def test_d17_points_and_normals_share_one_frame(tmp_path):
    """Every wall of an asymmetric room is where the point cloud and the normals say it is."""
    room = box_room(64)
    number = np.arange(64 * 128).reshape(64, 128)
    rgb = np.stack([number >> 8, number & 255, 0 * number], -1).astype(np.uint8)
    prediction = Prediction(
        depth=room.depth[None].astype(np.float32), normals=room.pager_normals.astype(np.float32)
    )
    write_prediction(tmp_path / "out", rgb, prediction, source="x.png")
    cloud = trimesh.load(tmp_path / "out/points.ply")
    pixel = np.asarray(cloud.colors)[:, :2].astype(int) @ [256, 1]
    normals = read_normals_png(tmp_path / "out/normals.png").reshape(-1, 3)[pixel]
    # Right, down, forward; distances of the walls that face each way (see `box_room`).
    walls = {(-1, 0, 0): 2.5, (1, 0, 0): 2.0, (0, 1, 0): 1.2, (0, -1, 0): 1.5, (0, 0, -1): 4.0,
             (0, 0, 1): 3.0}  # fmt: skip
    towards = -(normals * np.asarray(cloud.vertices)).sum(-1)
    for normal, distance in walls.items():
        is_wall = np.abs(normals - normal).max(-1) < 1e-4
        assert is_wall.sum() > 100
        np.testing.assert_allclose(towards[is_wall], distance, atol=2e-3)


def read_normals_png(path: Path) -> np.ndarray:
    import cv2

    stored = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert stored is not None
    return stored[..., ::-1].astype(np.float64) / 65535 * 2 - 1


def test_d18_eval_files_hold_the_raw_prediction(checkpoints, data_path, tmp_path):
    """The original puts its smallest depth where the data set has no truth, as in the sky."""
    dataset = PanoInfinigen(data_path, "test", "outdoor")
    sample, name = dataset[0], dataset.views[0].id
    flags = ["--dataset", "PanoInfinigen", "--data_path", str(data_path), "--scenes", "outdoor"]
    flags += ["--checkpoint_path", str(checkpoints["depth"]), "--results_path", str(tmp_path)]
    assert inference.main([*flags, "--generate_eval", "--pred_only"]) == 0
    folder = tmp_path / "depth/PanoInfinigen"
    with np.load(folder / "eval" / f"{name}.npz") as archive:
        depth = archive["arr_0"]
    rgb = sample["rgb"].movedim(0, -1).numpy()
    expected = PagerPipeline.from_pretrained(checkpoints["depth"], device="cpu")(rgb).depth
    assert np.array_equal(depth, expected)
    unknown = ~DepthRange().valid(sample["depth"]).numpy()
    assert unknown.sum() > 100
    assert depth[unknown].min() > 0.011
    assert read_image(folder / "example_images" / f"{name}.jpg").shape == rgb.shape  # not 16:9


def test_d23_nothing_is_computed_twice(data_path, make_model):
    sample = PanoInfinigen(data_path, "train")[0]
    assert set(sample) == {"id", "rgb", "depth", "normals"}  # workers make no faces
    assert sample["rgb"].dtype == torch.uint8
    batch = stack_samples([sample])
    model = make_model()
    prepare_batch(batch, model.config, torch.device("cpu"))
    before = cache_info()
    prepare_batch(batch, model.config, torch.device("cpu"))
    after = cache_info()
    assert (after.misses, after.entries) == (before.misses, before.entries)
    assert after.hits > before.hits
    first, second = (rope_table(4, 8, torch.device("cpu")) for _ in range(2))
    assert first[0] is second[0]
    texts = []
    hook = model.unet.register_forward_pre_hook(lambda _, inputs: texts.append(inputs[2]))
    predict(model)
    hook.remove()
    assert (texts[0].shape[0], texts[0].stride(0)) == (6, 0)  # six views of one embedding
    assert choose_dtype("auto", torch.device("cuda")) == torch.bfloat16
