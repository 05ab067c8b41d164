"""Walk through a panorama in the browser.

python app.py --tiny
"""

import sys

from genex_explorer.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
