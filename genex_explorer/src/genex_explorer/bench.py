"""Speed and memory of training steps and exploration segments beside the stock-diffusers path.

`run` measures every row in a process of its own and counts what a clip of real size keeps in
memory, without running it; `format_report` gives the tables as Markdown.
"""

import ctypes
import importlib.metadata
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from genex_explorer.bench_cases import (
    CUDA_SCL_STEPS,
    CUDA_STEPS,
    MIDDLE,
    QUICK,
    REAL,
    SCL_STEPS,
    SEGMENTS,
    SHORT,
    STEPS,
    Segment,
    Size,
    Step,
    random_unet,
)
from genex_explorer.checkpointing import SCOPES, Scope, activation_bytes
from genex_explorer.cross_attention import use_single_token_shortcut
from genex_explorer.parameters import select_trainable

ROUNDS, PATIENCE_S = 3, 4.0  # repeats; no further one after so many seconds
STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
TELLS_MEMORY = CLEAR_REFS.is_file() and platform.libc_ver()[0] == "glibc"
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt
EXPECTED_GIB: dict[Scope, float] = {"none": 97.8, "stock": 62.2, "full": 6.8}
"""Kept activations by an earlier count, with another attention kernel."""

ENCODER_PARAMETERS = 97_742_847 + 632_076_800  # VAE and CLIP
GIB = 2**30
Row = dict[str, Any]


def run(*, quick: bool = False) -> dict[str, Any]:
    """Measure on the CPU, and at the real size where there is a CUDA device.

    Args:
        quick: miniature networks on the CPU, one repeat in this process, without memory and counts.

    Returns:
        {"machine": {...}, "tables": [{"title", "rows"}]}.
    """
    cpu, size, short = torch.device("cpu"), *((QUICK, QUICK) if quick else (MIDDLE, SHORT))
    plan: list[tuple[str, Sequence[Step | Segment], Size, torch.device]] = [
        ("one training step", STEPS, size, cpu),
        ("consistency loss (SCL) on top of the stock step", SCL_STEPS, short, cpu),
        ("one exploration segment", SEGMENTS, short, cpu),
    ]
    if torch.cuda.is_available() and not quick:
        cuda = torch.device("cuda")
        plan += [
            ("one training step, bfloat16 autocast", CUDA_STEPS, REAL, cuda),
            ("consistency loss (SCL) on top of + cast_frozen", CUDA_SCL_STEPS, REAL, cuda),
        ]
    tables = []
    for what, cases, clip, device in plan:
        title = (
            f"{device.type.upper()}, {what}: {clip.frames} frames of {clip.width}x{clip.height}, "
            f"UNet {clip.unet}, VAE {clip.vae}"
        )
        tables.append({"title": title, "rows": measure_table(cases, clip, device, apart=not quick)})
    return {"machine": machine(), "tables": tables if quick else tables + count_tables()}


# ---- measurements -------------------------------------------------------------------------------


def measure_table(
    cases: Sequence[Step | Segment], size: Size, device: torch.device, *, apart: bool
) -> list[Row]:
    """Measure cases and relate them to the first one.

    Args:
        cases: of one kind.
        size: of networks and clip.
        device: where they run.
        apart: each in a process of its own, which tells its memory; median of several repeats.

    Returns:
        Rows with name, seconds, ratio, with `apart` peak_mib and peak_ratio, and difference, the
        largest one relative to the largest value; or with name and skipped, a reason.
    """
    rows: list[Row] = []
    stock: Row = {}
    expected = None
    for case in tqdm(cases, desc="bench", leave=False):
        try:
            row, result = (_measure_apart if apart else _measure)(case, size, device)
        except (torch.OutOfMemoryError, ImportError) as error:
            rows.append({"name": case.name, "skipped": str(error)[:100]})
            continue
        if not rows:
            stock, expected = row, result
        elif result is not None and expected is not None:
            row["difference"] = float(np.abs(result - expected).max() / np.abs(expected).max())
        for key, ratio in (("seconds", "ratio"), ("peak_mib", "peak_ratio")):
            if key in stock:
                row[ratio] = row[key] / stock[key]
        rows.append({"name": case.name} | row)
    return rows


def _measure(
    case: Step | Segment, size: Size, device: torch.device, *, apart: bool = False
) -> tuple[Row, np.ndarray | None]:
    """Median seconds of the runs after the first one, which gives the optimizer its moments.

    Peak memory is that of a run between them, beyond what was in use before the networks were
    built.
    """
    row: Row = {}
    with_memory = apart and (device.type == "cuda" or TELLS_MEMORY)
    if with_memory:
        _return_freed_memory(at_once=True)
    before = _used_mib(device) if with_memory else 0.0
    function = case.prepare(size, device)
    results, seconds = [function()], []
    if with_memory:
        _forget_peak(device)
        results.append(function())
        row["peak_mib"] = _used_mib(device, at_peak=True) - before
        _return_freed_memory(at_once=False)
    while not seconds or (apart and len(seconds) < ROUNDS and sum(seconds) < PATIENCE_S):
        started = time.perf_counter()
        results.append(function())
        seconds.append(time.perf_counter() - started)
    row["seconds"] = statistics.median(seconds)
    values = [result for result in results[:2] if result is not None]
    return row, np.stack(values) if values else None


