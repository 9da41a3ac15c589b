from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import onnxruntime
import pytest
from click.testing import Result
from fakes import FakeAgent, FakeRuntime

import hwnas.cli.demo
import hwnas.luts
import hwnas.profilers
import hwnas.train
from hwnas.luts import LatencyTable
from hwnas.profilers import ExportReport
from hwnas.search import load_winner
from hwnas.train import Data, Split, accuracy

Run = Callable[..., Result]

SIZE = 32
DEMO = ("demo", "--out", "all", "--epochs", "1", "--time-budget", "16s")


class Clock:
    """A batch, looked at before and after, takes a second."""

    now = 0.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


def few_digits() -> Data:
    whole = hwnas.train.load_data("digits", SIZE)
    few = {name: Split(s.labels[:64], s.read) for name, s in whole.splits.items()}
    return replace(whole, splits=few)


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch) -> FakeAgent:
    """A small demo: few and small digits, a short search, a device that is a formula."""
    agent, data = FakeAgent(), few_digits()
    monkeypatch.setattr("hwnas.devices.LocalAgent", lambda: agent)
    monkeypatch.setattr("hwnas.profilers.load_runtime", lambda name: FakeRuntime())
    monkeypatch.setattr("hwnas.luts.profile", partial(hwnas.luts.profile, clock=Clock()))
    monkeypatch.setattr("hwnas.train.load_data", lambda spec, size: data)
    monkeypatch.setattr("hwnas.train.default_image_size", lambda spec: SIZE)
    for name, value in (("_POPULATION", 3), ("_GENERATIONS", 2), ("_PARENTS", 2)):
        monkeypatch.setattr(hwnas.cli.demo, name, value)
    return agent


def test_all_the_way_and_a_rerun(
    hwnas: Run, agent: FakeAgent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = hwnas(*DEMO)
    assert result.exit_code == 0
    assert agent.closed
    folder = tmp_path / "all"
    assert [path.name for path in tmp_path.iterdir()] == ["all"]
    made = {str(path.relative_to(folder)) for path in folder.glob("*/*") if path.is_file()}
    assert {"supernet/run.json", "supernet/supernet.safetensors"} <= made
    assert {"search/winner.json", "search/winner.safetensors", "search/winner.onnx"} <= made
    assert (folder / "search/winner.mlpackage/Manifest.json").exists()

    record = json.loads((folder / "search/winner.json").read_text())
    winner, table = load_winner(folder / "search"), LatencyTable.read(folder / "cpu.json")
    tested = accuracy(winner.network, few_digits().batches("test", 64))
    latency = record["latency_ms"]
    assert latency["budget"] == pytest.approx(0.9 * table.reference.ms, rel=5e-3)
    assert latency["measured"] <= latency["budget"]
    assert record["params"] <= 1_000_000
    assert all(len(line) <= 80 for line in result.stdout.splitlines())
    for line in (
        f"  table       {table.quality.mape:.1%} off on 40 held-out networks, "
        f"{table.quality.within_10pct:.0%} within 10%",
        f"  budget      {latency['budget']:g} ms, 1 M parameters",
        f"  measured    {latency['measured']:.3f} ± {latency['measured_half_interval']:.3f} ms",
        f"  parameters  {record['params']:,}",
        f"  accuracy    {100 * tested:.2f}% of 64 digits never seen before",
        "  all/cpu.json",
        "  all/search/winner.json, winner.safetensors",
        "  all/search/winner.mlpackage (not run: Core ML predicts on macOS)",
        "  hwnas lut show all/cpu.json",
    ):
        assert line in result.stdout.splitlines()
    session = onnxruntime.InferenceSession(
        folder / "search/winner.onnx", providers=["CPUExecutionProvider"]
    )
    assert session.get_inputs()[0].shape == [1, 3, SIZE, SIZE]

    # A rerun takes what is there: nothing is trained, profiled or rated again.
    exported: list[Path] = []

    def export(network: object, path: Path, *, format: str, **_: object) -> ExportReport:
        exported.append(path)
        return ExportReport(path, format, {"max_abs_error": None})

    monkeypatch.setattr("hwnas.profilers.export_network", export)
    weights = (folder / "supernet/supernet.safetensors").read_bytes()
    ratings = (folder / "search/evaluations.jsonl").read_bytes()
    batches = agent.batches
    again = hwnas(*DEMO, "--json")
    page = json.loads(again.stdout)
    assert agent.batches - batches == batches - 16  # the finalists are timed again, no table
    assert (folder / "supernet/supernet.safetensors").read_bytes() == weights
    assert (folder / "search/evaluations.jsonl").read_bytes() == ratings
    assert page["latency_ms"] == latency
    assert page["params"] == record["params"]
    assert (page["val_accuracy"], page["test_accuracy"]) == (record["accuracy"], tested)
    assert page["table"] == {"path": "all/cpu.json", **table.quality.to_json()}
    assert [e["path"] for e in page["exports"]] == [str(path) for path in exported]
    assert [path.name for path in exported] == ["winner.onnx", "winner.mlpackage"]


@pytest.mark.parametrize(
    ("args", "exit_code", "message"),
    [
        (("--epochs", "0"), 2, "0 is not in the range x>=1"),
        (("--time-budget", "90"), 2, "such as 90s, 10m or 1h"),
        (("--out", "file"), 2, "'file' is a file"),
        (("--out", "file/all"), 1, "write file/all/supernet/"),
    ],
)
def test_bad_input_is_one_sentence(
    hwnas: Run,
    agent: FakeAgent,
    tmp_path: Path,
    args: tuple[str, ...],
    exit_code: int,
    message: str,
) -> None:
    (tmp_path / "file").write_text("mine")
    result = hwnas("demo", *args)
    assert result.exit_code == exit_code
    assert message in result.stderr
    assert result.stderr.count("Error: ") == 1
    assert not result.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_too_short_a_time_budget(hwnas: Run, agent: FakeAgent, tmp_path: Path) -> None:
    result = hwnas("demo", "--epochs", "1", "--time-budget", "2s")
    assert result.exit_code == 1
    assert "ended after 2 batches of at least 16" in result.stderr
    assert not (tmp_path / "hwnas-demo/cpu.json").exists()
