#!/usr/bin/env bash
# What the recipes share: bash scripts/launch_training.sh <data folder> <output folder> flags...
# ACCELERATE_CONFIG chooses the machine (default: accelerate_config.yaml, one GPU in fp16);
# MODEL another base than SVD-XT 1.1.
set -euo pipefail
cd "$(dirname "$0")/.."
data=${1:?usage: bash scripts/train_<recipe>.sh <data folder> [output folder] [flags]}
output=$2
shift 2
exec accelerate launch --config_file "${ACCELERATE_CONFIG:-accelerate_config.yaml}" \
    train_world_explorer.py --base_folder "$data" --output_dir "$output" \
    --pretrained_model_name_or_path "${MODEL:-stabilityai/stable-video-diffusion-img2vid-xt-1-1}" "$@"
