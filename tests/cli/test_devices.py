from __future__ import annotations

import json
import platform
from collections.abc import Callable

import pytest
from click.testing import Result

Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def no_mac(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Linux")


def test_table(hwnas: Run) -> None:
    result = hwnas("devices")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[1].split() == ["cpu", "This", "machine", "onnxruntime", "attached"]
    assert lines[2].split() == ["iphone13", "iPhone", "13", "coreml", "not", "attached"]
    assert "iphone13: an iPhone 13 is reached from a Mac only: connect it by cable" in lines[4]
    assert all(len(line) <= 80 for line in lines)


def test_json(hwnas: Run) -> None:
    cpu, phone = json.loads(hwnas("devices", "--json").stdout)
    assert (cpu["id"], cpu["attached"], cpu["reason"]) == ("cpu", True, "")
    assert (phone["id"], phone["attached"]) == ("iphone13", False)
    assert phone["soc"] == "Apple A15 Bionic"
    assert "Developer Mode" in phone["reason"]
