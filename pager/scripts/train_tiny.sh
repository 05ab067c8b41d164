#!/usr/bin/env bash
# Make the embedded checkpoints (assets/tiny) from procedural scenes: data, base VAE, depth, normals.
# Usage: bash scripts/train_tiny.sh [work folder]     STEPS=..., VAE_STEPS=... to change the length.
set -euo pipefail
cd "$(dirname "$0")/.."
work=${1:-out/tiny}
python=${PYTHON:-python}
steps=${STEPS:-12000}
common=(--data_path "$work/data" --pretrained_path "$work/base" --face_size 48 --min_depth 0.25
    --unet_positional_encoding uv --only_train_attention_layers false --gradient_checkpointing false
    --learning_rate 1.5e-3 --lr_exp_final_ratio 0.03 --adam_weight_decay 1e-4 --EMA_decay 0.998
    --max_train_steps "$steps" --num_train_epochs 100 --save_path "$work" --save_frequency 100
    --run_validation false --tiny_val_frequency 500 --img_report_frequency 2000 --num_workers 0)

$python prepare_procedural.py --data_path "$work/data" --split val --rooms 16 --corridors 8 --outdoors 8
$python prepare_procedural.py --data_path "$work/data" --split train --rooms 1500 --corridors 400 \
    --outdoors 600 --workers 2
[ -f "$work/base/base.json" ] || $python scripts/train_tiny_base.py --data_path "$work/data" \
    --output "$work/base" --steps "${VAE_STEPS:-1500}" --learning_rate 1e-3

train() { # modality, further flags: start, or go on where a killed run stopped
    local modality=$1 resume=()
    shift
    local state=$work/$modality/training_checkpoint
    if [ -d "$state" ] || [ -d "$state.old" ]; then
        resume=(--resume_path "$state")
    else
        resume=(--overwrite)
    fi
    $python train.py "${common[@]}" --modality "$modality" --run_name "$modality" "$@" "${resume[@]}"
}
train depth --grad_loss_weight 0.5 --invalid_mask_weight 0.03
train normals
$python scripts/pack_tiny.py --work "$work" --output assets/tiny
