"""Paths: text and JSON in, moves out; segments, poses, and errors that name the step."""

import copy
import json
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from genex_explorer.paths import (
    Move,
    Pose,
    format_actions,
    parse_actions,
    read_path,
    read_path_argument,
    split_moves,
    to_original_path,
    trace,
    wrap_degrees,
)

unhurried = settings(deadline=None)  # machines that train beside the tests stall
ANGLES = st.floats(-1000, 1000)
MOVES = st.lists(st.builds(Move, ANGLES, st.integers(0, 60)), min_size=1, max_size=8)


# ---- text ---------------------------------------------------------------------------------------


def test_actions_of_the_documentation() -> None:
    assert parse_actions("forward 25, left 60, forward 10") == [Move(0, 25), Move(-60, 10)]
    assert parse_actions("forward 25, left 60; turn -30, forward 10, forward 4m") == [
        Move(0, 25), Move(-60, 0), Move(-30, 10), Move(0, 10),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "moves"),
    [
        ("right 45", [Move(45, 0)]),
        ("Turn 12.5 deg; FORWARD 3\nleft .5°,", [Move(12.5, 3), Move(-0.5, 0)]),
        ("turn -1e-3, turn +7", [Move(-0.001, 0), Move(7, 0)]),
        ("forward 0", [Move(0, 0)]),
        ("forward 4 m", [Move(0, 10)]),
    ],
)
def test_spellings(text: str, moves: list[Move]) -> None:
    assert parse_actions(text) == moves


