"""Making the jsonl files of mix training from photos and from panoramas."""

import os
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from dit360.data.dataset import TOKEN_PX
from dit360.data.journal import Journal
from dit360.data.photos import Camera, crop_square, place_photo, random_yaw
from dit360.data.rows import Problem
from shared_pano_utils.imageio import read_image, write_image

PANORAMA_ROWS = "panoramas.jsonl"
PERSPECTIVE_ROWS = "perspective.jsonl"
_WHITE_NAME = "white.png"
_WHITE_SIZE = (64, 128)  # of the mask that all panoramas share; it is resized anyway


@dataclass(frozen=True, kw_only=True)
class PhotoOptions:
    """How photos become canvases.

    Attributes:
        height: of the panorama, pixels.
        square: cut the photo to its central square first, as the paper does.
        erode_cells: latent cells by which the mask is smaller than the photo.
    """

    height: int = 1024
    square: bool = True
    erode_cells: int = 0


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a preparation did."""

    rows: Path
    made: int
    skipped: int
    problems: tuple[Problem, ...]
    kept: int = 0  # rows of earlier calls, with other images


def random_cameras(
    photos: Sequence[Path], camera: Camera, height: int, seed: int, step_px: int = TOKEN_PX
) -> list[Camera]:
    """`camera` with a random yaw for every photo; photos that are added change no other's."""
    return [
        replace(
            camera,
            yaw_deg=random_yaw(
                np.random.default_rng([seed, zlib.crc32(photo.name.encode())]), height, step_px
            ),
        )
        for photo in photos
    ]


def prepare_photos(
    photos: Sequence[Path],
    captions: Sequence[str],
    cameras: Sequence[Camera],
    output: Path,
    options: PhotoOptions,
    *,
    overwrite: bool = False,
    merge: bool = False,
) -> Summary:
    """Write canvas/, masks/ and perspective.jsonl below `output`; finished photos are skipped.

    Args:
        photos: image files with different names.
        captions: of the photos.
        cameras: of the photos.
        output: folder.
        options: sizes.
        overwrite: make all photos again.
        merge: keep the rows of other photos that `output` has, unless overwritten.

    Raises:
        ValueError: two photos have the same name, by which results are called.
    """
    _refuse_equal_names(photos)
    journal = Journal(output / PERSPECTIVE_ROWS, overwrite=overwrite)
    records: list[dict[str, Any]] = []
    problems: list[Problem] = []
    skipped = 0
    items = list(zip(photos, captions, cameras, strict=True))
    for photo, caption, camera in tqdm(items, "photos", leave=False):
        record = {
            "image": f"canvas/{photo.stem}.png",
            "caption": caption,
            "mask": f"masks/{photo.stem}.png",
            **asdict(camera),
            **asdict(options),
        }
        if journal.is_finished(record):
            skipped += 1
        else:
            try:
                _write_canvas(photo, camera, options, output, record)
            except ValueError as error:
                problems.append(Problem(photo.name, str(error)))
                continue
            journal.add(record)
        records.append(record)
    kept = journal.close(records, merge=merge)
    made = len(records) - skipped
    return Summary(
        rows=journal.path, made=made, skipped=skipped, problems=tuple(problems), kept=kept
    )


def _write_canvas(
    photo: Path, camera: Camera, options: PhotoOptions, output: Path, record: dict[str, Any]
) -> None:
    image = read_image(photo)
    if options.square:
        image = crop_square(image)
    canvas, supervised = place_photo(image, options.height, camera, erode_cells=options.erode_cells)
    write_image(output / record["image"], canvas, gpano=True)
    write_image(output / record["mask"], supervised.astype(np.uint8) * 255)


def prepare_panoramas(
    images: Sequence[Path], captions: Sequence[str], output: Path, *, merge: bool = False
) -> Summary:
    """Write panoramas.jsonl and the white mask it names; the images stay where they are.

    Images that are not 2:1 are left out and named. `merge` keeps the rows of other images.
    """
    write_image(output / _WHITE_NAME, np.full(_WHITE_SIZE, 255, np.uint8))
    journal = Journal(output / PANORAMA_ROWS, overwrite=not merge)
    records: list[dict[str, Any]] = []
    problems: list[Problem] = []
    for image, caption in zip(images, captions, strict=True):
        if (reason := _shape_problem(image)) is not None:
            problems.append(Problem(image.name, reason))
            continue
        path = Path(os.path.relpath(image, output)).as_posix()
        records.append({"image": path, "caption": caption, "mask": _WHITE_NAME})
    kept = journal.close(records, merge=merge)
    made = len(records)
    return Summary(rows=journal.path, made=made, skipped=0, problems=tuple(problems), kept=kept)


def _shape_problem(path: Path) -> str | None:
    """Reads only the header; `prepare_data.py check` decodes."""
    try:
        with Image.open(path) as image:
            width, height = image.size
    except (OSError, Image.DecompressionBombError) as error:
        return f"not a readable image ({error})"
    if width != 2 * height:
        return f"is {width}x{height}, a panorama is twice as wide as high; crop or resize it"
    return None


def _refuse_equal_names(images: Sequence[Path]) -> None:
    stem, count = Counter(image.stem for image in images).most_common(1)[0]
    if count > 1:
        raise ValueError(
            f"{count} photos are called {stem!r}, which names their results; rename them"
        )
