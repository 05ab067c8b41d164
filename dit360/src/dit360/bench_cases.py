"""What the benchmarks run: each function builds one thing to measure, `TABLES` puts them together.

Networks are FLUX in small with random weights: the arithmetic is that of trained ones. The first
case of a table is what stock diffusers or the original code does, the others are ours.
"""

import shutil
import tempfile
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from torch import Tensor

from dit360 import vae
from dit360.editing.inject import inject
from dit360.editing.settings import EditSettings
from dit360.embedded import TINY_TEXT_LENGTH
from dit360.losses import cube_residual, flow_losses, yaw_residual
from dit360.memory import store_in_8_bits
from dit360.modulation import precompute_modulation
from dit360.pipeline import DiT360Pipeline
from dit360.textcache import TextCache
from dit360.tiny import MICRO, Sizes, random_pipeline
from dit360.training.build import add_adapter
from dit360.training.module import DiT360Training
from dit360.training.options import TrainOptions

PROMPT = "This is a panorama. A field under a sky. There is a box in front."
Part = Literal["panorama", "blocks", "vae", "text", "tokens"]
CLOSE_TO_ONE = 1 - 1e-6  # gamma and eta that need the network, and change the result by no more


@dataclass(frozen=True, kw_only=True)
class Size:
    """Networks, and the panorama that goes through them."""

    networks: Sizes
    height: int  # pixels
    text_length: int  # T5 tokens
    steps: int = 2  # of a generation or an edit
    batch: int = 1

    def describe(self, parts: Sequence[Part]) -> str:
        """What a table needs to know of it, for the title."""
        net = self.networks
        texts: dict[Part, str] = {
            "panorama": f"{self.height}x{2 * self.height} pixels, batch {self.batch}",
            "blocks": f"{net.double_blocks} + {net.single_blocks} blocks of width "
            f"{net.heads * net.head_dim}",
            "vae": f"VAE {'/'.join(map(str, net.vae_widths))}",
            "text": f"T5 of {net.text_layers} layers of {net.text_dim}",
            "tokens": f"{self.text_length} text tokens",
        }
        return ", ".join(texts[part] for part in parts)


SMALL = Sizes(3, 6, 4, 64, (8, 28, 28), 128, 64, 2, (32, 32, 64, 64), 8)
QUICK = Size(networks=MICRO, height=64, text_length=TINY_TEXT_LENGTH)
MIDDLE = Size(networks=SMALL, height=256, text_length=64, steps=4)
EDITED = replace(MIDDLE, height=192, steps=10)
DEEP = SMALL._replace(
    double_blocks=6, single_blocks=12, vae_widths=(8, 8, 16, 16), vae_groups=4
)  # so that memory goes to the transformer, as at the real size
TRAINED = replace(MIDDLE, networks=DEEP, height=192, batch=2)
LOSSES = replace(QUICK, height=1024, batch=4)  # the real size of the latents
TEXT = replace(MIDDLE, networks=SMALL._replace(text_dim=512, text_layers=8), text_length=512)


@dataclass
class Prepared:
    """A thing to measure.

    Attributes:
        run: does it once and gives numbers that other cases of the table should equal.
        units: how often a run does what the table states the time of.
        facts: columns of the row that are counted; complete after the first run.
    """

    run: Callable[[], np.ndarray]
    units: int = 1
    facts: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """A row: `build(size, **options)` makes what is measured, in a process of its own."""

    name: str
    build: Callable[..., Prepared]
    options: dict[str, Any] = field(default_factory=dict)
    is_compared: bool = True  # its numbers should be those of the first row

    def prepare(self, size: Size) -> Prepared:
        """Build networks and inputs, the same at every call."""
        return self.build(size, **self.options)


@dataclass(frozen=True, kw_only=True)
class Table:
    """Cases of which the first is what the others are compared with."""

    title: str
    size: Size
    tells: Sequence[Part]  # of the size
    cases: Sequence[Case]


# ---- generation ---------------------------------------------------------------------------------


def generation(size: Size, *, stock: bool = False, padding_n: int = 1) -> Prepared:
    """Denoising by the stock pipeline or by ours; times are those of one step."""
    parts = _without_text(size)
    if stock:
        return _denoising(FluxPipeline(**parts), size)
    pipeline = DiT360Pipeline(**parts)
    pipeline.padding_n = padding_n
    return _denoising(pipeline, size)


def storage(size: Size, *, planned: bool = False, eight_bits: bool = False) -> Prepared:
    """`generation` with fewer bytes of weights on the device, in the order of the loader."""
    pipeline: Any = DiT360Pipeline(**_without_text(size))
    if planned:
        precompute_modulation(pipeline)
    if eight_bits:
        store_in_8_bits(pipeline, torch.float32)
    prepared = _denoising(pipeline, size)
    stored = sum(p.nbytes for p in pipeline.transformer.parameters())
    prepared.facts["weights_mib"] = stored / 2**20
    return prepared


