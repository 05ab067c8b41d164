"""Turn the videos of GenEx-DB into folders of frames.

python prepare_dataset.py --dataset_path Genex-DB-World-Exploration --output_dir Genex-DB
"""

import sys

from genex_explorer.cli.prepare import main

if __name__ == "__main__":
    sys.exit(main())
