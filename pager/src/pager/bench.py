"""Speed and memory of the cube networks beside the stock classes, and of the memory modes.

The timed networks have random weights: the arithmetic is that of trained ones. How far a mode is
from plain float32 is measured on the embedded checkpoint instead, because random networks amplify
rounding. `run` gives the report, `format_report` its tables as Markdown.
"""

import importlib.metadata
import multiprocessing
import os
import platform
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from tqdm.auto import tqdm

from pager.checkpoint import load_model
from pager.data.procedural import render_frame
from pager.embedded import TINY_ASSETS
from pager.losses import align_relative, l1_loss
from pager.model import ModelConfig, PagerModel
from pager.pipeline import PagerPipeline, choose_device
from pager.training.parameters import trainable_parameters

HEAD_WIDTH, TEXT_TOKENS = 64, 77
STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")

Run = Callable[[], Any]
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Size:
    """A network of the architecture of Stable Diffusion 2: channels of its levels, face pixels."""

    unet: tuple[int, ...]
    vae: tuple[int, ...]
    text_width: int
    face_size: int


MIDDLE = Size(unet=(64, 128, 256, 256), vae=(32, 64, 128, 128), text_width=256, face_size=192)
QUICK = Size(unet=MIDDLE.unet, vae=MIDDLE.vae, text_width=256, face_size=128)
REAL = Size(unet=(320, 640, 1280, 1280), vae=(128, 256, 512, 512), text_width=1024, face_size=768)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One row: an inference or a training step of some networks.

    `placement` are options of `PagerPipeline`; `stock` leaves the networks as diffusers has them.
    """

    task: Literal["inference", "training"]
    name: str
    stock: bool = False
    dtype: torch.dtype = torch.float32
    placement: tuple[tuple[str, Any], ...] = ()
    checkpointing: bool = False


def _mode(name: str, dtype: torch.dtype = torch.float32, **placement: Any) -> Case:
    return Case(task="inference", name=name, dtype=dtype, placement=tuple(placement.items()))


HALF = torch.bfloat16
PLAIN = _mode("float32")
MODES = (
    Case(task="inference", name="stock classes, float32", stock=True),
    PLAIN,
    _mode("bfloat16", HALF),
    _mode("offload", offload=True),
    _mode("stream_vae", stream_vae=True),
)
CUDA_MODES = (
    *MODES,
    _mode("bfloat16, offload", HALF, offload=True),
    _mode("bfloat16, stream_vae", HALF, stream_vae=True),
    _mode("bfloat16, offload, stream_vae", HALF, offload=True, stream_vae=True),
)
COMPILED = (
    _mode("compiled", compile_backend="inductor"),
    _mode("bfloat16, compiled", HALF, compile_backend="inductor"),
)
STEPS = (
    Case(task="training", name="stock classes", stock=True),
    Case(task="training", name="ours"),
    Case(task="training", name="stock classes, checkpointing", stock=True, checkpointing=True),
    Case(task="training", name="ours, checkpointing", checkpointing=True),
)


def run(
    *,
    quick: bool = False,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    with_compile: bool = False,
) -> dict[str, Any]:
    """Measure; three minutes on two CPU cores, 40 s with `quick`.

    Args:
        quick: smaller faces, one run of each row after the first, no memory.
        device: "auto" measures the CPU, and CUDA at the real size where there is one.
        with_compile: compiled networks too, which takes minutes to compile on a CPU.

    Returns:
        {"machine": {...}, "tables": [{"title", "rows"}], "notes": [...]}.
    """
    rounds = 1 if quick else 3
    compiled = COMPILED if with_compile else ()
    tables, notes = [], []
    if device != "cuda":
        size = QUICK if quick else MIDDLE
        for cases in ((*MODES, *compiled[:1]), STEPS):
            rows = measure_cpu(cases, size, rounds, with_memory=not quick)
            tables.append({"title": _title(cases, "CPU", size), "rows": rows})
    if device == "cuda" or torch.cuda.is_available():
        for cases in ((*CUDA_MODES, *compiled), STEPS):
            rows = measure_cuda(cases, REAL, choose_device("cuda"), rounds)
            tables.append({"title": _title(cases, "CUDA", REAL), "rows": rows})
    elif device == "auto":
        notes.append("no CUDA device: GPU rows skipped")
    if not with_compile:
        notes.append("compiled networks skipped: --compile adds them, and minutes of compiling")
    return {"machine": machine(), "tables": tables, "notes": notes}


def _title(cases: tuple[Case, ...], place: str, size: Size) -> str:
    step = "one training step (forward, backward, AdamW on the attention blocks), float32"
    what = step if cases[0].task == "training" else "one panorama, photograph to depth map"
    return f"{place}, {what}: faces {size.face_size} px, UNet {size.unet}, VAE {size.vae}"


# ---- what is run --------------------------------------------------------------------------------


def build_model(size: Size, device: torch.device, *, stock: bool = False) -> PagerModel:
    """Random networks, the same at every call; with `stock`, those that `cubify` has not seen."""
    unet, vae = _networks(size, torch.device("meta") if stock else device)
    prompt = torch.randn(
        1, TEXT_TOKENS, size.text_width, generator=torch.Generator().manual_seed(0)
    )
    model = PagerModel(unet, vae, prompt.to(device), ModelConfig(face_size=size.face_size))
    if stock:
        model.unet, model.vae = _networks(size, device)
        model.vae.requires_grad_(False)
    return model.eval()


def _networks(size: Size, device: torch.device) -> tuple[UNet2DConditionModel, AutoencoderKL]:
    coarser = len(size.unet) - 1
    levels: Any = {  # diffusers annotates tuples of length one
        "block_out_channels": size.unet,
        "down_block_types": ("CrossAttnDownBlock2D",) * coarser + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * coarser,
        "attention_head_dim": tuple(max(1, c // HEAD_WIDTH) for c in size.unet),
    }
    vae_levels: Any = {
        "block_out_channels": size.vae,
        "down_block_types": ("DownEncoderBlock2D",) * len(size.vae),
        "up_block_types": ("UpDecoderBlock2D",) * len(size.vae),
    }
    with torch.random.fork_rng(), device:
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            in_channels=8, cross_attention_dim=size.text_width, use_linear_projection=True, **levels
        )
        return unet, AutoencoderKL(layers_per_block=2, latent_channels=4, **vae_levels)


def prepare(case: Case, size: Size, device: torch.device) -> Run:
    """Build what `case` runs; the result runs it once."""
    model = build_model(size, device, stock=case.stock)
    if case.task == "training":
        return training_step(model, device, checkpointing=case.checkpointing)
    pipeline = PagerPipeline(model, device, case.dtype, **dict(case.placement))
    height = 2 * size.face_size
    rgb = np.random.default_rng(0).integers(0, 256, (height, 2 * height, 3), dtype=np.uint8)
    return lambda: pipeline(rgb)


def training_step(model: PagerModel, device: torch.device, *, checkpointing: bool) -> Run:
    """One step of relative depth from random faces; the result is its loss."""
    parameters = trainable_parameters(model, only_attention=True)
    optimizer = torch.optim.AdamW(parameters, lr=1e-5)
    if checkpointing:
        model.unet.enable_gradient_checkpointing()
        model.vae.enable_gradient_checkpointing()
    model.unet.train()
    side = model.config.face_size
    faces = torch.rand(1, 6, 3, side, side, generator=torch.Generator().manual_seed(0)).to(device)
    target = faces[:, :, :1]
    mask = torch.ones_like(target, dtype=torch.bool)

    def step() -> float:
        pred = align_relative(model(faces), target, mask, log_scale=True)
        loss = l1_loss(pred, target, mask).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


# ---- measurements -------------------------------------------------------------------------------


def measure_cpu(
    cases: tuple[Case, ...], size: Size, rounds: int, *, with_memory: bool
) -> list[Row]:
    """Best of `rounds` after a first run; the cases take turns, so that all meet the same machine.

    Returns:
        Rows with name, seconds, ratio (to the stock classes of the same task and checkpointing),
        and where measured rest_mib, peak_mib, max_error, mean_error; or name and skipped, a reason.
    """
    device = torch.device("cpu")
    runs: dict[Case, Run] = {}
    rows: dict[Case, Row] = {case: {"name": case.name} for case in cases}
    for case in tqdm(cases, desc=f"{cases[0].task}, warm-up", leave=False):
        try:
            runs[case] = prepare(case, size, device)
            runs[case]()
        except RuntimeError as error:
            runs.pop(case, None)
            rows[case]["skipped"] = _reason(case, error)
    for _ in tqdm(range(rounds), desc=f"{cases[0].task}, times", leave=False):
        for case, function in runs.items():
            seconds = _seconds(function)
            rows[case]["seconds"] = min(seconds, rows[case].get("seconds", seconds))
    runs.clear()
    for case in cases:
        if "seconds" in rows[case]:
            rows[case] |= measure_error(case, device)
            if with_memory and case not in COMPILED:
                rows[case] |= resident_memory(case, size)
    return _with_ratios(rows)


def measure_cuda(
    cases: tuple[Case, ...], size: Size, device: torch.device, rounds: int
) -> list[Row]:
    """As `measure_cpu`, one case after the other; memory is what PyTorch has allocated."""
    rows: dict[Case, Row] = {}
    for case in tqdm(cases, desc=f"{cases[0].task}, CUDA", leave=False):
        row = rows[case] = {"name": case.name}
        torch.cuda.empty_cache()
        try:
            function = prepare(case, size, device)
            row["rest_mib"] = torch.cuda.memory_allocated(device) / 2**20
            function()
            torch.cuda.reset_peak_memory_stats(device)
            row["seconds"] = min(_seconds(function) for _ in range(rounds))
            row["peak_mib"] = torch.cuda.max_memory_allocated(device) / 2**20
            row |= measure_error(case, device)
        except RuntimeError as error:
            row["skipped"] = _reason(case, error)
        function = None
    return _with_ratios(rows)


def _seconds(function: Run) -> float:
    started = time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _with_ratios(rows: dict[Case, Row]) -> list[Row]:
    stock = {c.checkpointing: row.get("seconds") for c, row in rows.items() if c.stock}
    for case, row in rows.items():
        if "seconds" in row and stock.get(case.checkpointing):
            row["ratio"] = row["seconds"] / stock[case.checkpointing]
    return list(rows.values())


def measure_error(case: Case, device: torch.device) -> Row:
    """Relative depth error of a mode against plain float32: the embedded network in a room."""
    if case.task == "training" or case.stock or case == PLAIN:
        return {}
    rgb = render_frame(20_000_003, "room", 0, (256, 512)).rgb  # a scene of the test split

    def predict(mode: Case) -> np.ndarray:
        model = load_model(TINY_ASSETS / "depth")
        depth = PagerPipeline(model, device, mode.dtype, **dict(mode.placement))(rgb).depth
        assert depth is not None
        return depth

    error = np.abs(predict(case) / predict(PLAIN) - 1)
    return {"max_error": float(error.max()), "mean_error": float(error.mean())}


def resident_memory(case: Case, size: Size) -> Row:
    """Resident memory of a process of its own, before and at the peak of a first run.

    Empty where the system does not tell (`getrusage` gives a new process its parent's peak).
    """
    if not (STATUS.is_file() and CLEAR_REFS.is_file()):
        return {}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pager.bench"])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_resident_memory, case, size, torch.get_num_threads()).result()


def _resident_memory(case: Case, size: Size, threads: int) -> Row:
    torch.set_num_threads(threads)
    function = prepare(case, size, torch.device("cpu"))
    CLEAR_REFS.write_text("5")  # forget the peak of building
    rest = _status_mib("VmRSS")
    function()
    return {"rest_mib": rest, "peak_mib": _status_mib("VmHWM")}


def _status_mib(key: str) -> float:
    """A field of this process's status, which is in kB there."""
    fields = dict(line.split(":", 1) for line in STATUS.read_text(encoding="utf-8").splitlines())
    return float(fields[key].split()[0]) / 1024


def _reason(case: Case, error: RuntimeError) -> str:
    """Why a case cannot be measured here; what should not have happened is raised again."""
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    if case not in COMPILED:
        raise error
    return " ".join(str(error).split())[:160]  # the compiler is missing or fails


# ---- report -------------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """Processor, GPU, versions and threads."""
    versions = {name: importlib.metadata.version(name) for name in ("torch", "diffusers", "pager")}
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": {"Python": platform.python_version(), **versions},
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


COLUMNS: dict[str, tuple[str, str]] = {  # key of a row -> title, format
    "seconds": ("s", "{:.2f}"),
    "ratio": ("x of stock", "{:.2f}"),
    "rest_mib": ("MiB at rest", "{:.0f}"),
    "peak_mib": ("MiB at peak", "{:.0f}"),
    "max_error": ("max rel. error", "{:.1e}"),
    "mean_error": ("mean", "{:.1e}"),
}


def format_report(report: dict[str, Any]) -> str:
    """Return the machine, the tables with aligned columns, and the notes."""
    about = report["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    head = (
        f"{about['cpu']}, {about['cores']} cores, {about['threads']} threads, "
        f"GPU: {about['gpu'] or 'none'}; {versions}"
    )
    parts: list[str] = [head]
    for table in report["tables"]:
        parts += [table["title"], _markdown(table["rows"])]
        parts += [f"{r['name']}: skipped, {r['skipped']}" for r in table["rows"] if "skipped" in r]
    return "\n\n".join([*parts, *report["notes"]]) + "\n"


def _markdown(rows: list[Row]) -> str:
    measured = [row for row in rows if "skipped" not in row]
    keys = [key for key in COLUMNS if any(key in row for row in measured)]
    lines = [["", *(COLUMNS[key][0] for key in keys)]]
    for row in measured:
        cells = (COLUMNS[key][1].format(row[key]) if key in row else "" for key in keys)
        lines.append([row["name"], *cells])
    widths = [max(len(line[column]) for line in lines) for column in range(len(keys) + 1)]
    padded = [
        [name.ljust(widths[0]), *(c.rjust(w) for c, w in zip(cells, widths[1:], strict=True))]
        for name, *cells in lines
    ]
    padded.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)
