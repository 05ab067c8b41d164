"""Paths of exploration: turns and forward steps from text or JSON, their segments and poses.

A path is a list of `Move`. Distances count generated frames, 0.4 m each in the paper's data. The
original's dictionaries are read and written as they are; nothing changes the caller's list.
"""

import difflib
import json
import logging
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

logger = logging.getLogger(__name__)

STEP_M = 0.4
"""Metres per frame of the data the model was trained on (paper)."""

LIMIT = 1e6
"""Of degrees, frames and metres in a step: whoever asks for more mistyped."""

TURN_SIGNS = {"turn_angle": 1.0, "turn": 1.0, "right": 1.0, "left": -1.0}
DISTANCES = ("move_distance", "forward", "forward_m")
# Written by the original beside every step; they follow from the moves.
INFORMATIVE = ("new_position", "new_angle")
ACTIONS = ("forward", "left", "right", "turn")
_ACTION = re.compile(r"([a-z_]+)\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)\s*(m|deg|°)?")


@dataclass(frozen=True)
class Move:
    """A turn on the spot, then a straight walk.

    Attributes:
        turn_deg: to the right, any finite number.
        frames: new frames walked forward; 0 is only a turn.
    """

    turn_deg: float
    frames: int

    def __post_init__(self) -> None:
        if not math.isfinite(self.turn_deg):
            raise ValueError(f"turn is {self.turn_deg} degrees; give a finite number")
        if self.frames < 0:
            raise ValueError(
                f"distance is {self.frames} frames; it cannot be negative, the model only walks "
                "forward: turn 180 degrees first"
            )


@dataclass(frozen=True)
class Pose:
    """Place and heading on the ground, by dead reckoning.

    Attributes:
        x_m: metres to the right of the first panorama's centre direction.
        z_m: metres along that direction.
        heading_deg: to the right of it, in [0, 360).
    """

    x_m: float = 0.0
    z_m: float = 0.0
    heading_deg: float = 0.0

    def after(self, move: Move, step_m: float = STEP_M) -> "Pose":
        """The pose at the end of a move, with `step_m` metres per frame."""
        heading = wrap_degrees(self.heading_deg + move.turn_deg)
        radians, distance = math.radians(heading), move.frames * step_m
        return Pose(
            self.x_m + distance * math.sin(radians),
            self.z_m + distance * math.cos(radians),
            heading,
        )


def wrap_degrees(angle: float) -> float:
    """The angle in [0, 360); a tiny negative one, which ``%`` takes to 360.0, is 0.0."""
    wrapped = angle % 360.0
    return 0.0 if wrapped == 360.0 else wrapped


def trace(moves: Iterable[Move], start: Pose | None = None, step_m: float = STEP_M) -> list[Pose]:
    """The start and the pose after every move."""
    poses = [start or Pose()]
    for move in moves:
        poses.append(poses[-1].after(move, step_m))
    return poses


def split_moves(moves: Iterable[Move], model_frames: int) -> list[Move]:
    """Cut moves into what one run of the model can walk.

    The first of its frames is the panorama it starts from, so that a 25-frame model walks 24 new
    ones: a move by 25 becomes 24 + 1, where the original lost the last frame.

    Args:
        moves: left unchanged.
        model_frames: frames of a generated clip.

    Returns:
        Moves of at most ``model_frames - 1`` frames; only the first part of a move turns.
    """
    if model_frames < 2:
        raise ValueError(
            f"a model of {model_frames} frames cannot walk; the first frame is the start, use "
            "at least 2"
        )
    longest = model_frames - 1
    segments = []
    for move in moves:
        starts = range(0, max(move.frames, 1), longest)
        segments += [
            Move(0.0 if walked else move.turn_deg, min(move.frames - walked, longest))
            for walked in starts
        ]
    return segments


# ---- text ---------------------------------------------------------------------------------------


