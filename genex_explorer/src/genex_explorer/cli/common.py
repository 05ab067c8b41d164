"""What every command shares: flags, logging, one-line errors, exit codes."""

import argparse
import logging
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

USER_ERRORS = (ValueError, FileNotFoundError, FloatingPointError, OSError, ImportError)


class Parser(argparse.ArgumentParser):
    """`ArgumentParser` whose errors are one line: the usage of 80 flags would hide them."""

    def error(self, message: str) -> NoReturn:
        """Print the line and exit with code 2."""
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")


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
            text = str(error)
            if text.startswith("Caught "):  # in a worker of the loader, with its traceback
                text = text.rstrip().splitlines()[-1].partition(": ")[2]
            print(f"error: {' '.join(text.split()) or type(error).__name__}", file=sys.stderr)
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


def find_inputs(sources: list[str]) -> list[Path]:
    """Images of ``--image``: files as they are, folders in natural order.

    Raises:
        FileNotFoundError: a folder holds no image.
        ValueError: two images have the same name, by which results are called.
    """
    from genex_explorer.data.clips import find_images

    images: list[Path] = []
    for source in map(Path, sources):
        found = find_images(source) if source.is_dir() else [source]
        if not found:
            raise FileNotFoundError(
                f"--image {source} holds no image; pass another folder or a file"
            )
        images += found
    stem, count = Counter(image.stem for image in images).most_common(1)[0]
    if count > 1:
        raise ValueError(
            f"several images are called {stem!r}, which names their results; rename one"
        )
    return images
