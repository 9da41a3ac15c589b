"""Whether a table still holds: its entries counted, and fresh networks timed against it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

import numpy as np

from hwnas.devices import Agent, Plan
from hwnas.errors import DeviceError, TableError, UsageError
from hwnas.luts._quality import Quality
from hwnas.luts._table import LatencyTable, Prediction
from hwnas.luts._timing import time_replicates
from hwnas.spaces import Block, Codes, Space

if TYPE_CHECKING:
    from hwnas.profilers import Runtime

NUM_RETIMED = 10
SIGNIFICANCE = 0.01
"""How often a table that holds is said not to."""
_REPLICATES = 3
_CANDIDATES = 200
_DRAWS = 20_000
# The standard deviation of the median of three timings, and of the mean of the two that each
# held-out network had, in units of that of the difference of two.
_NOISE_NOW, _NOISE_THEN = 0.4736, 0.5
_SEED_STREAM = 10  # apart from those of the design, so that the networks are fresh


@dataclass(frozen=True)
class EntryCounts:
    """How well the entries of a table are known."""

    resolved: int
    """Above twice their standard error."""
    not_resolved: int
    only_as_sum: int
    """Those, of either sort, whose sum with others is all that the timings determine."""


def count_entries(table: LatencyTable) -> EntryCounts:
    """Count the entries of ``table`` by how well they are known."""
    resolved = sum(entry.ms > 2 * entry.se_ms for entry in table.entries.values())
    sums = {key for keys in table.aliased for key in keys}
    return EntryCounts(resolved, len(table.entries) - resolved, len(sums & set(table.entries)))


@dataclass(frozen=True)
class Retimed:
    """A network's prediction beside its latency now, at the speed the device had then (ms)."""

    prediction: Prediction
    timings_ms: tuple[float, ...]
    """One a process."""

    @property
    def measured_ms(self) -> float:
        """The median of the timings."""
        return median(self.timings_ms)

    @property
    def error(self) -> float:
        """What it took more than predicted, relative to what it took."""
        return 1 - self.prediction.predicted / self.measured_ms

    @property
    def is_within(self) -> bool:
        """Whether the latency lies in the 95% interval of the prediction."""
        return self.prediction.low <= self.measured_ms <= self.prediction.high

    @property
    def retest_error(self) -> float:
        """How far two timings are apart, relative to the latency."""
        return fmean(abs(a - b) for a, b in combinations(self.timings_ms, 2)) / self.measured_ms


@dataclass(frozen=True)
class Retiming:
    """Fresh networks timed in the conditions of a table."""

    networks: tuple[Retimed, ...]
    failed: tuple[str, ...]
    """Why the others could not be timed."""
    reference_then_ms: float
    reference_now_ms: float
    p_value: float
    """How probable a mean error this large is where the table is as good as it says."""

    @property
    def mape(self) -> float:
        """Mean relative error, as that of held-out networks in ``Quality``."""
        return fmean(abs(network.error) for network in self.networks)

    @property
    def bias(self) -> float:
        """Mean of the signed errors: what all networks share."""
        return fmean(network.error for network in self.networks)

    @property
    def retest_mape(self) -> float:
        """How far two timings are apart: the device's own noise now, as in ``Quality``."""
        return fmean(network.retest_error for network in self.networks)

    @property
    def num_within(self) -> int:
        """How many latencies lie in the 95% interval of their prediction."""
        return sum(network.is_within for network in self.networks)

    @property
    def holds(self) -> bool:
        """Whether the errors are no larger than chance allows."""
        return self.p_value >= SIGNIFICANCE


def table_runtime(table: LatencyTable) -> Runtime:
    """The runtime of ``table`` with the options it was measured under.

    Raises ``TableError`` where this hwnas has no such runtime or option.
    """
    from hwnas.profilers import full_spec, load_runtime

    try:
        name = str(table.runtime.get("name"))
        options = load_runtime(name).options
        chosen = {option: str(table.runtime[option]) for option in options & table.runtime.keys()}
        return load_runtime(full_spec(name, **chosen))
    except UsageError as error:
        raise TableError(f"the table's runtime cannot be had here: {error}") from error


