from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import click
import pytest
from click.testing import Result

from hwnas import __version__
from hwnas.cli import COMMANDS
from hwnas.errors import DeviceError, UsageError

Run = Callable[..., Result]
PYTHON = [sys.executable, "-m", "hwnas"]


@pytest.fixture
def failing(hwnas: Run, monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], Result]:
    """Run a command that raises what it is given."""

    def run(error: BaseException) -> Result:
        @click.command
        def command() -> None:
            raise error

        monkeypatch.setitem(COMMANDS, "fail", "Fails.")
        monkeypatch.setitem(sys.modules, "hwnas.cli.fail", SimpleNamespace(command=command))
        return hwnas("fail")

    return run


def test_help_lists_the_whole_menu(hwnas: Run) -> None:
    result = hwnas("--help")
    assert result.exit_code == 0
    listed = [line.split()[0] for line in result.stdout.split("Commands:")[1].splitlines() if line]
    assert [word for word in listed if word in COMMANDS] == list(COMMANDS)
    assert all(len(line) <= 80 for line in result.stdout.splitlines())
    assert hwnas("-h").stdout == result.stdout


def test_version(hwnas: Run) -> None:
    assert hwnas("--version").stdout == f"hwnas {__version__}\n"


def test_unknown_command(hwnas: Run) -> None:
    result = hwnas("spacse")
    assert result.exit_code == 2
    assert "unknown command 'spacse': did you mean 'spaces'?" in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("words", "expected"),
    [("hwnas sp", "plain,spaces\n"), ("hwnas none --", "plain,--version\nplain,--help\n")],
)
def test_a_shell_completes(words: str, expected: str) -> None:
    number = str(len(words.split()) - 1)
    asked = {"_HWNAS_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": number}
    code = "from hwnas.cli import main; main(prog_name='hwnas')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | asked,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == (expected, "")


def test_unknown_option(hwnas: Run) -> None:
    result = hwnas("--jsn")
    assert result.exit_code == 2
    assert "No such option '--jsn'" in result.stderr


@pytest.mark.parametrize(
    ("error", "exit_code", "stderr"),
    [
        (DeviceError("no phone: attach one"), 1, "Error: no phone: attach one\n"),
        (UsageError("no such space"), 2, "Error: no such space\n"),
        (
            OSError(errno.ENOSPC, "No space left on device", "runs/x"),
            1,
            "Error: cannot read or write runs/x: No space left on device\n",
        ),
        (OSError("odd"), 1, "Error: cannot read or write: odd\n"),
        (
            KeyboardInterrupt(),
            130,
            "Interrupted. What was written is kept; the same command goes on.\n",
        ),
    ],
)
def test_errors_are_one_sentence(
    failing: Callable[[BaseException], Result],
    error: BaseException,
    exit_code: int,
    stderr: str,
) -> None:
    result = failing(error)
    assert (result.exit_code, result.stdout, result.stderr) == (exit_code, "", stderr)


def test_a_bug_is_not_hidden(failing: Callable[[BaseException], Result]) -> None:
    assert isinstance(failing(ZeroDivisionError()).exception, ZeroDivisionError)


def test_the_reader_of_a_pipe_may_leave() -> None:
    command = [*PYTHON, "sample", "--space", "autovit-xxs", "--num", "2000"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline().startswith(b'{"space"')
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    process.wait()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("command", ["--help", "spaces"])
def test_a_full_disk_is_one_sentence(command: str) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*PYTHON, command], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    expected = f"Error: cannot read or write: {os.strerror(errno.ENOSPC)}\n"
    assert (done.returncode, done.stderr) == (1, expected)
