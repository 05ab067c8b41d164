"""Paint around a part of a panorama, or paint a hole in it.

python editing.py --image pano.png --mask mask.png --prompt "A harbour at dusk." --output edited.png
"""

import sys

from dit360.cli.editing import main

if __name__ == "__main__":
    sys.exit(main())
