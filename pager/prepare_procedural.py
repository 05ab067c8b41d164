"""Render a procedural data set in the layout of PanoInfinigen.

python prepare_procedural.py --data_path data --split train --rooms 24
"""

import sys

from pager.cli.procedural import main

if __name__ == "__main__":
    sys.exit(main())
