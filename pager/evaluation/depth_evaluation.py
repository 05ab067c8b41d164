"""Score depth predictions.

python evaluation/depth_evaluation.py --data_path data --dataset PanoInfinigen --pred_path results/PaGeR-depth
"""

import sys

from pager.cli.evaluate import depth_main

if __name__ == "__main__":
    sys.exit(depth_main())
