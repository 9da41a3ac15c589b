from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from hwnas.devices import Artifact, LocalAgent, Plan
from hwnas.errors import UsageError
from hwnas.luts._timing import REFERENCES, time_replicates
from hwnas.profilers import RUNTIMES, Run, Runtime, full_spec, load_runtime
from hwnas.profilers.worker import run_job
from hwnas.spaces import load_space
from hwnas.supernet import Network, build


class Scripted(Runtime):
    """Networks that take a known time."""

    name = "scripted"
    suffix = ".txt"
    options: Mapping[str, tuple[str, ...] | int] = {}
    environment: Mapping[str, str] = {}

    def __init__(self, **chosen: str | int) -> None:
        super().__init__(**chosen)
        self.ran: list[str] = []
        self.loaded: list[str] = []

    def describe(self, threads: int) -> dict[str, str | int]:
        return {}

    def export(self, network: Any, path: Path, *, image_size: int) -> None:
        raise AssertionError("the worker exports nothing")

    def load(self, path: Path, threads: int) -> Run:
        self.loaded.append(path.name)
        if path.name == "broken":
            raise RuntimeError("Protobuf parsing failed.\nat line 3")

        def run() -> float:
            self.ran.append(path.name)
            return int(path.name) / 1000

        return run


def job(*names: str, rounds: int = 4) -> dict[str, Any]:
    artifacts = [{"id": f"n{name}", "path": name} for name in names]
    return {"artifacts": artifacts, "rounds": rounds, "warmup_rounds": 2, "threads": 1, "seed": 7}


def answers(runtime: Scripted, work: dict[str, Any]) -> list[dict[str, Any]]:
    out = io.StringIO()
    run_job(work, runtime, out)
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_each_sample_is_one_run_on_the_clock() -> None:
    found = {m["id"]: m for m in answers(Scripted(), job("100", "250")) if "samples_ms" in m}
    assert found["n100"]["samples_ms"] == [0.1] * 4
    assert found["n250"]["samples_ms"] == [0.25] * 4
    assert found["n250"]["warmup_ms"] == [0.25] * 2


def test_rounds_are_interleaved_in_a_new_order_each_after_an_untimed_run() -> None:
    runtime, names = Scripted(), ("1", "2", "3", "4")
    answers(runtime, job(*names, rounds=10))
    pairs = list(zip(runtime.ran[::2], runtime.ran[1::2], strict=True))
    assert all(first == second for first, second in pairs)  # untimed, then timed
    rounds = [[p[0] for p in pairs[i : i + 4]] for i in range(0, len(pairs), 4)]
    assert len(rounds) == 12
    assert all(sorted(r) == list(names) for r in rounds)
    assert len({tuple(r) for r in rounds}) > 6


def test_loading_order_is_random_but_seeded() -> None:
    names = tuple(str(i) for i in range(10))
    first, second = Scripted(), Scripted()
    answers(first, job(*names))
    answers(second, job(*names))
    assert first.loaded == second.loaded != list(names)


def test_what_does_not_load_is_an_answer_and_the_rest_is_timed() -> None:
    messages = answers(Scripted(), job("1", "broken", "2"))
    errors = [m for m in messages if "error" in m]
    assert errors == [{"id": "nbroken", "error": "RuntimeError: Protobuf parsing failed."}]
    assert {m["id"] for m in messages if "samples_ms" in m} == {"n1", "n2"}


def test_a_spec_names_a_runtime_and_its_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        Scripted, "options", {"precision": ("fp32", "fp16"), "mode": ("a", "b"), "trials": 0}
    )
    monkeypatch.setitem(RUNTIMES, "scripted", f"{__name__}:Scripted")
    runtime = load_runtime("scripted:trials=20,mode=b,precision=fp32")
    assert runtime.chosen == {"precision": "fp32", "mode": "b", "trials": 20}
    assert runtime.spec == "scripted:mode=b,trials=20"
    assert load_runtime(runtime.spec).chosen == runtime.chosen
    assert load_runtime("scripted").spec == "scripted"
    assert full_spec("scripted", precision=None) == "scripted"
    assert full_spec(full_spec("scripted", mode="b"), trials="3") == "scripted:mode=b,trials=3"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("scripted:mod=b", "option of scripted"),
        ("scripted:mode=c", "mode of scripted"),
        ("scripted:trials=many", "trials of scripted is a whole number; got 'many'"),
        ("scripted:trials", "trials of scripted is a whole number; got ''"),
    ],
)
def test_a_spec_that_says_nothing_known_is_refused(
    spec: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Scripted, "options", {"mode": ("a", "b"), "trials": 0})
    monkeypatch.setitem(RUNTIMES, "scripted", f"{__name__}:Scripted")
    with pytest.raises(UsageError, match=message):
        load_runtime(spec)


def test_an_artifact_is_named_before_it_is_touched() -> None:
    messages = answers(Scripted(), job("broken"))
    assert messages[0] == {"at": "nbroken"}


def test_unknown_runtime() -> None:
    with pytest.raises(UsageError, match=r"unknown .* did you mean 'onnxruntime'"):
        load_runtime("onxruntime")


# The real runtime, in a real worker process.


def networks(num: int) -> list[Network]:
    space = load_space("autovit-xxs")
    layouts = [space.layout(c, 32, 10) for c in space.sample(num, np.random.default_rng(0))]
    return [build([b for _, b in x], [s for s, _ in x], seed=0).eval() for x in layouts]


def test_onnx_runtime_times_blocks_and_networks_in_a_fresh_process() -> None:
    runtime = load_runtime("onnxruntime")
    small, large = sorted(networks(2), key=lambda n: len(n.blocks))
    plan = Plan("onnxruntime", rounds=5, warmup_rounds=1)
    named = [("x", large), ("y", large.blocks)]
    (batch,) = time_replicates(LocalAgent(), runtime, named, small.blocks, [plan], image_size=32)
    assert set(batch.samples_ms) == {*REFERENCES, "x", "y"}
    assert all(len(s) == 5 and min(s) > 0 for s in batch.samples_ms.values())
    assert not batch.failed


def test_a_damaged_model_fails_alone(tmp_path: Path) -> None:
    runtime = load_runtime("onnxruntime")
    good, bad = tmp_path / "good.onnx", tmp_path / "bad.onnx"
    runtime.export(networks(1)[0].blocks, good, image_size=32)
    bad.write_bytes(good.read_bytes()[:1000])
    with LocalAgent() as agent:
        plan = Plan("onnxruntime", rounds=2, warmup_rounds=1)
        first, second = agent.measure([Artifact("good", good), Artifact("bad", bad)], plan)
    assert len(first.samples_ms) == 2
    assert second.error is not None
    assert "bad.onnx" in second.error


def test_what_is_measured_is_said() -> None:
    described = load_runtime("onnxruntime").describe(2)
    assert described["name"] == "onnxruntime"
    assert described["threads"] == 2
    assert described["version"] == __import__("onnxruntime").__version__


def test_the_exported_file_is_a_valid_model(tmp_path: Path) -> None:
    path = tmp_path / "network.onnx"
    (network,) = networks(1)
    load_runtime("onnxruntime").export(network, path, image_size=32)
    onnx.checker.check_model(onnx.load(path), full_check=True)
