"""Measure the embedded checkpoints on 64 held-out procedural panoramas.

python evaluation/tiny_quality.py
"""

import sys

from pager.cli.quality import main

if __name__ == "__main__":
    sys.exit(main())
