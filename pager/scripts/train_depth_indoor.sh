#!/usr/bin/env bash
# Indoor depth: PanoInfinigen's indoor half, range 0.01-15 m.
# Usage: bash scripts/train_depth_indoor.sh <data folder> [further train.py flags]     (see launch_training.sh)
set -euo pipefail
data=${1:?usage: bash scripts/train_depth_indoor.sh <data folder> [flags]}
exec bash "$(dirname "$0")/launch_training.sh" "$data" --modality depth --scenes indoor --max_depth 15 "${@:2}"
