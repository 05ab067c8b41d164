"""Score normals predictions: the name that the original's README uses.

python evaluation/normals_estimation.py --data_path data --dataset PanoInfinigen --pred_path results/PaGeR-normals
"""

import sys

from pager.cli.evaluate import normals_main

if __name__ == "__main__":
    sys.exit(normals_main())
