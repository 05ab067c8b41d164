"""Outpaint or inpaint a panorama, or make one around a photo, keeping a part of the source."""

import argparse
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dit360.editing.settings import (
    FILL_GUIDANCE,
    FILL_MODEL,
    METHODS,
    TASKS,
    EditSettings,
)
from dit360.embedded import TINY_HEIGHT, TINY_PASTE, TINY_STEPS, TINY_TEXT_LENGTH
from shared_pano_utils.commands import Parser, run_cli

if TYPE_CHECKING:
    import numpy as np

    from dit360.editing import EditResult
    from dit360.loading import LoadOptions

IMAGE, MASK = Path("example/example.png"), Path("example/masks/mask0.png")
PROMPT = "A blue field under a gray sky. There is a green ball to the left."  # what IMAGE shows
ANGLES = {"fov": 90.0, "yaw": 0.0, "pitch": 0.0, "roll": 0.0}  # of --perspective
INJECT_ONLY = (
    "source_prompt", "tau", "gamma", "eta", "start_timestep", "stop_timestep", "blend_t",
)  # fmt: skip
PACKAGES = ("dit360", "shared-pano-utils", "torch", "diffusers", "transformers", "peft")


def build_parser() -> argparse.ArgumentParser:
    """Flags of the command; without any it does what the original's constants say."""
    from dit360.loading import add_load_flags

    parser = Parser(prog="editing.py", description=__doc__)
    _add_source_flags(parser)
    _add_method_flags(parser)
    add_load_flags(parser)
    out = parser.add_argument_group("output")
    out.add_argument(
        "--output", type=Path, default=Path("result.png"), help="PNG or JPEG (default: %(default)s)"
    )
    out.add_argument(
        "--paste", type=int, default=EditSettings.paste, metavar="PX",
        help="lay the kept pixels over the result, faded out over this width at their border; 1 is "
        f"a hard edge, 0 off as in the original (default: %(default)s, {TINY_PASTE} with --tiny)",
    )  # fmt: skip
    out.add_argument(
        "--save_source_reconstruction", action="store_true",
        help="<output>_source.png, where the source branch ends; one evaluation more",
    )  # fmt: skip
    out.add_argument("--html", action="store_true", help="<output>.html, a 360-degree viewer")
    out.add_argument("--overwrite", action="store_true", help="edit again if the output exists")
    parser.add_argument("-v", "--verbose", action="store_true")
    return parser


def _add_source_flags(parser: argparse.ArgumentParser) -> None:
    source = parser.add_argument_group("what to edit")
    source.add_argument("--image", type=Path, help=f"2:1 (default: {IMAGE})")
    source.add_argument(
        "--mask", type=Path,
        help=f"2:1, any size; see --task for its white part (default, of the example: {MASK})",
    )  # fmt: skip
    source.add_argument(
        "--task", choices=TASKS, default="outpaint",
        help="outpaint keeps what is white in the mask, inpaint paints it (default: %(default)s)",
    )  # fmt: skip
    source.add_argument(
        "--mask_threshold", type=int, default=255, metavar="GREY",
        help="white begins at this value 1..255; 255 is the original's rule, by which soft edges "
        "are black; 128 suits JPEG masks (default: %(default)s)",
    )  # fmt: skip
    size = source.add_mutually_exclusive_group()
    size.add_argument(
        "--mask_erode", type=int, metavar="CELLS",
        help="shrink the kept part by latent cells of 8 px; 1 paints every token that the hole "
        "touches (default: 0, 1 with --perspective)",
    )  # fmt: skip
    size.add_argument("--mask_dilate", type=int, default=0, metavar="CELLS", help="grow it")
    source.add_argument(
        "--perspective", type=Path, metavar="PHOTO",
        help="instead of --image and --mask: make a panorama around an ordinary photo",
    )  # fmt: skip
    for name, text in (
        ("fov", "horizontal field of view of the photo, degrees"),
        ("yaw", "where it looks, degrees to the right of the middle"),
        ("pitch", "degrees up"),
        ("roll", "degrees clockwise"),
    ):
        shown = f"{text} (default: {ANGLES[name]:g})"
        source.add_argument(f"--{name}", type=float, help=shown)
    source.add_argument(
        "--height", type=int, default=1024,
        help="of the result in pixels, a multiple of 16; the source is resized to it "
        f"(default: %(default)s, {TINY_HEIGHT} with --tiny)",
    )  # fmt: skip
    source.add_argument("--prompt", help=f"the result (default, of the example: {PROMPT})")
    source.add_argument("--source_prompt", help="the source (default: --prompt)")
    source.add_argument("--no_trigger", action="store_true", help="leave prompts as they are")


