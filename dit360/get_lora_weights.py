"""Take the LoRA weights out of a training checkpoint.

python get_lora_weights.py model_saved/.../checkpoint/mp_rank_00_model_states.pt lora_output
"""

import sys

from dit360.cli.extract import main

if __name__ == "__main__":
    sys.exit(main())
