#!/usr/bin/env bash
# Panorama training with the released settings (`--preset released-panorama`, shown by --dry_run).
# FLUX is the base model, CUDA_DEVICE how many of the visible devices train; flags are passed on:
#   bash train.sh --max_epochs 1        bash train.sh --tiny
set -euo pipefail
export CUDA_VISIBLE_DEVICES="${CUDA_VISIBLE_DEVICES:-0,}"

"${PYTHON:-python}" "$(dirname "$0")/train.py" \
    --preset released-panorama \
    ${FLUX:+--pretrained_model_name_or_path "$FLUX"} \
    --save_dir "${SAVE_DIR:-model_saved}" \
    --devices "${CUDA_DEVICE:-1}" \
    "$@"
