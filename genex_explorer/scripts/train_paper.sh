#!/usr/bin/env bash
# The rates of the paper (table 5): 1e-5, cosine, 500 updates of warm-up; its length is not given, 192 pair-hours at 7.2 s an update are about 96000.
# Usage: bash scripts/train_paper.sh <data folder> [output folder] [further flags]
set -euo pipefail
data=${1:?give the folder that prepare_dataset.py made}
output=${2:-models/genex_explorer_paper}
shift $(($# > 1 ? 2 : 1))
exec bash "$(dirname "$0")/launch_training.sh" "$data" "$output" --learning_rate 1e-5 \
    --lr_scheduler cosine --lr_warmup_steps 500 --max_train_steps 96000 --seed 42 --gradient_checkpointing "$@"
