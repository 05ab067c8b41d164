"""Frames of videos as numbered images, one folder per video.

A folder is made under a hidden name and renamed when it is whole, with `source.json` in it: what
video it is of and which of its frames were taken. A second run passes over such folders and makes
the others again. Nothing here imports torch, so that processes start fast.
"""

import io
import json
import multiprocessing
import shutil
import signal
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from PIL import Image

from shared_pano_utils.imageio import write_image, write_json

RECORD_NAME = "source.json"
LAYOUTS = ("seed", "flat")
ON_SHORT = ("skip", "keep", "error")
STATUSES = ("ok", "skipped", "short", "failed")

Source = Path | bytes | ValueError  # a video: its file, its content, or why it cannot be had


@dataclass(frozen=True, kw_only=True)
class ExtractOptions:
    """What is taken from a video, and how it is stored.

    Attributes:
        frames_per_video: images per clip.
        size: (width, height) of the images in pixels; the aspect is not kept, as in the original.
        layout: ``<scene>/video_00000/frame_0001.jpg`` of the documentation, or
            ``<scene>_video0/0.png`` of the original's last revision.
        on_short: what to do with a video of fewer frames: leave it out, keep all it has, or fail.
        overwrite: make finished clips again.
    """

    frames_per_video: int = 50
    size: tuple[int, int] = (1024, 576)
    layout: Literal["seed", "flat"] = "seed"
    on_short: Literal["skip", "keep", "error"] = "skip"
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class ClipJob:
    """A clip to be made.

    Attributes:
        scene: type as the user wrote it.
        number: of the video in its scene, from 0.
        video: name in messages and in the record.
        folder: of the frames.
    """

    scene: str
    number: int
    video: str
    folder: Path


@dataclass(frozen=True, kw_only=True)
class Result:
    """What became of a clip: one of `STATUSES`, and why if it is short or failed."""

    job: ClipJob
    status: Literal["ok", "skipped", "short", "failed"]
    reason: str = ""


