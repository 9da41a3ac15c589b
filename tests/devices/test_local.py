from __future__ import annotations

import json
import os
import subprocess
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
    assert set(info) == {"cpu", "features", "governor", "cores", "os"}
    assert info["cpu"]


X86 = """
processor : 0
cpu family : 26
model : 2
model name : AMD EPYC
stepping : 1
microcode : 0x1000065
cpu MHz : 2596.1
flags : fpu sse4_2 avx2 fma avx512f hypervisor avx512_vnni
"""
ARM = """
processor : 0
Features : fp asimd evtstrm aes asimdhp asimddp
CPU implementer : 0x41
CPU part : {part}
"""
Machine = Callable[..., dict[str, str | int]]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """The fingerprint of a Linux machine with such a /proc/cpuinfo and governors of its cores."""

    def machine(cpuinfo: str, *governors: str, release: str = "6.18.44-5") -> dict[str, str | int]:
        (tmp_path / "cpuinfo").write_text(cpuinfo)
        for core, governor in enumerate(governors):
            (tmp_path / f"cpu{core}" / "cpufreq").mkdir(parents=True, exist_ok=True)
            (tmp_path / f"cpu{core}" / "cpufreq" / "scaling_governor").write_text(f"{governor}\n")
        monkeypatch.setattr("hwnas.devices._local._CPUINFO", tmp_path / "cpuinfo")
        monkeypatch.setattr("hwnas.devices._local._CPUS", tmp_path)
        monkeypatch.setattr("sys.platform", "linux")
        monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 2}, raising=False)
        for name, value in (("system", "Linux"), ("release", release), ("machine", "x86_64")):
            monkeypatch.setattr(f"platform.{name}", lambda value=value: value)
        return LocalAgent().info()

    return machine


def test_the_fingerprint_of_a_virtual_machine(machine: Machine) -> None:
    assert machine(X86 + X86.replace("processor : 0", "processor : 1")) == {
        "cpu": "AMD EPYC, family 26, model 2",
        "features": "avx2 fma avx512f avx512_vnni",
        "governor": "none",
        "cores": 2,
        "os": "Linux 6.18 x86_64",
    }


def test_the_fingerprint_of_a_machine_with_two_sorts_of_cores(machine: Machine) -> None:
    both = ARM.format(part="0xd46") + ARM.format(part="0xd05")
    info = machine(both)
    assert str(info["cpu"]).endswith(", implementer 0x41, part 0xd05 0xd46")
    assert info["features"] == "asimd asimdhp asimddp"


def test_the_governor_is_that_of_the_cores_it_may_use(machine: Machine) -> None:
    assert machine(X86, "powersave", "ondemand", "powersave")["governor"] == "powersave"
    assert machine(X86, "powersave", "ondemand", "performance")["governor"] == (
        "performance powersave"
    )


def test_the_fingerprint_of_a_mac(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine("")

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        assert command == ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.CompletedProcess(command, 0, "Apple M2\n")

    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.setattr("subprocess.run", run)
    monkeypatch.delattr("os.sched_getaffinity")
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    info = LocalAgent().info()
    assert (info["cpu"], info["cores"], info["governor"]) == ("Apple M2", 8, "none")


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        ("cpu MHz : 2596.1", "cpu MHz : 3100.0", True),
        ("microcode : 0x1000065", "microcode : 0x1000070", True),
        ("stepping : 1", "stepping : 2", True),
        ("model : 2", "model : 17", False),
        ("avx512_vnni", "", False),
        ("AMD EPYC", "AMD EPYC 9654", False),
    ],
)
def test_what_refuses_a_table_and_what_does_not(
    machine: Machine, before: str, after: str, same: bool
) -> None:
    assert (machine(X86) == machine(X86.replace(before, after))) is same


@pytest.mark.parametrize(("release", "same"), [("6.18.51-1-lts", True), ("6.19.0", False)])
def test_a_patch_of_the_system_is_no_other_system(
    machine: Machine, release: str, same: bool
) -> None:
    assert (machine(X86) == machine(X86, release=release)) is same


def test_an_attached_phone_that_cannot_be_timed_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hwnas.devices._open.require_attached", lambda description: None)
    with pytest.raises(DeviceError, match="the iPhone 13 is attached, but"):
        open_agent(load_device("iphone13"))
