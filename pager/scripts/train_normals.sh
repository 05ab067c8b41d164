#!/usr/bin/env bash
# Surface normals on PanoInfinigen: cosine loss.
# Usage: bash scripts/train_normals.sh <data folder> [further train.py flags]     (see launch_training.sh)
set -euo pipefail
data=${1:?usage: bash scripts/train_normals.sh <data folder> [flags]}
exec bash "$(dirname "$0")/launch_training.sh" "$data" --modality normals "${@:2}"
