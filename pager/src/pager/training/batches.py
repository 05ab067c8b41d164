"""From stored panoramas to what the network and the losses see."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Sampler

from pager.geometry import roll_normals
from pager.model import ModelConfig
from shared_pano_utils import erp_to_cubemap
from shared_pano_utils.geometry import PY360_E2X

LINEAR_QUANTILES = (0.02, 0.98)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One training batch on the device.

    `faces` (b, 6, 3, S, S) in [-1, 1]; `target` (b, 6, 1 or 3, S, S) normalised depth or unit
    normals; `mask` (b, 6, 1, S, S) bool; `erp_normals` (b, 3, H, W) and `erp_mask` (b, 1, H, W).
    """

    ids: list[str]
    faces: Tensor
    target: Tensor
    mask: Tensor
    erp_normals: Tensor
    erp_mask: Tensor


class EpochSampler(Sampler[int]):
    """A permutation per epoch that depends on (seed, epoch) only, so runs resume exactly."""

    def __init__(self, length: int, seed: int) -> None:
        self.length, self.seed, self.epoch = length, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the permutation of the next iteration."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(stable_hash(self.seed, self.epoch))
        return iter(torch.randperm(self.length, generator=generator).tolist())


def stable_hash(*parts: object) -> int:
    """63-bit hash of the parts, equal across processes and runs."""
    digest = hashlib.blake2b("|".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def yaw_augment(batch: dict[str, Any], seed: int, epoch: int) -> dict[str, Any]:
    """Roll every panorama right by its own integer number of columns; normals turn with it.

    `depth` and `normals` may be absent.
    """
    width = batch["rgb"].shape[-1]
    shifts = [stable_hash(seed, epoch, name) % width for name in batch["id"]]
    rolled = {
        key: torch.stack([item.roll(s, -1) for item, s in zip(batch[key], shifts, strict=True)])
        for key in ("rgb", "depth")
        if key in batch
    }
    if "normals" in batch:
        turned = [roll_normals(n, s) for n, s in zip(batch["normals"], shifts, strict=True)]
        rolled["normals"] = torch.stack(turned)
    return {"id": batch["id"], **rolled}


def prepare_batch(batch: dict[str, Any], config: ModelConfig, device: torch.device) -> Batch:
    """Warp a collated batch to cube faces.

    Args:
        batch: `rgb` (b, 3, H, W) uint8, `depth` (b, 1, H, W) metres, and `normals` (b, 3, H, W)
            unless nothing is learned from them.
        config: modality, depth range, face size.
        device: where the faces are wanted.
    """
    missing = {"depth", config.modality} - batch.keys()
    if missing:
        raise ValueError(
            f"panorama {batch['id'][0]} has no {', '.join(sorted(missing))}; choose another --dataset"
        )
    rgb = rgb_to_unit(batch["rgb"].to(device))
    # Missing measurements (NaN) become invalid numbers, so that warps and gradients stay finite.
    depth = batch["depth"].to(device).nan_to_num(0.0)
    normals = batch.get("normals", torch.zeros_like(rgb)).to(device).nan_to_num(0.0)
    erp_mask = config.depth_range.valid(depth)
    if config.modality == "normals":  # a zero vector: none was measured
        erp_mask &= normals.norm(dim=1, keepdim=True) > 0.5
    values = depth_target(depth, erp_mask, config) if config.modality == "depth" else normals
    size = config.face_size
    return Batch(
        ids=batch["id"],
        faces=erp_to_faces(rgb, size),
        target=erp_to_faces(values, size),
        mask=erp_to_faces(erp_mask.float(), size) > 0.99,
        erp_normals=normals,
        erp_mask=erp_mask,
    )


def depth_target(depth_m: Tensor, mask: Tensor, config: ModelConfig) -> Tensor:
    """Depth (b, 1, H, W) metres as the network learns it, in [-1, 1].

    The fixed range of the checkpoint; relative linear depth spans the 2 % to 98 % quantiles of each
    panorama instead, since its scale and shift are free. (The original does so for metric linear
    depth too, which then is not metric.)
    """
    if config.log_scale or config.metric_depth:
        return config.depth_range.normalize(depth_m)
    targets = []
    for depth, valid in zip(depth_m, mask, strict=True):
        values = depth[valid].cpu().numpy()
        low, high = np.quantile(values, LINEAR_QUANTILES) if len(values) else (0.0, 1.0)
        targets.append(((depth - low) / max(high - low, 1e-6)).clamp(0, 1) * 2 - 1)
    return torch.stack(targets).float()


def rgb_to_unit(rgb: Tensor) -> Tensor:
    """8-bit colour to float32 in [-1, 1]."""
    return rgb.float() / 127.5 - 1


def erp_to_faces(erp: Tensor, face_size: int) -> Tensor:
    """Panoramas (b, C, H, W) to faces (b, 6, C, S, S), registered as the released networks are.

    A panorama more than 1.25 times finer than the faces (4 S columns around) is area-averaged to
    their resolution first, so that it does not alias.
    """
    height, width = erp.shape[-2:]
    target = (
        2 * face_size if height > 2.5 * face_size else height,
        4 * face_size if width > 5 * face_size else width,
    )
    if target != (height, width):
        erp = F.interpolate(erp, target, mode="area")
    return cast(Tensor, erp_to_cubemap(erp, face_size, reg=PY360_E2X))
