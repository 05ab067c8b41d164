#!/usr/bin/env bash
# Launch train.py with a recipe's flags; the train_*.sh scripts call it.
# Usage: bash scripts/launch_training.sh <data folder> <train.py flags>
# ACCELERATE_CONFIG=configs/accelerate/ddp.yaml chooses how it is launched (default: one GPU).
set -euo pipefail
data=${1:?usage: bash scripts/launch_training.sh <data folder> <train.py flags>}
[ -d "$data" ] || { echo "error: $data is not a folder; pass the root of the data sets" >&2; exit 2; }
data=$(realpath "$data")
cd "$(dirname "$0")/.."
accelerate launch --config_file "${ACCELERATE_CONFIG:-configs/accelerate/single_gpu.yaml}" \
    train.py --config configs/base.yaml --data_path "$data" "${@:2}"
