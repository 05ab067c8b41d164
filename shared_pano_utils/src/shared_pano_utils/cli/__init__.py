"""`pano-convert`: the transforms, metrics and procedural scenes of this package on files.

Only the argument parser is built here; torch is imported when a verb runs, so `--help` and
mistakes in the arguments answer at once.
"""

import importlib
import sys
from collections.abc import Sequence

from shared_pano_utils.cli.batch import EXPECTED_ERRORS, one_line
from shared_pano_utils.cli.parser import build_parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run `pano-convert` on the arguments (default: those of the process).

    Raises:
        SystemExit: 1 if some of several inputs failed, 2 for bad arguments or bad input (one line
            on stderr), 130 after Ctrl-C; a run without failures returns.
    """
    args = build_parser().parse_args(argv)
    try:
        commands = importlib.import_module(f"{__name__}.{args.module}")
        getattr(commands, args.verb)(args)
    except EXPECTED_ERRORS as error:
        sys.stderr.write(f"pano-convert {args.verb}: {one_line(error)}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
