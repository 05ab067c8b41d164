#!/usr/bin/env bash
# Make the embedded checkpoint (assets/tiny) from procedural panoramas: the base in place of FLUX.1-dev (VAE,
# transformer and text encoders from nothing), then the LoRA of the published recipe on top of it: wrap
# padding, yaw and cube losses from the first epoch on.
# Usage: bash scripts/train_tiny.sh [work folder]     STEPS=..., LORA_STEPS=... to change the length.
set -euo pipefail
cd "$(dirname "$0")/.."
work=${1:-out/tiny}
python=${PYTHON:-python}

[ -f "$work/base/model_index.json" ] ||
    $python scripts/train_tiny_base.py --output "$work/base" --steps "${STEPS:-8000}"
$python prepare_data.py procedural --tiny --output "$work/worlds" --count 4000
$python train.py --tiny --pretrained_model_name_or_path "$work/base" --panorama_data "$work/worlds/panoramas.jsonl" \
    --save_dir "$work/run" --rank 16 --lora_alpha 16 --gaussian_init_lora --lora_drop_out 0 \
    --train_batch_size 16 --learning_rate 1e-3 --lambda_yaw 0.5 --lambda_cube 0.5 --aux_from_epoch 0 \
    --max_steps "${LORA_STEPS:-800}" --max_epochs 100 --seed 1
last=$(ls -d "$work"/run/lightning_logs/version_*/checkpoints/last.ckpt | sort -V | tail -1)
$python get_lora_weights.py "$last" "$work/lora" --overwrite
$python scripts/pack_tiny.py --base "$work/base" --lora "$work/lora" --output assets/tiny
