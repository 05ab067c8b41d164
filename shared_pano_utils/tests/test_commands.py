"""Command lines: what a user can mend is one line, bugs keep their traceback."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from shared_pano_utils.commands import Parser, run_cli


def raising(error: BaseException) -> Callable[[], int]:
    def command() -> int:
        raise error

    return command


class Broken(Dataset[int]):
    """One sample, unreadable."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> int:
        raise ValueError(f"photo {index}.jpg: not a readable image; replace it")


def test_parser_error_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    parser = Parser(prog="paint.py")
    parser.add_argument("--height", type=int)
    with pytest.raises(SystemExit) as stop:
        parser.parse_args(["--height", "tall"])
    assert stop.value.code == 2
    assert capsys.readouterr().err == (
        "error: argument --height: invalid int value: 'tall' (see paint.py --help)\n"
    )


@pytest.mark.parametrize("code", [0, 1])
def test_exit_code_is_the_commands(code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(lambda: code) == code
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("height is 7;\n  use a multiple of 16"), "height is 7; use a multiple of 16"),
        (FileNotFoundError("a.png: no such file"), "a.png: no such file"),
        (ImportError("needs Pillow"), "needs Pillow"),
        (OSError(28, "No space left on device"), "[Errno 28] No space left on device"),
        (FloatingPointError(), "FloatingPointError"),
    ],
)
def test_what_a_user_can_mend_is_one_line(
    error: Exception, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_cli(raising(error)) == 2
    assert capsys.readouterr().err == f"error: {line}\n"


def test_verbose_logs_the_traceback(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_cli(raising(ValueError("height is 7")), verbose=True) == 2
    assert "Traceback" in caplog.text
    assert "ValueError: height is 7" in caplog.text
    assert "error:" not in capsys.readouterr().err


@pytest.mark.parametrize("error", [RuntimeError("sizes differ"), KeyError("id"), TypeError("x")])
def test_bugs_are_raised(error: Exception) -> None:
    with pytest.raises(type(error)):
        run_cli(raising(error))


def test_out_of_memory_names_the_flags(capsys: pytest.CaptureFixture[str]) -> None:
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    assert run_cli(raising(error), out_of_memory="use --offload") == 2
    assert capsys.readouterr().err == "error: the device is out of memory; use --offload\n"


def test_interrupt_is_130(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(raising(KeyboardInterrupt())) == 130
    assert "run the same command again" in capsys.readouterr().err


@pytest.mark.parametrize("workers", [0, 1])
def test_error_in_a_worker_is_the_same_line(
    workers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_cli(lambda: len(list(DataLoader(Broken(), num_workers=workers)))) == 2
    assert capsys.readouterr().err == "error: photo 0.jpg: not a readable image; replace it\n"


def test_a_file_in_place_of_a_folder_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = tmp_path / "taken"
    taken.write_text("")
    for folder in (taken, taken / "below"):

        def command(folder: Path = folder) -> int:
            folder.mkdir(exist_ok=True)
            return 0

        assert run_cli(command) == 2
        line = f"error: {folder}: a file is where a folder is wanted; pass another path\n"
        assert capsys.readouterr().err == line
