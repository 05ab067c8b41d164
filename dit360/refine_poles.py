"""Repaint the poles of panoramas in perspective.

python refine_poles.py panorama.png --output refined --inpainter smooth
"""

import sys

from dit360.cli.refine_poles import main

if __name__ == "__main__":
    sys.exit(main())
