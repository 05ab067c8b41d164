"""Train the panorama LoRA on panoramas and on photos on a canvas.

python train_mix_staged_lora_dynamic.py --panorama_data pano.jsonl --perspective_data photos.jsonl
"""

import sys

from dit360.cli.train import main_mix

if __name__ == "__main__":
    sys.exit(main_mix())
