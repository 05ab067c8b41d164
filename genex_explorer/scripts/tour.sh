#!/usr/bin/env bash
# Every main command once, on procedural data with the embedded checkpoint: videos to frames, training,
# resuming, exploring, evaluating. Two CPU cores, about three minutes.
# Usage: bash scripts/tour.sh [work folder]          afterwards: python app.py --tiny
set -euo pipefail
work=$(realpath -m "${1:-$(dirname "$0")/../out/tour}")
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
if [ -e "$work" ] && [ ! -e "$work/.tour" ]; then
    echo "error: $work exists and no tour has made it; pass another folder, or delete it" >&2
    exit 2
fi
rm -rf "$work"/{run,walk,straight,scores,images,consistency} # what an earlier tour left
mkdir -p "$work"
touch "$work/.tour"

# Videos in the layout of GenEx-DB, then the frame folders that training reads.
$python prepare_procedural.py --output_dir "$work/videos" --format mp4 --frames_per_video 12 \
    --rooms 4 --corridors 2 --outdoors 2
mkdir -p "$work/db/Realistic" "$work/db/Low-Texture"
cp "$work"/videos/room/*.mp4 "$work/db/Realistic/"
cp "$work"/videos/outdoor/*.mp4 "$work/db/Low-Texture/"
$python prepare_dataset.py --dataset_path "$work/db" --output_dir "$work/frames" \
    --scene_types realistic low_texture --frames_per_video 12 --image_size 64 32 --num_workers 2

# Fine-tune the temporal blocks of the embedded checkpoint, stop, go on, look at the numbers.
$python prepare_procedural.py --output_dir "$work/val" --split val --rooms 2 --corridors 1 --outdoors 1
common=(--tiny --base_folder "$work/frames" --output_dir "$work/run" --learning_rate 1e-4 --use_ema
    --val_folder_videos "$work/val" --validation_steps 20 --checkpointing_steps 20)
accelerate launch --config_file configs/accelerate/cpu.yaml train_world_explorer.py "${common[@]}" \
    --max_train_steps 20 --seed 1
accelerate launch --config_file configs/accelerate/cpu.yaml train_world_explorer.py "${common[@]}" \
    --max_train_steps 40 --resume_from_checkpoint latest

# Walk into a place that no training saw, and compare with the true panoramas of the same path.
$python prepare_procedural.py --output_dir "$work/test" --split test --rooms 1 --corridors 0 --outdoors 1
start=$work/test/outdoor/video_00000
$python explore.py --tiny --model "$work/run" --image "$start/frame_0001.jpg" --output_dir "$work/walk" \
    --path "forward 5, left 60, forward 3" --save_frames --save_mp4 --save_gif --export_views front,left --html
$python evaluate/loop_consistency.py --exploration "$work/walk" --clip "$start/clip.json"

# The original's two evaluations: a straight walk beside the true video, and closed loops.
$python prepare_procedural.py --output_dir "$work/truth" --split test --format mp4 --rooms 0 --corridors 0 --outdoors 1
$python explore.py --tiny --model "$work/run" --image "$start/frame_0001.jpg" --path "forward 7" \
    --output_dir "$work/straight" --save_mp4
mkdir -p "$work/scores/case" "$work/images"
cp "$work/truth/outdoor/video_00000.mp4" "$work/scores/case/original.mp4"
cp "$work/straight/walk.mp4" "$work/scores/case/navigated.mp4"
$python evaluate/FVD/calculate_scores.py --input_folder "$work/scores" --device cpu --resolution 64 32 --markdown
cp "$start/frame_0001.jpg" "$work/images/"
$python evaluate/IECC/iecc_generate.py --tiny --input_dir "$work/images" --output_dir "$work/consistency" \
    --navigation_distances 12 --rotation_times 3 --num_data 1
$python evaluate/IECC/iecc_score.py "$work/consistency" --backbone random
find "$work" \( -name '*.gif' -o -name '*.html' -o -name 'walk.mp4' -o -name 'validation.json' \) | sort
