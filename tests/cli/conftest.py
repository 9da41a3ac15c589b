"""The command line, run inside the test's own empty folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from hwnas.cli import main

Run = Callable[..., Result]


@pytest.fixture
def hwnas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """``hwnas("spaces", "--json")`` -> its exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HWNAS_WORKSPACE", raising=False)
    return lambda *args: CliRunner().invoke(main, [str(a) for a in args], prog_name="hwnas")
