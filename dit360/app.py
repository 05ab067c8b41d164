"""Make and edit panoramas in the browser.

python app.py --tiny
"""

import sys

from dit360.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
