"""Score closed loops: latent MSE of their first and last panorama.

python evaluate/IECC/iecc_score.py consistency --weights inception_v4.safetensors
"""

import sys

from genex_explorer.cli.iecc_score import main

if __name__ == "__main__":
    sys.exit(main())
