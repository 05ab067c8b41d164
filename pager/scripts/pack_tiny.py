"""Pack trained tiny checkpoints for shipping: half precision, base model without a UNet.

python scripts/pack_tiny.py --work out/tiny --output assets/tiny
"""

import argparse
import dataclasses
import shutil
import sys
from pathlib import Path

from pager.cli.common import run_cli


def main(argv: list[str] | None = None) -> int:
    """Parse the flags and pack."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder of scripts/train_tiny.sh")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args(argv)
    return run_cli(lambda: pack(args.work, args.output))


def pack(work: Path, output: Path) -> int:
    """Copy ``base depth normals`` of a training folder to `output`."""
    import torch
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from safetensors.torch import save_file

    from pager.checkpoint import (
        EMPTY_PROMPT,
        encode_empty_prompt,
        locate,
        save_checkpoint,
        write_network_config,
    )

    for part in ("scheduler", "tokenizer", "text_encoder"):
        shutil.copytree(work / "base" / part, output / "base" / part, dirs_exist_ok=True)
    embedding = encode_empty_prompt(output / "base")  # spares users of the files the text encoder
    save_file({"embedding": embedding}, output / "base" / EMPTY_PROMPT)
    vae = AutoencoderKL.from_pretrained(work / "base" / "vae")
    vae.half().save_pretrained(output / "base" / "vae")
    write_network_config(vae, output / "base" / "vae" / "config.json")
    for modality in ("depth", "normals"):
        files = locate(work / modality / "checkpoint-last")
        unet = UNet2DConditionModel.from_pretrained(files.unet_dir)
        config = dataclasses.replace(files.config, pretrained_path="../base", checkpoint_path=None)
        save_checkpoint(output / modality, unet, config, dtype=torch.float16)
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    print(f"{output}: {size / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
