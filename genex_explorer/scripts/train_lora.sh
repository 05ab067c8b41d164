#!/usr/bin/env bash
# Adapters of rank 64 on the temporal transformer blocks: 24 M trained parameters, checkpoints of 0.3 GB.
# Usage: bash scripts/train_lora.sh <data folder> [output folder] [further flags]
set -euo pipefail
data=${1:?give the folder that prepare_dataset.py made}
output=${2:-models/genex_explorer_lora}
shift $(($# > 1 ? 2 : 1))
exec bash "$(dirname "$0")/launch_training.sh" "$data" "$output" --trainable lora \
    --lora_rank 64 --learning_rate 1e-4 --lr_scheduler cosine --lr_warmup_steps 100 --max_train_steps 5000 \
    --seed 42 --gradient_checkpointing "$@"
