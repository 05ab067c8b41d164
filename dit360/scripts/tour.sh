#!/usr/bin/env bash
# Every main command once, on procedural data with the embedded checkpoint: prepare, train, mix-train, extract,
# generate, outpaint, inpaint, evaluate. Two CPU cores, about three minutes.
# Usage: bash scripts/tour.sh [work folder]          afterwards: python app.py --tiny
set -euo pipefail
work=$(realpath -m "${1:-$(dirname "$0")/../out/tour}")
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
if [ -e "$work" ] && [ ! -e "$work/.tour" ]; then
    echo "error: $work exists and no tour has made it; pass another folder, or delete it" >&2
    exit 2
fi
rm -rf "$work" # what an earlier tour left
mkdir -p "$work"
touch "$work/.tour"

# Captioned panoramas, and photos with captions, both as jsonl.
$python prepare_data.py procedural --tiny --output "$work/data" --count 16 --perspective 16
$python prepare_data.py check "$work/data/panoramas.jsonl"

# The panorama recipe, then the mix of panoramas and photos; a LoRA out of the checkpoint.
SAVE_DIR="$work/model_saved" bash train.sh --tiny --panorama_data "$work/data/panoramas.jsonl" \
    --roll none --no-flip --max_epochs 3
SAVE_DIR="$work/mix" PANORAMA_DATA="$work/data/panoramas.jsonl" PERSPECTIVE_DATA="$work/data/perspective.jsonl" \
    bash train_mix_staged_lora_dynamic.sh --tiny --roll none --no-flip --max_epochs 3
$python get_lora_weights.py "$work"/model_saved/lightning_logs/version_0/checkpoints/last.ckpt "$work/lora_output"

# From words; from words with the LoRA just trained; around a photo; with a hole filled.
$python inference.py --tiny --output "$work/result.png" --html \
    --prompt "A room with red walls and a white floor. There is a blue ball in front."
$python inference.py --tiny --lora "$work/lora_output" --prompt_file example/prompts.txt --output "$work/generated"
$python editing.py --tiny --perspective example/photo.png --fov 120 --output "$work/around_photo.png" \
    --prompt "Outdoors, the ground is red and the sky is gray. There is a purple cone to the right and a green cone in front."
$python editing.py --tiny --task inpaint --image example/example.png --mask example/masks/hole.png \
    --output "$work/inpainted.png" --prompt "A blue field under a gray sky. There is a green ball to the left and a red box in front."
$python evaluate.py --tiny --generated "$work/generated" --out "$work/report" --html
find "$work" -maxdepth 2 \( -name '*.html' -o -name '*.png' -o -name 'report.md' \) | sort
