"""Score the edges of depth predictions.

python evaluation/edge_evaluation.py --data_path data --dataset PanoInfinigen --pred_path results/PaGeR-depth
"""

import sys

from pager.cli.evaluate import edge_main

if __name__ == "__main__":
    sys.exit(edge_main())
