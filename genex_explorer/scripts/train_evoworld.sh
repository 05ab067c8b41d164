#!/usr/bin/env bash
# The trained set and rates of EvoWorld: temporal blocks, first and last convolution, norms; 1e-5 scaled by the batch.
# Usage: bash scripts/train_evoworld.sh <data folder> [output folder] [further flags]
set -euo pipefail
data=${1:?give the folder that prepare_dataset.py made}
output=${2:-models/genex_explorer_evoworld}
shift $(($# > 1 ? 2 : 1))
exec bash "$(dirname "$0")/launch_training.sh" "$data" "$output" --trainable temporal+io+norm \
    --learning_rate 1e-5 --scale_lr --lr_scheduler cosine --lr_warmup_steps 500 --max_train_steps 20000 \
    --gradient_accumulation_steps 4 --gradient_checkpointing --checkpointing_steps 5000 \
    --checkpoints_total_limit 4 --seed 42 "$@"
