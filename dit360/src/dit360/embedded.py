"""The embedded default: a tiny FLUX and a LoRA for it, shipped with the code."""

from pathlib import Path

TINY_ASSETS = Path(__file__).parents[2] / "assets" / "tiny"
TINY_MODEL = TINY_ASSETS / "base"
TINY_LORA = TINY_ASSETS / "lora"
TINY_HEIGHT = 96  # pixels; twice as wide
TINY_STEPS = 12
TINY_PASTE = 4  # pixels over which a kept part fades out
TINY_TEXT_LENGTH = 48  # T5 tokens; FLUX.1-dev has 512
