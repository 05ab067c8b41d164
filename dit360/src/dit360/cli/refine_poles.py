"""Repaint the zenith and the nadir of panoramas; every other pixel stays as it was."""

import argparse
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from dit360.embedded import TINY_HEIGHT, TINY_MODEL, TINY_STEPS
from shared_pano_utils.commands import Parser, run_cli

if TYPE_CHECKING:
    import numpy as np

    from dit360.data.poles import Inpainter

INPAINTERS = ("smooth", "diffusers", "painted", "none")
KONTEXT = "black-forest-labs/FLUX.1-Kontext-dev"
PACKAGES = ("dit360", "shared-pano-utils", "torch", "diffusers", "transformers")


def build_parser() -> argparse.ArgumentParser:
    """Flags of the command."""
    parser = Parser(prog="refine_poles.py", description=__doc__)
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="files or folders")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--inpainter", choices=INPAINTERS, default="smooth",
        help="smooth continues the surroundings, diffusers runs --model, painted takes faces from "
        "--painted, none only writes the faces to paint (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--model", default=KONTEXT, help="for diffusers (default: %(default)s)")
    parser.add_argument(
        "--painted", type=Path, metavar="DIR", help="<name>_up.png, <name>_down.png"
    )
    parser.add_argument(
        "--poles", nargs="+", choices=("up", "down"), default=["up", "down"], help="default: both"
    )
    parser.add_argument(
        "--prompt_up", default="a clean ceiling or sky, looking straight up, seamless, sharp",
        help="default: %(default)s",
    )  # fmt: skip
    parser.add_argument(
        "--prompt_down", default="a clean floor or ground, looking straight down, seamless, sharp",
        help="default: %(default)s",
    )  # fmt: skip
    parser.add_argument("--num_inference_steps", type=int, help="default: 28")
    parser.add_argument("--guidance_scale", type=float, default=3.5, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--face_size", type=int, metavar="PX", help="default: the image height")
    parser.add_argument("--feather", type=int, metavar="PX", help="default: 1/32 of the face")
    parser.add_argument("--dtype", choices=("auto", "bf16", "fp16", "fp32"), default="auto")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps")
    parser.add_argument("--offload", action="store_true", help="keep idle parts off the GPU")
    parser.add_argument("--overwrite", action="store_true", help="make finished images again")
    parser.add_argument(
        "--tiny", action="store_true",
        help=f"diffusers with the embedded model, faces of {TINY_HEIGHT} px",
    )  # fmt: skip
    parser.add_argument("-v", "--verbose", action="store_true")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Refine panoramas; 0, 1 if one failed, 2 if nothing could start."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.tiny:
        parser.set_defaults(
            inpainter="diffusers", model=str(TINY_MODEL), face_size=TINY_HEIGHT,
            num_inference_steps=TINY_STEPS,
        )  # fmt: skip
        args = parser.parse_args(argv)
    hint = "use --offload or a smaller --face_size"
    return run_cli(lambda: _refine(args), verbose=args.verbose, out_of_memory=hint)


def _refine(args: argparse.Namespace) -> int:
    if args.inpainter == "painted" and args.painted is None:
        raise ValueError("--inpainter painted needs --painted DIR with the faces")
    for flag in ("face_size", "feather", "num_inference_steps"):
        value = getattr(args, flag)
        if value is not None and value < 1:
            raise ValueError(f"--{flag} {value}: use 1 or more")
    from tqdm.auto import tqdm

    from dit360.data.sidecars import find_images
    from shared_pano_utils.imageio import read_erp
    from shared_pano_utils.runinfo import write_run_info

    images = find_images(args.images)
    stem, count = Counter(image.stem for image in images).most_common(1)[0]
    if count > 1:
        raise ValueError(f"{count} images are called {stem!r}, which names results; rename them")
    todo = [
        image
        for image in images
        if args.overwrite or not all(path.exists() for path in _results(args, image))
    ]
    shown = vars(args) | {"images": [str(image) for image in images]}
    write_run_info(args.output, shown, PACKAGES)
    make_inpainter = _inpainters(args) if todo else None
    failed = 0
    for image in tqdm(todo, "panoramas", leave=False):
        try:
            erp = read_erp(image)
            if make_inpainter is None:
                _write_faces(args, image, erp)
            else:
                _write_refined(args, image, erp, make_inpainter(image.stem))
        except (FileNotFoundError, ValueError) as error:
            failed += 1
            print(f"failed: {image}: {' '.join(str(error).split())}", file=sys.stderr)
    print(
        f"{args.output}: {len(todo) - failed} made, {len(images) - len(todo)} skipped, "
        f"{failed} failed"
    )
    return int(failed > 0)


def _results(args: argparse.Namespace, image: Path) -> list[Path]:
    if args.inpainter != "none":
        return [args.output / f"{image.stem}.png"]
    from dit360.data.poles import face_name

    return [args.output / face_name(image.stem, pole) for pole in args.poles]


def _write_faces(args: argparse.Namespace, image: Path, erp: "np.ndarray") -> None:
    from dit360.data.poles import cut_face
    from shared_pano_utils.imageio import write_image

    for pole, path in zip(args.poles, _results(args, image), strict=True):
        write_image(path, cut_face(erp, args.face_size or erp.shape[0], pole))


def _write_refined(
    args: argparse.Namespace, image: Path, erp: "np.ndarray", inpaint: "Inpainter"
) -> None:
    from dit360.data.poles import refine_poles
    from shared_pano_utils.imageio import write_image

    side = args.face_size or erp.shape[0]
    refined = refine_poles(
        erp,
        inpaint,
        face_size=side,
        feather_px=args.feather or max(side // 32, 1),
        poles=args.poles,
    )
    write_image(_results(args, image)[0], refined, gpano=True)


def _inpainters(args: argparse.Namespace) -> "Callable[[str], Inpainter] | None":
    """What fills the holes of the panorama of a name; None for --inpainter none."""
    from dit360.data.poles import DiffusersInpainter, PaintedFaces, inpaint_smooth

    if args.inpainter == "none":
        return None
    if args.inpainter == "smooth":
        return lambda _: inpaint_smooth
    if args.inpainter == "painted":
        return lambda name: PaintedFaces(args.painted, name)
    painter = DiffusersInpainter(
        _load_model(args),
        {"up": args.prompt_up, "down": args.prompt_down},
        steps=args.num_inference_steps or 28,
        guidance_scale=args.guidance_scale,
        seed=args.seed,
    )
    return lambda _: painter


def _load_model(args: argparse.Namespace):
    from dit360.data.poles import load_inpainting
    from dit360.memory import choose_device, choose_dtype

    device = choose_device(args.device)
    if args.offload and device.type == "cpu":
        raise ValueError("--offload moves idle parts off a GPU, the device is cpu; leave it out")
    pipeline = load_inpainting(args.model, choose_dtype(args.dtype, device))
    pipeline.set_progress_bar_config(disable=True)
    if args.offload:
        pipeline.enable_model_cpu_offload(device=device)
        return pipeline
    return pipeline.to(device)
