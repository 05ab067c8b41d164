"""Store the text embeddings of captions and prompts on disk.

python cache_embeddings.py --source data/worlds/panoramas.jsonl --output text_cache --tiny
"""

import sys

from dit360.cli.cache_embeddings import main

if __name__ == "__main__":
    sys.exit(main())
