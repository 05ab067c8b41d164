"""Video files by PyAV: reading frames in order, H.264 with spherical metadata, animated GIF."""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from shared_pano_utils.imageio import atomic_path
from shared_pano_utils.metadata import write_spherical_video

CRF = "14"  # visually lossless; yuv420p alone costs about 1/255


def read_frames(path: str | Path) -> Iterator[np.ndarray]:
    """Decode the frames (H, W, 3) uint8 of the first video stream, one after the other.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a video, or it ends in the middle.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"video {path} does not exist")
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError(f"{path} holds no video stream")
            for frame in container.decode(video=0):
                if frame.is_corrupt:
                    raise ValueError(f"{path} is damaged or ends in the middle; replace it")
                yield frame.to_ndarray(format="rgb24")
    except av.FFmpegError as error:
        raise ValueError(f"{path} is not a readable video ({error}); replace it") from error


def read_video(path: str | Path) -> np.ndarray:
    """All frames (F, H, W, 3) uint8 of a video; see `read_frames`."""
    frames = list(read_frames(path))
    if not frames:
        raise ValueError(f"{path} holds no frame; replace it")
    return np.stack(frames)


def write_video(
    path: str | Path, frames: np.ndarray, *, fps: float, spherical: bool = True
) -> None:
    """Write H.264 (yuv420p), with the spherical box that players need to show 360 degrees.

    Args:
        path: the .mp4; replaced only when the new file is whole.
        frames: (F, H, W, 3) uint8; an odd last row or column is repeated, as yuv420p needs.
        fps: frames per second.
        spherical: whether the frames are panoramas.
    """
    if len(frames) == 0:
        raise ValueError(f"{path}: there is no frame to write; a video needs one or more")
    frames = np.pad(frames, ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)),
                    mode="edge")  # fmt: skip
    with atomic_path(path) as temporary:
        with av.open(str(temporary), "w", format="mp4") as container:
            stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
            stream.height, stream.width = frames.shape[1:3]
            stream.pix_fmt = "yuv420p"
            stream.options = {"crf": CRF}
            for image in frames:
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        if spherical:
            write_spherical_video(temporary)


def write_gif(path: str | Path, frames: Sequence[np.ndarray] | np.ndarray, *, fps: float) -> None:
    """Write an endless animated GIF of (F, H, W, 3) uint8 frames; centiseconds per frame."""
    images = [Image.fromarray(frame) for frame in frames]
    with atomic_path(path) as temporary:
        images[0].save(temporary, format="GIF", save_all=True, append_images=images[1:],
                       duration=round(1000 / fps), loop=0)  # fmt: skip
