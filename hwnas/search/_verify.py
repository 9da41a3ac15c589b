"""Verification: the finalists are timed on the device and held against their predictions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from hwnas.devices import Agent, Plan
from hwnas.errors import DeviceError
from hwnas.luts import BATCH_SIZE, Batch, LatencyTable, time_replicates
from hwnas.spaces import Space

if TYPE_CHECKING:
    from hwnas.profilers import Runtime
    from hwnas.supernet import Network

_REPLICATES = 6
_T95 = 2.571  # Student's t, 5 degrees of freedom
_MIN_SPAN = 0.2
_MIN_POINTS = 4


@dataclass(frozen=True)
class Timed:
    """A network's latency on the device (ms, at the speed the device had when it was profiled)."""

    measured_ms: float
    half_interval_ms: float
    """Half of the 95% interval over replicates, each a fresh process."""


@dataclass(frozen=True)
class Verification:
    """A ``Timed`` for each finalist (None: it failed), and how fast the device was."""

    timed: list[Timed | None]
    reference_ms: float
    """The reference network's latency now (ms); the table knows what it was then."""


def time_finalists(
    networks: Sequence[Network],
    table: LatencyTable,
    space: Space,
    agent: Agent,
    runtime: Runtime,
    plan: Plan,
) -> Verification:
    """Time ``networks`` beside the table's reference, in several fresh processes.

    Members drawn at random make the batch as large as those of the profile: beside few others the
    reference is faster than it was then (5 networks of 0.5 ms instead of 10: by 3%), and every
    ratio to it greater.

    A latency is the ratio to the reference times the reference's latency in the table, so that a
    device that is slower today than when it was profiled does not count against a network.
    """
    reference = space.blocks(table.reference.arch, table.image_size, table.num_classes)
    named = [(f"finalist/{i}", network) for i, network in enumerate(networks)]
    num_others = max(0, BATCH_SIZE - len(networks))
    others = space.sample(num_others, np.random.default_rng(plan.seed))
    sizes = (table.image_size, table.num_classes)
    company = [
        (f"company/{i}", tuple(block for _, block in space.layout(codes, *sizes)))
        for i, codes in enumerate(others)
    ]
    batches = time_replicates(
        agent,
        runtime,
        [*named, *company],
        reference,
        [replace(plan, seed=plan.seed + replicate) for replicate in range(_REPLICATES)],
        image_size=table.image_size,
    )
    timed = [_timed(name, batches, table.reference.ms) for name, _ in named]
    if not any(timed):
        reasons = [reason for batch in batches for reason in batch.failed.values()]
        raise DeviceError(f"no finalist could be timed: {reasons[0]}")
    return Verification(timed, float(np.median([b.reference_ms() for b in batches])))


def _timed(name: str, batches: Sequence[Batch], reference_ms: float) -> Timed | None:
    if any(name not in batch.samples_ms for batch in batches):
        return None
    ratios = np.log([batch.ratio(name) for batch in batches])
    measured_ms = reference_ms * math.exp(float(ratios.mean()))
    half = _T95 * float(ratios.std(ddof=1)) / math.sqrt(len(ratios))
    return Timed(measured_ms, measured_ms * half)


def correction(predicted_ms: Sequence[float], measured_ms: Sequence[float]) -> tuple[float, float]:
    """(scale, offset in ms) that turn predictions into what was measured.

    A line where at least four networks span 20% or more of their latency; else a scale alone, for
    a line through points that lie together says nothing about its slope.
    """
    predicted, measured = np.array(predicted_ms), np.array(measured_ms)
    span = float(np.ptp(predicted) / predicted.mean())
    if len(predicted) >= _MIN_POINTS and span >= _MIN_SPAN:
        scale, offset = np.polyfit(predicted, measured, 1)
        if scale > 0:
            return float(scale), float(offset)
    return float(np.median(measured / predicted)), 0.0
