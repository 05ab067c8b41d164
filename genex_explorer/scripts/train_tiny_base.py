"""Train the VAE of the tiny base pipeline on clips; its UNet copies the first frame, its CLIP is random.

python scripts/train_tiny_base.py --base_folder data/train --output out/tiny/base
"""

import argparse
import sys
from pathlib import Path

from genex_explorer.cli.common import run_cli


def main(argv: list[str] | None = None) -> int:
    """Parse the flags and train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base_folder", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--frames", type=int, default=3, help="length of a window")
    parser.add_argument("--learning_rate", type=float, default=8e-4)
    parser.add_argument("--latent_noise", type=float, default=0.1)
    parser.add_argument("--init", type=Path, help="go on with the VAE of this pipeline")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)

    def command() -> int:
        import numpy as np

        from genex_explorer.data.clips import find_clips, read_clip
        from genex_explorer.embedded import TINY_HEIGHT, TINY_WIDTH
        from genex_explorer.tiny import train_tiny_base

        size = (TINY_WIDTH, TINY_HEIGHT)
        clips = np.stack([read_clip(clip.frames, size) for clip in find_clips(args.base_folder)])
        train_tiny_base(
            clips, args.output, steps=args.steps, frames=args.frames,
            learning_rate=args.learning_rate, seed=args.seed,
            latent_noise=args.latent_noise, init=args.init,
        )  # fmt: skip
        return 0

    return run_cli(command)


if __name__ == "__main__":
    sys.exit(main())
