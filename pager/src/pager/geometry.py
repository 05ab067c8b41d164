"""PaGeR's own frames, converted at the file boundary to and from the workspace's RDF.

"pager" normals: x forward, y up, z left (the released checkpoints). Structured3D raw normals:
right, up, backward.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from shared_pano_utils import rays

NormalsFrame = Literal["pager", "structured3d"]


def rdf_to_pager(vectors: Tensor) -> Tensor:
    """(b, 3, H, W) or (3, H, W) from right/down/forward to forward/up/left."""
    right, down, forward = vectors.unbind(-3)
    return torch.stack([forward, -down, -right], -3)


def pager_to_rdf(vectors: Tensor) -> Tensor:
    """(…, 3, H, W) from forward/up/left to right/down/forward."""
    forward, up, left = vectors.unbind(-3)
    return torch.stack([-left, -up, forward], -3)


def structured3d_to_pager(vectors: Tensor) -> Tensor:
    """(…, 3, H, W) from right/up/backward (raw Structured3D) to forward/up/left."""
    right, up, backward = vectors.unbind(-3)
    return torch.stack([-backward, up, -right], -3)


def erp_directions(
    size: tuple[int, int] | torch.Size,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Unit viewing directions (3, H, W) in the `pager` frame."""
    directions = rays("erp", (size[0], size[1]), dtype=dtype, device=device)
    return rdf_to_pager(directions.movedim(-1, 0))


def roll_normals(normals: Tensor, shift: int) -> Tensor:
    """Normals (…, 3, H, W), `pager` frame, of a panorama rolled right by `shift` columns.

    Rolling turns the camera, so the vectors turn about the vertical by ``-360*shift/W`` degrees:
    (1, 0, 0) with shift W/4 becomes (0, 0, -1).
    """
    angle = -2 * math.pi * shift / normals.shape[-1]
    x, y, z = normals.roll(shift, -1).unbind(-3)
    cos, sin = math.cos(angle), math.sin(angle)
    return torch.stack([cos * x - sin * z, y, sin * x + cos * z], -3)
