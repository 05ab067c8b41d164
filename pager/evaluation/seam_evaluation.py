"""Measure the seams of predictions.

python evaluation/seam_evaluation.py --data_path data --dataset PanoInfinigen --pred_path results/PaGeR-depth
"""

import sys

from pager.cli.evaluate import seam_main

if __name__ == "__main__":
    sys.exit(seam_main())
