"""Depth and surface normals of panoramas.

python inference.py --input photo.jpg --results_path out --tiny --html
"""

import sys

from pager.cli.inference import main

if __name__ == "__main__":
    sys.exit(main())
