"""Procedural panoramas with captions, and photos of the same worlds, as training data."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm.auto import tqdm

from dit360.captions import caption, random_world, render_photo, render_world, split_seed
from dit360.data.journal import Journal
from dit360.data.photos import Camera, random_yaw
from dit360.data.prepare import PhotoOptions, Summary, prepare_panoramas, prepare_photos
from shared_pano_utils.geometry import rotation_matrix
from shared_pano_utils.imageio import write_image

Split = Literal["train", "val", "test"]
SPLITS = ("train", "val", "test")
_PHOTO_STREAM = 4  # of the random numbers of a world; `dit360.captions` uses 1 to 3


@dataclass(frozen=True, kw_only=True)
class WorldOptions:
    """Which worlds are rendered.

    Attributes:
        count: panoramas.
        photos: photos of the first worlds, on canvases.
        height: of a panorama, pixels.
        split: worlds of different splits differ.
        fov_deg: of the photos.
        erode_cells: as in `PhotoOptions`.
    """

    count: int
    photos: int = 0
    height: int = 64
    split: Split = "train"
    fov_deg: float = 90.0
    erode_cells: int = 0


def write_worlds(output: Path, options: WorldOptions, *, overwrite: bool = False) -> list[Summary]:
    """Write a data set in all layouts that `open_rows` reads; finished images are skipped.

    ``images/`` with metadata.jsonl, panoramas.jsonl with a white mask and, with photos,
    ``photos/`` with metadata.jsonl, ``canvas/``, ``masks/`` and perspective.jsonl.

    Returns:
        What was done: panoramas, then photos if any.
    """
    journal = Journal(
        output / "images" / "metadata.jsonl", files=["file_name"], overwrite=overwrite
    )
    records = []
    skipped = 0
    for index in tqdm(range(options.count), "worlds", leave=False):
        world = random_world(split_seed(options.split, index))
        name = f"{options.split}_{index:05d}.png"
        record = {
            "file_name": name,
            "caption": caption(world),
            "height": options.height,
        }
        if journal.is_finished(record):
            skipped += 1
        else:
            write_image(journal.path.parent / name, render_world(world, options.height), gpano=True)
            journal.add(record)
        records.append(record)
    journal.close(records)
    images = [journal.path.parent / record["file_name"] for record in records]
    rows = prepare_panoramas(images, [record["caption"] for record in records], output).rows
    panoramas = Summary(rows=rows, made=len(records) - skipped, skipped=skipped, problems=())
    if not options.photos:
        return [panoramas]
    return [panoramas, _write_photos(output, options, overwrite=overwrite)]


def _write_photos(output: Path, options: WorldOptions, *, overwrite: bool) -> Summary:
    """Photos in random directions; a canvas has its photo where the caption's world has it."""
    journal = Journal(
        output / "photos" / "metadata.jsonl", files=["file_name"], overwrite=overwrite
    )
    side = options.height // 2  # as fine as a panorama of twice the size
    records, cameras = [], []
    for index in tqdm(range(options.photos), "photos", leave=False):
        world = random_world(split_seed(options.split, index))
        rng = np.random.default_rng([world.seed, _PHOTO_STREAM])
        camera = Camera(fov_deg=options.fov_deg, yaw_deg=random_yaw(rng, options.height))
        name = f"{options.split}_{index:05d}.png"
        record = {
            "file_name": name, "caption": caption(world), "side": side,
            "fov_deg": camera.fov_deg, "yaw_deg": camera.yaw_deg,
        }  # fmt: skip
        if not journal.is_finished(record):
            rotation = rotation_matrix(camera.yaw_deg).numpy()
            photo = render_photo(world, side, camera.fov_deg, rotation)
            write_image(journal.path.parent / name, photo)
            journal.add(record)
        records.append(record)
        cameras.append(camera)
    journal.close(records)
    return prepare_photos(
        [journal.path.parent / record["file_name"] for record in records],
        [record["caption"] for record in records],
        cameras,
        output,
        PhotoOptions(height=options.height, erode_cells=options.erode_cells),
        overwrite=overwrite,
    )
