"""Which files a command reads and writes, and the loop over several of them."""

import argparse
import glob
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

EXPECTED_ERRORS = (ValueError, TypeError, OSError, KeyError, ImportError)
_GLOB_CHARACTERS = "*?["


def one_line(error: BaseException) -> str:
    """Message of an error without line breaks; `KeyError` quotes its message, which is undone."""
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    return " ".join(str(text).split()) or type(error).__name__


def expand_inputs(patterns: Sequence[str]) -> list[Path]:
    """Files named by the patterns, in order; a pattern is a path or a glob (`**` is recursive).

    Raises:
        FileNotFoundError: a glob matches no file, or a path does not exist and is the only one.
        ValueError: a path is a folder.
    """
    found: list[Path] = []
    for pattern in patterns:
        is_glob = any(character in pattern for character in _GLOB_CHARACTERS)
        if is_glob and not Path(pattern).exists():
            matches = [Path(name) for name in sorted(glob.glob(pattern, recursive=True))]  # noqa: PTH207
            files = [path for path in matches if path.is_file()]
            if not files:
                raise FileNotFoundError(f"{pattern}: no file matches")
            found += files
        elif Path(pattern).is_dir():
            raise ValueError(
                f"{pattern} is a folder; name its files, for example '{pattern}/*.png'"
            )
        else:
            found.append(Path(pattern))
    return list(dict.fromkeys(found))


def plan_outputs(inputs: Sequence[Path], patterns: Sequence[str], output: str) -> list[Path]:
    """Output file of every input: OUT itself, or the input's name in the folder OUT.

    OUT is a folder if it exists as one, ends with a separator, or if there are several inputs or a
    glob.

    Raises:
        ValueError: OUT would have to be a folder but is named like a file, two inputs share a
            name, or an output would overwrite its input.
    """
    is_many = len(inputs) > 1 or any(c in pattern for pattern in patterns for c in _GLOB_CHARACTERS)
    has_folder_name = output.endswith((os.sep, "/")) or Path(output).is_dir()
    if not is_many and not has_folder_name:
        outputs = [Path(output)]
    else:
        if not has_folder_name and Path(output).suffix:
            raise ValueError(
                f"{len(inputs)} inputs need a folder as output, got {output!r}; "
                f"write {Path(output).stem + '/'!r} for a folder"
            )
        outputs = [Path(output) / path.name for path in inputs]
    if len(set(outputs)) < len(outputs):
        name = next(path.name for path in outputs if outputs.count(path) > 1)
        raise ValueError(f"two inputs are both called {name}; convert them into separate folders")
    for source, target in zip(inputs, outputs, strict=True):
        if target.exists() and source.exists() and target.samefile(source):
            raise ValueError(f"{target} would be overwritten by its own result; choose another OUT")
    return outputs


def convert_files(args: argparse.Namespace, convert: Callable[[Path, Path], None]) -> None:
    """Call `convert(input, output)` for every input of the command.

    One input: its error is that of the command. Several: the others are done, each failure is
    reported on stderr and the command exits with 1.
    """
    inputs = expand_inputs(args.inputs)
    outputs = plan_outputs(inputs, args.inputs, args.output)
    pairs = list(zip(inputs, outputs, strict=True))
    run_all(args.verb, inputs, [lambda pair=pair: convert(*pair) for pair in pairs])


def run_all(verb: str, names: Sequence[Path], jobs: Sequence[Callable[[], None]]) -> None:
    """Run the jobs by the rule of `convert_files`."""
    if len(jobs) == 1:
        jobs[0]()
        return
    n_failed = 0
    for name, job in zip(names, jobs, strict=True):
        try:
            job()
        except EXPECTED_ERRORS as error:
            n_failed += 1
            message = one_line(error)
            where = "" if str(name) in message else f"{name}: "
            sys.stderr.write(f"pano-convert {verb}: {where}{message}\n")
    if n_failed:
        sys.stderr.write(
            f"pano-convert {verb}: {len(jobs) - n_failed} of {len(jobs)} done, {n_failed} failed\n"
        )
        sys.exit(1)
