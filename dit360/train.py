"""Train the panorama LoRA.

python train.py --tiny --save_dir model_saved
"""

import sys

from dit360.cli.train import main

if __name__ == "__main__":
    sys.exit(main())
