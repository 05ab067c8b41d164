#!/usr/bin/env bash
# The example of the original README: constant 5e-5, four windows per update, 5000 updates.
# Usage: bash scripts/train_seed.sh <data folder> [output folder] [further flags]
set -euo pipefail
data=${1:?give the folder that prepare_dataset.py made}
output=${2:-models/genex_explorer_seed}
shift $(($# > 1 ? 2 : 1))
exec bash "$(dirname "$0")/launch_training.sh" "$data" "$output" --learning_rate 5e-5 \
    --gradient_accumulation_steps 4 --max_train_steps 5000 --lr_warmup_steps 100 --seed 42 --gradient_checkpointing \
    --checkpoints_total_limit 3 --validation_steps 200 --num_validation_images 2 "$@"
