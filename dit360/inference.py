"""Generate panoramas from text.

python inference.py --prompt "A beach at dusk, a pier and three boats." --output beach.png
"""

import sys

from dit360.cli.inference import main

if __name__ == "__main__":
    sys.exit(main())
