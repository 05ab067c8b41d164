"""Random miniature networks, checkpoints and procedural panoramas shared by the tests.

The networks are of the stock classes but smaller than the embedded ones: what is tested with them
is arithmetic, not quality.
"""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read by huggingface_hub when it is imported
os.environ["TQDM_DISABLE"] = "1"

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image
from safetensors.torch import save_file

from pager.checkpoint import EMPTY_PROMPT, encode_empty_prompt, load_base_model, save_checkpoint
from pager.config import TrainConfig, resolve_config
from pager.data.procedural import render_frame, write_procedural
from pager.model import ModelConfig, PagerModel
from pager.tiny import TEXT_WIDTH, tiny_scheduler, write_tiny_text_encoder

FACE_SIZE = 16
ERP_SIZE = (32, 64)

Network = TypeVar("Network", bound=torch.nn.Module)

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def make_unet() -> Callable[..., UNet2DConditionModel]:
    def make(in_channels: int = 8, widths: tuple[int, int] = (16, 32)) -> UNet2DConditionModel:
        torch.manual_seed(1)
        unet = UNet2DConditionModel(
            sample_size=FACE_SIZE // 2, in_channels=in_channels, out_channels=4,
            block_out_channels=widths, layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            attention_head_dim=(2, 4), cross_attention_dim=TEXT_WIDTH, norm_num_groups=8,
            use_linear_projection=True,
        )  # fmt: skip
        return liven(unet)

    return make


@pytest.fixture(scope="session")
def make_vae() -> Callable[[], AutoencoderKL]:
    def make() -> AutoencoderKL:
        torch.manual_seed(2)
        vae = AutoencoderKL(
            sample_size=FACE_SIZE, block_out_channels=(8, 16), layers_per_block=1,
            latent_channels=4, norm_num_groups=4,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
        )  # fmt: skip
        return liven(vae)

    return make


def liven(network: Network) -> Network:
    """Draw norm weights and biases too, so that no branch of a random network is inert."""
    for parameter in network.parameters():
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, 0.5, 0.3)
    return network.eval()


# ---- checkpoints --------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def base(tmp_path_factory, make_unet, make_vae) -> Path:
    """A base model: scheduler, tokenizer, text_encoder, vae, unet and the cached empty prompt."""
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(3)
    write_tiny_text_encoder(folder)
    tiny_scheduler().save_pretrained(folder / "scheduler")
    make_vae().save_pretrained(folder / "vae")
    make_unet().save_pretrained(folder / "unet")
    save_file({"embedding": encode_empty_prompt(folder)}, folder / EMPTY_PROMPT)
    return folder


@pytest.fixture(scope="session")
def model_config(base: Path) -> Callable[..., ModelConfig]:
    def make(**options) -> ModelConfig:
        return ModelConfig(**{"pretrained_path": str(base), "face_size": FACE_SIZE, **options})

    return make


@pytest.fixture
def make_model(model_config) -> Callable[..., PagerModel]:
    """A fresh `PagerModel` from the base model."""

    def make(**options) -> PagerModel:
        return load_base_model(model_config(**options)).eval()

    return make


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory, make_unet, model_config) -> dict[str, Path]:
    """Random checkpoints in the hub layout: modality -> folder."""
    root = tmp_path_factory.mktemp("checkpoints")
    for modality in ("depth", "normals"):
        save_checkpoint(root / modality, make_unet(), model_config(modality=modality))
    return {modality: root / modality for modality in ("depth", "normals")}


# ---- data ---------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def data_path(tmp_path_factory) -> Path:
    """PanoInfinigen layout: four training, two validation and two test panoramas of 32x64."""
    root = tmp_path_factory.mktemp("data")
    counts = {
        "train": {"room": 2, "corridor": 1, "outdoor": 1},
        "val": {"room": 1, "outdoor": 1},
        "test": {"room": 1, "outdoor": 1},
    }
    for split, scenes in counts.items():
        write_procedural(root, split=split, scenes_per_kind=scenes, size=ERP_SIZE)
    return root


@pytest.fixture(scope="session")
def panorama() -> np.ndarray:
    """A procedural room, (32, 64, 3) uint8."""
    return render_frame(7, "room", 0, ERP_SIZE).rgb


@pytest.fixture
def write_panoramas(panorama: np.ndarray) -> Callable[[Path, int], list[Path]]:
    """Write a number of different panoramas (rolled copies) as PNG files."""

    def write(folder: Path, count: int) -> list[Path]:
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"pano{i:02d}.png" for i in range(count)]
        for i, path in enumerate(paths):
            Image.fromarray(np.roll(panorama, 3 * i, 1)).save(path)
        return paths

    return write


@pytest.fixture(scope="session")
def train_config(base: Path, data_path: Path) -> Callable[..., TrainConfig]:
    """Options of a run of seconds; keywords are leaf names."""

    def make(**flags) -> TrainConfig:
        defaults = {
            "pretrained_path": str(base), "data_path": str(data_path), "face_size": FACE_SIZE,
            "num_workers": 0, "gradient_checkpointing": False, "only_train_attention_layers": False,
            "run_validation": False, "run_tiny_validation": False, "learning_rate": 1e-3,
            "report_to": "none",
        }  # fmt: skip
        return resolve_config(None, {**defaults, **flags}, [])

    return make
