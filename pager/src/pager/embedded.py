"""Where the embedded default checkpoints lie and what they share."""

from pathlib import Path

TINY_ASSETS = Path(__file__).parents[2] / "assets" / "tiny"
TINY_FACE_SIZE = 48
TINY_MIN_DEPTH_M = 0.25
