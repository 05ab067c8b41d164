#!/usr/bin/env bash
# One card of 24 GiB (counted, not measured): bf16, full checkpointing, cached latents, 8-bit Adam.
# Usage: bash scripts/train_24gb.sh <data folder> [output folder] [further flags]
set -euo pipefail
data=${1:?give the folder that prepare_dataset.py made}
output=${2:-models/genex_explorer_24gb}
shift $(($# > 1 ? 2 : 1))
exec bash "$(dirname "$0")/launch_training.sh" "$data" "$output" --learning_rate 1e-5 \
    --lr_scheduler cosine --lr_warmup_steps 500 --max_train_steps 20000 --seed 42 --mixed_precision bf16 \
    --cast_frozen --save_trainable_only --gradient_checkpointing --use_8bit_adam \
    --latent_cache "$output-latents" --build_latent_cache "$@"
