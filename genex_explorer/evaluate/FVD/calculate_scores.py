"""Score generated walks: FVD, LPIPS, PSNR, SSIM and spherical metrics.

python evaluate/FVD/calculate_scores.py --input_folder results --device cpu
"""

import sys

from genex_explorer.cli.scores import main

if __name__ == "__main__":
    sys.exit(main())
