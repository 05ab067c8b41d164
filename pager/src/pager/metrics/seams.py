"""Seams of one panorama: at +-180 degrees, at the poles and along the cube edges."""

from typing import cast

from torch import Tensor

from shared_pano_utils import erp_to_cubemap
from shared_pano_utils.metrics import cube_edge_jumps, seam_error

MIN_WIDTH_PX = 12


def seam_metrics(erp: Tensor) -> dict[str, float]:
    """Measure what neighbouring pixels across a seam have more in step than those beside it.

    Args:
        erp: (C, H, W) finite; the logarithm of depth (steps are relative jumps), or normals.

    Returns:
        `seam_density`, `seam_severity`: part of the places on cube edges whose step exceeds those
        beside it by 0.01 and 0.05; `seam_prevalence`: part of the twelve edges where the mean
        excess is above 0.008 (see `cube_edge_jumps`). `cube_edge_ratio`: step across the worst
        cube edge over the steps beside it; `wrap_ratio`: the same at +-180 degrees, `wrap_jump`:
        that step itself. Ratios: 1 is no seam. `pole_std`: spread along the first and last row.

    Raises:
        ValueError: the panorama is too small to have a neighbourhood.
    """
    width = erp.shape[-1]
    if width < MIN_WIDTH_PX:
        raise ValueError(f"the panorama is {width} pixels wide; seams need {MIN_WIDTH_PX} columns")
    erp = erp.double()
    faces = cast(Tensor, erp_to_cubemap(erp, width // 4))
    edges, seam = cube_edge_jumps(faces), seam_error(erp)
    return {
        "seam_density": float(edges["density"]),
        "seam_prevalence": float(edges["prevalence"]),
        "seam_severity": float(edges["severity"]),
        "cube_edge_ratio": float(edges["ratio"].max()),
        "wrap_ratio": float(seam["wrap_ratio"]),
        "wrap_jump": float(seam["wrap_jump"]),
        "pole_std": float(seam["pole_std"].mean()),
    }