def parse_actions(text: str, step_m: float = STEP_M) -> list[Move]:
    """Read ``forward 25, left 60; turn -30, forward 10, forward 4m``.

    Actions are separated by ``,``, ``;`` or a new line. `forward` counts frames, or metres with
    ``m``, which are rounded to whole frames (halves up, with a logged warning); `left`, `right` and
    `turn` (right positive) count degrees. A turn directly before a walk makes one move with it.

    Raises:
        ValueError: no action, an unknown one, or one that the model cannot do.
    """
    steps: list[dict[str, Any]] = []
    pieces = [piece.strip() for piece in re.split(r"[,;\n]", text) if piece.strip()]
    for number, piece in enumerate(pieces, 1):
        key, value = _read_action(piece, f"step {number} ({piece!r})", step_m)
        if key == "forward" and steps and "forward" not in steps[-1]:
            steps[-1]["forward"] = value
        else:
            steps.append({key: value})
    if not steps:
        raise ValueError("the path is empty; write for example 'forward 25, left 60, forward 10'")
    return [Move(step.get("turn", 0.0), step.get("forward", 0)) for step in steps]


def _read_action(piece: str, where: str, step_m: float) -> tuple[str, Any]:
    """("turn", degrees) or ("forward", frames)."""
    match = _ACTION.fullmatch(piece.lower())
    word = match[1] if match else piece.lower().split()[0]
    if word in ("back", "backward", "backwards"):
        raise ValueError(
            f"{where}: walking back is not possible, the model only walks to the image centre; "
            "write 'turn 180, forward ...'"
        )
    if match is None or word not in ACTIONS:
        raise ValueError(
            f"{where} is not an action; write {', '.join(ACTIONS)} and a number, such as "
            "'forward 25', 'forward 4m' or 'left 60'"
        )
    value, unit = float(match[2]), match[3]
    if unit and (unit == "m") != (word == "forward"):
        allowed = "frames or metres (m)" if word == "forward" else "degrees"
        raise ValueError(f"{where}: the unit is {unit!r}, {word} takes {allowed}")
    if word != "forward":
        return "turn", _read_turn(word, value, where)
    return "forward", _read_distance("forward_m" if unit == "m" else word, value, where, step_m)


def format_actions(moves: Iterable[Move]) -> str:
    """Write moves as text that `parse_actions` reads back exactly."""
    actions: list[str] = []
    for move in moves:
        # Without a turn of its own, a walk would join the turn written before it.
        if move.turn_deg or not move.frames or (actions and actions[-1].startswith("turn")):
            actions.append(f"turn {float(move.turn_deg)!r}".removesuffix(".0"))
        if move.frames:
            actions.append(f"forward {move.frames}")
    return ", ".join(actions)


# ---- JSON ---------------------------------------------------------------------------------------


def read_path(
    source: str | Path | Sequence[Mapping[str, Any]], step_m: float = STEP_M
) -> list[Move]:
    """Read a list of steps, or the JSON file that holds it.

    A step turns, then walks, and has at most one key of each: ``turn_angle`` (the original's),
    ``turn``, ``right`` or ``left`` in degrees, and ``move_distance`` (the original's) or
    ``forward`` in frames or ``forward_m`` in metres. The original's ``new_position`` and
    ``new_angle`` are passed over.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not JSON, no steps, or a step that is not of this form.
    """
    steps = _read_json(Path(source)) if isinstance(source, str | Path) else source
    if not isinstance(steps, Sequence) or isinstance(steps, str):
        raise ValueError(
            f"the path is a {type(steps).__name__}; give a list of steps such as "
            '[{"turn": -30, "forward": 10}]'
        )
    if not steps:
        raise ValueError('the path is empty; give at least one step such as {"forward": 25}')
    return [_read_step(step, f"step {number}", step_m) for number, step in enumerate(steps, 1)]


def read_path_argument(text: str, step_m: float = STEP_M) -> list[Move]:
    """Read what stands behind ``--path``: the name of a ``.json`` file, or actions."""
    if text.strip().lower().endswith(".json"):
        return read_path(text.strip(), step_m)
    return parse_actions(text, step_m)