def _without_text(size: Size) -> dict[str, Any]:
    parts: dict[str, Any] = random_pipeline(size.networks).components
    return parts | {"text_encoder": None, "text_encoder_2": None}


def _denoising(pipeline: Any, size: Size) -> Prepared:
    """From embeddings to latents; every run has another prompt, so that plans are made anew."""
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    net = size.networks

    def run() -> np.ndarray:
        latents = pipeline(
            prompt_embeds=torch.randn(1, size.text_length, net.text_dim, generator=generator),
            pooled_prompt_embeds=torch.randn(1, net.pooled_dim, generator=generator),
            height=size.height,
            width=2 * size.height,
            num_inference_steps=size.steps,
            generator=generator,
            output_type="latent",
        ).images
        return latents.numpy()

    return Prepared(run, size.steps)


def decoding(size: Size, *, wrap: vae.VaeWrap = "circular", tiles: int = 1) -> Prepared:
    """The VAE alone, in tiles of a part of the width, a quarter of which overlaps the next."""
    network: Any = random_pipeline(size.networks).vae
    vae.set_vae_wrap(network, wrap)
    shape = (1, 16, size.height // 8, size.height // 4)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def run() -> np.ndarray:
        return vae.decode(network, latents, tile_columns=size.height // 4 // tiles).numpy()

    return Prepared(run)


def text(size: Size, *, cached: bool = False) -> Prepared:
    """Embeddings of one prompt, from the encoders or from the disk."""
    pipeline: Any = random_pipeline(size.networks)
    pipeline.transformer = pipeline.vae = None

    @torch.no_grad()
    def encode() -> tuple[Tensor, Tensor]:
        embeds, pooled, _ = pipeline.encode_prompt(
            PROMPT, None, max_sequence_length=size.text_length
        )
        return embeds[0], pooled[0]

    if not cached:
        return Prepared(lambda: _flat(encode()))
    folder = Path(tempfile.mkdtemp())
    model = folder / "model"
    pipeline.text_encoder.save_pretrained(model / "text_encoder")  # by which a cache knows models
    cache = TextCache(folder / "cache", model, max_length=size.text_length)
    weakref.finalize(cache, shutil.rmtree, folder)
    cache.encode_all(pipeline, [PROMPT])
    return Prepared(lambda: _flat(cache.get(PROMPT)))


def _flat(parts: tuple[Tensor, Tensor]) -> np.ndarray:
    return torch.cat([part.float().flatten() for part in parts]).numpy()


# ---- editing ------------------------------------------------------------------------------------


def editing(size: Size, **settings: Any) -> Prepared:
    """An edit from pixels to latents that keeps the front view."""
    pipeline: Any = DiT360Pipeline(**random_pipeline(size.networks).components)
    vae.set_vae_wrap(pipeline.vae)
    pipeline.set_progress_bar_config(disable=True)
    given = EditSettings(
        prompt=PROMPT,
        num_inference_steps=size.steps,
        max_sequence_length=size.text_length,
        **settings,
    )
    shape = (1, 3, size.height, 2 * size.height)
    images = 2 * torch.rand(shape, generator=torch.Generator().manual_seed(0)) - 1
    rows, columns = pipeline.token_grid(*shape[-2:])
    keep = torch.zeros(rows, columns, dtype=torch.bool)
    keep[rows // 4 : -rows // 4, 3 * columns // 8 : -3 * columns // 8] = True
    facts: dict[str, float] = {}

    @torch.no_grad()
    def run() -> np.ndarray:
        latents, _, facts["evaluations"] = inject(pipeline, images, keep, given)
        return latents.numpy()

    return Prepared(run, facts=facts)


# ---- training -----------------------------------------------------------------------------------


def auxiliary(size: Size, *, samples: int) -> Prepared:
    """Yaw and cube loss of a batch and their gradient, resampling one residual or three tensors.

    Three: prediction, noise and image one by one, as in the original, on the same grids.
    """
    shape = (size.batch, 16, size.height // 8, size.height // 4)
    generator = torch.Generator().manual_seed(0)
    velocity, noise, clean = (torch.randn(shape, generator=generator) for _ in range(3))
    velocity.requires_grad_()
    angles = torch.full((size.batch,), 60.0)

    def loss() -> Tensor:
        if samples == 1:
            result = flow_losses(
                velocity - (noise - clean),
                torch.ones(size.batch),
                lambda_yaw=0.5,
                lambda_cube=0.5,
                angles_deg=angles,
            )
            return result.total.mean()
        turned = [yaw_residual(part, angles) for part in (velocity, noise, clean)]
        faces = [cube_residual(part) for part in (velocity, noise, clean)]
        parts = (velocity, noise, clean), turned, faces
        plain, yaw, cube = ((v - (e - x)).square().mean() for v, e, x in parts)
        return plain + 0.5 * yaw + 0.5 * cube

    return Prepared(lambda: torch.autograd.grad(loss(), velocity)[0].numpy())


def training(size: Size, *, checkpointing: bool, dropout: float = 0.05) -> Prepared:
    """One update: encode, add noise, forward, all losses, backward, AdamW on the LoRA."""
    options = TrainOptions(
        resolution=size.height, rank=16, lora_alpha=16, lora_drop_out=dropout, aux_from_epoch=0
    )
    pipeline: Any = random_pipeline(size.networks)
    network: Any = pipeline.transformer
    pipeline.vae.requires_grad_(False)
    vae.set_vae_wrap(pipeline.vae)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        lora = add_adapter(network, options)
    if checkpointing:
        network.enable_gradient_checkpointing()
    network.train()
    module: Any = DiT360Training(options, network, pipeline.vae, lora)
    module.log_dict = lambda *_, **__: None  # there is no trainer to log to
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=1e-3)
    generator = torch.Generator().manual_seed(0)
    net, count, height = size.networks, size.batch, size.height
    batch = {
        "pixel_values": 2 * torch.rand(count, 3, height, 2 * height, generator=generator) - 1,
        "supervised": torch.ones(count, height // 8, height // 4, dtype=torch.bool),
        "prompt_embeds": torch.randn(count, size.text_length, net.text_dim, generator=generator),
        "pooled_prompt_embeds": torch.randn(count, net.pooled_dim, generator=generator),
        "index": torch.arange(count),
    }

    def run() -> np.ndarray:
        with torch.random.fork_rng():
            loss = module.training_step(batch, 0)
            loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach().numpy()

    return Prepared(run)


# ---- tables -------------------------------------------------------------------------------------

TABLES = (
    Table(
        title="one denoising step",
        size=MIDDLE,
        tells=("panorama", "blocks", "tokens"),
        cases=(
            Case("stock FluxPipeline", generation, {"stock": True}),
            Case("ours, padding 0", generation, {"padding_n": 0}),
            Case("ours, padding 1 (default)", generation, is_compared=False),
        ),
    ),
    Table(
        title="one denoising step, by storage of the weights",
        size=MIDDLE,
        tells=("panorama", "blocks", "tokens"),
        cases=(
            Case("float32", storage),
            Case("precomputed modulation", storage, {"planned": True}),
            Case("8 bits", storage, {"eight_bits": True}),
            Case("both (--memory low)", storage, {"planned": True, "eight_bits": True}),
        ),
    ),
    Table(
        title="decoding",
        size=MIDDLE,
        tells=("panorama", "vae"),
        cases=(
            Case("stock", decoding, {"wrap": "none"}),
            Case("circular (default)", decoding, is_compared=False),
            Case("circular, tiles of 1/2", decoding, {"tiles": 2}, is_compared=False),
            Case("circular, tiles of 1/4", decoding, {"tiles": 4}, is_compared=False),
        ),
    ),
    Table(
        title="one prompt",
        size=TEXT,
        tells=("text", "tokens"),
        cases=(
            Case("text encoders", text),
            Case("text cache (bfloat16)", text, {"cached": True}),
        ),
    ),
    Table(
        title="one edit",
        size=EDITED,
        tells=("panorama", "blocks", "tokens"),
        cases=(
            Case(
                "everything by the network, as the original",
                editing,
                {"gamma": CLOSE_TO_ONE, "eta": CLOSE_TO_ONE, "reconstruct": True},
            ),
            Case(
                "general loop (gamma, eta < 1)",
                editing,
                {"gamma": CLOSE_TO_ONE, "eta": CLOSE_TO_ONE},
            ),
            Case("fast path (gamma = eta = 1, default)", editing),
        ),
    ),
    Table(
        title="yaw and cube loss with gradient",
        size=LOSSES,
        tells=("panorama",),
        cases=(
            Case("three samples, as the original", auxiliary, {"samples": 3}),
            Case("one residual", auxiliary, {"samples": 1}),
        ),
    ),
    Table(
        title="one training step",
        size=TRAINED,
        tells=("panorama", "blocks", "tokens"),
        cases=(
            Case("no checkpointing, as the original", training, {"checkpointing": False}),
            Case("gradient checkpointing (default)", training, {"checkpointing": True}),
            Case(
                "no checkpointing, no LoRA dropout",
                training,
                {"checkpointing": False, "dropout": 0.0},
                is_compared=False,
            ),
        ),
    ),
)
