"""Draw a closed path at random.

python evaluate/IECC/sample_path.py --navigation_distance 20 --rotation_times 4 --picture path.png
"""

import sys

from genex_explorer.cli.iecc_generate import sample_path_main

if __name__ == "__main__":
    sys.exit(sample_path_main())
