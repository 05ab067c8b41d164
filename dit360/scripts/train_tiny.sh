#!/usr/bin/env bash
# Make the embedded checkpoint (assets/tiny) from procedural panoramas: the base in place of FLUX.1-dev (VAE,
# transformer and text encoders from nothing), then the LoRA of the published recipe on top of it: wrap
# padding, yaw and cube losses.
# Usage: bash scripts/train_tiny.sh [work folder]     STEPS=..., LORA_STEPS=... to change the length.
set -euo pipefail
cd "$(dirname "$0")/.."
work=${1:-out/tiny}
python=${PYTHON:-python}

[ -f "$work/base/model_index.json" ] ||
    $python scripts/train_tiny_base.py --output "$work/base" --steps "${STEPS:-8000}"
$python prepare_data.py procedural --output "$work/worlds" --count 4000
