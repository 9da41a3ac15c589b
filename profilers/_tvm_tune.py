"""MetaSchedule's search for the fastest schedule of a kernel, each candidate in a process."""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
from multiprocessing.connection import Connection
from types import ModuleType
from typing import Any

import tvm
from tvm.ir import IRModule
from tvm.s_tir import meta_schedule as ms

_CANDIDATE_LIMIT_S = 10.0
"""Most candidates compile and run within a second; one that unrolls all its loops takes minutes."""
_PARENT = os.getppid()
_CANDIDATES_AT_ONCE = 8
_EVOLUTION = {
    "population_size": 32,
    "init_measured_ratio": 0.5,
    "init_min_unmeasured": 8,
    "genetic_num_iters": 1,
}
"""Small generations, half of them sprung from what was fast before.

With 128, 0.2, 50, 4 (TVM's own, but for a population of 512) a kernel took 5 s before its first
trial. At 32 trials two kernels took 1.4 times as long as with these; one came out faster and one
slower.
"""


def tune(module: IRModule, target: Any, trials: int) -> Any:
    """The tuning record of the fastest of ``trials`` schedules of ``module``'s function ``main``.

    Evolution without a cost model: at the few trials that hundreds of kernels allow, candidates
    are random, or mutations of the fastest before them. Raises ``RuntimeError`` where none ran.
    """
    # TVM would parse its tensor intrinsics, for 11 s; the rules of these two targets use none.
    sys.modules.setdefault("tvm.s_tir.tensor_intrin", ModuleType("tvm.s_tir.tensor_intrin"))
    logging.getLogger("tvm.s_tir.meta_schedule").setLevel(logging.ERROR)
    context = ms.TuneContext(
        module,
        target=target,
        space_generator=target.kind.name,
        search_strategy=ms.search_strategy.EvolutionarySearch(**_EVOLUTION),
        rand_state=1,
        num_threads=1,
    )
    database = ms.database.MemoryDatabase()
    workload = database.commit_workload(module)
    spaces = context.generate_design_space()
    context.pre_tuning(
        trials, min(trials, _CANDIDATES_AT_ONCE), spaces, database, ms.cost_model.RandomModel()
    )
    while candidates := context.generate_measure_candidates():
        results = []
        for candidate in candidates:
            seconds = _time(candidate, target)
            results.append(ms.runner.RunnerResult(seconds, None if seconds else "it did not run"))
            if seconds:
                database.commit_tuning_record(
                    ms.database.TuningRecord(
                        candidate.sch.trace, workload, seconds, target, candidate.args_info
                    )
                )
        context.notify_runner_results(candidates, results)
    context.post_tuning()
    records = database.get_top_k(workload, 1)
    if not records:
        raise RuntimeError(f"none of {trials} schedules of a kernel ran")
    return records[0]


def _time(candidate: Any, target: Any) -> list[float] | None:
    """Seconds a run of ``candidate`` took; None where it crashes, fails or takes too long."""
    if os.getppid() != _PARENT:
        sys.exit("whoever asked for this is gone")
    fork = multiprocessing.get_context("fork")  # TVM is imported already
    receiver, sender = fork.Pipe(duplex=False)
    process = fork.Process(target=_run, args=(candidate, target, sender))
    process.start()
    sender.close()
    try:
        return [receiver.recv()] if receiver.poll(_CANDIDATE_LIMIT_S) else None
    except EOFError:
        return None
    finally:
        process.kill()
        process.join()


def _run(candidate: Any, target: Any, answer: Connection) -> None:
    """Compile and time ``candidate`` on random numbers; send the least of three times (s)."""
    device = tvm.device("cuda" if target.kind.name == "cuda" else "cpu")
    arguments = [
        tvm.runtime.empty([int(n) for n in a.shape], str(a.dtype), device)
        for a in candidate.args_info
    ]
    for argument in arguments:
        tvm.get_global_func("tvm.contrib.random.random_fill_for_measure")(argument)
    executable = tvm.compile(candidate.sch.mod, target).jit()
    timed = executable.time_evaluator("main", device, number=1, repeat=3, min_repeat_ms=10)
    answer.send(min(timed(*arguments).results))
