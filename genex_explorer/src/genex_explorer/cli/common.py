"""What every command shares: logging, one-line errors, exit codes."""

import logging
import sys
from collections.abc import Callable

USER_ERRORS = (ValueError, FileNotFoundError, FloatingPointError, OSError, ImportError)


def run_cli(command: Callable[[], int], *, verbose: bool = False) -> int:
    """Run a command; what a user can mend becomes one line on stderr and exit code 2.

    `verbose` shows the traceback and informational messages instead.
    """
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(levelname)s %(name)s: %(message)s",
    )
    try:
        return command()
    except USER_ERRORS as error:
        if verbose:
            logging.exception("failed")
        else:
            print(f"error: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which may not be imported yet
            raise
        print(
            "error: the device is out of memory; use --gradient_checkpointing, --use_8bit_adam or "
            "--latent_cache in training; --offload, a smaller --batch_size or --decode_chunk elsewhere",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("interrupted; finished files are kept, run the same command again", file=sys.stderr)
        return 130