def retime(
    table: LatencyTable, space: Space, agent: Agent, runtime: Runtime, *, seed: int = 0
) -> Retiming:
    """Time ten members that the table has not seen, beside its reference, in its own conditions.

    Each is timed in three fresh processes; its latency is the median ratio to the reference times
    the reference's latency in the table, so that a device that is faster or slower as a whole does
    not count. Their mean error is then held against that of the table's held-out networks, larger
    by what the device is noisier now. Raises ``TableError`` where the table is of another space,
    device or runtime, ``DeviceError`` where nothing could be timed.
    """
    table.check_use(space=space, image_size=table.image_size, num_classes=table.num_classes)
    threads = int(table.runtime["threads"])
    table.check_device(agent.info(), runtime.describe(threads))
    networks = _members(table, space, seed)
    plan = replace(_plan(table, runtime), threads=threads)
    batches = time_replicates(
        agent,
        runtime,
        [(f"check/{i}", network) for i, network in enumerate(networks)],
        space.blocks(table.reference.arch, table.image_size, table.num_classes),
        [replace(plan, seed=_REPLICATES * seed + replicate) for replicate in range(_REPLICATES)],
        image_size=table.image_size,
    )
    timed, failed = [], []
    for i, network in enumerate(networks):
        name = f"check/{i}"
        reasons = [batch.failed[name] for batch in batches if name in batch.failed]
        if reasons:
            failed.append(reasons[0])
        else:
            timings_ms = tuple(table.reference.ms * batch.ratio(name) for batch in batches)
            timed.append(Retimed(table.predict(network), timings_ms))
    if not timed:
        raise DeviceError(f"none of {len(networks)} networks could be timed: {failed[0]}")
    return Retiming(
        tuple(timed),
        tuple(failed),
        table.reference.ms,
        float(np.median([batch.reference_ms() for batch in batches])),
        _p_value(timed, table.quality),
    )


def _members(table: LatencyTable, space: Space, seed: int) -> list[tuple[Block, ...]]:
    """Members drawn at random, those with a block that the table lacks left out."""
    sizes = (table.image_size, table.num_classes)
    codes: Codes = space.sample(_CANDIDATES, np.random.default_rng([seed, _SEED_STREAM]))
    known = ~np.isnan(space.additive_cost(table.value, *sizes)(codes))
    if not known.any():
        raise TableError(
            f"the table lacks an entry of each of {_CANDIDATES} members drawn, so that none can be "
            "predicted: profile longer, with a larger --time-budget"
        )
    chosen = codes[known][:NUM_RETIMED]
    return [tuple(block for _, block in space.layout(row, *sizes)) for row in chosen]


def _plan(table: LatencyTable, runtime: Runtime) -> Plan:
    """As many rounds as the table was measured with, where it says."""
    plan = Plan(runtime.spec)
    rounds: Any = table.method.get("rounds", plan.rounds)
    warmup_rounds: Any = table.method.get("warmup_rounds", plan.warmup_rounds)
    if type(rounds) is not int or rounds < 1 or type(warmup_rounds) is not int:
        raise TableError(f"the table is damaged: it was measured in {rounds!r} rounds")
    return replace(plan, rounds=rounds, warmup_rounds=max(0, warmup_rounds))


def _p_value(networks: Sequence[Retimed], quality: Quality) -> float:
    """How often the mean error of so many networks is this much larger than is to be expected.

    Expected is that of the held-out networks, and the noise that the device has more than it had.
    Errors are taken to be normal. Of means of magnitudes the ratio has no formula, and is drawn;
    means of squares would have one (F), but a few networks far off, as timings have them, call
    twice as many tables wrong (errors of Student's t, 5 degrees).
    """
    if quality.mape <= 0 or quality.networks < 1:
        raise TableError("the table does not say how far off it is: profile the device again")
    retest_mape = fmean(network.retest_error for network in networks)
    more_noise = (_NOISE_NOW * retest_mape) ** 2 - (_NOISE_THEN * quality.retest_mape) ** 2
    expected = math.sqrt(quality.mape**2 + max(0.0, more_noise))
    found = fmean(abs(network.error) for network in networks)
    rng = np.random.default_rng(0)
    now, then = (
        np.abs(rng.standard_normal((_DRAWS, num))).mean(axis=1)
        for num in (len(networks), min(quality.networks, 200))  # more hardly change the answer
    )
    as_large = int((now / then >= found / expected).sum())
    return (as_large + 1) / (_DRAWS + 1)
