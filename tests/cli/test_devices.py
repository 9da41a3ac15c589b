from __future__ import annotations

import json
import platform
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def bare_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither a Mac nor one with a driver of NVIDIA's."""
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_table(hwnas: Run) -> None:
    result = hwnas("devices")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines[1 : lines.index("")]}
    assert rows["cpu"] == ["This", "machine", "onnxruntime", "attached"]
    assert rows["gpu"][-3:] == ["onnxruntime:processor=cuda", "not", "attached"]
    assert rows["iphone13"] == ["iPhone", "13", "coreml", "not", "attached"]
    reasons = "\n".join(lines)
    assert "\ngpu: no NVIDIA GPU: nvidia-smi is not installed; install NVIDIA's" in reasons
    assert "\niphone13: an iPhone 13 is reached from a Mac only: connect it by cable" in reasons
    assert all(len(line) <= 80 for line in lines)


def test_json(hwnas: Run) -> None:
    found = {device["id"]: device for device in json.loads(hwnas("devices", "--json").stdout)}
    assert (found["cpu"]["attached"], found["cpu"]["reason"]) == (True, "")
    assert not found["gpu"]["attached"]
    assert "nvidia-smi" in found["gpu"]["reason"]
    phone = found["iphone13"]
    assert not phone["attached"]
    assert phone["soc"] == "Apple A15 Bionic"
    assert "Developer Mode" in phone["reason"]
