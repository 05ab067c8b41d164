"""`app.py`: the demo in the browser."""

import argparse
import contextlib
import logging
import os
import signal
import tempfile
from pathlib import Path

from pager.cli.common import Parser, run_cli
from pager.cli.evaluate import positive

logger = logging.getLogger(__name__)

DEPTH, METRIC_DEPTH, NORMALS = "Depth", "Metric depth", "Surface normals"
DEFAULT_CHECKPOINTS = {
    DEPTH: "prs-eth/PaGeR-depth",
    METRIC_DEPTH: "prs-eth/PaGeR-metric-depth",
    NORMALS: "prs-eth/PaGeR-normals",
}
MIN_WIDTH = 32  # of a panorama, see shared_pano_utils.imageio.read_erp
MAX_WAITING = 32
MAX_UPLOAD = "100mb"
# Results are fetched within minutes; an hour leaves time to look at them.
DELETE_EVERY_S, KEEP_S = 600, 3600


def build_parser() -> argparse.ArgumentParser:
    """Flags of the original plus ours."""
    parser = Parser(prog="app.py", description=__doc__)
    model = parser.add_argument_group("model")
    model.add_argument("--depth_checkpoint_path", help=f"default {DEFAULT_CHECKPOINTS[DEPTH]}")
    model.add_argument(
        "--metric_checkpoint_path",
        help=f"default {DEFAULT_CHECKPOINTS[METRIC_DEPTH]}; not offered with --tiny",
    )
    model.add_argument("--normals_checkpoint_path", help=f"default {DEFAULT_CHECKPOINTS[NORMALS]}")
    model.add_argument(
        "--tiny", action="store_true", help="the embedded checkpoints (CPU, seconds)"
    )
    model.add_argument("--pretrained_path", help="base model instead of the stored one")
    model.add_argument("--revision", help="hub commit, tag or branch of the checkpoints")
    model.add_argument(
        "--max_depth", type=positive, help="metres, instead of the depth checkpoints' ranges"
    )
    model.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    model.add_argument(
        "--precision", choices=("auto", "float32", "bfloat16", "float16"), default="auto"
    )
    model.add_argument(
        "--enable_xformers", action="store_true", help="accepted; PyTorch attention is used"
    )
    server = parser.add_argument_group("server")
    server.add_argument("--host", default="127.0.0.1", help="0.0.0.0 opens it to the network")
    server.add_argument("--port", type=int, help="default: the first free one from 7860")
    server.add_argument("--share", action="store_true", help="public link through gradio.live")
    server.add_argument(
        "--max_size", type=int, default=2048, help="pixels; wider panoramas are reduced to it"
    )
    server.add_argument(
        "--concurrency", type=int, default=1, help="requests read and written at the same time"
    )
    parser.add_argument("-v", "--verbose", action="store_true")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    args = build_parser().parse_args(argv)
    return run_cli(lambda: _serve(args), verbose=args.verbose)


def _serve(args: argparse.Namespace) -> int:
    if args.max_size < MIN_WIDTH:
        raise ValueError(f"--max_size is {args.max_size}; pass a width of {MIN_WIDTH} or more")
    if args.concurrency < 1:
        raise ValueError(f"--concurrency is {args.concurrency}; pass 1 or more")
    if args.enable_xformers:
        logger.warning("--enable_xformers: PyTorch attention is used instead, with RoPE as trained")
    # Stopped by a service manager it cleans up as after Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="pager_app_") as folder:
        # gradio reads both when it is imported: uploads go where results go, nothing is reported.
        os.environ["GRADIO_TEMP_DIR"] = folder
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        from pager.app import ModelShelf, build_interface

        shelf = ModelShelf(
            resolve_checkpoints(args),
            revision=args.revision,
            pretrained_path=args.pretrained_path,
            device=args.device,
            precision=args.precision,
            max_depth=args.max_depth,
        )
        app = build_interface(
            shelf,
            Path(folder),
            max_width=args.max_size,
            concurrency=args.concurrency,
            max_waiting=MAX_WAITING,
            delete_cache=(DELETE_EVERY_S, KEEP_S),
        )
        try:
            _, url, share_url = app.launch(
                server_name=args.host,
                server_port=args.port,
                share=args.share,
                max_file_size=MAX_UPLOAD,
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
            app.block_thread()
        app.close(verbose=False)
    return 0


def resolve_checkpoints(args: argparse.Namespace) -> dict[str, str]:
    """Task to checkpoint, in the order they are offered."""
    given = {
        DEPTH: args.depth_checkpoint_path,
        METRIC_DEPTH: args.metric_checkpoint_path,
        NORMALS: args.normals_checkpoint_path,
    }
    defaults = DEFAULT_CHECKPOINTS
    if args.tiny:
        from pager.embedded import TINY_ASSETS

        defaults = {DEPTH: str(TINY_ASSETS / "depth"), NORMALS: str(TINY_ASSETS / "normals")}
    checkpoints = {task: given[task] or defaults.get(task) for task in given}
    return {task: path for task, path in checkpoints.items() if path}
