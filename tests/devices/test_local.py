from __future__ import annotations

import json
import os
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from hwnas.devices import Artifact, LocalAgent, Measurement, Plan, load_device, open_agent
from hwnas.errors import DeviceError

PLAN = Plan("fake", rounds=3, warmup_rounds=1, timeout_s=5.0)
Measure = Callable[[str], list[Measurement]]


@pytest.fixture
def measure(tmp_path: Path) -> Measure:
    """Measure artifacts a, b and c with a worker whose ``run(artifact)`` is the given code."""

    def measure(run: str, *, timeout_s: float = 5.0) -> list[Measurement]:
        script = tmp_path / "worker.py"
        script.write_text(
            textwrap.dedent(
                """
                import json, os, sys, time
                job = json.load(sys.stdin)
                def say(**message): print(json.dumps(message), flush=True)
                def run(name):
                {run}
                for artifact in job["artifacts"]:
                    say(at=artifact["id"])
                    run(artifact["id"])
                for artifact in job["artifacts"]:
                    say(id=artifact["id"], warmup_ms=[9.0], samples_ms=[1.0] * job["rounds"])
                """
            ).format(run=textwrap.indent(textwrap.dedent(run), "    "))
        )
        plan = Plan("fake", rounds=3, warmup_rounds=1, timeout_s=timeout_s)
        with LocalAgent((sys.executable, str(script))) as agent:
            return agent.measure([Artifact(name, tmp_path) for name in "abc"], plan)

    return measure


GOOD = (1.0, 1.0, 1.0)


def test_samples_come_back_in_the_order_asked(measure: Measure) -> None:
    results = measure("pass")
    assert [r.artifact_id for r in results] == ["a", "b", "c"]
    assert all(r == Measurement(r.artifact_id, GOOD, (9.0,)) for r in results)


def test_a_crash_is_one_artifacts_failure(measure: Measure) -> None:
    a, b, c = measure("if name == 'b': sys.stderr.write('boom: bad kernel\\n'); os._exit(11)")
    assert b.error == "the runtime died: boom: bad kernel"
    assert not b.samples_ms
    assert a.samples_ms == c.samples_ms == GOOD


def test_a_crash_without_a_word(measure: Measure) -> None:
    _, b, _ = measure("if name == 'b': os.abort()")
    assert b.error == "the runtime died: exit status -6"


def test_a_hang_is_one_artifacts_failure(measure: Measure) -> None:
    a, b, c = measure("if name == 'b': time.sleep(60)", timeout_s=1.0)
    assert b.error == "the runtime hung for 1 s"
    assert a.samples_ms == c.samples_ms == GOOD


def test_ending_early_without_an_error(measure: Measure) -> None:
    a, b, c = measure("if name == 'b': os._exit(0)")
    assert b.error == "the runtime died: exit status 0"
    assert a.samples_ms == c.samples_ms == GOOD


def test_all_fail(measure: Measure) -> None:
    results = measure("os._exit(1)")
    assert all(r.error and "exit status 1" in r.error for r in results)


def test_a_worker_that_cannot_start_is_an_error(tmp_path: Path) -> None:
    agent = LocalAgent((sys.executable, "-c", "raise SystemExit('no runtime here')"))
    with pytest.raises(DeviceError, match="the timing worker did not start: no runtime here"):
        agent.measure([Artifact("a", tmp_path)], PLAN)


def test_no_worker_outlives_the_agent(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    code = f"import os, time; open({str(pid_file)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    agent = LocalAgent((sys.executable, "-c", code))
    results = agent.measure([Artifact("a", tmp_path)], Plan("fake", timeout_s=2.0))
    assert results[0].error == "the runtime hung for 2 s"
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)


def test_the_fingerprint_can_be_compared() -> None:
    with open_agent(load_device("cpu")) as agent:
        info = agent.info()
        assert info == agent.info() == json.loads(json.dumps(info))
    assert set(info) == {"cpu", "features", "cores", "os"}
    assert info["cpu"]


def test_an_attached_phone_that_cannot_be_timed_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hwnas.devices._open.require_attached", lambda description: None)
    with pytest.raises(DeviceError, match="the iPhone 13 is attached, but"):
        open_agent(load_device("iphone13"))
