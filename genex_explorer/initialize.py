"""Make panoramas from photos, to explore them.

python initialize.py --image photo.jpg --prompt "a sunny street" --output_dir panoramas
"""

import sys

from genex_explorer.cli.initialize import main

if __name__ == "__main__":
    sys.exit(main())
