#!/usr/bin/env bash
# The example of the original README with the spherical loss, near the seam only: the published form decodes and encodes whole clips, which no single GPU holds at this size.
# Usage: bash scripts/train_seed_scl.sh <data folder> [output folder] [further flags]
set -euo pipefail
data=${1:?give the folder that prepare_dataset.py made}
output=${2:-models/genex_explorer_seed_scl}
shift $(($# > 1 ? 2 : 1))
exec bash "$(dirname "$0")/launch_training.sh" "$data" "$output" --learning_rate 5e-5 \
    --gradient_accumulation_steps 4 --max_train_steps 5000 --lr_warmup_steps 100 --seed 42 --gradient_checkpointing \
    --checkpoints_total_limit 3 --scl_loss --scl_mode pixel_strip --num_scl_samples 3 --scl_schedule paper \
    --scl_max_weight 0.1 "$@"
