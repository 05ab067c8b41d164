"""Measure the embedded checkpoint on 128 held-out captions and 32 photos.

python scripts/tiny_quality.py
"""

import sys

from dit360.cli.quality import main

if __name__ == "__main__":
    sys.exit(main())
