#!/usr/bin/env bash
# Relative depth, the released recipe: log depth up to a factor, PanoInfinigen, 10 epochs.
# Usage: bash scripts/train_depth.sh <data folder> [further train.py flags]
# ACCELERATE_CONFIG=configs/accelerate/ddp.yaml chooses how it is launched (default: one GPU).
set -euo pipefail
cd "$(dirname "$0")/.."
data=${1:?usage: bash scripts/train_depth.sh <data folder> [flags]}
shift
accelerate launch --config_file "${ACCELERATE_CONFIG:-configs/accelerate/single_gpu.yaml}" \
    train.py --config configs/base.yaml --data_path "$data" --modality depth "$@"
