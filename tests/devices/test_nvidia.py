from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hwnas.devices import NvidiaGpu, first_gpu, load_device, state
from hwnas.devices import _nvidia as nvidia
from hwnas.errors import DeviceError

Smi = Callable[..., None]


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Smi:
    """An ``nvidia-smi`` that lists ``gpus`` by their ids, as the real one does, or fails."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def install(
        gpus: dict[str, str], *, says: str = "No devices were found", wait: int = 0
    ) -> None:
        program = tmp_path / "nvidia-smi"
        program.write_text(
            f"#!{sys.executable}\n"
            "import sys, time\n"
            f"time.sleep({wait})\n"
            "expected = ['--query-gpu=name,driver_version', '--format=csv,noheader']\n"
            "assert sys.argv[1:3] == expected, sys.argv\n"
            f"gpus = {gpus!r}\n"
            "ids = [a.removeprefix('--id=') for a in sys.argv[3:]] or list(gpus)\n"
            "lines = [gpus[i] for i in ids if i in gpus]\n"
            f"print('\\n'.join(lines) if lines else {says!r})\n"
            "sys.exit(0 if lines else 6)\n"
        )
        program.chmod(0o755)

    return install


TWO = {"0": "NVIDIA H200, 580.65.06", "1": "NVIDIA GeForce RTX 4090, 580.65.06"}


def test_the_first_gpu(smi: Smi) -> None:
    smi(TWO)
    assert first_gpu() == NvidiaGpu("NVIDIA H200", "580.65.06")
    assert state(load_device("gpu")).attached


def test_the_first_gpu_that_cuda_may_use(smi: Smi, monkeypatch: pytest.MonkeyPatch) -> None:
    smi(TWO)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    assert first_gpu().name == "NVIDIA GeForce RTX 4090"


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_gpus_that_are_hidden(smi: Smi, monkeypatch: pytest.MonkeyPatch, hidden: str) -> None:
    smi(TWO)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    with pytest.raises(DeviceError, match=f"CUDA_VISIBLE_DEVICES='{hidden}' hides every"):
        first_gpu()


@pytest.mark.usefixtures("smi")
def test_no_driver() -> None:
    with pytest.raises(DeviceError, match=r"nvidia-smi is not installed; install .* or measure on"):
        first_gpu()


def test_a_driver_without_a_gpu(smi: Smi) -> None:
    smi({})
    now = state(load_device("gpu"))
    assert not now.attached
    assert now.reason.startswith("nvidia-smi lists no NVIDIA GPU (No devices were found); install")


def test_a_driver_that_hangs(smi: Smi, monkeypatch: pytest.MonkeyPatch) -> None:
    smi(TWO, wait=60)
    monkeypatch.setattr(nvidia, "_TIMEOUT_S", 0.3)
    with pytest.raises(DeviceError, match=r"nvidia-smi did not list the GPUs \(.*timed out"):
        first_gpu()


@pytest.mark.usefixtures("smi")
def test_this_machine_without_a_gpu_is_still_there() -> None:
    assert state(load_device("cpu")).attached