@pytest.mark.parametrize(
    ("metres", "frames"), [("0.2m", 1), ("0.59m", 1), ("0.6m", 2), ("4.1m", 10), ("20m", 50)]
)
def test_metres_are_rounded_to_frames_and_it_is_said(
    metres: str, frames: int, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert parse_actions(f"forward {metres}") == [Move(0, frames)]
    assert ("walking" in caplog.text) == (metres != "20m")
    assert parse_actions("forward 1m", step_m=0.25) == [Move(0, 4)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the path is empty"),
        (" ,; ", "the path is empty"),
        ("forward 5, back 3", r"step 2 \('back 3'\): walking back is not possible.*'turn 180"),
        ("foward 5", r"step 1 \('foward 5'\) is not an action; write forward, left, right, turn"),
        ("forward", r"step 1 \('forward'\) is not an action"),
        ("forward nan", "is not an action"),
        ("forward 5 miles", "is not an action"),
        ("left 60m", "the unit is 'm', left takes degrees"),
        ("forward 10 deg", r"the unit is 'deg', forward takes frames or metres"),
        ("forward 2.5", "frames are whole, give metres"),
        ("forward -2", "forward is -2.0; a distance cannot be negative, turn 180"),
        ("left -60", "left is -60.0; it cannot be negative, use 'right'"),
        ("forward 0.1m", "0.1 m is less than half a frame; a frame is 0.4 m"),
        ("turn 1e400", r"turn is inf; give a number of degrees up to 1e\+06"),
        ("forward 1e9", r"forward is 1000000000.0; give a number of frames up to 1e\+06"),
    ],
)
def test_text_errors(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_actions(text)


@unhurried
@given(MOVES)
@example([Move(30, 0), Move(0, 5), Move(0, 0), Move(0, 1)])
@example([Move(1e-7, 0), Move(0.1 + 0.2, 1)])
def test_format_and_parse_are_inverse(moves: list[Move]) -> None:
    assert parse_actions(format_actions(moves)) == moves


def test_format_is_readable() -> None:
    assert format_actions([Move(0, 25), Move(-60, 10)]) == "forward 25, turn -60, forward 10"


# ---- JSON ---------------------------------------------------------------------------------------


def test_steps_of_the_original_and_ours() -> None:
    steps = [
        {"turn_angle": 62.4, "move_distance": 5, "new_position": [2.31, 4.43], "new_angle": 62.4},
        {"turn_angle": 297.6, "move_distance": 0},
        {"turn": -30},
        {"forward_m": 4.0},
        {"forward": 10},
        {"left": 20, "forward": 3},
        {"right": np.float32(0.5), "move_distance": np.int64(2)},
    ]
    before = copy.deepcopy(steps)
    moves = [
        Move(62.4, 5), Move(297.6, 0), Move(-30, 0), Move(0, 10), Move(0, 10), Move(-20, 3),
        Move(0.5, 2),
    ]  # fmt: skip
    assert read_path(steps) == moves
    assert steps == before
    last = read_path(steps)[-1]
    assert (type(last.turn_deg), type(last.frames)) == (float, int)


def test_files_and_the_argument_of_the_command(tmp_path: Path) -> None:
    file = tmp_path / "Walk.JSON"
    file.write_text('\ufeff[{"turn": -30, "forward": 10}]', encoding="utf-8")
    assert read_path(file) == read_path_argument(str(file)) == [Move(-30, 10)]
    assert read_path_argument("left 30, forward 10") == [Move(-30, 10)]
    with pytest.raises(FileNotFoundError, match=r"path file .*none.json does not exist"):
        read_path_argument(str(tmp_path / "none.json"))
    file.write_text('[{"turn": }]')
    with pytest.raises(ValueError, match=r"Walk.JSON is not JSON \(Expecting value"):
        read_path(file)
    file.write_bytes(b"\xff\x00")
    with pytest.raises(ValueError, match=r"Walk.JSON is not JSON"):
        read_path(file)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([], "the path is empty"),
        ({"turn": 3}, "the path is a dict; give a list of steps"),
        (
            [{"turn": 1}, {"foward": 5}],
            "step 2: unknown key 'foward'; closest allowed is 'forward'",
        ),
        ([{"turn_angel": 5}], "step 1: unknown key 'turn_angel'; closest allowed is 'turn_angle'"),
        ([{"move_dist": 5}], "closest allowed is 'move_distance'"),
        ([{3: 5}], "step 1: unknown key 3"),
        (["forward 5"], r"step 1 is a str \('forward 5'\)"),
        ([{}], "step 1 neither turns nor walks"),
        ([{"new_angle": 3.0}], "step 1 neither turns nor walks"),
        ([{"turn": 1, "left": 2}], "step 1 has turn and left; keep one"),
        ([{"forward": 1, "forward_m": 2}], "step 1 has forward and forward_m; keep one"),
        ([{"turn": "30"}], "step 1: turn is '30'; give a number of degrees"),
        ([{"turn": True}], "step 1: turn is True"),
        ([{"turn": None}], "step 1: turn is None"),
        ([{"turn": math.nan}], "step 1: turn is nan"),
        ([{"turn": 10**400}], "give a number of degrees up to"),
        ([{"forward_m": math.inf}], "step 1: forward_m is inf; give a number of metres"),
        ([{"move_distance": -5}], "step 1: move_distance is -5; a distance cannot be negative"),
        ([{"move_distance": 2.5}], "step 1: move_distance is 2.5; frames are whole"),
        ([{"forward_m": -1}], "step 1: forward_m is -1; a distance cannot be negative"),
        ([{"right": -1}], "step 1: right is -1; it cannot be negative, use 'left'"),
    ],
)
def test_json_errors(steps: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_path(steps)


def test_nan_in_a_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "path.json"
    file.write_text('[{"forward": 2}, {"turn": NaN}]')
    with pytest.raises(ValueError, match="step 2: turn is nan"):
        read_path(file)


@unhurried
@given(MOVES)
def test_original_dictionaries_round_trip(moves: list[Move]) -> None:
    steps = json.loads(json.dumps(to_original_path(moves)))
    again = read_path(steps)
    assert [move.frames for move in again] == [move.frames for move in moves]
    for move, other, step in zip(moves, again, steps, strict=True):
        assert 0 <= step["turn_angle"] < 360
        assert 0 <= step["new_angle"] < 360
        assert math.isclose(math.cos(math.radians(move.turn_deg - other.turn_deg)), 1)
    for pose, other in zip(trace(moves), trace(again), strict=True):
        assert math.dist((pose.x_m, pose.z_m), (other.x_m, other.z_m)) < 1e-8


# ---- moves, segments, poses ---------------------------------------------------------------------


def test_moves_refuse_what_cannot_be_walked() -> None:
    with pytest.raises(ValueError, match="turn is nan degrees"):
        Move(math.nan, 1)
    with pytest.raises(ValueError, match="distance is -1 frames; it cannot be negative"):
        Move(0, -1)
    with pytest.raises(ValueError, match="a model of 1 frames cannot walk"):
        split_moves([Move(0, 1)], 1)


def test_25_frames_need_two_clips_of_25() -> None:
    moves = [Move(30, 25), Move(5, 0), Move(-7, 24), Move(1, 60)]
    before = list(moves)
    assert split_moves(moves, 25) == [
        Move(30, 24), Move(0, 1), Move(5, 0), Move(-7, 24), Move(1, 24), Move(0, 24), Move(0, 12),
    ]  # fmt: skip
    assert moves == before


@unhurried
@given(MOVES, st.integers(2, 30))
def test_segments_keep_frames_turns_and_end(moves: list[Move], model_frames: int) -> None:
    segments = split_moves(moves, model_frames)
    assert sum(move.frames for move in segments) == sum(move.frames for move in moves)
    assert [s.turn_deg for s in segments if s.turn_deg] == [m.turn_deg for m in moves if m.turn_deg]
    assert all(move.frames <= model_frames - 1 for move in segments)
    assert split_moves(segments, model_frames) == segments
    end, other = trace(moves)[-1], trace(segments)[-1]
    assert math.dist((end.x_m, end.z_m), (other.x_m, other.z_m)) < 1e-9
    assert end.heading_deg == other.heading_deg


@unhurried
@given(MOVES)
def test_walking_back_ends_at_the_start(moves: list[Move]) -> None:
    turns = [180.0, *(-move.turn_deg for move in reversed(moves[1:]))]
    back = [Move(t, m.frames) for t, m in zip(turns, reversed(moves), strict=True)]
    back.append(Move(-moves[0].turn_deg - 180, 0))
    poses = trace([*moves, *back])
    assert math.hypot(poses[-1].x_m, poses[-1].z_m) < 1e-8
    assert math.isclose(math.cos(math.radians(poses[-1].heading_deg)), 1)
    assert all(0 <= pose.heading_deg < 360 for pose in poses)


@unhurried
@given(st.integers(3, 40), st.integers(1, 30), st.sampled_from([1, -1]))
def test_polygons_close(sides: int, frames: int, side: int) -> None:
    end = trace([Move(side * 360 / sides, frames)] * sides)[-1]
    assert math.hypot(end.x_m, end.z_m) < 1e-9 * sides * frames


@unhurried
@given(ANGLES, st.integers(-3, 3))
def test_headings_are_modulo_360(angle: float, rounds: int) -> None:
    one, other = wrap_degrees(angle), wrap_degrees(angle + 360 * rounds)
    assert 0 <= one < 360
    assert abs((one - other + 180) % 360 - 180) < 1e-9
    assert wrap_degrees(-1e-20) == 0.0


def test_poses_in_metres() -> None:
    poses = trace([Move(0, 25), Move(90, 10), Move(-180, 5)])
    assert poses[0] == Pose(0, 0, 0)
    expected = [(0, 10, 0), (4, 10, 90), (2, 10, 270)]
    for pose, numbers in zip(poses[1:], expected, strict=True):
        assert (pose.x_m, pose.z_m, pose.heading_deg) == pytest.approx(numbers, abs=1e-12)
    start = Pose(1, 2, 350)
    assert trace([Move(20, 0)], start, step_m=1)[-1] == Pose(1, 2, 10)
    assert start.after(Move(10, 3), step_m=2) == Pose(1, 8, 0)
