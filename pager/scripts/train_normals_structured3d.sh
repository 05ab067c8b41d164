#!/usr/bin/env bash
# Surface normals, tuned on Structured3D from the released checkpoint (or --checkpoint_path).
# Usage: bash scripts/train_normals_structured3d.sh <data folder> [further train.py flags]
# ACCELERATE_CONFIG=configs/accelerate/ddp.yaml chooses how it is launched (default: one GPU).
set -euo pipefail
cd "$(dirname "$0")/.."
data=${1:?usage: bash scripts/train_normals_structured3d.sh <data folder> [flags]}
shift
accelerate launch --config_file "${ACCELERATE_CONFIG:-configs/accelerate/single_gpu.yaml}" \
    train.py --config configs/base.yaml --data_path "$data" --modality normals --dataset Structured3D \
    --checkpoint_path prs-eth/PaGeR-normals "$@"
