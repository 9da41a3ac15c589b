from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fakes import FakeAgent, FakeRuntime

from hwnas.devices import Plan
from hwnas.errors import DeviceError, ExportError
from hwnas.luts import Batch, time_replicates
from hwnas.luts._timing import REFERENCES
from hwnas.spaces import Block

BLOCK = Block.of("mbpool", **{"in": 8, "expand": 6, "features": 10, "res": 2})
DRIFT = (1.0, 1.5, 0.9, 1.2)


def batch(**ms: float) -> Batch:
    """Exact latencies, times a drift that all share in each round."""
    both = dict.fromkeys(REFERENCES, 2.0)
    samples = {name: tuple(v * d for d in DRIFT) for name, v in {**both, **ms}.items()}
    return Batch(samples, {})


def test_drift_leaves_ratios_alone() -> None:
    assert batch(x=3.0).ratio("x") == pytest.approx(1.5)
    assert batch().a_to_a() == pytest.approx(0.0)
    assert batch(**{REFERENCES[0]: 2.02}).a_to_a() == pytest.approx(0.01)


def test_a_copy_of_the_reference_is_as_fast_as_the_reference_whatever_the_tail() -> None:
    """A tenth of the runs 25% slower, and a tail of squared exponentials: 1% too fast to a mean."""
    rng, ratios = np.random.default_rng(0), []
    for _ in range(300):
        slow = np.where(rng.random((3, 40)) < 0.1, 1.25, 1.0)
        samples = 2 * slow * (1 + 0.02 * rng.exponential(size=(3, 40)) ** 2)
        names = (*REFERENCES, "x")
        ratios.append(Batch(dict(zip(names, map(tuple, samples), strict=True)), {}).ratio("x"))
    assert np.mean(ratios) == pytest.approx(1.0, abs=0.002)


def test_one_slow_round_in_seven_hardly_counts() -> None:
    samples = {name: (2.0,) * 7 for name in REFERENCES} | {"x": (3.0,) * 6 + (30.0,)}
    assert Batch(samples, {}).ratio("x") == pytest.approx(1.5)


def test_written_and_read_back_is_the_same() -> None:
    assert Batch.from_json(batch(x=3.0).to_json()) == batch(x=3.0)
    with pytest.raises(KeyError):
        Batch.from_json({"samples_ms": {"x": [1.0]}, "failed": {}})


def measure(agent: FakeAgent) -> Batch:
    plan = Plan("fake", rounds=3)
    runtime, named = FakeRuntime(), [("x", [BLOCK])]
    (timed,) = time_replicates(agent, runtime, named, [BLOCK], [plan], image_size=8)
    return timed


def test_where_the_operators_ran_is_added_up_and_kept() -> None:
    class Chooses(FakeAgent):
        def measure(self, artifacts, plan):
            ran = {"cpu": {"softmax": 1}, "neural engine": {"conv": 2}}
            return [replace(m, placement=ran) for m in super().measure(artifacts, plan)]

    timed = measure(Chooses())
    assert timed.placement == {"cpu": {"softmax": 3}, "neural engine": {"conv": 6}}
    assert Batch.from_json(timed.to_json()).placement == timed.placement
    assert measure(FakeAgent()).placement == {}


def test_a_network_that_cannot_be_exported_has_failed() -> None:
    class Picky(FakeRuntime):
        def export(self, network: object, path: Path, *, image_size: int) -> None:
            if len(network) > 1:  # type: ignore[arg-type]
                raise ExportError("too long")
            super().export(network, path, image_size=image_size)

    named, plan = [("x", [BLOCK]), ("y", [BLOCK, BLOCK])], Plan("fake", rounds=3)
    (timed,) = time_replicates(FakeAgent(), Picky(), named, [BLOCK], [plan], image_size=8)
    assert timed.failed == {"y": "too long"}
    assert timed.samples_ms.keys() == {*REFERENCES, "x"}


def test_replicates_are_fresh_measurements_of_the_same_files() -> None:
    agent, runtime = FakeAgent(), FakeRuntime()
    plans = [Plan("fake", rounds=3, seed=seed) for seed in range(4)]
    batches = time_replicates(agent, runtime, [("x", [BLOCK])], [BLOCK], plans, image_size=8)
    assert agent.batches == len(batches) == 4
    assert runtime.exported == 2  # the reference and the network, once
    assert len({batch.samples_ms["x"] for batch in batches}) == 4


def test_folders_of_processes_that_were_killed_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    mine, theirs = (f"hwnas-batch-{pid}-x" for pid in (os.getpid(), ended.pid))
    for name in (mine, theirs, "hwnas-batch-other-x", "unrelated"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "network0.json").write_text("[]")
    measure(FakeAgent())
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {mine, "hwnas-batch-other-x", "unrelated"}


def test_nothing_is_left_behind_by_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(DeviceError, match="out of memory"):
        measure(FakeAgent(fails=lambda blocks: True))
    assert not list(tmp_path.iterdir())
