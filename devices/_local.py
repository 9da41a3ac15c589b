"""The agent of this machine: each batch is timed in a worker process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import selectors
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hwnas.devices._agent import Agent, Artifact, Fingerprint, Measurement, Plan
from hwnas.errors import DeviceError

WORKER = (sys.executable, "-m", "hwnas.profilers.worker")
_CPU_FEATURES = (
    *("avx2", "fma", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_int8", "amx_bf16"),
    *("asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2", "sme"),
)
"""Flags by which runtimes choose their kernels, as Linux spells them."""
_CPUINFO = Path("/proc/cpuinfo")
_CPUS = Path("/sys/devices/system/cpu")


class LocalAgent(Agent):
    """Times on this machine's CPU.

    A batch runs in a fresh process, so that a crash or a hang of a runtime ends that process and is
    recorded: the artifact in hand fails, and the rest are timed in another process.
    """

    def __init__(self, command: Sequence[str] = WORKER):
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None

    def info(self) -> Fingerprint:
        """What latencies depend on, and a table is refused for where it differs.

        The CPU's model, the features that matter to kernels, the frequency governor, the cores this
        process may use, and the system: its name, machine, and release to the second number. Left
        out, for they change without changing latencies by more than a machine does from day to
        day: the kernel's later numbers, microcode, host name, amount of memory, current frequency.
        """
        cpu, flags = _cpu()
        release = ".".join(platform.release().split(".")[:2])
        return {
            "cpu": cpu,
            "features": " ".join(f for f in _CPU_FEATURES if f in flags),
            "governor": _governor(),
            "cores": len(_cores()),
            "os": f"{platform.system()} {release} {platform.machine()}",
        }

    def measure(self, artifacts: Sequence[Artifact], plan: Plan) -> list[Measurement]:
        """Time ``artifacts`` interleaved in a fresh worker process (see ``Agent.measure``)."""
        done: dict[str, Measurement] = {}
        while todo := [a for a in artifacts if a.id not in done]:
            failed = self._run_worker(todo, plan, done)
            if failed is None:
                break
            done[failed.artifact_id] = failed
        return [done[a.id] for a in artifacts]

    def close(self) -> None:
        """End the worker if one still runs."""
        if self._process is not None:
            with self._process as process:  # waits for it and closes its pipes
                process.kill()
            self._process = None

    def _run_worker(
        self, artifacts: Sequence[Artifact], plan: Plan, done: dict[str, Measurement]
    ) -> Measurement | None:
        """Run one worker to its end; give the artifact that broke it, if one did."""
        job = {
            "runtime": plan.runtime,
            "artifacts": [{"id": a.id, "path": str(a.path)} for a in artifacts],
            "rounds": plan.rounds,
            "warmup_rounds": plan.warmup_rounds,
            "threads": plan.threads,
            "seed": plan.seed,
        }
        process = self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **plan.environment},
        )
        in_hand = artifacts[0].id
        messages = _Messages(process, json.dumps(job).encode())
        try:
            while True:
                message = messages.next(plan.timeout_s)
                if message is None:
                    reason = f"the runtime hung for {plan.timeout_s:g} s"
                    return Measurement(in_hand, error=reason)
                if "end" in message:
                    break
                if "at" in message:
                    in_hand = message["at"]
                elif "error" in message:
                    done[message["id"]] = Measurement(message["id"], error=message["error"])
                elif "samples_ms" in message:
                    done[message["id"]] = Measurement(
                        message["id"],
                        (*message["samples_ms"],),
                        (*message["warmup_ms"],),
                        placement=message.get("placement"),
                    )
            if message["end"] == "done" and all(a.id in done for a in artifacts):
                return None
            if message["end"] == "refused":
                raise DeviceError(f"the timing worker did not start: {messages.last_words()}")
            return Measurement(in_hand, error=f"the runtime died: {messages.last_words()}")
        finally:
            messages.close()
            self.close()


class _Messages:
    """The JSON lines a worker writes, each waited for with a time limit."""

    def __init__(self, process: subprocess.Popen[bytes], job: bytes):
        self._process = process
        self._lines, self._errors, self._heard = bytearray(), bytearray(), False
        self._selector = selectors.DefaultSelector()
        for stream in (process.stdout, process.stderr):
            self._selector.register(stream, selectors.EVENT_READ)  # type: ignore[arg-type]
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(job)  # type: ignore[union-attr]
            process.stdin.close()  # type: ignore[union-attr]

    def next(self, timeout_s: float) -> dict[str, Any] | None:
        """The next message; ``{"end": …}`` when the worker has ended; None when it is silent."""
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._lines:
            if not self._selector.get_map():
                return self._ending()
            ready = self._selector.select(max(0.0, deadline - time.monotonic()))
            if not ready:
                return None
            for key, _ in ready:
                chunk = os.read(key.fd, 65536)
                if not chunk:
                    self._selector.unregister(key.fileobj)
                elif key.fileobj is self._process.stdout:
                    self._lines += chunk
                else:
                    self._errors += chunk
        line, _, rest = bytes(self._lines).partition(b"\n")
        self._lines = bytearray(rest)
        self._heard = True
        message: dict[str, Any] = json.loads(line)
        return message

    def last_words(self) -> str:
        """The last line the worker wrote on stderr, or how it ended."""
        lines = self._errors.decode(errors="replace").split("\n")
        words = [line.strip() for line in lines if line.strip()]
        return words[-1] if words else f"exit status {self._process.wait()}"

    def close(self) -> None:
        """Listen no more."""
        self._selector.close()

    def _ending(self) -> dict[str, Any]:
        status = self._process.wait()
        return {"end": "done" if status == 0 else "died" if self._heard else "refused"}


def _cores() -> set[int]:
    """The cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _governor() -> str:
    """How the frequency of these cores is governed; ``none`` where the system does not say."""
    found = set()
    for core in _cores():
        with contextlib.suppress(OSError):
            found.add((_CPUS / f"cpu{core}/cpufreq/scaling_governor").read_text().strip())
    return " ".join(sorted(found)) or "none"


def _cpu() -> tuple[str, frozenset[str]]:
    """The CPU's model and flags, as far as the system tells.

    A virtual machine may give one name to several generations, and Arm gives numbers only: so the
    model's numbers stand beside its name.
    """
    fields: dict[str, set[str]] = {}
    with contextlib.suppress(OSError):
        for line in _CPUINFO.read_text().splitlines():
            name, _, value = line.partition(":")
            fields.setdefault(name.strip().lower(), set()).add(value.strip())
    if sys.platform == "darwin":
        query = ["sysctl", "-n", "machdep.cpu.brand_string"]
        done = subprocess.run(query, check=False, capture_output=True, text=True)
        fields["model name"] = {done.stdout.strip()}
    flags = " ".join(fields.get("flags") or fields.get("features") or ())
    model = " ".join(sorted(fields.get("model name") or fields.get("hardware") or ()))
    numbers = [
        f"{name.removeprefix('cpu ')} {' '.join(sorted(fields[name]))}"
        for name in ("cpu family", "model", "cpu implementer", "cpu part")
        if name in fields
    ]
    parts = [model or platform.processor() or platform.machine(), *numbers]
    return ", ".join(parts), frozenset(flags.split())
