"""Walk closed loops for the loop-consistency score.

python evaluate/IECC/iecc_generate.py --tiny --navigation_distances 6 --rotation_times 2 3 --num_data 2
"""

import sys

from genex_explorer.cli.iecc_generate import main

if __name__ == "__main__":
    sys.exit(main())
