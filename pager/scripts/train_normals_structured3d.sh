#!/usr/bin/env bash
# Surface normals, tuned on Structured3D from the released checkpoint (or --checkpoint_path).
# Usage: bash scripts/train_normals_structured3d.sh <data folder> [further train.py flags]     (see launch_training.sh)
set -euo pipefail
data=${1:?usage: bash scripts/train_normals_structured3d.sh <data folder> [flags]}
exec bash "$(dirname "$0")/launch_training.sh" "$data" --modality normals --dataset Structured3D \
    --checkpoint_path prs-eth/PaGeR-normals "${@:2}"
