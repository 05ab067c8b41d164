"""Score normals predictions.

python evaluation/normals_evaluation.py --data_path data --dataset PanoInfinigen --pred_path results/PaGeR-normals
"""

import sys

from pager.cli.evaluate import normals_main

if __name__ == "__main__":
    sys.exit(normals_main())
