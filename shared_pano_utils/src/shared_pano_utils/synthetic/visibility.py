"""Which objects an equirectangular view shows, where, and how much of each is hidden."""

import torch
from torch import Tensor

from shared_pano_utils.geometry import (
    lonlat_to_pixel,
    rays,
    sphere_weights,
    xyz_to_face,
    xyz_to_lonlat,
)

FACE_NAMES = "FRBLUD"


def mask_box(mask: Tensor) -> tuple[int, int, int, int]:
    """Smallest box [x0, x1) x [y0, y1) around the true pixels of an ERP mask (H, W).

    The box may cross the image border: then x1 > W.
    """
    width = mask.shape[1]
    rows, cols = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
    if cols.numel() == width:
        return 0, int(rows[0]), width, int(rows[-1]) + 1
    gaps = torch.cat((cols[1:], cols[:1] + width)) - cols  # to the next column, with wrap
    last = int(gaps.argmax())
    x0 = int(cols[(last + 1) % cols.numel()])
    x1 = int(cols[last]) + 1
    return x0, int(rows[0]), x1 if x1 > x0 else x1 + width, int(rows[-1]) + 1


def mask_bfov(mask: Tensor) -> tuple[float, float, float, float]:
    """Bounding field of view (yaw, pitch, hfov, vfov) in degrees of an ERP mask (H, W)."""
    height, width = mask.shape
    x0, y0, x1, y1 = mask_box(mask)
    yaw = ((x0 + x1) / 2 / width - 0.5) * 360
    pitch = (0.5 - (y0 + y1) / 2 / height) * 180
    yaw = (yaw + 180) % 360 - 180
    return yaw, pitch, (x1 - x0) / width * 360, (y1 - y0) / height * 180


def describe_visible(instance: Tensor, depth: Tensor, amodal: dict[int, Tensor]) -> list[dict]:
    """Describe every object of an ERP label image, ordered by id.

    Args:
        instance: (H, W) int32.
        depth: (H, W) metres.
        amodal: Per object id the pixels it would cover alone, (H, W) bool.

    Returns:
        Dicts with `id`; `pixels`; `solid_angle_sr`; `box` [x0, y0, x1, y1] in pixels, half open,
        x1 > W when it crosses the image border; `center` (x, y), the pixel coordinates of the
        solid-angle centroid; `min_depth_m`, `median_depth_m`; `faces`, letters of the cube faces
        touched; `truncated`, always False on the full sphere; `occluded`, the share of the
        object's solid angle hidden by other objects.
    """
    size = (instance.shape[0], instance.shape[1])
    weights = sphere_weights("erp", size).to(depth).expand(size)
    dirs = rays("erp", size, device=depth.device)
    found = []
    for number, whole in amodal.items():
        mask = instance == number
        if not mask.any():
            continue
        weight = weights[mask]
        center = (dirs[mask] * weight[:, None]).sum(0)
        x, y = lonlat_to_pixel(xyz_to_lonlat(center), size).tolist()
        faces = xyz_to_face(dirs[mask])[0].unique().tolist()
        solid_angle = float(weight.sum())
        found.append(
            {
                "id": number,
                "pixels": int(mask.sum()),
                "solid_angle_sr": solid_angle,
                "box": list(mask_box(mask)),
                "center": (x, y),
                "min_depth_m": float(depth[mask].min()),
                "median_depth_m": float(depth[mask].median()),
                "faces": "".join(FACE_NAMES[f] for f in faces),
                "truncated": False,
                "occluded": max(0.0, 1 - solid_angle / float(weights[whole].sum())),
            }
        )
    return sorted(found, key=lambda item: item["id"])
