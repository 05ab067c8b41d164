"""`app.py`: the demo in the browser."""

import argparse
import contextlib
import os
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from dit360.embedded import TINY_HEIGHT, TINY_PASTE, TINY_STEPS, TINY_TEXT_LENGTH
from dit360.loading import add_load_flags
from shared_pano_utils.commands import Parser, run_cli

if TYPE_CHECKING:
    from gradio import Blocks

MAX_WAITING = 32
MAX_UPLOAD = "100mb"
# A panorama of 1024 x 2048 and its mask are 8 MB for each visitor who paints.
MAX_SESSIONS = 64
# Files are fetched within minutes; an hour leaves time to go on with a mask.
DELETE_EVERY_S, KEEP_S = 600, 3600
PROMPTS = (
    "A mountain lake at dawn, mist over the water, a wooden jetty in front and pines behind.",
    "A bright loft with brick walls, a long table in front, tall windows to the right.",
    "A narrow street of an old town at night, lanterns, wet cobblestones, a church tower behind.",
)


def build_parser() -> argparse.ArgumentParser:
    """Flags of the demo; those of the model mean the same as in `inference.py`."""
    parser = Parser(prog="app.py", description=__doc__)
    parser.add_argument(
        "--height", type=int, default=1024,
        help=f"of all panoramas, pixels (default: %(default)s, {TINY_HEIGHT} with --tiny)",
    )  # fmt: skip
    parser.add_argument(
        "--max_sequence_length", type=int, default=512,
        help=f"T5 tokens of a prompt (default: %(default)s, {TINY_TEXT_LENGTH} with --tiny)",
    )  # fmt: skip
    add_load_flags(parser)
    server = parser.add_argument_group("server")
    server.add_argument("--host", default="127.0.0.1", help="0.0.0.0 opens to the network")
    server.add_argument("--port", type=int, default=7860, help="default: %(default)s")
    server.add_argument("--share", action="store_true", help="public link through gradio.live")
    parser.add_argument("-v", "--verbose", action="store_true")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.tiny:
        parser.set_defaults(height=TINY_HEIGHT, max_sequence_length=TINY_TEXT_LENGTH)
        args = parser.parse_args(argv)
    hint = "use --memory balanced, low or int8, or --tile_columns 64"
    return run_cli(lambda: _serve(args), verbose=args.verbose, out_of_memory=hint)


def _serve(args: argparse.Namespace) -> int:
    # Stopped by a service manager it cleans up as after Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="dit360_app_") as folder:
        # gradio reads both when it is imported: uploads go where results go, nothing is reported.
        os.environ["GRADIO_TEMP_DIR"] = folder
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        page = _build(args, Path(folder))
        try:
            _, url, share_url = page.launch(
                server_name=args.host,
                server_port=args.port,
                share=args.share,
                max_file_size=MAX_UPLOAD,
                state_session_capacity=MAX_SESSIONS,
                prevent_thread_lock=True,
                run_history=False,
                footer_links=["api"],
                quiet=True,
            )
        except OSError as error:
            raise OSError(
                f"cannot serve at --host {args.host} --port {args.port} ({error}); choose others"
            ) from error
        with contextlib.suppress(KeyboardInterrupt):
            print(f"open {share_url or url} in a browser; Ctrl-C stops", flush=True)
            page.block_thread()
        page.close(verbose=False)
    return 0


def _build(args: argparse.Namespace, folder: Path) -> "Blocks":
    """Everything that a user can get wrong is refused before a model is loaded."""
    from dit360.app import Studio, build_interface
    from dit360.app.examples import WORLDS, describe_world
    from dit360.editing import EditSettings
    from dit360.editing.masks import check_height
    from dit360.generate import Settings
    from dit360.loading import load_options, open_pipeline

    check_height(args.height)
    if args.text_cache is not None:
        raise ValueError(
            "--text_cache holds known prompts only, visitors write new ones; leave it out"
        )
    sampling = Settings(
        height=args.height,
        width=2 * args.height,
        num_inference_steps=TINY_STEPS if args.tiny else Settings.num_inference_steps,
        max_sequence_length=args.max_sequence_length,
    )
    editing = EditSettings(
        prompt="",
        num_inference_steps=TINY_STEPS if args.tiny else EditSettings.num_inference_steps,
        max_sequence_length=args.max_sequence_length,
        paste=TINY_PASTE if args.tiny else EditSettings.paste,
    )
    prompts = [describe_world(number) for number in WORLDS] if args.tiny else PROMPTS
    pipeline = open_pipeline(load_options(args), report=print)
    return build_interface(
        Studio(pipeline, sampling, editing, folder),
        prompts=prompts,
        max_waiting=MAX_WAITING,
        delete_cache=(DELETE_EVERY_S, KEEP_S),
    )
