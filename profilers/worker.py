"""The worker process: load a batch of artifacts, time them in interleaved rounds, answer.

``python -m hwnas.profilers.worker`` reads one job as JSON from standard input and answers with JSON
lines on standard output. It names each artifact before it touches it, so that whoever waits knows
which one broke it. Whatever a runtime prints goes to standard error.
"""

from __future__ import annotations

import gc
import json
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from hwnas.profilers._runtime import Run, Runtime, load_runtime


def main() -> None:
    """Take a job from standard input, do it, answer on standard output."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    job = json.load(sys.stdin)
    _pin(job["threads"])
    run_job(job, load_runtime(job["runtime"]), answers)


def run_job(job: dict[str, Any], runtime: Runtime, answers: TextIO) -> None:
    """Load and time the artifacts of ``job``; write one JSON line an event to ``answers``."""

    def say(**message: object) -> None:
        answers.write(json.dumps(message) + "\n")

    order = random.Random(job["seed"])
    artifacts = list(job["artifacts"])
    order.shuffle(artifacts)  # memory placement follows the order of creation
    runs: dict[str, Run] = {}
    placements: dict[str, dict[str, dict[str, int]] | None] = {}
    for artifact in artifacts:
        say(at=artifact["id"])
        path = Path(artifact["path"])
        try:
            run = runtime.load(path, job["threads"])
            placements[artifact["id"]] = runtime.placement(path)
            runs[artifact["id"]] = run
        except Exception as error:  # a runtime may raise anything; it is data here
            say(id=artifact["id"], error=f"{type(error).__name__}: {error}".splitlines()[0])
    samples = _time(runs, job, order, lambda name: say(at=name))
    for name, (warmup, timed) in samples.items():
        say(id=name, warmup_ms=warmup, samples_ms=timed, placement=placements[name])


def _time(
    runs: dict[str, Run],
    job: dict[str, Any],
    order: random.Random,
    announce: Callable[[str], None],
) -> dict[str, tuple[list[float], list[float]]]:
    """Time every run once a round, in a new order each round; each right after an untimed run.

    The untimed run brings back the network's weights and activations that its neighbours pushed
    out of the caches, so that what is timed is a network that runs again and again.
    """
    samples: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in runs}
    names = list(runs)
    gc.collect()
    gc.disable()
    for number in range(job["warmup_rounds"] + job["rounds"]):
        order.shuffle(names)
        for name in names:
            announce(name)
            run = runs[name]
            run()
            samples[name][number >= job["warmup_rounds"]].append(run())
    gc.enable()
    return samples


def _pin(threads: int) -> None:
    """Keep to the last ``threads`` cores; the first one serves most interrupts."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, set(cores[-threads:]))


if __name__ == "__main__":
    main()
