"""Open every panorama of a data set and name the bad ones.

python validate_dataset.py --data_path data --dataset Matterport3D360 --json report.json
"""

import sys

from pager.cli.validate import main

if __name__ == "__main__":
    sys.exit(main())
