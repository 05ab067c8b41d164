"""Make, check and compare training data.

python prepare_data.py procedural --output data/worlds --count 64 --perspective 16 --tiny
"""

import sys

from dit360.cli.prepare_data import main

if __name__ == "__main__":
    sys.exit(main())