def _add_method_flags(parser: argparse.ArgumentParser) -> None:
    how = parser.add_argument_group("how to edit")
    how.add_argument(
        "--method", choices=METHODS, default=EditSettings.method,
        help="inject: shared attention with the inverted source, as the original; inpaint: FLUX "
        f"with re-noised known latents; fill: {FILL_MODEL} (default: %(default)s)",
    )  # fmt: skip
    for name, kind, text in (
        ("num_inference_steps", int, f"denoising steps; {TINY_STEPS} with --tiny"),
        ("guidance_scale", float, f"embedded guidance; {FILL_GUIDANCE:g} with --method fill"),
        ("seed", int, "of every random draw"),
        ("max_sequence_length", int, f"T5 tokens of a prompt; {TINY_TEXT_LENGTH} with --tiny"),
        (
            "tau",
            float,
            "0..100, share attention while the noise is above tau %%; smaller keeps more",
        ),
        ("gamma", float, "0..1, pull of the inversion to noise; below 1 it needs the network"),
        ("eta", float, "0..1, pull of the source branch to the source"),
        ("start_timestep", float, "part of the steps from which eta acts"),
        ("stop_timestep", float, "part of the steps to which it acts"),
        ("blend_t", float, "noise level down to which kept latents are the source's"),
    ):
        default = getattr(EditSettings, name)
        how.add_argument(
            f"--{name}", type=kind, default=None if name in INJECT_ONLY else default,
            help=f"{text} (default: {default:g})",
        )  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns 0, or 2 after an error."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.method == "fill":
        parser.set_defaults(pretrained_model_name_or_path=FILL_MODEL, guidance_scale=FILL_GUIDANCE)
    if args.tiny:
        parser.set_defaults(
            height=TINY_HEIGHT, num_inference_steps=TINY_STEPS, paste=TINY_PASTE,
            max_sequence_length=TINY_TEXT_LENGTH,
        )  # fmt: skip
    args = parser.parse_args(argv)
    hint = "use --memory, or a smaller --height"
    return run_cli(lambda: _edit(args), verbose=args.verbose, out_of_memory=hint)


def _edit(args: argparse.Namespace) -> int:
    """Everything that a user can get wrong is refused before a model is loaded."""
    fill_in(args)
    settings = _settings(args)
    source, keep = read_inputs(args)
    from dit360.generate import describe_model, is_finished, write_panorama
    from dit360.loading import load_options

    options = load_options(args)
    pixels = hashlib.sha256(source.tobytes() + keep.tobytes()).hexdigest()[:16]
    made_with = {**vars(settings), "source_and_mask": pixels, **describe_model(options)}
    if not args.overwrite and is_finished(args.output, made_with):
        print(f"nothing to do: {args.output} was made so already; --overwrite edits again")
    else:
        result = _run(args, options, source, keep, settings)
        write_panorama(args.output, result.image, made_with)
        print(_summary(args.output, result))
    if args.html:
        _write_page(args, source)
    return 0


def _run(
    args: argparse.Namespace,
    options: "LoadOptions",
    source: "np.ndarray",
    keep: "np.ndarray",
    settings: EditSettings,
) -> "EditResult":
    """Edit, and write what goes beside the result."""
    from dit360.editing import edit
    from dit360.editing.stock import FillPipeline
    from dit360.loading import open_pipeline
    from dit360.pipeline import DiT360Pipeline
    from shared_pano_utils.imageio import write_image
    from shared_pano_utils.runinfo import write_run_info

    write_run_info(args.output.parent, vars(args), PACKAGES)
    kind = FillPipeline if args.method == "fill" else DiT360Pipeline
    pipeline = open_pipeline(options, pipeline_class=kind, report=print)
    pipeline.set_progress_bar_config(desc="steps", leave=False, disable=None)
    result = edit(pipeline, source, keep, settings)
    if result.reconstruction is not None:
        write_image(_reconstruction_path(args.output), result.reconstruction, gpano=True)
    return result


