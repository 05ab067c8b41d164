"""What every command line of the workspace shares: logging, one-line errors, exit codes."""

import argparse
import logging
import sys
from collections.abc import Callable
from typing import NoReturn

USER_ERRORS = (ValueError, FileNotFoundError, FloatingPointError, OSError, ImportError)


class Parser(argparse.ArgumentParser):
    """`ArgumentParser` whose errors are one line: the usage of 80 flags would hide them."""

    def error(self, message: str) -> NoReturn:
        """Print the line and exit with code 2."""
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")


def run_cli(command: Callable[[], int], *, verbose: bool = False, out_of_memory: str = "") -> int:
    """Run a command; what a user can mend becomes one line on stderr.

    Args:
        command: does the work and returns the exit code.
        verbose: show informational messages, and the traceback of errors.
        out_of_memory: which flags save memory, "use --offload or ...".

    Returns:
        The command's exit code, 2 after an error that a user can mend, 130 after Ctrl-C.
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
            sys.stderr.write(f"error: {_one_line(error)}\n")
        return 2
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which may not be imported yet
            raise
        sys.stderr.write(f"error: the device is out of memory; {out_of_memory}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; finished files are kept, run the same command again\n")
        return 130


def _one_line(error: BaseException) -> str:
    if isinstance(error, FileExistsError | NotADirectoryError) and error.filename:
        return f"{error.filename}: a file is where a folder is wanted; pass another path"
    text = str(error)
    if text.startswith("Caught "):  # in a worker of a data loader, with its traceback
        text = text.rstrip().splitlines()[-1].partition(": ")[2]
    return " ".join(text.split()) or type(error).__name__
