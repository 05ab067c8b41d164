"""FVD of generated walks.

python evaluate/FVD/calculate_fvd.py --input_folder results --device cpu --i3d_weights i3d_torchscript.pt
"""

import sys

from genex_explorer.cli.scores import main

if __name__ == "__main__":
    sys.exit(main(["--metrics", "fvd", *sys.argv[1:]]))
