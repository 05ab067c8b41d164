"""Walk through a panorama.

python explore.py --image pano.jpg --path "forward 25, left 60, forward 10" --output_dir walk
"""

import sys

from genex_explorer.cli.explore import main

if __name__ == "__main__":
    sys.exit(main())
