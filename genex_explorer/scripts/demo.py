"""Walk through one panorama with the embedded checkpoint.

python scripts/demo.py --out ../out/demo/genex_explorer
"""

import sys

from genex_explorer.cli.demo import main

if __name__ == "__main__":
    sys.exit(main())
