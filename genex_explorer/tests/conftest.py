"""Small pipelines and clips that several tests share."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def micro_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random pipeline folder: UNet of the spec's parity row 4, VAE of factor 4; 32x64 pixels."""
    from diffusers.models.unets.unet_spatio_temporal_condition import (
        UNetSpatioTemporalConditionModel,
    )

    from genex_explorer.tiny import tiny_pipeline

    folder = tmp_path_factory.mktemp("micro")
    pipeline = tiny_pipeline(0)
    torch.manual_seed(0)
    pipeline.unet = UNetSpatioTemporalConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        cross_attention_dim=32,
        num_attention_heads=(2, 4),
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=96,
        num_frames=4,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
    )
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def micro_clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five procedural clips of 6 frames, 32x64, in the documented two-level layout."""
    from genex_explorer.data.procedural import ClipOptions, write_clips

    folder = tmp_path_factory.mktemp("clips")
    options = ClipOptions(frames=6, size=(64, 32), aa=1)
    write_clips(folder, {"room": 2, "corridor": 2, "outdoor": 1}, split="test", options=options)
    return folder
