"""How exact a latency table is: six ways to predict latency, on equal device time, side by side.

- ``joint removal``: hwnas. Planned networks, blocks taken out, one fit; it pays for its judging.
- ``cost model``: the same timings, but MACs, elements and launches alone, with no entry a block.
- ``one-at-a-time removal``: each block by networks with it against the same networks without it.
- ``blocks alone``: each block timed in a model of its own, summed.
- ``linear in MACs``: a line through whole networks.
- ``MLP on archs``: three layers of 400 on whole networks (HAT); also with five times the time.

Two more are no contestants: the paper's 46 modules fitted to our timings, and our table with a term
for each pair of neighbours, to see whether it earns its place.

The contestants' batches are timed in turn, beside the same reference, and judged by the same 60
networks, each timed twice. On simulated devices the error of the entries is known too. Published
marks: nn-Meter 99% within 10% on a phone's CPU, 83% on a VPU; LitePred 90.5% within 5% and 98.9%
within 10%, from 1,400 samples.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before numpy

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from block_alone import BlocksAlone
from simulated_device import SETTINGS, SimulatedDevice, SimulatedRuntime
from table_methods import METHODS, Method, Predicted, Task
from table_streams import NUM_HELD_OUT, STREAMS

from hwnas.devices import Agent, LocalAgent, Plan
from hwnas.files import append_line, read_lines, write_json
from hwnas.luts import BATCH_SIZE, Design, assess, time_replicates
from hwnas.luts._design import Variant
from hwnas.luts._measurements import Record
from hwnas.profilers import Runtime, load_runtime
from hwnas.spaces import Block, load_space

Row = dict[str, Any]
COLUMNS = (
    ("timings", "{:d}"),
    ("device_s", "{:.0f}"),
    ("entry_rmse_ms", "{:.4f}"),
    ("mape", "{:.2%}"),
    ("within_5pct", "{:.0%}"),
    ("within_10pct", "{:.0%}"),
    ("kendall", "{:.3f}"),
    ("coverage", "{:.0%}"),
    ("retest_mape", "{:.2%}"),
)


@dataclass
class Bench:
    """One device, timed by every stream in turn."""

    setting: str
    agent: Agent
    runtime: Runtime
    design: Design
    plan: Plan
    log: Path | None = None
    records: dict[str, list[Record]] = field(default_factory=dict)

    def run(self, budgets_s: Sequence[float]) -> list[Row]:
        """Time each stream as long as its methods may; judge them all at each budget."""
        methods = [m for m in METHODS if self._simulated or not m.simulated_only]
        limits = {
            m.stream: max(
                n.times * (min(budgets_s) if n.times > 1 else max(budgets_s))
                for n in methods
                if n.stream == m.stream
            )
            for m in methods
        }
        self.records = {name: [] for name in STREAMS}
        for name, record in self._logged():
            self.records[name].append(record)
        while waiting := [name for name in STREAMS if not self._done(name, limits)]:
            # Whoever has had the least of its share goes next.
            self._time(min(waiting, key=lambda n: self._share(n, limits)))
        return [
            row
            for budget_s in sorted(budgets_s)
            for method in methods
            if method.times == 1 or budget_s == min(budgets_s)
            for row in [self._judge(method, method.times * budget_s)]
        ]

    @property
    def _simulated(self) -> bool:
        return isinstance(self.agent, SimulatedDevice)

    def _share(self, name: str, limits: Mapping[str, float]) -> float:
        if name == "held-out":
            return len(self.records[name]) / (2 * NUM_HELD_OUT // BATCH_SIZE)
        return sum(r.batch.device_s for r in self.records[name]) / limits[name]

    def _done(self, name: str, limits: Mapping[str, float]) -> bool:
        if name == "held-out":
            return self._share(name, limits) >= 1
        longest_s = max((r.batch.device_s for r in self.records[name]), default=0.0)
        return self._share(name, limits) + longest_s / limits[name] > 1

    def _logged(self) -> list[tuple[str, Record]]:
        if self.log is None:
            return []
        return read_lines(self.log, lambda value: (value["stream"], Record.from_json(value)))

    def _time(self, name: str) -> None:
        records, simulated_s = self.records[name], getattr(self.agent, "device_s", 0.0)
        task, variants = STREAMS[name](self.design, records)
        networks = [(f"{task}/{i}", self.design.blocks(v)) for i, v in enumerate(variants)]
        seed = 7919 * len(records) + 101 * list(STREAMS).index(name)
        (batch,) = time_replicates(
            self.agent,
            self.runtime,
            networks,
            self.design.blocks(self.design.reference()),
            [replace(self.plan, seed=seed)],
            image_size=self.design.image_size,
        )
        if isinstance(self.agent, SimulatedDevice):
            batch = replace(batch, device_s=self.agent.device_s - simulated_s)
        records.append(Record(task, tuple(variants), batch))
        if self.log is not None:
            append_line(self.log, {"stream": name, **records[-1].to_json()})
            print(f"{self.setting}: {task}, {batch.device_s:.1f} s", file=sys.stderr)

    def _judge(self, method: Method, budget_s: float) -> Row:
        records = _until(self.records[method.stream], budget_s)
        held_out, first, second = self._held_out()
        mean = (first + second) / 2
        task = Task(self.design, records, self._reference_ms(), held_out, mean)
        found = method.predict(task)
        quality = assess(found.latency_ms, first, second)
        return {
            "setting": self.setting,
            "method": method.name,
            "timings": sum(len(r.variants) for r in records),
            "device_s": round(sum(r.batch.device_s for r in records), 1),
            "entry_rmse_ms": self._entry_rmse_ms(found),
            "mape": quality.mape,
            "within_5pct": quality.within_5pct,
            "within_10pct": quality.within_10pct,
            "kendall": quality.kendall,
            "coverage": None if found.inside is None else float(found.inside.mean()),
            "retest_mape": quality.retest_mape,
        }

    def _reference_ms(self) -> float:
        """The reference's latency: what every ratio is multiplied by."""
        if isinstance(self.agent, SimulatedDevice):
            return self.agent.network_ms(self.design.blocks(self.design.reference()))
        return float(np.median([r.batch.reference_ms() for r in self.records["joint"]]))

    def _held_out(self) -> tuple[list[Variant], np.ndarray, np.ndarray]:
        found: dict[Variant, list[float]] = {}
        for record in self.records["held-out"]:
            for i, variant in enumerate(record.variants):
                ratio = record.batch.ratio(f"{record.task}/{i}")
                found.setdefault(variant, []).append(self._reference_ms() * ratio)
        twice = {v: ms for v, ms in found.items() if len(ms) == 2}
        first, second = np.array(list(twice.values())).T
        return list(twice), first, second

    def _entry_rmse_ms(self, found: Predicted) -> float | None:
        """Against the truth; the fixed cost of a run is not held against the stem it falls to."""
        if found.entries_ms is None or not isinstance(self.agent, SimulatedDevice):
            return None
        errors = [
            ms - self.agent.block_ms(Block.parse(key))
            for key, ms in found.entries_ms.items()
            if not key.startswith("conv/")
        ]
        return float(np.sqrt(np.mean(np.square(errors))))


