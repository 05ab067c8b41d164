"""Measure times of all libraries in one process; see the package for what it is for."""

import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shared_pano_utils.bench import accuracy
from shared_pano_utils.bench.libraries import Library, installed_libraries
from shared_pano_utils.synthetic import Scene

_PACKAGES = (
    "shared-pano-utils",
    "numpy",
    "torch",
    "opencv-python-headless",
    "py360convert",
    "pyequilib",
    "pytorch360convert",
)
_HEIGHTS = (512, 1024, 2048)
_MAX_RUNS = 12
_MIN_RUNS = 3
# A run that waited for another process took more wall time than processor time.
_MAX_WALL_PER_CPU = 1.1


def run(*, compare: bool = True, quick: bool = False) -> dict[str, Any]:
    """Measure times, accuracy and rendering speed; about five minutes, 30 s with `quick`.

    Args:
        compare: also measure py360convert, equilib and pytorch360convert where installed.
        quick: only 512 x 1024, one thread, fewer runs and one signal.

    Returns:
        {"machine": {...}, "results": [...], "accuracy": [...], "rendering": [...]}; times in
        milliseconds.
    """
    heights = _HEIGHTS[:1] if quick else _HEIGHTS
    cores = os.cpu_count() or 1
    thread_counts = [1] if quick or cores == 1 else [1, 2]
    budget_s = 0.2 if quick else 1.0
    libraries = installed_libraries("cpu", compare=compare)
    results = []
    for threads in thread_counts:
        with _threads(threads):
            for height in heights:
                results += _measure_size(libraries, height, "cpu", threads, budget_s)
    if torch.cuda.is_available():
        on_gpu = installed_libraries("cuda", compare=compare)
        for height in heights:
            results += _measure_size(on_gpu, height, "cuda", 1, budget_s)
    with _threads(1):
        signals = ["smooth"] if quick else list(accuracy.SIGNALS)
        errors = accuracy.measure(libraries, _HEIGHTS[0], signals)
        rendering = [_measure_scene(height, budget_s) for height in (256, *heights[:2])]
    return {
        "machine": _machine(),
        "results": results,
        "accuracy": errors,
        "rendering": rendering,
    }


# ---- one measurement ----------------------------------------------------------------------------


def _measure_size(
    libraries: list[Library], height: int, device: str, threads: int, budget_s: float
) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    erp = rng.integers(0, 256, (height, 2 * height, 3), dtype=np.uint8)
    cube = rng.integers(0, 256, (6, height // 2, height // 2, 3), dtype=np.uint8)
    rows = []
    for dtype in ("uint8", "float32"):
        for library in libraries:
            if dtype not in library.dtypes:
                continue
            sources = {"c2e": library.load(_cast(cube, dtype))}
            default = library.load(_cast(erp, dtype))
            for op, function in library.operations(height).items():
                source = sources.get(op, default)
                row = {"lib": library.name, "op": op, "H": height, "W": 2 * height, "dtype": dtype}
                row |= {"mode": "bilinear", "threads": threads, "batch": 1, "device": device}
                rows.append(row | _time(lambda f=function, x=source: f(x), device, budget_s))
    return rows


def _cast(array: np.ndarray, dtype: str) -> np.ndarray:
    return array if dtype == "uint8" else array.astype(np.float32) / np.float32(255)


def _measure_scene(height: int, budget_s: float) -> dict[str, Any]:
    scene = Scene.random(0, "room")
    pose = scene.random_pose(0)
    times = _time(lambda: scene.render(pose, (height, 2 * height)), "cpu", budget_s)
    return {"kind": "room", "objects": len(scene.objects), "H": height, "W": 2 * height, **times}


def _time(call: Callable[[], Any], device: str, budget_s: float) -> dict[str, Any]:
    """Median and minimum over undisturbed runs after a first, cold one, milliseconds."""
    cold_ms, _ = _time_once(call, device)
    runs: list[tuple[float, float]] = []
    started = time.perf_counter()
    while len(runs) < _MIN_RUNS or (
        len(runs) < _MAX_RUNS and time.perf_counter() - started < budget_s
    ):
        runs.append(_time_once(call, device))
    walls = [wall for wall, _ in runs]
    if device == "cpu":
        clean = [wall for wall, cpu in runs if wall <= _MAX_WALL_PER_CPU * cpu]
        walls = clean or walls
        n_rejected = len(runs) - len(clean)
    else:
        n_rejected = 0
    return {
        "median_ms": round(statistics.median(walls), 4),
        "min_ms": round(min(walls), 4),
        "cold_ms": round(cold_ms, 4),
        "n": len(walls),
        "rejected": n_rejected,
    }


def _time_once(call: Callable[[], Any], device: str) -> tuple[float, float]:
    """Wall and processor milliseconds of one call."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - wall), 1e3 * (time.process_time() - cpu)


@contextmanager
def _threads(n: int) -> Iterator[None]:
    """Set the thread counts of torch and OpenCV for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        import cv2
    except ImportError:
        cv2 = None
    before_cv2 = cv2.getNumThreads() if cv2 else 0
    try:
        if cv2:
            cv2.setNumThreads(n)
        yield
    finally:
        torch.set_num_threads(before)
        if cv2:
            cv2.setNumThreads(before_cv2)


def _machine() -> dict[str, Any]:
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "gpu": gpu,
        "versions": versions,
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
