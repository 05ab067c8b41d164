"""`app.py`: the demo in the browser."""

import argparse
import contextlib
import os
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from genex_explorer.cli.common import Parser, run_cli
from genex_explorer.cli.explore import MODEL
from genex_explorer.embedded import TINY_ASSETS

if TYPE_CHECKING:
    from gradio import Blocks

MAX_WAITING = 32
MAX_UPLOAD = "100mb"
# A walk of the released model holds up to 1.4 GB, see genex_explorer.app.MAX_CLIPS.
MAX_SESSIONS = 16
# Files are fetched within minutes; an hour leaves time to go on with a walk.
DELETE_EVERY_S, KEEP_S = 600, 3600


def build_parser() -> argparse.ArgumentParser:
    """Flags of the demo; those of the model mean the same as in `explore.py`."""
    parser = Parser(prog="app.py", description=__doc__)
    model = parser.add_argument_group("model")
    model.add_argument("--model", help=f"hub id or folder (default: {MODEL})")
    model.add_argument("--unet", help="hub id or folder whose unet/ replaces the model's")
    model.add_argument(
        "--tiny", action="store_true", help="the embedded model with its sizes and steps, on a CPU"
    )
    model.add_argument(
        "--num_inference_steps", type=int, help="denoising steps of a clip (default: 30)"
    )
    model.add_argument(
        "--offload", choices=("none", "model", "sequential", "group"), default="none",
        help="keep weights in host memory",
    )  # fmt: skip
    model.add_argument(
        "--dtype", choices=("auto", "float32", "float16", "bfloat16"), default="auto"
    )
    model.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    server = parser.add_argument_group("server")
    server.add_argument("--server_name", default="127.0.0.1", help="0.0.0.0 opens to the network")
    server.add_argument("--server_port", type=int, help="default: the first free one from 7860")
    server.add_argument("--share", action="store_true", help="public link through gradio.live")
    parser.add_argument("-v", "--verbose", action="store_true")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    args = build_parser().parse_args(argv)
    return run_cli(lambda: _serve(args), verbose=args.verbose)


def _serve(args: argparse.Namespace) -> int:
    # Stopped by a service manager it cleans up as after Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="genex_app_") as folder:
        # gradio reads both when it is imported: uploads go where results go, nothing is reported.
        os.environ["GRADIO_TEMP_DIR"] = folder
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        page = _build(args, Path(folder))
        try:
            _, url, share_url = page.launch(
                server_name=args.server_name,
                server_port=args.server_port,
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
                f"cannot serve at --server_name {args.server_name} --server_port "
                f"{args.server_port} ({error}); choose others"
            ) from error
        with contextlib.suppress(KeyboardInterrupt):
            print(f"open {share_url or url} in a browser; Ctrl-C stops", flush=True)
            page.block_thread()
        page.close(verbose=False)
    return 0


def _build(args: argparse.Namespace, folder: Path) -> "Blocks":
    from genex_explorer.app import Guide, build_interface
    from genex_explorer.explorer import TINY_SETTINGS, open_pipeline
    from genex_explorer.walk import WalkSettings

    options = dict(TINY_SETTINGS) if args.tiny else {}
    if args.num_inference_steps is not None:
        options["num_inference_steps"] = args.num_inference_steps
    settings = WalkSettings(**options)
    pipeline = open_pipeline(
        args.model or (str(TINY_ASSETS) if args.tiny else MODEL),
        unet=args.unet,
        device=args.device,
        dtype=args.dtype,
        offload=args.offload,
    )
    return build_interface(
        Guide(pipeline, settings, folder),
        max_waiting=MAX_WAITING,
        delete_cache=(DELETE_EVERY_S, KEEP_S),
    )
