"""Fine-tune PaGeR.

python train.py --config configs/base.yaml --data_path data --modality depth
"""

import sys

from pager.cli.train import main

if __name__ == "__main__":
    sys.exit(main())
