"""Measure generated panoramas.

python evaluate.py --generated output --reference matterport_val --captions prompts.jsonl
"""

import sys

from dit360.cli.evaluate import main

if __name__ == "__main__":
    sys.exit(main())
