"""What a run tells while it trains: scalars to a tracker, mosaics of panoramas to files."""

import dataclasses
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from pager.config import TrainConfig
from pager.export import depth_preview, normals_preview
from pager.model import ModelConfig
from pager.training.batches import Batch
from shared_pano_utils import cubemap_to_erp
from shared_pano_utils.geometry import PY360_E2X
from shared_pano_utils.imageio import write_image

IMAGES_FOLDER = "images"
MAX_PANORAMAS = 4
TILE = (256, 512)  # rows and columns of one panorama in a mosaic


class Reporter:
    """Scalars and pictures of a run; only the main process of several writes."""

    def __init__(self, accelerator: Accelerator, config: TrainConfig, output: Path) -> None:
        self._accelerator, self._folder = accelerator, output / IMAGES_FOLDER
        logging = config.logging
        if logging.report_to == "none":
            return
        options = {"wandb": {"name": logging.run_name or output.name}}
        flat = {
            f"{section}.{key}" if section else key: value if value is not None else "none"
            for section, key, value in _leaves(dataclasses.asdict(config))
        }
        accelerator.init_trackers(logging.tracker_project_name, flat, options)

    def scalars(self, values: dict[str, float], step: int) -> None:
        """Hand numbers to the tracker."""
        self._accelerator.log(values, step=step)

    def panoramas(self, name: str, pictures: list[np.ndarray], step: int) -> None:
        """Write a mosaic of up to four pictures and hand it to the tracker."""
        if not self._accelerator.is_main_process or not pictures:
            return
        picture = mosaic(pictures[:MAX_PANORAMAS])
        self._folder.mkdir(parents=True, exist_ok=True)
        write_image(self._folder / f"{name}_{step:07d}.jpg", picture)
        for tracker in cast(list[Any], self._accelerator.trackers):
            options = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images({name: picture[None]}, step=step, **options)

    def close(self) -> None:
        """Flush the tracker."""
        self._accelerator.end_training()


def _leaves(tree: dict[str, Any]) -> list[tuple[str, str, Any]]:
    """(section or "", key, value) of a two-level tree."""
    rows = []
    for key, value in tree.items():
        if isinstance(value, dict):
            rows += [(key, leaf, item) for leaf, item in value.items()]
        else:
            rows.append(("", key, value))
    return rows


def batch_pictures(batch: Batch, pred: Tensor, model: ModelConfig) -> list[np.ndarray]:
    """One picture per panorama of a batch: RGB, truth and prediction below each other.

    Args:
        batch: what the network saw.
        pred: (b, 6, 1 or 3, S, S) raw prediction.
        model: says how to read it.

    Returns:
        Arrays (3 h, w, 3) uint8 with (h, w) = `TILE`.
    """

    def panorama(faces: Tensor) -> Tensor:
        return cast(Tensor, cubemap_to_erp(faces.detach().float(), TILE, reg=PY360_E2X)).cpu()

    rgb = ((panorama(batch.faces) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    pictures = []
    for image, *values in zip(rgb, panorama(batch.target), panorama(pred), strict=True):
        rows = [image.movedim(0, -1).numpy()]
        for value in values:
            if model.modality == "depth":
                rows.append(depth_preview(model.depth_range.denormalize(value).numpy()))
            else:
                rows.append(normals_preview(torch.nn.functional.normalize(value, dim=0).numpy()))
        pictures.append(np.concatenate(rows))
    return pictures


def mosaic(pictures: list[np.ndarray]) -> np.ndarray:
    """Join equal (h, w, 3) pictures: one, two side by side, or a 2 x 2 sheet with blank rest."""
    columns = min(len(pictures), 2)
    blank = np.zeros_like(pictures[0])
    padded = pictures + [blank] * (-len(pictures) % columns)
    rows = [padded[i : i + columns] for i in range(0, len(padded), columns)]
    return cv2.vconcat([cv2.hconcat(row) for row in rows])
