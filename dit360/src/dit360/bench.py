"""Speed and memory of generation, editing and training beside what they replace.

`run` measures every row in a process of its own, and counts what the released model takes without
its weights; `format_report` gives the tables as Markdown.
"""

import ctypes
import importlib.metadata
import multiprocessing
import os
import platform
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from dit360.bench_cases import QUICK, TABLES, Case, Size, Table
from dit360.bench_counts import count_tables

ROUNDS, PATIENCE_S = 3, 4.0  # timed runs; no further one after so many seconds
STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
TELLS_MEMORY = CLEAR_REFS.is_file() and platform.libc_ver()[0] == "glibc"
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt
RATIOS = {"seconds": "ratio", "peak_mib": "peak_ratio", "weights_mib": "weights_ratio"}
Row = dict[str, Any]


def run(*, quick: bool = False) -> dict[str, Any]:
    """Measure on the CPU.

    Args:
        quick: miniature networks, one timed run in this process, without memory.

    Returns:
        {"machine": {...}, "tables": [{"title", "rows"}]}.
    """
    tables = [measure_table(table, QUICK if quick else table.size, apart=not quick)
              for table in tqdm(TABLES, desc="bench", leave=False)]  # fmt: skip
    return {"machine": machine(), "tables": tables + count_tables()}


# ---- measurements -------------------------------------------------------------------------------


def measure_table(table: Table, size: Size, *, apart: bool) -> dict[str, Any]:
    """Measure cases and relate them to the first one.

    Args:
        table: of the cases.
        size: of networks and panorama, instead of the table's.
        apart: each in a process of its own, which tells its memory; median of several runs.

    Returns:
        {"title", "rows"} of rows with name, seconds, ratio, the case's own facts, with `apart`
        peak_mib and peak_ratio, and the largest difference relative to the largest value.
    """
    rows: list[Row] = []
    expected = np.empty(0)
    for case in table.cases:
        row, result = (_measure_apart if apart else _measure)(case, size)
        if not rows:
            expected = result
        elif case.is_compared:
            row["difference"] = float(np.abs(result - expected).max() / np.abs(expected).max())
        first = rows[0] if rows else row
        row |= {ratio: row[key] / first[key] for key, ratio in RATIOS.items() if key in row}
        rows.append({"name": case.name} | row)
    return {"title": f"{table.title}: {size.describe(table.tells)}", "rows": rows}


def _measure(case: Case, size: Size, *, apart: bool = False) -> tuple[Row, np.ndarray]:
    """Median seconds of the runs after the first one, and what the first two give.

    Peak memory is that of the second run, beyond what was in use before the case was built.
    """
    with_memory = apart and TELLS_MEMORY
    row: Row = {}
    if with_memory:
        _return_freed_memory(at_once=True)
    before = _resident_mib() if with_memory else 0.0
    prepared = case.prepare(size)
    results, seconds = [prepared.run()], []
    if with_memory:
        CLEAR_REFS.write_text("5")  # forgets the peak
        results.append(prepared.run())
        row["peak_mib"] = _resident_mib(at_peak=True) - before
        _return_freed_memory(at_once=False)
    while not seconds or (apart and len(seconds) < ROUNDS and sum(seconds) < PATIENCE_S):
        started = time.perf_counter()
        results.append(prepared.run())
        seconds.append(time.perf_counter() - started)
    row["seconds"] = statistics.median(seconds) / prepared.units
    return row | prepared.facts, np.stack(results[:2])


def _measure_apart(case: Case, size: Size) -> tuple[Row, np.ndarray]:
    """`_measure` with memory and several runs in a fresh process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dit360.bench"])
    threads = (torch.get_num_threads(),)
    with ProcessPoolExecutor(1, context, torch.set_num_threads, threads) as pool:
        return pool.submit(_measure, case, size, apart=True).result()


def _return_freed_memory(*, at_once: bool) -> None:
    """Tell the C library to return freed tensors to the system, or, as it does, to reuse them.

    Reuse is faster, but leaves gaps: resident memory is above what is alive then, and never the
    same twice.
    """
    size = 2**20 if at_once else 2**25  # the library's own limit
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_THRESHOLD, size)
    libc.mallopt(M_TRIM_THRESHOLD, 2 * size)


def _resident_mib(*, at_peak: bool = False) -> float:
    fields = dict(line.split(":", 1) for line in STATUS.read_text(encoding="utf-8").splitlines())
    return float(fields["VmHWM" if at_peak else "VmRSS"].split()[0]) / 1024  # kB there


# ---- report -------------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """Processor, versions and threads."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    packages = ("torch", "diffusers", "transformers", "dit360")
    return {
        "cpu": next(names, platform.processor() or platform.machine()),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }


COLUMNS: dict[str, tuple[str, str]] = {  # key of a row -> title, format
    "seconds": ("s", "{:.3g}"),
    "ratio": ("x of first", "{:.3g}"),
    "peak_mib": ("peak MiB", "{:.0f}"),
    "peak_ratio": ("x of first", "{:.2f}"),
    "weights_mib": ("device weights MiB", "{:.1f}"),
    "weights_ratio": ("x of first", "{:.2f}"),
    "evaluations": ("network evaluations", "{:.0f}"),
    "difference": ("largest difference", "{:.1e}"),
    "parameters": ("parameters", "{:,}"),
    "bytes_gb": ("bfloat16 GB", "{:.2f}"),
    "device_gb": ("on the device GB", "{:.1f}"),
    "host_gb": ("in main memory GB", "{:.1f}"),
    "peak_gb": ("estimated peak GB", "{:.1f}"),
    "injected": ("steps that inject", "{:d}"),
    "fast": ("evaluations", "{:d}"),
    "original": ("original", "{:d}"),
}


def format_report(report: dict[str, Any]) -> str:
    """Return the machine and the tables with aligned columns."""
    about = report["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    head = f"{about['cpu']}, {about['cores']} cores, {about['threads']} threads; {versions}"
    parts = [f"{table['title']}\n\n{_markdown(table['rows'])}" for table in report["tables"]]
    return "\n\n".join([head, *parts]) + "\n"


def _markdown(rows: list[Row]) -> str:
    keys = [key for key in COLUMNS if any(key in row for row in rows)]
    lines = [["", *(COLUMNS[key][0] for key in keys)]]
    for row in rows:
        cells = (COLUMNS[key][1].format(row[key]) if key in row else "" for key in keys)
        lines.append([row["name"], *cells])
    widths = [max(len(line[column]) for line in lines) for column in range(len(keys) + 1)]
    padded = [
        [name.ljust(widths[0]), *(c.rjust(w) for c, w in zip(cells, widths[1:], strict=True))]
        for name, *cells in lines
    ]
    padded.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)
