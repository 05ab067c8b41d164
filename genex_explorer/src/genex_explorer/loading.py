"""Loading SVD pipelines: hub ids and folders, any of the file names under which they are stored."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_temporal_decoder import (
    AutoencoderKLTemporalDecoder,
)
from diffusers.models.unets.unet_spatio_temporal_condition import (
    UNetSpatioTemporalConditionModel,
)
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection
from transformers.utils import logging

from genex_explorer.pipeline import GenexPipeline

# Tried in this order: plain safetensors, the half-precision variant, old pickles (weights only).
STORED_AS: tuple[dict[str, Any], ...] = (
    {"use_safetensors": True},
    {"variant": "fp16", "use_safetensors": True},
    {"use_safetensors": False},
)


@contextlib.contextmanager
def quiet_bars() -> Iterator[None]:
    """Without the bars of transformers for every single file; those of downloads stay."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _load(cls: Any, path: str, subfolder: str, revision: str | None, dtype: torch.dtype) -> Any:
    if path.startswith((".", "/", "~")) and not Path(path).is_dir():
        raise FileNotFoundError(f"model folder {path} does not exist; pass a folder or a hub id")
    if Path(path).is_dir() and not (Path(path) / subfolder / "config.json").is_file():
        raise FileNotFoundError(
            f"{path} has no {subfolder}/config.json; pass the folder of a Stable Video Diffusion "
            "pipeline (with unet/, vae/, image_encoder/)"
        )
    dtype_name = "dtype" if cls is CLIPVisionModelWithProjection else "torch_dtype"
    problem = ""
    for stored in STORED_AS:
        options = {"subfolder": subfolder, "revision": revision, dtype_name: dtype, **stored}
        try:
            with quiet_bars():
                return cls.from_pretrained(path, **options)
        except OSError as error:
            problem = problem or " ".join(str(error).split())
        except (ValueError, RuntimeError) as error:  # shapes or keys of another architecture
            raise ValueError(
                f"{path}/{subfolder} does not fit {cls.__name__}: {' '.join(str(error).split())}"
            ) from error
    where = "the folder" if Path(path).is_dir() else "the hub (is HF_HUB_OFFLINE set?)"
    raise FileNotFoundError(f"no weights for {subfolder} of {path} in {where}: {problem[:300]}")


def _load_config(cls: Any, path: str, subfolder: str, revision: str | None) -> Any:
    """A part without weights."""
    try:
        return cls.from_pretrained(path, subfolder=subfolder, revision=revision)
    except OSError as error:
        raise FileNotFoundError(
            f"no {subfolder} configuration of {path}: {' '.join(str(error).split())[:300]}"
        ) from error


def load_unet(
    path: str, revision: str | None = None, dtype: torch.dtype = torch.float32
) -> UNetSpatioTemporalConditionModel:
    """Load the sub-folder ``unet`` of a pipeline.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not an SVD UNet with 8 input channels.
    """
    unet = _load(UNetSpatioTemporalConditionModel, path, "unet", revision, dtype)
    if unet.config["in_channels"] != 8:
        raise ValueError(
            f"the UNet of {path} has {unet.config['in_channels']} input channels, SVD has 8; models "
            "with camera conditions (EvoWorld: 18) need their own code"
        )
    return unet


def load_encoders(
    path: str, revision: str | None = None, dtype: torch.dtype = torch.float32
) -> tuple[AutoencoderKLTemporalDecoder, CLIPVisionModelWithProjection]:
    """Load the frozen parts of a pipeline: VAE and CLIP image encoder; raises as `load_unet`."""
    vae = _load(AutoencoderKLTemporalDecoder, path, "vae", revision, dtype)
    encoder = _load(CLIPVisionModelWithProjection, path, "image_encoder", revision, dtype)
    return vae, encoder


def load_pipeline(
    path: str,
    *,
    unet_path: str | None = None,
    revision: str | None = None,
    unet_revision: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> GenexPipeline:
    """Load a Stable Video Diffusion pipeline.

    Args:
        path: hub id or folder.
        unet_path: hub id or folder whose ``unet`` replaces the pipeline's, e.g. a checkpoint.
        revision: hub revision of the pipeline.
        unet_revision: of the UNet, if another.
        dtype: of all weights.

    Raises:
        FileNotFoundError: a part is missing.
        ValueError: a part is of another architecture.
    """
    unet = load_unet(unet_path or path, None if unet_path else unet_revision or revision, dtype)
    vae, encoder = load_encoders(path, revision, dtype)
    width = unet.config["cross_attention_dim"]
    if encoder.config.projection_dim != width:
        raise ValueError(
            f"the image encoder of {path} gives {encoder.config.projection_dim} numbers, the UNet "
            f"of {unet_path or path} expects {width}; they belong to different models"
        )
    return GenexPipeline(
        vae=vae,
        image_encoder=encoder,
        unet=unet,
        scheduler=_load_config(EulerDiscreteScheduler, path, "scheduler", revision),
        feature_extractor=_load_config(CLIPImageProcessor, path, "feature_extractor", revision),
    )
