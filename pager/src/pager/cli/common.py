"""What every command shares: logging, one-line errors, exit codes."""

import argparse
import difflib
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
            "error: the device is out of memory; use --precision bfloat16, a smaller --face_size, "
            "--batch_size 1 or --device cpu",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("interrupted; finished files are kept, run the same command again", file=sys.stderr)
        return 130


def read_flag_values(path: str, parser: argparse.ArgumentParser) -> dict[str, Any]:
    """Values for the flags of `parser` from a YAML file.

    As in the original, a leaf sets the flag of its name wherever in the tree it stands. Leaves that
    belong to training are passed over, and of ``model:`` all but the checkpoint's path, since the
    checkpoint says the rest about itself: ``configs/base.yaml`` can be given too.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not YAML, an unknown leaf, or a value that its flag does not take.
    """
    from omegaconf import OmegaConf
    from yaml import YAMLError

    from pager.config import leaves

    if not Path(path).is_file():
        raise FileNotFoundError(f"config {path} does not exist; see configs/inference.yaml")
    try:
        tree = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
        if isinstance(tree, dict) and isinstance(tree.get("model"), dict):
            model = tree["model"].items()
            tree["model"] = {k: v for k, v in model if k.endswith("checkpoint_path")}
        rows = _walk(tree)
    except (YAMLError, ValueError) as error:
        raise ValueError(f"{path} is not a readable YAML file ({error})") from error
    actions = {action.dest: action for action in parser._actions}
    training = {leaf for leaf, _ in leaves()}
    values = {}
    for name, value in rows:
        if value is None or (name in training and name not in actions):
            continue
        if name not in actions:
            close = difflib.get_close_matches(name, actions, 1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ValueError(f"{path}: unknown key {name}{hint}")
        values[name] = _checked(actions[name], value, path)
    return values


def _walk(tree: Any) -> list[tuple[str, Any]]:
    if not isinstance(tree, dict):
        raise ValueError(f"expected keys and values, got {tree!r}")
    rows = []
    for key, value in tree.items():
        rows += _walk(value) if isinstance(value, dict) else [(key, value)]
    return rows


def _checked(action: argparse.Action, value: Any, path: str) -> Any:
    """A YAML value as its flag would give it."""
    is_switch = action.nargs == 0
    if is_switch != isinstance(value, bool):
        raise ValueError(
            f"{path}: {action.dest} is {value!r}; use {'true or false' if is_switch else 'a value'}"
        )
    if action.nargs == "+":
        return [str(item) for item in (value if isinstance(value, list) else [value])]
    if action.type is not None and callable(action.type):
        try:
            value = action.type(value)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {action.dest} is {value!r} ({error})") from error
    if action.choices is not None and value not in action.choices:
        raise ValueError(
            f"{path}: {action.dest} is {value!r}; use one of {', '.join(map(str, action.choices))}"
        )
    return value
