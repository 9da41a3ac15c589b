"""Profile a space on a device: time planned batches, fit, judge on held-out networks."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hwnas.devices import Agent, Plan
from hwnas.errors import TableError, UsageError, unknown_name
from hwnas.luts._assemble import assemble, largest_se_ms, timings
from hwnas.luts._design import Design, Variant
from hwnas.luts._keys import KEYINGS
from hwnas.luts._measurements import Measurements, Record, measurements_path
from hwnas.luts._table import LatencyTable
from hwnas.luts._timing import time_replicates
from hwnas.spaces import Space

if TYPE_CHECKING:
    from hwnas.profilers import Runtime

Progress = Callable[[str], None]

NUM_HELD_OUT = 40
BATCH_SIZE = 10
"""Networks timed together, beside two copies of the reference."""
_FITS_A_PAIR = 5
_PLAN_SEED_STRIDE = 1_000_003


@dataclass(frozen=True)
class Task:
    """One batch to time."""

    role: str
    """``fit`` and ``pairs``: to fit the entries. ``held-out-1``, ``held-out-2``: to judge them."""
    index: int

    @property
    def name(self) -> str:
        """How the batch is called in the measurements' file."""
        return f"{self.role}/{self.index}"


@dataclass(frozen=True)
class Conditions:
    """What is profiled and under which conditions; measurements of other conditions do not mix."""

    space: Space
    image_size: int
    num_classes: int
    device_id: str
    plan: Plan

    def key(self, agent: Agent, runtime: Runtime) -> dict[str, Any]:
        """The conditions as an object that can be compared with a file's."""
        return {
            "device": {"id": self.device_id, "fingerprint": agent.info()},
            "runtime": runtime.describe(self.plan.threads),
            "space": self.space.id,
            "space_sha256": hashlib.sha256(self.space.definition.encode()).hexdigest(),
            "image_size": self.image_size,
            "num_classes": self.num_classes,
            "rounds": self.plan.rounds,
            "warmup_rounds": self.plan.warmup_rounds,
            "seed": self.plan.seed,
        }

    def design(self) -> Design:
        """The networks to time."""
        return Design(self.space, self.image_size, self.num_classes, self.plan.seed)


def profile(
    conditions: Conditions,
    agent: Agent,
    runtime: Runtime,
    table_path: Path,
    *,
    time_budget_s: float,
    progress: Progress,
    target_se_ms: float | None = None,
    keys: str = "full",
    restart: bool = False,
    clock: Callable[[], float] = time.monotonic,
) -> LatencyTable:
    """Measure until the time budget is spent or the entries are known; fit, judge, write the table.

    The budget is device time: what exporting takes (or tuning, whose result is kept) comes on top.
    With ``target_se_ms`` measuring ends when no entry has a greater standard error. ``keys`` is
    ``full`` (an entry a block) or a coarser keying of the same timings. Each batch is on disk
    before the next begins; what is there already, from a run that was killed, had a smaller budget
    or is under way in another process, is not measured again. Raises ``TableError`` where the
    budget ends before there is enough to judge a table by.
    """
    if keys not in KEYINGS:
        raise UsageError(unknown_name("keying", keys, KEYINGS))
    key = conditions.key(agent, runtime)
    measurements = Measurements(measurements_path(table_path), key, restart=restart)
    design = conditions.design()
    while True:
        with measurements.turn() as records:
            if stopped := _why_stop(design, records, time_budget_s, target_se_ms):
                table = assemble(design, conditions.plan, key, records, keys, stopped)
                table.write(table_path)
                return table
            number, task, variants = next_batch(design, records)
            networks = [(f"{task.name}/{i}", design.blocks(v)) for i, v in enumerate(variants)]
            plan = conditions.plan
            (batch,) = time_replicates(
                agent,
                runtime,
                networks,
                design.blocks(design.reference()),
                [replace(plan, seed=plan.seed * _PLAN_SEED_STRIDE + number)],
                image_size=conditions.image_size,
                clock=clock,
            )
            measurements.add(Record(task.name, tuple(variants), batch))
            spent_s = sum(r.batch.device_s for r in records) + batch.device_s
            progress(
                f"batch {len(records) + 1}: {task.role}, {spent_s:.0f} of {time_budget_s:.0f} s, "
                f"reference {batch.reference_ms():.3f} ms"
            )


def planned(design: Design) -> Iterator[tuple[Task, list[Variant]]]:
    """What follows from the seed alone: the batches that every table needs, in order."""
    for task in _needed():
        yield task, _variants(design, task, [])


def next_batch(design: Design, records: Sequence[Record]) -> tuple[int, Task, list[Variant]]:
    """The first task of the schedule that is not done: its number, and what to time in it."""
    done = {record.task for record in records}
    number, task = next((n, t) for n, t in enumerate(_schedule()) if t.name not in done)
    return number, task, _variants(design, task, records)


def _schedule() -> Iterator[Task]:
    """Batches to fit and batches to judge in turn, then batches to fit and pairs without end."""
    num = NUM_HELD_OUT // BATCH_SIZE
    judging = [Task(f"held-out-{k}", i) for k in (1, 2) for i in range(num)]
    for index, judge in enumerate(judging):
        yield Task("fit", index)
        yield judge
    index = len(judging)
    for pairs in count():
        yield Task("pairs", pairs)
        for _ in range(_FITS_A_PAIR):
            yield Task("fit", index)
            index += 1


def _needed() -> list[Task]:
    """The tasks without which there is no table: those up to the last that judges."""
    return list(takewhile(lambda task: task.role != "pairs", _schedule()))


def _variants(design: Design, task: Task, records: Sequence[Record]) -> list[Variant]:
    if task.role == "pairs":
        return design.pairs(task.index)
    if task.role == "fit" and task in _needed():
        return design.planned(task.index)
    if task.role == "fit":
        return design.informative(task.index, timings(design, records))
    held_out = design.held_out(NUM_HELD_OUT, again=task.role == "held-out-2")
    return held_out[task.index * BATCH_SIZE :][:BATCH_SIZE]


def _why_stop(
    design: Design, records: Sequence[Record], time_budget_s: float, target_se_ms: float | None
) -> str | None:
    """Why measuring ends here, None where it goes on.

    Raises ``TableError`` where the time ends before there is enough to judge a table by.
    """
    spent_s = sum(record.batch.device_s for record in records)
    longest_s = max((record.batch.device_s for record in records), default=0.0)
    needed = {task.name for task in _needed()}
    enough = needed <= {record.task for record in records}
    if enough and target_se_ms is not None and largest_se_ms(design, records) <= target_se_ms:
        return f"no standard error is above {target_se_ms:g} ms"
    if spent_s + longest_s <= time_budget_s:
        return None
    if not enough:
        each_s = spent_s / max(1, len(records))
        raise TableError(
            f"the time budget of {time_budget_s:.0f} s ended after {len(records)} batches of at "
            f"least {len(needed)}, about {each_s:.0f} s each: run again with --time-budget "
            f"{each_s * (len(needed) + 1):.0f}s or more; what was measured is kept"
        )
    return "the time budget is spent"
