#!/usr/bin/env bash
# Relative depth, the released recipe: log depth up to a factor, PanoInfinigen, 10 epochs.
# Usage: bash scripts/train_depth.sh <data folder> [further train.py flags]     (see launch_training.sh)
set -euo pipefail
data=${1:?usage: bash scripts/train_depth.sh <data folder> [flags]}
exec bash "$(dirname "$0")/launch_training.sh" "$data" --modality depth "${@:2}"
