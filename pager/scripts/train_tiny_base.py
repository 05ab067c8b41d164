"""Train the tiny base model (VAE) that the embedded checkpoints stand on.

python scripts/train_tiny_base.py --data_path data/tiny --output out/tiny/base --steps 3000
"""

import argparse
import sys
from pathlib import Path

from pager.cli.common import run_cli


def main(argv: list[str] | None = None) -> int:
    """Parse the flags and train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_path", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--learning_rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)

    def command() -> int:
        from pager.tiny import train_tiny_base

        train_tiny_base(**vars(args))
        return 0

    return run_cli(command)


if __name__ == "__main__":
    sys.exit(main())
