"""A hole painted in a panorama, in its flat image or in perspective views of it."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from PIL import Image

from shared_pano_utils import erp_to_perspective, perspective_to_erp

FLAT_SIZE = (512, 1024)
"""Pixels of the flat panorama in the editor: 1024 x 2048 would be slow to send and to draw in."""
VIEW_SIZE = (576, 768)
TINT = (255, 48, 48)


class Window(NamedTuple):
    """A perspective view to paint in, degrees.

    Attributes:
        yaw_deg: to the right of the centre column.
        pitch_deg: up.
        fov_deg: horizontal, below 180.
    """

    yaw_deg: float = 0.0
    pitch_deg: float = 0.0
    fov_deg: float = 90.0

    def show(self, erp: np.ndarray) -> np.ndarray:
        """What the view sees of a panorama (H, 2H, 3) uint8, as `VIEW_SIZE`."""
        seen = erp_to_perspective(
            erp, size=VIEW_SIZE, fov=self.fov_deg, yaw=self.yaw_deg, pitch=self.pitch_deg
        )
        return np.asarray(seen)

    def write_back(self, strokes: np.ndarray, height: int) -> np.ndarray:
        """The pixels (H, 2H) bool of a panorama that lie under strokes (h, w) bool in this view."""
        erp, _ = perspective_to_erp(
            strokes[..., None].astype(np.uint8),
            (height, 2 * height),
            fov=self.fov_deg,
            yaw=self.yaw_deg,
            pitch=self.pitch_deg,
            mode="nearest",
        )
        return np.asarray(erp)[..., 0] > 0


@dataclass(frozen=True)
class Canvas:
    """A panorama, the hole painted so far, and how the editor shows them; strokes make a new one.

    Attributes:
        source: (H, 2H, 3) uint8.
        hole: (H, 2H) bool, True where the panorama shall be new.
        window: what the editor shows, None for the flat panorama.
    """

    source: np.ndarray
    hole: np.ndarray
    window: Window | None = None

    @classmethod
    def start(cls, source: np.ndarray) -> "Canvas":
        """A panorama without a hole."""
        return cls(source, np.zeros(source.shape[:2], bool))

    def painted(self, strokes: np.ndarray | None) -> "Canvas":
        """With strokes (h, w) bool, made over what the editor shows, added to the hole."""
        if strokes is None or not strokes.any():
            return self
        height, width = self.hole.shape
        if self.window is None:
            added = _resize(strokes, (height, width))
        else:
            added = self.window.write_back(_resize(strokes, VIEW_SIZE), height)
        return replace(self, hole=self.hole | added)

    def cleared(self) -> "Canvas":
        """Without the hole."""
        return replace(self, hole=np.zeros_like(self.hole))

    def seen_through(self, window: Window | None) -> "Canvas":
        """Shown in another way."""
        return replace(self, window=window)

    def overview(self) -> np.ndarray:
        """The flat panorama with the hole in red, (512, 1024, 3) uint8."""
        return _resize(self._tinted(), FLAT_SIZE)

    def picture(self) -> np.ndarray:
        """What the editor shows: the overview, or the perspective view of the same."""
        return self.overview() if self.window is None else self.window.show(self._tinted())

    def _tinted(self) -> np.ndarray:
        red = self.source // 2 + np.array(TINT, np.uint8) // 2
        return np.where(self.hole[..., None], red, self.source)


def _resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize (h, w, 3) uint8, or (h, w) bool, which stays what it is."""
    if image.shape[:2] == size:
        return image
    how = Image.Resampling.NEAREST if image.dtype == bool else Image.Resampling.BICUBIC
    return np.array(Image.fromarray(image).resize((size[1], size[0]), how))
