#!/usr/bin/env bash
# Make the embedded checkpoint (assets/tiny) from procedural panoramas: the base in place of FLUX.1-dev (VAE,
# transformer and text encoders from nothing), then the LoRA of the published recipe on top of it: wrap
# padding, yaw and cube losses from the first epoch on.
# Usage: bash scripts/train_tiny.sh [work folder]     STEPS=..., LORA_STEPS=... to change the length.
set -euo pipefail
cd "$(dirname "$0")/.."
work=${1:-out/tiny}
python=${PYTHON:-python}

steps=${STEPS:-8000}
cycle() { # folder, folder to go on from, further flags: one more cycle, with more of the high noise
    local to=$work/$1 from=$work/$2
    shift 2
    [ -f "$to/model_index.json" ] && return
    mkdir -p "$to" && ln -f "$work/first/worlds.npy" "$to/worlds.npy"
    $python scripts/train_tiny_base.py --output "$to" --init "$from" --learning_rate 7e-4 --shift 2 "$@"
}
[ -f "$work/first/model_index.json" ] ||
    $python scripts/train_tiny_base.py --output "$work/first" --steps "$steps"
cycle second first --steps "$((steps * 3 / 4))" --seed 1
cycle base second --steps "$((steps * 5 / 4))" --seed 2
$python prepare_data.py procedural --tiny --output "$work/worlds" --count 3000
$python train.py --tiny --pretrained_model_name_or_path "$work/base" --panorama_data "$work/worlds/panoramas.jsonl" \
    --save_dir "$work/run" --rank 16 --lora_alpha 16 --gaussian_init_lora --lora_drop_out 0 \
    --no-gradient_checkpointing --train_batch_size 16 --learning_rate 2e-4 --lambda_yaw 0.5 --lambda_cube 0.5 --aux_from_epoch 0 \
    --roll none --no-flip \
    --max_steps "${LORA_STEPS:-400}" --max_epochs 100 --seed 1
last=$(ls -d "$work"/run/lightning_logs/version_*/checkpoints/last.ckpt | sort -V | tail -1)
$python get_lora_weights.py "$last" "$work/lora" --overwrite
$python scripts/pack_tiny.py --base "$work/base" --lora "$work/lora" --output assets/tiny
