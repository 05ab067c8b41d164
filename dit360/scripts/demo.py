"""A panorama from words, and one around a photo, with the embedded checkpoint.

python scripts/demo.py --out ../out/demo/dit360
"""

import sys

from dit360.cli.demo import main

if __name__ == "__main__":
    sys.exit(main())
