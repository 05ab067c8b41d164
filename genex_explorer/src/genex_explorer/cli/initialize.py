"""`initialize.py`: panoramas from single photos, painted around them by FLUX.1-Fill.

Tested with small random weights only; not tried with the released weights.
"""

import argparse
import sys
from pathlib import Path

from genex_explorer.cli.common import Parser, find_inputs, run_cli

MODEL = "genex-world/World-Initializer-image-to-panorama"
DTYPES = ("bfloat16", "float16", "float32")


def build_parser() -> argparse.ArgumentParser:
    """Flags of the initializer."""
    parser = Parser(prog="initialize.py", description=__doc__)
    what = parser.add_argument_group("what to paint")
    what.add_argument("--image", nargs="+", required=True, help="photos or folders of them")
    what.add_argument("--prompt", help="what else there is to see")
    what.add_argument(
        "--fov", type=float, default=90.0,
        help="degrees that the photo's shorter side covers; the weights were trained with 90 "
        "(default: %(default)s)",
    )  # fmt: skip
    what.add_argument(
        "--height", type=int, default=1024,
        help="of the panorama, which is twice as wide; a multiple of 16 (default: %(default)s)",
    )  # fmt: skip
    what.add_argument("--num_inference_steps", type=int, default=50, help="(default: %(default)s)")
    what.add_argument("--guidance_scale", type=float, default=3.5, help="(default: %(default)s)")
    what.add_argument("--seed", type=int, default=0, help="of every panorama's noise")
    what.add_argument(
        "--paste_front", action="store_true",
        help="lay the photo over the result, which otherwise shows it as the VAE decodes it",
    )  # fmt: skip
    model = parser.add_argument_group("model")
    model.add_argument(
        "--model", default=MODEL, help="hub id or folder of a FLUX.1-Fill pipeline "
        "(default: %(default)s); of black-forest-labs/FLUX.1-Fill-dev, say, with --lora",
    )  # fmt: skip
    model.add_argument("--lora", help="hub id, folder or file of LoRA weights for --model")
    model.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    model.add_argument("--dtype", choices=DTYPES, default=DTYPES[0])
    model.add_argument(
        "--offload", choices=("none", "model", "sequential", "group"), default="none",
        help="keep weights in host memory",
    )  # fmt: skip
    out = parser.add_argument_group("output")
    out.add_argument(
        "--output_dir", type=Path, default=Path("panoramas"),
        help="<name of the photo>.png each (default: %(default)s)",
    )  # fmt: skip
    out.add_argument("--overwrite", action="store_true", help="paint existing panoramas again")
    parser.add_argument("-v", "--verbose", action="store_true")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns 0, 1 if a photo failed, 2 if nothing could start."""
    args = build_parser().parse_args(argv)
    return run_cli(lambda: _initialize(args), verbose=args.verbose)


def _initialize(args: argparse.Namespace) -> int:
    from genex_explorer.initializer import check_size, fill_mask

    if args.num_inference_steps < 1:
        raise ValueError(f"--num_inference_steps is {args.num_inference_steps}; use 1 or more")
    size = (args.height, 2 * args.height)
    check_size(*size)
    fill_mask(size, args.fov)  # refuses a field of view before the model is loaded
    images = find_inputs(args.image)
    todo, failed = _select(images, args.output_dir, overwrite=args.overwrite)
    if todo:
        _paint(args, todo)
        print(f"{len(todo)} of {len(images)} panoramas written to {args.output_dir}")
    elif not failed:
        print(f"nothing to do: {args.output_dir} holds the panoramas; --overwrite paints again")
    elif len(failed) == len(images) == 1:
        raise ValueError(failed[0])
    for line in failed:
        print(f"failed: {line}", file=sys.stderr)
    return 1 if failed else 0


def _paint(args: argparse.Namespace, images: list[Path]) -> None:
    import numpy as np
    import torch
    from PIL import Image

    from genex_explorer.initializer import open_initializer, paste_front
    from genex_explorer.runinfo import write_run_info
    from shared_pano_utils.imageio import read_image, write_image

    pipeline = open_initializer(
        args.model,
        lora=args.lora,
        device=args.device,
        dtype=getattr(torch, args.dtype),
        offload=args.offload,
    )
    write_run_info(args.output_dir, vars(args))
    for path in images:
        pipeline.set_progress_bar_config(desc=path.name, disable=None)
        front, output = pipeline(
            Image.fromarray(read_image(path)),
            args.prompt,
            args.guidance_scale,
            height=args.height,
            fov_deg=args.fov,
            num_inference_steps=args.num_inference_steps,
            # Of the CPU, the same on every device; afresh, whatever the order of the photos.
            generator=torch.Generator().manual_seed(args.seed),
        )
        erp = np.asarray(output.images[0])
        if args.paste_front:
            erp = paste_front(erp, np.asarray(front), args.fov)
        write_image(_panorama_of(path, args.output_dir), erp, gpano=True)


def _panorama_of(photo: Path, folder: Path) -> Path:
    return folder / f"{photo.stem}.png"


def _select(
    images: list[Path], output_dir: Path, *, overwrite: bool
) -> tuple[list[Path], list[str]]:
    """Photos still to be done, and a line for each that cannot be.

    They are looked at before the model is loaded, which takes minutes.
    """
    from shared_pano_utils.imageio import read_image

    todo, failed = [], []
    for image in images:
        panorama = _panorama_of(image, output_dir)
        if panorama.resolve() == image.resolve():
            failed.append(f"{image} would be replaced by its panorama; use another --output_dir")
            continue
        if not overwrite and panorama.is_file():
            continue
        try:
            read_image(image)
        except (ValueError, OSError) as error:
            failed.append(str(error))
        else:
            todo.append(image)
    return todo, failed
