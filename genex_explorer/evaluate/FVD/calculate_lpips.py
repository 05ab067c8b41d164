"""LPIPS of generated walks.

python evaluate/FVD/calculate_lpips.py --input_folder results --device cpu --lpips_weights alexnet.pth
"""

import sys

from genex_explorer.cli.scores import main

if __name__ == "__main__":
    sys.exit(main(["--metrics", "lpips", *sys.argv[1:]]))
