"""Depth and surface normals of panoramas in the browser.

python app.py --tiny
"""

import sys

from pager.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
