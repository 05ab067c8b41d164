"""Errors of the cubemap conversions on panoramas that are known in every direction."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shared_pano_utils.bench.libraries import Library
from shared_pano_utils.geometry import rays, xyz_to_face

# name -> number of plane waves, largest wave number, amplitude ~ 1 / wave number
SIGNALS = {"smooth": (48, 12.0, False), "texture": (384, 160.0, True)}
_EDGE_WIDTH_PX = 2


def sample_signal(name: str, directions: Tensor, seed: int = 0) -> np.ndarray:
    """Evaluate a sum of plane waves at unit vectors (..., 3): (..., 3) float32 within [0, 1]."""
    n_waves, largest, is_pink = SIGNALS[name]
    generator = torch.Generator().manual_seed(seed)
    axis = torch.nn.functional.normalize(torch.randn(n_waves, 3, generator=generator), dim=-1)
    wave_number = largest ** torch.rand(n_waves, 1, generator=generator)
    phase = 2 * math.pi * torch.rand(n_waves, generator=generator)
    amplitude = torch.randn(n_waves, 3, generator=generator)
    if is_pink:
        amplitude = amplitude / wave_number
    amplitude = 0.5 * amplitude / amplitude.abs().sum(0)
    flat = directions.reshape(-1, 3).float()
    parts = [
        torch.cos(part @ (axis * wave_number).T + phase) @ amplitude for part in flat.split(1 << 16)
    ]
    return (torch.cat(parts) + 0.5).reshape(directions.shape).numpy()


def measure(libraries: list[Library], height: int, signals: list[str]) -> list[dict[str, Any]]:
    """Round trip, and panorama from exact faces, of every library that takes float32.

    Faces have H / 2 pixels and are exact at the canonical pixel centres; a library that places its
    samples elsewhere shows that as an error.

    Returns:
        Rows with lib, op ("round_trip" or "c2e"), signal, S, mode, psnr (dB, peak 1), edge_ratio
        (mean error within 2 pixels of a cube edge over that elsewhere), seam_ratio (the same for
        the two columns at +-180 degrees) and max (largest error near the edges).
    """
    side = height // 2
    near_edge = _near_edge(height, side)
    rows = []
    for signal in signals:
        erp = sample_signal(signal, rays("erp", (height, 2 * height)))
        faces = sample_signal(signal, rays("cube", side))
        for library in libraries:
            operations = library.operations(height)
            cube = operations["e2c"](library.load(erp))
            results = {
                "round_trip": operations["c2e"](cube),
                "c2e": operations["c2e"](library.load(faces)),
            }
            for op, result in results.items():
                error = np.abs(library.unload(result).astype(np.float64) - erp).mean(-1)
                squared = ((library.unload(result).astype(np.float64) - erp) ** 2).mean()
                row = {"lib": library.name, "op": op, "signal": signal, "S": side}
                rows.append(row | {"mode": "bilinear"} | _summary(error, squared, near_edge))
    return rows


def _near_edge(height: int, side: int) -> np.ndarray:
    _, uv = xyz_to_face(rays("erp", (height, 2 * height), dtype=torch.float64))
    limit = 1 - _EDGE_WIDTH_PX * 2 / side
    return (uv.abs().amax(-1) > limit).numpy()


def _summary(error: np.ndarray, squared: float, near_edge: np.ndarray) -> dict[str, float]:
    inside = error[~near_edge].mean()
    seam = error[:, [0, -1]].mean()
    return {
        "psnr": round(-10 * math.log10(squared), 2),
        "edge_ratio": round(float(error[near_edge].mean() / inside), 3),
        "seam_ratio": round(float(seam / inside), 3),
        "max": float(error[near_edge].max()),
    }
