"""Show PaGeR on one panorama with the embedded checkpoints.

python scripts/demo.py --out ../out/demo
"""

import sys

from pager.cli.demo import main

if __name__ == "__main__":
    sys.exit(main())