def _until(records: Sequence[Record], budget_s: float) -> list[Record]:
    """The records that fit into the budget."""
    spent, kept = 0.0, []
    for record in records:
        spent += record.batch.device_s
        if spent > budget_s:
            break
        kept.append(record)
    return kept


def simulated(setting: str, seeds: int, budgets_s: Sequence[float], space: str) -> list[Row]:
    """The mean of every figure over ``seeds`` devices."""
    runs = []
    for seed in range(seeds):
        design = Design(load_space(space), 256, 1000, seed)
        plan = Plan("simulated", rounds=40)
        bench = Bench(setting, SimulatedDevice(setting, seed), SimulatedRuntime(), design, plan)
        runs.append(bench.run(budgets_s))
    return [
        {k: _mean([row[k] for row in rows]) for k in rows[0]} for rows in zip(*runs, strict=True)
    ]


def _mean(values: Sequence[Any]) -> Any:
    if isinstance(values[0], str) or any(v is None for v in values):
        return values[0]
    return type(values[0])(np.mean(values))


def print_rows(rows: Sequence[Row]) -> None:
    """A table; what a method has not is a dash."""
    print(f"{'setting':<13}{'method':<25}" + "".join(f"{n:>14}" for n, _ in COLUMNS))
    for row in rows:
        cells = ("-" if row[n] is None else f.format(row[n]) for n, f in COLUMNS)
        print(f"{row['setting']:<13}{row['method']:<25}" + "".join(f"{c:>14}" for c in cells))


def main() -> None:
    """Parse, measure, print, write."""
    parser = argparse.ArgumentParser(description="Six ways to predict latency, side by side.")
    parser.add_argument("--settings", default=",".join(SETTINGS), metavar="A,B",
                        help=f"of {', '.join(SETTINGS)} (simulated) and runtimes, such as "
                        "onnxruntime; default: %(default)s")  # fmt: skip
    parser.add_argument("--space", default="autovit-xxs")
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--budgets", default="180,600", metavar="S,S", help="device seconds")
    parser.add_argument("--seeds", type=int, default=3, help="simulated devices of each setting")
    parser.add_argument("--log", type=Path, help="raw timings of a real device; goes on from it")
    parser.add_argument("--quick", action="store_true", help="one simulated device, a small budget")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write flat records to FILE")
    args = parser.parse_args()
    budgets = [float(b) for b in args.budgets.split(",")]
    settings, seeds = args.settings.split(","), args.seeds
    if args.quick:
        settings, seeds, budgets = ["additive"], 1, [200.0]
    rows: list[Row] = []
    for setting in settings:
        if setting in SETTINGS:
            rows += simulated(setting, seeds, budgets, args.space)
            continue
        design = Design(load_space(args.space), args.image_size, 1000, 0)
        plan = Plan(setting, rounds=40)
        with LocalAgent() as agent:
            runtime = BlocksAlone(load_runtime(setting))
            rows += Bench(setting, agent, runtime, design, plan, args.log).run(budgets)
    print_rows(rows)
    if args.json:
        write_json(args.json, rows)


if __name__ == "__main__":
    main()