def fill_in(args: argparse.Namespace) -> None:
    """Set defaults that depend on other flags, and refuse flags that nothing would read.

    Mask and prompt of the example say nothing of another image, which needs its own.

    Raises:
        ValueError: flags exclude each other, or one is missing.
    """
    given = {name for name, value in vars(args).items() if value is not None}
    if args.perspective is None and (unread := ANGLES.keys() & given):
        raise ValueError(f"--{min(unread)} is for --perspective; pass a photo, or leave it out")
    if args.method != "inject" and (unread := given & set(INJECT_ONLY)):
        raise ValueError(
            f"--{min(unread)} is for --method inject, not for {args.method}; leave it out"
        )
    if args.perspective is not None:
        if {"image", "mask"} & given or args.task != "outpaint":
            raise ValueError(
                "--perspective makes its own panorama and mask; leave --image, --mask and --task "
                "out"
            )
        if args.prompt is None:
            raise ValueError("--perspective needs --prompt; say what the panorama shows")
        defaults: dict[str, Any] = dict(ANGLES)
    else:
        missing = [f"--{name}" for name in ("mask", "prompt") if name not in given]
        if args.image is not None and args.image.resolve() != IMAGE.resolve() and missing:
            raise ValueError(
                f"--image {args.image} needs {' and '.join(missing)} of its own; the defaults are "
                f"for {IMAGE}"
            )
        defaults = {"image": IMAGE, "mask": MASK, "prompt": PROMPT}
    defaults |= {name: getattr(EditSettings, name) for name in INJECT_ONLY}
    for name in defaults.keys() - given:
        setattr(args, name, defaults[name])


def read_inputs(args: argparse.Namespace) -> "tuple[np.ndarray, np.ndarray]":
    """Source (H, 2H, 3) uint8 and its kept part (H, 2H) bool; see `masks` and `place`.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: flags exclude each other, or image and mask cannot be used.
    """
    from dit360.editing.masks import check_height, read_keep, read_source, resize_keep, token_keep

    check_height(args.height)
    erode = args.mask_erode
    if not 1 <= args.mask_threshold <= 255:
        raise ValueError(f"--mask_threshold is {args.mask_threshold}; use 1 to 255")
    if min(erode or 0, args.mask_dilate) < 0:
        raise ValueError("--mask_erode and --mask_dilate are 0 or more cells; use the other one")
    if args.perspective is not None:
        from dit360.editing.place import PHOTO_ERODE

        source, keep = _read_photo(args)
        erode = PHOTO_ERODE if erode is None and not args.mask_dilate else erode
    else:
        source = read_source(args.image, args.height)
        keep = read_keep(args.mask, args.height, args.task, args.mask_threshold)
    keep = resize_keep(keep, args.mask_dilate - (erode or 0))
    token_keep(keep)
    return source, keep


def _read_photo(args: argparse.Namespace) -> "tuple[np.ndarray, np.ndarray]":
    from dit360.editing.place import place_photo
    from shared_pano_utils.imageio import read_image

    return place_photo(
        read_image(args.perspective),
        args.height,
        fov_deg=args.fov,
        yaw_deg=args.yaw,
        pitch_deg=args.pitch,
        roll_deg=args.roll,
    )


def _settings(args: argparse.Namespace) -> EditSettings:
    if args.method == "fill" and args.tiny:
        raise ValueError(
            "there is no embedded FLUX.1-Fill; leave --tiny out, or use --method inject or inpaint"
        )
    from dit360.generate import check_suffix, with_trigger

    check_suffix(args.output)
    if not args.prompt.strip():
        raise ValueError("--prompt is empty; describe the panorama")
    prompts = {"prompt": args.prompt, "source_prompt": args.source_prompt}
    if not args.no_trigger:
        prompts = {name: text and with_trigger(text) for name, text in prompts.items()}
    same_names = (
        "method", "num_inference_steps", "guidance_scale", "seed", "max_sequence_length", "tau",
        "gamma", "eta", "start_timestep", "stop_timestep", "blend_t", "paste",
    )  # fmt: skip
    return EditSettings(
        **prompts,
        **{name: getattr(args, name) for name in same_names},
        reconstruct=args.save_source_reconstruction,
    )


def _reconstruction_path(output: Path) -> Path:
    return output.with_name(f"{output.stem}_source.png")


def _write_page(args: argparse.Namespace, source: "np.ndarray") -> None:
    from shared_pano_utils.viewer import write_viewer

    shown = {"edited": args.output, "source": source}
    if args.save_source_reconstruction:
        shown["source branch"] = _reconstruction_path(args.output)
    page = args.output.with_suffix(".html")
    write_viewer(page, shown, title=args.output.name, description=args.prompt)
    print(page)


def _summary(path: Path, result: "EditResult") -> str:
    from shared_pano_utils.metrics import seam_error

    seam = float(seam_error(result.image)["wrap_ratio"])
    return (
        f"{path}: seam ratio {seam:.2f}, border step {result.border_step:.2f} (1 = invisible), "
        f"kept region {result.kept_psnr_db:.1f} dB ({result.model_psnr_db:.1f} dB before pasting), "
        f"{result.evaluations} network evaluations"
    )
