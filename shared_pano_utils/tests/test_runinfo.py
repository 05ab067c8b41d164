"""`run.json`: what made a folder, without secrets."""

import json
import platform
import sys
from pathlib import Path
from typing import Any

import pytest

from shared_pano_utils import runinfo
from shared_pano_utils.runinfo import RUN_NAME, write_run_info


def written(folder: Path, options: dict[str, Any], packages: tuple[str, ...] = ()) -> Any:
    write_run_info(folder, options, packages)
    return json.loads((folder / RUN_NAME).read_text())


def test_options_versions_and_commit(tmp_path: Path) -> None:
    info = written(
        tmp_path / "new" / "folder",
        {"out": Path("a/b"), "height": 512, "yaw": None},
        ("pytest", "no-such-package"),
    )
    assert info["options"] == {"out": str(Path("a/b")), "height": 512, "yaw": None}
    assert info["versions"] == {"pytest": pytest.__version__, "no-such-package": "not installed"}
    assert info["python"] == platform.python_version()
    assert info["commit"] is None or len(info["commit"]) == 40


def test_tokens_are_written_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["train.py", "--hub_token", "hf_1", "--steps", "5", "--hub_token=hf_2", "--token"]
    monkeypatch.setattr(sys, "argv", [*command, "hf_3", "--tokenizer", "t5", "token"])
    info = written(tmp_path, {"hub_token": "hf_1", "token": "hf_3", "tokenizer": "t5"})
    assert info["command"] == ["train.py", "--steps", "5", "--tokenizer", "t5", "token"]
    assert info["options"] == {"tokenizer": "t5"}
    assert "hf_" not in (tmp_path / RUN_NAME).read_text()


def test_no_commit_outside_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runinfo, "__file__", str(tmp_path / "runinfo.py"))
    assert written(tmp_path, {})["commit"] is None
    monkeypatch.setenv("PATH", str(tmp_path))  # no git at all
    assert written(tmp_path, {})["commit"] is None
