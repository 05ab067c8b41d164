"""Measure the embedded checkpoint on 32 held-out procedural clips and 12 loops.

python evaluate/tiny_quality.py
"""

import sys

from genex_explorer.cli.quality import main

if __name__ == "__main__":
    sys.exit(main())
