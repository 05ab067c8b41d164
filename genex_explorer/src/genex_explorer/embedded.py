"""Where the embedded checkpoint lies and the sizes it was trained for."""

from pathlib import Path

TINY_ASSETS = Path(__file__).parents[2] / "assets" / "tiny"
TINY_WIDTH, TINY_HEIGHT, TINY_FRAMES = 64, 32, 8
TINY_STEPS = 3  # denoising steps; more have a lower PSNR at this size
