#!/usr/bin/env bash
# Make the embedded checkpoint (assets/tiny) from procedural walks: clips, VAE, the whole UNet from
# nothing, then the published recipe: temporal transformer blocks alone, with the seam loss. Twice.
# Usage: bash scripts/train_tiny.sh [work folder]
# STEPS=..., VAE_STEPS=..., FINER_STEPS=... change the length.
set -euo pipefail
cd "$(dirname "$0")/.."
work=${1:-out/tiny}
python=${PYTHON:-python}
clips=(--frames_per_video 8 --image_size 128 64) # read at 64x32: supersampled

$python prepare_procedural.py --output_dir "$work/val" --split val --rooms 8 --corridors 4 --outdoors 4 "${clips[@]}"
$python prepare_procedural.py --output_dir "$work/train" --split train --rooms 2200 --corridors 900 \
    --outdoors 900 "${clips[@]}" --num_workers 2
[ -f "$work/base/model_index.json" ] || $python scripts/train_tiny_base.py \
    --base_folder "$work/train" --output "$work/base" --steps "${VAE_STEPS:-2400}"

train() { # name, model, name of its VAE, further flags: start, or go on where a killed run stopped
    local name=$1 model=$2 vae=$3 resume=()
    shift 3
    if compgen -G "$work/$name/checkpoint-*" >/dev/null; then
        resume=(--resume_from_checkpoint latest)
    elif [ -f "$work/$name/run.json" ]; then
        resume=(--overwrite)
    fi
    $python train_world_explorer.py --tiny --pretrained_model_name_or_path "$model" --seed 1 \
        --base_folder "$work/train" --latent_cache "$work/cache_$vae" --build_latent_cache \
        --val_folder_videos "$work/val" --num_val_videos 16 --validation_steps 500 \
        --per_gpu_batch_size 4 --conditioning_dropout_prob 0.05 --lr_scheduler cosine \
        --lr_warmup_steps 100 --adam_weight_decay 1e-3 --use_ema --ema_decay 0.998 \
        --checkpointing_steps 250 --report_to none --mixed_precision bf16 --output_dir "$work/$name" "${resume[@]}" "$@"
}
# The whole UNet with more of the high noise, at which a clip is decided; then the published recipe.
whole=(--trainable all --p_mean 1.6)
temporal=(--learning_rate 2e-4 --scl_loss --scl_mode latent --scl_schedule paper --scl_max_weight 0.1)
steps=${STEPS:-9750}
train scratch "$work/base" base "${whole[@]}" --learning_rate 1e-3 --max_train_steps "$steps"
train first "$work/scratch" base "${temporal[@]}" --max_train_steps "$((steps / 25))"

# The second round: the VAE goes on with less noise on its latents, and the UNet follows.
[ -f "$work/finer/model_index.json" ] || $python scripts/train_tiny_base.py --base_folder "$work/train" \
    --output "$work/finer" --init "$work/first" --steps "${FINER_STEPS:-6000}" --latent_noise 0.05 --seed 3
train again "$work/finer" finer "${whole[@]}" --learning_rate 8e-4 --max_train_steps "$((steps * 2 / 3))" --seed 3
train explorer "$work/again" finer "${temporal[@]}" --max_train_steps "$((steps / 25))"
$python scripts/pack_tiny.py --work "$work" --output assets/tiny
