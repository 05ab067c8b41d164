"""Compare an exploration with the true panoramas of a procedural scene.

python evaluate/loop_consistency.py --exploration out --clip data/test/room/video_00000/clip.json
"""

import sys

from genex_explorer.cli.loop_consistency import main

if __name__ == "__main__":
    sys.exit(main())
