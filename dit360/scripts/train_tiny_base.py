"""Train the tiny base model on captioned procedural panoramas: VAE, then everything else.

python scripts/train_tiny_base.py --output out/tiny/base
"""

import argparse
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from shared_pano_utils.commands import run_cli


def render(index: int) -> np.ndarray:
    """One training panorama."""
    import torch

    from dit360.captions import random_world, render_world, split_seed
    from dit360.embedded import TINY_HEIGHT

    torch.set_num_threads(1)
    return render_world(random_world(split_seed("train", index)), TINY_HEIGHT)


def main(argv: list[str] | None = None) -> int:
    """Parse the flags and train; a killed run goes on where it was."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="receives the pipeline")
    parser.add_argument("--worlds", type=int, default=16000)
    parser.add_argument("--vae_steps", type=int, default=1800)
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--shift", type=float, default=1.0, help="above 1: more of the high noise")
    parser.add_argument("--init", type=Path, help="go on from this base, for another cycle")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    return run_cli(lambda: _train(args))


def _train(args: argparse.Namespace) -> int:
    from diffusers import AutoencoderKL, FluxPipeline

    from dit360.captions import caption, random_world, split_seed
    from dit360.tiny import TINY, encode_means, random_pipeline, train_base, train_vae
    from dit360.vae import set_vae_wrap
    from shared_pano_utils.imageio import atomic_path

    args.output.mkdir(parents=True, exist_ok=True)
    images_file = args.output / "worlds.npy"
    if not images_file.is_file():
        with ProcessPoolExecutor(os.cpu_count()) as pool:
            images = np.stack(list(pool.map(render, range(args.worlds), chunksize=100)))
        with atomic_path(images_file) as path, path.open("wb") as file:
            np.save(file, images)
    images = np.load(images_file)
    if args.init is not None:
        pipeline = FluxPipeline.from_pretrained(args.init)
    else:
        pipeline = random_pipeline(TINY, args.seed)
        vae_folder = args.output / "trained_vae"
        if not (vae_folder / "config.json").is_file():
            set_vae_wrap(pipeline.vae, "circular")
            train_vae(pipeline.vae, images, steps=args.vae_steps, batch=4, seed=args.seed)
            pipeline.vae.save_pretrained(vae_folder)
        pipeline.register_modules(vae=AutoencoderKL.from_pretrained(vae_folder))
    set_vae_wrap(pipeline.vae, "circular")
    captions = [caption(random_world(split_seed("train", k))) for k in range(len(images))]
    train_base(
        pipeline, encode_means(pipeline.vae, images), captions, steps=args.steps,
        batch=args.batch, seed=args.seed, learning_rate=args.learning_rate, shift=args.shift,
        state_file=args.output / "state.pt",
    )  # fmt: skip
    pipeline.save_pretrained(args.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
