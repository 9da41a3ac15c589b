"""Profile a space on a device: time planned batches, fit, judge on held-out networks."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hwnas.devices import Agent, Plan
from hwnas.errors import TableError
from hwnas.files import append_line, read_lines, write_text
from hwnas.luts._design import Design, Layout, count_blocks
from hwnas.luts._fit import Fit, aliased, fit_entries
from hwnas.luts._quality import assess
from hwnas.luts._table import Entry, LatencyTable, Reference
from hwnas.luts._timing import Batch, time_replicates
from hwnas.spaces import Block, Space

if TYPE_CHECKING:
    from hwnas.profilers import Runtime

Progress = Callable[[str], None]

NUM_HELD_OUT = 40
BATCH_SIZE = 10
"""Networks timed together, beside two copies of the reference."""
_MIN_FIT_BATCHES = 6
_PLAN_SEED_STRIDE = 1_000_003


@dataclass(frozen=True)
class Task:
    """One batch to time: to fit the entries, or to judge them (each held-out network twice)."""

    role: str
    """``fit``, ``held-out-1`` or ``held-out-2``."""
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


def measurements_path(table_path: Path) -> Path:
    """Where the raw samples behind a table are kept, beside it."""
    return table_path.with_suffix(".measurements.jsonl")


def profile(
    conditions: Conditions,
    agent: Agent,
    runtime: Runtime,
    table_path: Path,
    *,
    time_budget_s: float,
    progress: Progress,
    restart: bool = False,
    clock: Callable[[], float] = time.monotonic,
) -> LatencyTable:
    """Measure until the time budget is spent, then fit, judge and write the table.

    Each batch is on disk before the next begins; what is there already, from a run that was killed
    or had a smaller budget, is not measured again. Raises ``TableError`` where the budget ends
    before there is enough to judge a table by.
    """
    key = conditions.key(agent, runtime)
    path = measurements_path(table_path)
    done, seconds = _resume(path, key, restart=restart)
    design = Design(
        conditions.space, conditions.image_size, conditions.num_classes, conditions.plan.seed
    )
    reference = design.layout(design.reference())
    plan = conditions.plan
    for number, task in enumerate(_schedule()):
        if task.name in done:
            continue
        if sum(seconds) + max(seconds, default=0.0) > time_budget_s:
            break
        start = clock()
        networks = [(f"{task.name}/{i}", n) for i, n in enumerate(_networks(design, task))]
        seeded = replace(plan, seed=plan.seed * _PLAN_SEED_STRIDE + number)
        (batch,) = time_replicates(
            agent, runtime, networks, reference, [seeded], image_size=conditions.image_size
        )
        spent_s = clock() - start
        append_line(path, {"task": task.name, "elapsed_s": spent_s, **batch.to_json()})
        done[task.name] = batch
        seconds.append(spent_s)
        progress(
            f"batch {len(done)}: {task.role}, {sum(seconds):.0f} of {time_budget_s:.0f} s, "
            f"reference {batch.reference_ms():.3f} ms"
        )
    _require_enough(done, time_budget_s, sum(seconds))
    table = _table(conditions, key, design, done, sum(seconds))
    table.write(table_path)
    return table


def _schedule() -> Iterator[Task]:
    """Batches to fit and batches to judge in turn, then batches to fit without end."""
    num = NUM_HELD_OUT // BATCH_SIZE
    judging = [Task(f"held-out-{k}", i) for k in (1, 2) for i in range(num)]
    index = 0
    while True:
        yield Task("fit", index)
        if index < len(judging):
            yield judging[index]
        index += 1


def _networks(design: Design, task: Task) -> list[Layout]:
    if task.role == "fit":
        return design.batch(task.index)
    held_out = design.held_out(NUM_HELD_OUT)
    order = _held_out_order(design, task.role)[task.index * BATCH_SIZE :][:BATCH_SIZE]
    return [held_out[i] for i in order]


def _held_out_order(design: Design, role: str) -> list[int]:
    """The second time round, each held-out network is in other company."""
    if role == "held-out-1":
        return list(range(NUM_HELD_OUT))
    rng = np.random.default_rng([design.seed, 4])
    return [int(i) for i in rng.permutation(NUM_HELD_OUT)]


def _resume(
    path: Path, key: Mapping[str, Any], *, restart: bool
) -> tuple[dict[str, Batch], list[float]]:
    """Batches on disk and the seconds each took; a new file where there is none."""
    lines = [] if restart else read_lines(path, lambda value: value)
    if not lines:
        write_text(path, "")
        append_line(path, {"conditions": dict(key)})
        return {}, []
    conditions = lines[0].get("conditions") if isinstance(lines[0], dict) else None
    if not isinstance(conditions, dict):
        raise TableError(
            f"{path} is damaged: it does not begin with conditions; use --restart to measure anew"
        )
    for name, value in key.items():
        if (theirs := conditions.get(name)) != value:
            raise TableError(
                f"{path} holds measurements under another {name} ({theirs} there, {value} now): "
                "use --restart to measure anew, or write elsewhere with --out"
            )
    records = read_lines(path, lambda v: (v["task"], Batch.from_json(v), float(v["elapsed_s"])))
    return {name: batch for name, batch, _ in records}, [s for _, _, s in records]


def _require_enough(done: Mapping[str, Batch], time_budget_s: float, elapsed_s: float) -> None:
    needed = [task.name for task, _ in zip(_schedule(), range(2 * _num_judging()), strict=False)]
    missing = [name for name in needed if name not in done]
    if missing:
        each_s = elapsed_s / max(1, len(done))
        raise TableError(
            f"the time budget of {time_budget_s:.0f} s ended after {len(done)} batches of at least "
            f"{len(needed)}, about {each_s:.0f} s each: run again with --time-budget "
            f"{each_s * (len(needed) + 1):.0f}s or more; what was measured is kept"
        )


def _num_judging() -> int:
    return max(2 * NUM_HELD_OUT // BATCH_SIZE, _MIN_FIT_BATCHES)


def _table(
    conditions: Conditions,
    key: Mapping[str, Any],
    design: Design,
    done: Mapping[str, Batch],
    elapsed_s: float,
) -> LatencyTable:
    reference_ms = float(np.median([batch.reference_ms() for batch in done.values()]))
    networks, latency_ms, batch_index, failed = _timed(design, done, reference_ms)
    keys = sorted({block.key for network in networks for block in network})
    blocks, counts = [Block.parse(k) for k in keys], count_blocks(networks, keys)
    fit = fit_entries(blocks, counts, latency_ms, batch_index)
    entries = {
        k: Entry(float(ms), float(se), int(n))
        for k, ms, se, n in zip(keys, fit.entries_ms, fit.se_ms, counts.sum(0), strict=True)
    }
    held_out, first, second = _held_out_ms(design, done, reference_ms)
    predicted = np.array([sum(entries[b.key].ms for b in n if b.key in entries) for n in held_out])
    a_to_a = np.array([batch.a_to_a() for batch in done.values()])
    return LatencyTable(
        device=key["device"],
        runtime=key["runtime"],
        space=conditions.space.id,
        image_size=conditions.image_size,
        num_classes=conditions.num_classes,
        method=_method(conditions, fit, len(networks), len(done), failed, a_to_a, elapsed_s),
        base_ms=0.0,
        entries=entries,
        aliased=tuple(tuple(keys) for keys in aliased(blocks, counts)),
        reference=Reference(conditions.space.decode(design.reference()), reference_ms),
        quality=assess(predicted, first, second),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )


def _method(
    conditions: Conditions,
    fit: Fit,
    num_networks: int,
    num_batches: int,
    num_failed: int,
    a_to_a: np.ndarray[Any, np.dtype[np.float64]],
    elapsed_s: float,
) -> dict[str, Any]:
    return {
        "name": "joint removal",
        "networks": num_networks,
        "failed": num_failed,
        "batches": num_batches,
        "rounds": conditions.plan.rounds,
        "warmup_rounds": conditions.plan.warmup_rounds,
        "seed": conditions.plan.seed,
        "elapsed_s": round(elapsed_s, 1),
        "network_noise": fit.noise,
        "batch_sd": fit.batch_sd,
        "entry_tau": fit.tau,
        "a_to_a_mean": float(a_to_a.mean()),
        "a_to_a_sd": float(a_to_a.std()),
        "fixed_cost": "in the stem's entries: every network has one, so base_ms is 0",
    }


def _timed(
    design: Design, done: Mapping[str, Batch], reference_ms: float
) -> tuple[list[Layout], np.ndarray[Any, Any], np.ndarray[Any, Any], int]:
    """Networks timed to fit: their blocks, latencies (ms), batches, and how many failed."""
    networks: list[Layout] = []
    latency_ms: list[float] = []
    batch_index: list[int] = []
    failed = 0
    for name, batch in done.items():
        role, _, index = name.partition("/")
        failed += len(batch.failed)
        if role != "fit":
            continue
        for i, network in enumerate(design.batch(int(index))):
            if f"{name}/{i}" in batch.samples_ms:
                networks.append(network)
                latency_ms.append(reference_ms * batch.ratio(f"{name}/{i}"))
                batch_index.append(int(index))
    return networks, np.array(latency_ms), np.array(batch_index), failed


def _held_out_ms(
    design: Design, done: Mapping[str, Batch], reference_ms: float
) -> tuple[list[Layout], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Held-out networks that were timed both times, and the two latencies (ms)."""
    latency_ms: dict[str, dict[int, float]] = {"held-out-1": {}, "held-out-2": {}}
    for role, found in latency_ms.items():
        order = _held_out_order(design, role)
        for position, network in enumerate(order):
            task = Task(role, position // BATCH_SIZE)
            batch, name = done[task.name], f"{task.name}/{position % BATCH_SIZE}"
            if name in batch.samples_ms:
                found[network] = reference_ms * batch.ratio(name)
    both = sorted(set(latency_ms["held-out-1"]) & set(latency_ms["held-out-2"]))
    held_out = design.held_out(NUM_HELD_OUT)
    first, second = (np.array([latency_ms[role][i] for i in both]) for role in latency_ms)
    return [held_out[i] for i in both], first, second
