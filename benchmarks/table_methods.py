"""The ways of predicting a network's latency from what was timed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls
from sklearn.neural_network import MLPRegressor

from hwnas.devices import Plan
from hwnas.luts import Design, LatencyTable
from hwnas.luts._assemble import assemble, timings
from hwnas.luts._design import Layout, Variant, count_blocks
from hwnas.luts._fit import cost_features
from hwnas.luts._measurements import Record
from hwnas.spaces import Block, num_macs

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Predicted:
    """Latencies of the held-out networks [N] (ms), and what was found on the way."""

    latency_ms: Array
    entries_ms: Mapping[str, float] | None = None
    inside: npt.NDArray[np.bool_] | None = None
    """Whether the measured latencies lie in the 95% prediction intervals."""


@dataclass(frozen=True)
class Task:
    """Predict the held-out networks from the records of one stream."""

    design: Design
    records: Sequence[Record]
    reference_ms: float
    held_out: Sequence[Variant]
    measured_ms: Array

    def networks(self) -> list[Layout]:
        """The blocks of the held-out networks."""
        return [self.design.blocks(variant) for variant in self.held_out]

    def timed(self) -> list[tuple[str, Variant, float]]:
        """Each network that was timed: its batch, itself, its latency (ms)."""
        return [
            (r.task, variant, self.reference_ms * r.batch.ratio(f"{r.task}/{i}"))
            for r in self.records
            for i, variant in enumerate(r.variants)
            if f"{r.task}/{i}" in r.batch.samples_ms
        ]


def _table(task: Task, keys: str = "full") -> LatencyTable:
    conditions = {"device": {"id": "", "fingerprint": {}}, "runtime": {"threads": 1}}
    return assemble(task.design, Plan(""), conditions, task.records, keys, "")


def _by_table(task: Task, table: LatencyTable) -> Predicted:
    scale = task.reference_ms / table.reference.ms
    found = [table.predict(blocks) for blocks in task.networks()]
    inside = [
        scale * p.low <= ms <= scale * p.high for p, ms in zip(found, task.measured_ms, strict=True)
    ]
    entries = {key: scale * entry.ms for key, entry in table.entries.items()}
    latency = scale * np.array([p.predicted for p in found])
    return Predicted(latency, entries, np.array(inside))


def joint_removal(task: Task) -> Predicted:
    """The table of ``hwnas profile``."""
    return _by_table(task, _table(task))


def paper_keys(task: Task) -> Predicted:
    """The same timings with the 46 modules of the paper."""
    return Predicted(_by_table(task, _table(task, "paper")).latency_ms)


def joint_and_pairs(task: Task) -> Predicted:
    """The table, and a term for each kind and place of neighbours, drawn to 0.

    How strongly they are drawn is chosen by leaving out one batch in five in turn.
    """
    table, timed = _table(task), timings(task.design, task.records)
    scale = task.reference_ms / table.reference.ms
    names = sorted({name for network in timed.networks for name in _neighbours(network)})
    predicted = np.array([table.predict(n).predicted for n in timed.networks])
    rows = _count_pairs(timed.networks, names) / timed.latency_ms[:, None]
    residual = 1 - predicted / timed.latency_ms

    def terms(keep: npt.NDArray[np.bool_], ridge: float) -> Array:
        kept = rows[keep]
        gram = kept.T @ kept + ridge * np.eye(len(names))
        solution: Array = np.linalg.solve(gram, kept.T @ residual[keep])
        return solution

    def left_out_error(ridge: float) -> float:
        folds = [timed.batch % 5 == k for k in range(5)]
        errors = [residual[f] - rows[f] @ terms(~f, ridge) for f in folds]
        return float(np.median(np.abs(np.concatenate(errors))))

    ridge = min((0.01, 0.1, 1.0, 10.0, 1e6), key=left_out_error)
    found = terms(np.ones(len(rows), dtype=bool), ridge)
    sums = np.array([table.predict(n).predicted for n in task.networks()])
    return Predicted(scale * (sums + _count_pairs(task.networks(), names) @ found))


def cost_model(task: Task) -> Predicted:
    """Non-negative coefficients of MACs, elements and launches for each kind of block."""
    timed = timings(task.design, task.records)
    keys = sorted({b.key for n in [*timed.networks, *task.networks()] for b in n})
    features = cost_features([Block.parse(key) for key in keys])
    rows = count_blocks(timed.networks, keys) @ features / timed.latency_ms[:, None]
    norms = np.linalg.norm(rows, axis=0) + 1e-30
    scale = task.reference_ms / _reference_ms(task.records)
    entries = scale * features @ (nnls(rows / norms, np.ones(len(rows)))[0] / norms)
    return Predicted(
        count_blocks(task.networks(), keys) @ entries, dict(zip(keys, entries, strict=True))
    )


def one_at_a_time(task: Task) -> Predicted:
    """The mean difference that each block makes to networks with and without it."""
    found: dict[str, list[float]] = {}
    for record in task.records:
        names = [f"{record.task}/{i}" for i in range(len(record.variants))]
        ms = [
            task.reference_ms * record.batch.ratio(name)
            if name in record.batch.samples_ms
            else np.nan
            for name in names
        ]
        for i in range(0, len(ms), 2):
            without, with_it = record.variants[i : i + 2]
            added = set(without.removed) - set(with_it.removed)
            position = min(added, default=0)  # of the stem, that stands for itself
            key = task.design.blocks(Variant(without.codes))[position].key
            found.setdefault(key, []).append(ms[i + 1] - (ms[i] if added else 0.0))
    return _summed(task, {key: float(np.nanmean(v)) for key, v in found.items()})


def blocks_alone(task: Task) -> Predicted:
    """The sum of what each block takes in a model of its own."""
    found: dict[str, list[float]] = {}
    for _, variant, latency_ms in task.timed():
        (block,) = task.design.blocks(variant)
        found.setdefault(block.key, []).append(latency_ms)
    return _summed(task, {key: float(np.mean(v)) for key, v in found.items()})


def _summed(task: Task, entries: dict[str, float]) -> Predicted:
    """Sums of entries; a block that was not reached in the time has the mean of its kind."""
    known: dict[str, list[float]] = {}
    for key, ms in entries.items():
        known.setdefault(key.partition("/")[0], []).append(ms)

    def entry(block: Block) -> float:
        return entries.get(block.key, float(np.mean(known.get(block.kind, [0.0]))))

    return Predicted(np.array([sum(map(entry, n)) for n in task.networks()]), entries)


def linear_in_macs(task: Task) -> Predicted:
    """A line, by least squares relative to the latency."""
    latency = np.array([ms for _, _, ms in task.timed()])
    macs = np.array([num_macs(task.design.blocks(v)) for _, v, _ in task.timed()])
    offset, slope = np.linalg.lstsq(
        np.stack([1 / latency, macs / latency], 1), np.ones(len(macs)), rcond=None
    )[0]
    return Predicted(offset + slope * np.array([num_macs(n) for n in task.networks()]))


def mlp(task: Task) -> Predicted:
    """Three layers of 400 on the architecture's choices (HAT, section 3.2), scaled to 0..1."""
    top = [max(1, len(column.values) - 1) for column in task.design.space.columns]
    inputs = np.array([v.codes for _, v, _ in task.timed()]) / top
    latency = np.array([ms for _, _, ms in task.timed()])
    mean, sd = latency.mean(), latency.std()
    model = MLPRegressor(
        hidden_layer_sizes=(400, 400, 400), alpha=1e-2, max_iter=200, tol=0.0, random_state=0
    )
    model.n_iter_no_change = model.max_iter
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it ran all its epochs
        model.fit(inputs, (latency - mean) / sd)
    held_out = np.array([v.codes for v in task.held_out]) / top
    return Predicted(mean + sd * model.predict(held_out))