def to_original_path(moves: Iterable[Move]) -> list[dict[str, Any]]:
    """Write moves as the original's dictionaries.

    `turn_angle` is in [0, 360). `new_position` is in frames, its first axis the direction at the
    start: the original calls the angle counter-clockwise, but turns the panorama to the right.
    """
    moves = list(moves)
    return [
        {
            "turn_angle": wrap_degrees(move.turn_deg),
            "move_distance": move.frames,
            "new_position": [pose.z_m, pose.x_m],
            "new_angle": pose.heading_deg,
        }
        for move, pose in zip(moves, trace(moves, step_m=1.0)[1:], strict=True)
    ]


def _read_json(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"path file {path} does not exist")
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); write a list of steps") from error


def _read_step(step: Any, where: str, step_m: float) -> Move:
    if not isinstance(step, Mapping):
        raise ValueError(
            f"{where} is a {type(step).__name__} ({step!r}); give an object such as "
            '{"turn": -30, "forward": 10}'
        )
    allowed = (*TURN_SIGNS, *DISTANCES, *INFORMATIVE)
    for key in step:
        if key not in allowed:
            closest = difflib.get_close_matches(str(key), allowed, n=1, cutoff=0.0)[0]
            raise ValueError(
                f"{where}: unknown key {key!r}; closest allowed is {closest!r}, all are "
                f"{', '.join(allowed)}"
            )
    turns = [key for key in TURN_SIGNS if key in step]
    distances = [key for key in DISTANCES if key in step]
    if len(turns) > 1 or len(distances) > 1:
        raise ValueError(
            f"{where} has {' and '.join(turns if len(turns) > 1 else distances)}; keep one, or "
            "make two steps"
        )
    if not turns + distances:
        raise ValueError(
            f"{where} neither turns nor walks ({dict(step)!r}); add one of "
            f"{', '.join((*TURN_SIGNS, *DISTANCES))}"
        )
    degrees = _read_turn(turns[0], step[turns[0]], where) if turns else 0.0
    frames = _read_distance(distances[0], step[distances[0]], where, step_m) if distances else 0
    return Move(degrees, frames)


# ---- values -------------------------------------------------------------------------------------


def _read_turn(key: str, value: Any, where: str) -> float:
    degrees = _read_number(key, value, where, "degrees")
    if key in ("left", "right") and degrees < 0:
        other = "right" if key == "left" else "left"
        raise ValueError(f"{where}: {key} is {value}; it cannot be negative, use {other!r}")
    return TURN_SIGNS[key] * degrees


def _read_distance(key: str, value: Any, where: str, step_m: float) -> int:
    """Frames of a distance in frames, or in metres if the key is `forward_m`."""
    number = _read_number(key, value, where, "metres" if key == "forward_m" else "frames")
    if number < 0:
        raise ValueError(
            f"{where}: {key} is {value}; a distance cannot be negative, turn 180 degrees instead"
        )
    if key != "forward_m":
        if number != int(number):
            raise ValueError(
                f"{where}: {key} is {value}; frames are whole, give metres for other distances"
            )
        return int(number)
    exact = number / step_m
    frames = math.floor(exact + 0.5 + 1e-9)  # 0.6 m are 1.4999999999999998 frames of 0.4 m
    if number > 0 and frames == 0:
        raise ValueError(
            f"{where}: {value} m is less than half a frame; a frame is {step_m:g} m, walk farther"
        )
    if abs(exact - frames) > 1e-6:
        logger.warning(
            "%s: %s m is %.2f frames; walking %d (%.2f m)",
            where, value, exact, frames, frames * step_m,
        )  # fmt: skip
    return frames


def _read_number(key: str, value: Any, where: str, unit: str) -> float:
    is_number = isinstance(value, int | float | np.integer | np.floating)
    # NaN is in no interval, and true is no number of anything.
    if not is_number or isinstance(value, bool) or not -LIMIT <= value <= LIMIT:
        raise ValueError(f"{where}: {key} is {value!r}; give a number of {unit} up to {LIMIT:g}")
    return float(value)
