#!/usr/bin/env bash
# Every main command once, on procedural data with the embedded checkpoints: data, training, resuming,
# inference, the four evaluations, point clouds. Two CPU cores, about two minutes.
# Usage: bash scripts/tour.sh [work folder]          afterwards: python app.py --tiny
set -euo pipefail
work=$(realpath -m "${1:-$(dirname "$0")/../out/tour}")
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
if [ -e "$work" ] && [ ! -e "$work/.tour" ]; then
    echo "error: $work exists and no tour has made it; pass another folder, or delete it" >&2
    exit 2
fi
rm -rf "$work/run" "$work/results" # what an earlier tour left; its data is kept
mkdir -p "$work"
touch "$work/.tour"

$python prepare_procedural.py --data_path "$work/data" --split train --rooms 12 --corridors 4 --outdoors 4 --workers 2
$python prepare_procedural.py --data_path "$work/data" --split val --rooms 2 --corridors 1 --outdoors 1
$python prepare_procedural.py --data_path "$work/data" --split test --rooms 4 --corridors 2 --outdoors 2
$python validate_dataset.py --data_path "$work/data" --dataset PanoInfinigen

common=(--tiny --data_path "$work/data" --modality depth --learning_rate 1e-4 --num_train_epochs 1000)
$python train.py "${common[@]}" --max_train_steps 40 --save_path "$work" --run_name run
$python train.py --resume_path "$work/run/training_checkpoint" --max_train_steps 60

$python inference.py --depth_checkpoint_path "$work/run/checkpoint-last" \
    --normals_checkpoint_path assets/tiny/normals --data_path "$work/data" --dataset PanoInfinigen \
    --results_path "$work/results" --generate_eval --pred_only
depth=$work/results/run_checkpoint-last normals=$work/results/normals
for task in depth edge; do
    $python "evaluation/${task}_evaluation.py" --data_path "$work/data" --pred_path "$depth" --save_error_maps
done
$python evaluation/seam_evaluation.py --data_path "$work/data" --pred_path "$depth"
$python evaluation/normals_evaluation.py --data_path "$work/data" --pred_path "$normals"
$python generate_point_cloud.py --data_path "$work/data" --depth_path "$depth" --format mesh
$python generate_point_cloud.py --data_path "$work/data" --depth_path "$depth" \
    --normals_path "$normals" --color_modality normals
find "$work" -name evaluation_metrics.md -o -name '*.glb' | sort
