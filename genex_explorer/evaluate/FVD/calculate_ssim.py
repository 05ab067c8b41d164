"""SSIM of generated walks.

python evaluate/FVD/calculate_ssim.py --input_folder results --device cpu
"""

import sys

from genex_explorer.cli.scores import main

if __name__ == "__main__":
    sys.exit(main(["--metrics", "ssim", *sys.argv[1:]]))
