"""What the benchmarks run: networks of SVD's architecture, training steps, exploration segments.

Weights are random: the arithmetic is that of trained ones. The stock rows are what the published
script does: float32 weights, all frames encoded at once, diffusers' own switches.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl_temporal_decoder import (
    AutoencoderKLTemporalDecoder,
)
from diffusers.models.unets.unet_spatio_temporal_condition import (
    UNetSpatioTemporalConditionModel,
)
from PIL import Image
from torch import Tensor
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from genex_explorer.checkpointing import enable_checkpointing
from genex_explorer.conditioning import clip_tokens
from genex_explorer.cross_attention import use_single_token_shortcut
from genex_explorer.edm import denoise, precondition, weighted_error
from genex_explorer.parameters import select_trainable
from genex_explorer.pipeline import GenexPipeline, SeamMode
from genex_explorer.scl import combine, draw_columns, scl_loss
from genex_explorer.tiny import CLIP_MEAN, CLIP_STD, svd_scheduler
from genex_explorer.training.noising import NoisyBatch, make_batch, sample_generator
from genex_explorer.training.options import TrainOptions
from genex_explorer.training.setup import build_optimizer
from genex_explorer.vae import encode_moments
from genex_explorer.walk import WalkSettings, generate_clips

Run = Callable[[], np.ndarray | None]
"""Does once what is measured; gives what other rows must equal, None where they need not."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """Networks of the architecture of SVD, and the clip that goes through them."""

    unet: tuple[int, ...]  # channels of the levels
    vae: tuple[int, ...]
    clip: tuple[int, int, int]  # width, layers, heads
    context: int  # width of the CLIP token
    frames: int
    height: int  # pixels
    width: int
    sampling_steps: int = 2  # of an exploration segment; SVD takes 25 to 50


REAL = Size(
    unet=(320, 640, 1280, 1280), vae=(128, 256, 512, 512), clip=(1280, 32, 16), context=1024,
    frames=25, height=576, width=1024,
)  # fmt: skip
MIDDLE = Size(
    unet=(64, 128, 256, 256), vae=(32, 32, 64, 64), clip=(256, 6, 4), context=256,
    frames=8, height=128, width=256,
)  # fmt: skip
SHORT = replace(MIDDLE, frames=6, width=192)  # the decoder is slow on a CPU
QUICK = Size(
    unet=(32, 64, 64), vae=(32, 32, 64), clip=(32, 2, 2), context=32,
    frames=2, height=32, width=64,
)  # fmt: skip


# ---- networks -----------------------------------------------------------------------------------


def random_unet(size: Size, device: torch.device) -> UNetSpatioTemporalConditionModel:
    """Stock UNet with random weights."""
    coarser = len(size.unet) - 1
    with device:
        unet: Any = UNetSpatioTemporalConditionModel(
            block_out_channels=size.unet,
            down_block_types=("CrossAttnDownBlockSpatioTemporal",) * coarser
            + ("DownBlockSpatioTemporal",),
            up_block_types=("UpBlockSpatioTemporal",)
            + ("CrossAttnUpBlockSpatioTemporal",) * coarser,
            num_attention_heads=tuple(max(1, channels // 64) for channels in size.unet),
            cross_attention_dim=size.context,
            num_frames=size.frames,
        )
    return unet.to(device)  # the blend factors too, which are made on the CPU


def random_pipeline(size: Size, device: torch.device) -> GenexPipeline:
    """All parts with random weights, the same at every call, in float32."""
    width, layers, heads = size.clip
    vision = CLIPVisionConfig(
        hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers,
        num_attention_heads=heads, image_size=224, patch_size=14, projection_dim=size.context,
    )  # fmt: skip
    levels: Any = {  # diffusers annotates tuples of length one
        "block_out_channels": size.vae,
        "down_block_types": ("DownEncoderBlock2D",) * len(size.vae),
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = random_unet(size, device)
        with device:
            vae: Any = AutoencoderKLTemporalDecoder(layers_per_block=2, latent_channels=4, **levels)
            encoder: Any = CLIPVisionModelWithProjection(vision)
    processor = CLIPImageProcessor(image_mean=CLIP_MEAN, image_std=CLIP_STD)
    vae.to(device).requires_grad_(False)
    encoder.to(device).requires_grad_(False)
    return GenexPipeline(vae, encoder, unet, svd_scheduler(), processor)


# ---- runs ---------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Step:
    """A training step: encode, add noise, forward, EDM loss, backward, AdamW."""

    name: str
    cached: bool = False  # moments and CLIP token come from a latent cache
    shortcut: bool = False
    options: dict[str, Any] = field(default_factory=dict)  # of `TrainOptions`

    def but(self, name: str, *, cached: bool = False, shortcut: bool = False, **options: Any):
        """This step with something more."""
        return Step(
            name=name, cached=self.cached or cached, shortcut=self.shortcut or shortcut,
            options=self.options | options,
        )  # fmt: skip

    def prepare(self, size: Size, device: torch.device) -> Run:
        """Build networks and optimizer; every run is one update and gives its loss."""
        options = TrainOptions(
            num_frames=size.frames, width=size.width, height=size.height,
            conditioning_dropout_prob=0.0, **self.options,
        )  # fmt: skip
        pipeline: Any = random_pipeline(size, device)
        vae, encoder, unet = pipeline.vae, pipeline.image_encoder, pipeline.unet
        is_half = options.mixed_precision == "bf16"
        if is_half:
            vae.bfloat16()
            encoder.bfloat16()
        optimizer = build_optimizer(options, self._prepare_unet(unet, options), 1)
        shape = (1, size.frames, 3, size.height, size.width)
        pixels = 2 * torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(device) - 1
        first = pixels[:, 0]

        @torch.no_grad()
        def encode() -> tuple[Tensor, Tensor]:
            moments = encode_moments(vae, pixels[0].to(vae.dtype), chunk=options.vae_chunk)
            return moments[None], clip_tokens(encoder, pipeline.feature_extractor, first)

        stored = None
        if self.cached:
            moments, token = encode()
            stored = moments.half().float(), token.half().float()  # as on disk

        def step() -> np.ndarray | None:
            moments, token = stored or encode()
            with torch.no_grad():
                source: Any = sample_generator(0, 0)
                batch = make_batch(vae, moments, first, token, options, [source])
            with torch.autocast(device.type, torch.bfloat16, enabled=is_half):
                v = unet(
                    batch.network_input,
                    precondition(batch.sigma).c_noise,
                    encoder_hidden_states=batch.context,
                    added_time_ids=batch.ids,
                ).sample
            estimate = denoise(v, batch.noisy, batch.sigma)
            loss = weighted_error(estimate, batch.latents, batch.sigma).mean()
            if options.scl_loss:
                loss = combine(loss, _consistency(options, vae, estimate, batch, pixels), 0.5)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            value = loss.detach().cpu().numpy()  # waits for the device
            return None if options.scl_loss else value

        return step

    def _prepare_unet(self, unet: Any, options: TrainOptions) -> list[torch.nn.Parameter]:
        """Apply what concerns the UNet; gives the trained parameters."""
        if self.shortcut:
            use_single_token_shortcut(unet)
        if options.gradient_checkpointing:
            enable_checkpointing(unet, options.checkpoint_scope)
        trained = [parameter for _, parameter in select_trainable(unet, options.trainable)]
        if options.cast_frozen:
            for parameter in unet.parameters():
                if not parameter.requires_grad:
                    parameter.data = parameter.data.to(torch.bfloat16)
        unet.train()
        return trained


def _consistency(
    options: TrainOptions, vae: Any, estimate: Tensor, batch: NoisyBatch, pixels: Tensor
) -> Tensor:
    """The same turns at every call."""
    source = sample_generator(0, 0, "scl")
    columns = draw_columns(options.width, options.num_scl_samples, source)
    return scl_loss(
        vae, estimate, batch.latents, pixels, batch.sigma, mode=options.scl_mode,
        columns=[columns], generators=[source], chunk=options.scl_frames,
    ).mean()  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Segment:
    """One exploration segment, or several: panorama to clip."""

    name: str
    stock: bool = False  # the call of diffusers' class
    seam_mode: SeamMode = "none"
    shortcut: bool = False
    decode_chunk: int = 8
    clips: int = 1
    batched: bool = False  # else one after the other

    def prepare(self, size: Size, device: torch.device) -> Run:
        """Build the pipeline; every run gives the frames of the first clip, to 255."""
        ours = random_pipeline(size, device)
        ours.seam_mode = self.seam_mode
        if self.shortcut:
            use_single_token_shortcut(ours.unet)
        shape = (self.clips, size.height, size.width, 3)
        views = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        same: Any = {
            "width": size.width,
            "height": size.height,
            "num_frames": size.frames,
            "num_inference_steps": size.sampling_steps,
        }
        settings = WalkSettings(decode_chunk=self.decode_chunk, **same)
        stock: Any = ours.stock()
        for pipeline in (ours, stock):
            pipeline.set_progress_bar_config(disable=True)

        def run_stock() -> np.ndarray:
            frames = stock(
                Image.fromarray(views[0]), generator=torch.Generator().manual_seed(0),
                decode_chunk_size=self.decode_chunk, output_type="np", **same,
            ).frames  # fmt: skip
            return (frames[0] * 255).round()

        def run_ours() -> np.ndarray | None:
            groups = [list(views)] if self.batched else [[view] for view in views]
            clips = [generate_clips(ours, part, [0] * len(part), settings) for part in groups]
            return clips[0][0].astype(np.float32) if self.seam_mode == "none" else None

        return run_stock if self.stock else run_ours


# ---- rows ---------------------------------------------------------------------------------------

STOCK = Step(name="stock step", options={"vae_chunk": REAL.frames})
STOCK_SCOPE = STOCK.but(
    "stock checkpointing", gradient_checkpointing=True, checkpoint_scope="stock"
)
FULL_SCOPE = STOCK_SCOPE.but("full-scope checkpointing", checkpoint_scope="full", vae_chunk=5)
CACHED = FULL_SCOPE.but("+ latent cache", cached=True)
SHORTCUT = CACHED.but("+ single-token shortcut", shortcut=True)
EXACT = (STOCK, STOCK_SCOPE, FULL_SCOPE, CACHED, SHORTCUT)
STEPS = (*EXACT, SHORTCUT.but("+ bfloat16 autocast", mixed_precision="bf16"))

HALF = tuple(step.but(step.name, mixed_precision="bf16") for step in EXACT)
CAST = HALF[-1].but("+ cast_frozen", cast_frozen=True)
CUDA_STEPS = (*HALF, CAST, CAST.but("+ 8-bit Adam", use_8bit_adam=True))


def scl_steps(plain: Step) -> tuple[Step, ...]:
    """The consistency loss on top of a step."""
    return (
        plain.but("plain step"),
        plain.but("pixel, 1 rotation", scl_loss=True),
        plain.but("pixel, 3 rotations", scl_loss=True, num_scl_samples=3),
        plain.but("pixel_strip", scl_loss=True, scl_mode="pixel_strip"),
        plain.but("latent", scl_loss=True, scl_mode="latent"),
    )


SCL_STEPS = scl_steps(STOCK)
CUDA_SCL_STEPS = scl_steps(CAST.but("", scl_frames=1))
SEGMENTS = (
    Segment(name="stock pipeline", stock=True),
    Segment(name="ours, seam_mode none"),
    Segment(name="single-token shortcut", shortcut=True),
    Segment(name="decode_chunk 2", decode_chunk=2),
    Segment(name="seam_mode vae (default)", seam_mode="vae"),
    Segment(name="three branches, one after the other", clips=3),
    Segment(name="three branches in one batch", clips=3, batched=True),
)
