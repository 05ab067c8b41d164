"""Point clouds and meshes of predicted depth.

python generate_point_cloud.py --data_path data --depth_path results/PaGeR-depth --format mesh
"""

import sys

from pager.cli.point_cloud import main

if __name__ == "__main__":
    sys.exit(main())