def frame_indices(total: int, count: int) -> list[int]:
    """Indices of `count` frames spread over `total`: floor(k * total / count); all if too few.

    >>> frame_indices(10, 4)
    [0, 2, 5, 7]
    """
    return [k * total // count for k in range(count)] if total > count else list(range(total))


def clip_folder(output: Path, scene: str, number: int, layout: str) -> Path:
    """Folder of the video with this number (from 0) in its scene."""
    if layout == "flat":
        return output / f"{scene}_video{number}"
    return output / scene / f"video_{number:05d}"


def frame_name(number: int, layout: str) -> str:
    """File name of a frame, `number` counting from 0; the names in the seed layout start at 1."""
    return f"{number}.png" if layout == "flat" else f"frame_{number + 1:04d}.jpg"


def find_finished(job: ClipJob, options: ExtractOptions) -> Result | None:
    """Whether nothing has to be done: the clip is whole, or what is there is of something else."""
    record = job.folder / RECORD_NAME
    if options.overwrite or not record.is_file():
        return None
    try:
        stored = json.loads(record.read_text(encoding="utf-8"))
        count = len(stored["frames"])
    except (ValueError, KeyError, TypeError):
        return None
    names = [frame_name(k, options.layout) for k in range(count)]
    if not all((job.folder / name).is_file() for name in names):
        return None
    asked = _description(job, options)
    different = [f"{key} {stored.get(key)}, not {asked[key]}" for key in asked
                 if stored.get(key) != asked[key]]  # fmt: skip
    if count < options.frames_per_video and options.on_short != "keep":
        different.append(f"only {count} frames, stored by --on_short keep")
    if different:
        return Result(
            job=job,
            status="failed",
            reason=f"{job.folder} exists with {', '.join(different)}; pass --overwrite or another "
            "--output_dir",
        )
    return Result(job=job, status="skipped")


def _description(job: ClipJob, options: ExtractOptions) -> dict[str, Any]:
    return {
        "video": job.video,
        "frames_per_video": options.frames_per_video,
        "size": list(options.size),
    }


# ---- one clip -----------------------------------------------------------------------------------


def extract_clip(job: ClipJob, source: Source, options: ExtractOptions) -> Result:
    """Write the frames of a video; a video that cannot be read is a result, not an error.

    Raises:
        OSError: the frames cannot be written.
    """
    count = options.frames_per_video
    temporary = job.folder.with_name(f".{job.folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        if isinstance(source, ValueError):
            raise source
        total = _write_frames(temporary, source, options)
        if total < count and options.on_short != "keep":
            status = "failed" if options.on_short == "error" else "short"
            reason = (
                f"{total} frames, {count} are needed; pass --on_short keep or a smaller "
                "--frames_per_video"
            )
            return Result(job=job, status=status, reason=reason)
        write_json(
            temporary / RECORD_NAME,
            {**_description(job, options), "total": total, "frames": frame_indices(total, count)},
            indent=None,
        )
        shutil.rmtree(job.folder, ignore_errors=True)
        temporary.rename(job.folder)
    except ValueError as error:
        return Result(job=job, status="failed", reason=" ".join(str(error).split()))
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    if total < count:
        return Result(job=job, status="short", reason=f"kept all {total} frames of {count}")
    return Result(job=job, status="ok")


def _write_frames(folder: Path, source: Path | bytes, options: ExtractOptions) -> int:
    """Write the frames wanted into `folder`; returns how many the video has.

    Nothing is written if there are too few and short videos are not kept.
    """
    total = _count_packets(source)
    while total >= options.frames_per_video or options.on_short == "keep":
        wanted = {
            index: k for k, index in enumerate(frame_indices(total, options.frames_per_video))
        }
        decoded = 0
        for frame in _decode(source):
            if decoded in wanted:
                path = folder / frame_name(wanted[decoded], options.layout)
                width, height = options.size
                write_image(path, _to_image(frame, options.size), gpano=width == 2 * height)
            decoded += 1
        if decoded == total:
            break
        # Packets are no frames in this file (fields, dropped starts): go by what was decoded.
        total = decoded
        shutil.rmtree(folder, ignore_errors=True)
    return total


def _to_image(frame: av.VideoFrame, size: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) uint8 of a frame, resized by antialiased bicubic as the training data are."""
    image = frame.to_ndarray(format="rgb24")
    if image.shape[1::-1] == size:
        return image
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


# ---- videos -------------------------------------------------------------------------------------


def _count_packets(source: Path | bytes) -> int:
    """Compressed frames in the file, read without decoding; headers may lie about it.

    Raises:
        ValueError: not a video, no frames, or it ends in the middle.
    """
    with _open_video(source) as container:
        count = 0
        for packet in container.demux(video=0):
            if packet.is_corrupt:
                raise ValueError(f"the video ends after {count} frames; {repair_hint(source)}")
            count += packet.size > 0  # the last one is empty
    if count == 0:
        raise ValueError(f"the video holds no frame; {repair_hint(source)}")
    return count


def _decode(source: Path | bytes) -> Iterator[av.VideoFrame]:
    with _open_video(source) as container:
        for number, frame in enumerate(container.decode(video=0)):
            if frame.is_corrupt:
                raise ValueError(f"frame {number} of the video is damaged; {repair_hint(source)}")
            yield frame


@contextmanager
def _open_video(source: Path | bytes) -> Iterator[InputContainer]:
    try:
        file = str(source) if isinstance(source, Path) else io.BytesIO(source)
        with av.open(file, "r") as container:
            if not container.streams.video:
                raise ValueError(f"it has no video stream; {repair_hint(source)}")
            yield container
    except FFmpegError as error:
        raise ValueError(
            f"not a readable video ({error.strerror}); {repair_hint(source)}"
        ) from error


def repair_hint(source: Path | bytes) -> str:
    """What to do about a file that is not what its name says."""
    if isinstance(source, Path) and source.is_file():
        with source.open("rb") as file:
            if file.read(19) == b"version https://git":  # a pointer of some 130 bytes
                return "run git lfs pull in the data set"
    return "download it again"


# ---- many clips ---------------------------------------------------------------------------------


def extract_clips(
    jobs: Iterable[tuple[ClipJob, Source]], options: ExtractOptions, workers: int = 1
) -> Iterator[Result]:
    """Extract clips in several processes; results come in the order of the jobs.

    Jobs are taken a few ahead, so that videos given as bytes do not pile up.

    Raises:
        OSError: the frames cannot be written, or a process was killed.
    """
    if workers == 1:
        yield from (extract_clip(job, source, options) for job, source in jobs)
        return
    # Spawned: the parent has threads. Ctrl-C is for the parent, which lets running clips finish.
    pool = ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=signal.signal,
        initargs=(signal.SIGINT, signal.SIG_IGN),
    )
    running: deque[Future[Result]] = deque()
    try:
        for job, source in jobs:
            running.append(pool.submit(extract_clip, job, source, options))
            if len(running) > 2 * workers:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    except BrokenProcessPool as error:
        raise ChildProcessError(
            "a process of --num_workers died, perhaps for lack of memory; use fewer and run again: "
            "finished clips are kept"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
