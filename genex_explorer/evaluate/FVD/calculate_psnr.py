"""PSNR of generated walks.

python evaluate/FVD/calculate_psnr.py --input_folder results --device cpu
"""

import sys

from genex_explorer.cli.scores import main

if __name__ == "__main__":
    sys.exit(main(["--metrics", "psnr", *sys.argv[1:]]))
