"""Tables of a benchmark report as plain text."""

from collections.abc import Iterable
from typing import Any

from shared_pano_utils.bench.libraries import OURS, OURS_TORCH


def format_report(report: dict[str, Any]) -> str:
    """Return times with ratios to ours (above 1: ours is faster), errors and rendering times."""
    machine = report["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    parts = [
        f"{machine['cpu']}, {machine['cores']} cores, GPU: {machine['gpu'] or 'none'}",
        versions,
    ]
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for row in report["results"]:
        key = (row["H"], row["W"], row["dtype"], row["device"], row["threads"])
        groups.setdefault(key, []).append(row)
    parts += [_time_table(key, rows) for key, rows in groups.items()]
    parts.append(_accuracy_table(report["accuracy"]))
    scenes = (f"{r['H']}x{r['W']}: {r['median_ms']:.0f} ms" for r in report["rendering"])
    parts.append("Rendering a room, one thread: " + ", ".join(scenes))
    return "\n\n".join(parts) + "\n"


def _time_table(key: tuple, rows: list[dict[str, Any]]) -> str:
    height, width, dtype, device, threads = key
    place = f"{threads} thread{'s' if threads > 1 else ''}" if device == "cpu" else device
    times = {(row["lib"], row["op"]): row["median_ms"] for row in rows}
    names = list(dict.fromkeys(row["lib"] for row in rows))
    ours = OURS if OURS in names else OURS_TORCH
    ops = list(dict.fromkeys(row["op"] for row in rows))
    lines = [["ms (x of ours)", *ops]]
    for name in names:
        cells = []
        for op in ops:
            value = times.get((name, op))
            cells.append("-" if value is None else f"{value:.2f} ({value / times[ours, op]:.1f}x)")
        lines.append([name, *cells])
    n_rejected = sum(row["rejected"] for row in rows)
    note = f"; {n_rejected} disturbed runs rejected" if n_rejected else ""
    return f"{height}x{width} {dtype}, {place}{note}\n" + _align(lines)


def _accuracy_table(rows: list[dict[str, Any]]) -> str:
    lines = [["library", "op", "signal", "dB", "edge/inside", "seam/inside", "max at edges"]]
    lines += [
        [
            row["lib"],
            row["op"],
            row["signal"],
            f"{row['psnr']:.1f}",
            f"{row['edge_ratio']:.2f}",
            f"{row['seam_ratio']:.2f}",
            f"{row['max']:.1e}",
        ]
        for row in rows
    ]
    return "Errors, float32\n" + _align(lines)


def _align(lines: Iterable[list[str]]) -> str:
    rows = list(lines)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
