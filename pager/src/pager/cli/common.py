"""What every command shares: one-line errors and exit codes, flags from a YAML file."""

import argparse
import difflib
import functools
from pathlib import Path
from typing import Any

from shared_pano_utils import commands
from shared_pano_utils.commands import Parser

__all__ = ["Parser", "read_flag_values", "run_cli"]

run_cli = functools.partial(
    commands.run_cli,
    out_of_memory="use --precision bfloat16, a smaller --face_size, --batch_size 1 or --device cpu",
)


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
