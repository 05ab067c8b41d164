"""Score the edges of depth predictions: the name that the original's README uses.

python evaluation/edge_estimation.py --data_path data --dataset PanoInfinigen --pred_path results/PaGeR-depth
"""

import sys

from pager.cli.evaluate import edge_main

if __name__ == "__main__":
    sys.exit(edge_main())
