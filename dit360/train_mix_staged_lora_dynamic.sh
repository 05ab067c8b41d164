#!/usr/bin/env bash
# Mix training with the released settings (`--preset released-mix`, shown by --dry_run), but with
# the wrap padding that inference has: the released script trained without it.
# PANORAMA_DATA and PERSPECTIVE_DATA are jsonl files, the others as in train.sh.
set -euo pipefail
export CUDA_VISIBLE_DEVICES="${CUDA_VISIBLE_DEVICES:-0,}"

"${PYTHON:-python}" "$(dirname "$0")/train_mix_staged_lora_dynamic.py" \
    --preset released-mix \
    --padding_n 1 \
    ${FLUX:+--pretrained_model_name_or_path "$FLUX"} \
    ${PANORAMA_DATA:+--panorama_data "$PANORAMA_DATA"} \
    ${PERSPECTIVE_DATA:+--perspective_data "$PERSPECTIVE_DATA"} \
    --save_dir "${SAVE_DIR:-model_saved}" \
    --devices "${CUDA_DEVICE:-1}" \
    "$@"
