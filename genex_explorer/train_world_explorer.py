"""Tune SVD to walk forward into a panorama.

accelerate launch train_world_explorer.py --tiny --base_folder data/procedural --output_dir out/run
"""

import sys

from genex_explorer.cli.train import main

if __name__ == "__main__":
    sys.exit(main())