def _measure_apart(
    case: Step | Segment, size: Size, device: torch.device
) -> tuple[Row, np.ndarray | None]:
    """`_measure` with memory and several repeats in a fresh process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["genex_explorer.bench"])
    threads = (torch.get_num_threads(),)
    with ProcessPoolExecutor(1, context, torch.set_num_threads, threads) as pool:
        return pool.submit(_measure, case, size, device, apart=True).result()


def _return_freed_memory(*, at_once: bool) -> None:
    """Tell the C library to return freed tensors to the system, or, as it does, to reuse them.

    Reuse is faster, but leaves gaps: resident memory is up to a half above what is alive then, and
    never the same twice.
    """
    if TELLS_MEMORY:
        size = 2**20 if at_once else 2**25  # the library's own limit
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, size)
        libc.mallopt(M_TRIM_THRESHOLD, 2 * size)


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        CLEAR_REFS.write_text("5")


def _used_mib(device: torch.device, *, at_peak: bool = False) -> float:
    """What PyTorch has allocated on a GPU, or the resident memory of this process."""
    if device.type == "cuda":
        used = torch.cuda.max_memory_allocated if at_peak else torch.cuda.memory_allocated
        return used(device) / 2**20
    fields = dict(line.split(":", 1) for line in STATUS.read_text(encoding="utf-8").splitlines())
    return float(fields["VmHWM" if at_peak else "VmRSS"].split()[0]) / 1024  # kB there


# ---- counts -------------------------------------------------------------------------------------


def count_tables() -> list[dict[str, Any]]:
    """Memory of a training step at the real size, counted on networks without weights."""
    unet: Any = random_unet(REAL, torch.device("meta")).bfloat16()
    select_trainable(unet, "temporal_transformer")
    latent = REAL.height // 8, REAL.width // 8
    kept: dict[Scope, float] = {
        scope: activation_bytes(unet, REAL.frames, *latent, scope) / GIB
        for scope in tqdm(SCOPES, desc="counting", leave=False)
    }
    activations = [
        {"name": scope, "kept_gib": kept[scope], "expected_gib": EXPECTED_GIB[scope]}
        for scope in SCOPES
    ]
    what = f"{REAL.frames} frames of {REAL.width}x{REAL.height}, bfloat16"
    title = f"Counted, not measured: activations kept for the backward pass by scope, {what}"
    budget = "Counted, not measured: memory of a training step at that size in GiB"
    return [
        {"title": title, "rows": activations},
        {"title": budget, "rows": count_budget(unet, kept)},
    ]


def count_budget(unet: Any, kept: dict[Scope, float]) -> list[Row]:
    """What a training step holds at once, in GiB.

    Args:
        unet: of `REAL`, on the meta device.
        kept: activations of each scope.
    """
    total = sum(parameter.numel() for parameter in unet.parameters())
    trained = _trained_numbers(unet)
    use_single_token_shortcut(unet)
    learning = _trained_numbers(unet)
    # Of the 16 temporal blocks five work at the finest level, five each at a half and a quarter
    # of its tokens x channels, and the middle one at a sixteenth.
    block = (kept["stock"] - kept["full"]) / (5 * (1 + 1 / 2 + 1 / 4) + 1 / 16)

    def add(name: str, scope: Scope, count: int, *, frozen: int, moments: float) -> Row:
        parts = {
            "weights_gib": ((total - count) * frozen + count * 6) / GIB,  # autocast copies: 2
            "gradients_gib": count * 4 / GIB,
            "moments_gib": count * moments / GIB,
            "encoders_gib": ENCODER_PARAMETERS * 2 / GIB,
            "kept_gib": kept[scope],
            "recomputed_gib": block if scope == "full" else 0.0,
        }
        return {"name": name, **parts, "sum_gib": sum(parts.values())}

    small = 2 * (1 + 4 / 256)  # two bytes, and a scale for every 256 numbers
    return [
        add("as published", "none", trained, frozen=4, moments=8),
        add("full-scope checkpointing", "full", trained, frozen=4, moments=8),
        add("+ 8-bit Adam", "full", trained, frozen=4, moments=small),
        add("+ cast_frozen", "full", trained, frozen=2, moments=small),
        add("+ single-token shortcut", "full", learning, frozen=2, moments=small),
    ]


def _trained_numbers(unet: Any) -> int:
    chosen = select_trainable(unet, "temporal_transformer")
    return sum(parameter.numel() for _, parameter in chosen)


# ---- report -------------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """Processor, GPU, versions and threads."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    packages = ("torch", "diffusers", "genex-explorer")
    return {
        "cpu": next(names, platform.processor() or platform.machine()),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }


COLUMNS: dict[str, tuple[str, str]] = {  # key of a row -> title, format
    "seconds": ("s", "{:.2f}"),
    "ratio": ("x of first", "{:.2f}"),
    "peak_mib": ("peak MiB", "{:.0f}"),
    "peak_ratio": ("x of first", "{:.2f}"),
    "difference": ("largest difference", "{:.1e}"),
    "weights_gib": ("weights", "{:.1f}"),
    "gradients_gib": ("gradients", "{:.1f}"),
    "moments_gib": ("moments", "{:.1f}"),
    "encoders_gib": ("VAE, CLIP", "{:.1f}"),
    "kept_gib": ("kept activations", "{:.1f}"),
    "expected_gib": ("expected", "{:.1f}"),
    "recomputed_gib": ("recomputed block", "{:.1f}"),
    "sum_gib": ("sum", "{:.1f}"),
}


def format_report(report: dict[str, Any]) -> str:
    """Return the machine and the tables with aligned columns."""
    about = report["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    head = (
        f"{about['cpu']}, {about['cores']} cores, {about['threads']} threads, "
        f"GPU: {about['gpu'] or 'none, GPU rows skipped'}; {versions}"
    )
    parts: list[str] = [head]
    for table in report["tables"]:
        parts += [table["title"], _markdown(table["rows"])]
        parts += [f"{r['name']}: skipped, {r['skipped']}" for r in table["rows"] if "skipped" in r]
    return "\n\n".join(parts) + "\n"


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