@dataclass(frozen=True)
class Method:
    """A way of predicting, the stream that it learns from, and how much more time it gets."""

    name: str
    stream: str
    predict: Callable[[Task], Predicted]
    times: int = 1
    simulated_only: bool = False


METHODS = (
    Method("joint removal", "joint", joint_removal),
    Method("cost model", "joint", cost_model),
    Method("one-at-a-time removal", "singly", one_at_a_time),
    Method("blocks alone", "alone", blocks_alone),
    Method("linear in MACs", "whole", linear_in_macs),
    Method("MLP on archs", "whole", mlp),
    Method("MLP on archs, 5x time", "whole", mlp, times=5),
    Method("one at a time, 8x time", "singly", one_at_a_time, times=8, simulated_only=True),
    Method("joint, paper keys", "joint", paper_keys),
    Method("joint + pair terms", "joint", joint_and_pairs),
)


def _neighbours(network: Layout) -> list[str]:
    places = [f"{b.kind}@{b['tokens'] if b.kind == 'vit_layer' else b['res']}" for b in network]
    return [f"{a}+{b}" for a, b in pairwise(places)]


def _count_pairs(networks: Sequence[Layout], names: Sequence[str]) -> Array:
    column = {name: i for i, name in enumerate(names)}
    counts = np.zeros((len(networks), len(names)))
    for row, network in zip(counts, networks, strict=True):
        for name in _neighbours(network):
            if name in column:
                row[column[name]] += 1
    return counts


def _reference_ms(records: Sequence[Record]) -> float:
    return float(np.median([record.batch.reference_ms() for record in records]))
