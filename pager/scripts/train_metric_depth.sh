#!/usr/bin/env bash
# Metric depth: as relative depth, but the scale is learned too.
# Usage: bash scripts/train_metric_depth.sh <data folder> [further train.py flags]     (see launch_training.sh)
set -euo pipefail
data=${1:?usage: bash scripts/train_metric_depth.sh <data folder> [flags]}
exec bash "$(dirname "$0")/launch_training.sh" "$data" --modality depth --metric_depth true "${@:2}"
