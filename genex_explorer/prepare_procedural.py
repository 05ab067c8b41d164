"""Render procedural walks: rooms, corridors, outdoors.

python prepare_procedural.py --output_dir data/procedural --split train --rooms 200
"""

import sys

from genex_explorer.cli.procedural import main

if __name__ == "__main__":
    sys.exit(main())
