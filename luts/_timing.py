"""Timing networks beside a reference: what survives on a machine that is never quiet.

Absolute times drift by a fifth within minutes, but alike for everything that runs in the same
second. So each batch holds the reference network twice; a network's latency is its paired ratio to
the reference in the same rounds, and the two references held against each other (A/A) say what the
device can resolve.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from hwnas.devices import Agent, Artifact, Measurement, Plan
from hwnas.errors import DeviceError, ExportError
from hwnas.spaces import Block

if TYPE_CHECKING:
    from hwnas.profilers import Runtime
    from hwnas.supernet import Network

_FOLDER = "hwnas-batch-"
REFERENCES = ("reference-a", "reference-b")


@dataclass(frozen=True)
class Batch:
    """Raw samples of one batch: the references and the networks, by artifact id."""

    samples_ms: dict[str, tuple[float, ...]]
    failed: dict[str, str]
    device_s: float = 0.0
    """How long the device was in use."""
    placement: dict[str, dict[str, int]] = field(default_factory=dict)
    """Of a runtime that chooses: processor -> operator -> how many, over all networks."""

    def ratio(self, artifact_id: str) -> float:
        """Latency relative to the reference, paired round by round (Hodges-Lehmann of the logs).

        Against each of the two in turn: the difference of two runs is symmetric where that of a run
        and a mean of two is not, and slow outliers would make every ratio too small.
        """
        own = np.log(self.samples_ms[artifact_id])
        each = [hodges_lehmann(own - np.log(self.samples_ms[name])) for name in REFERENCES]
        return float(np.exp(np.mean(each)))

    def reference_ms(self) -> float:
        """The median latency of the reference in this batch (ms)."""
        logs = [np.log(self.samples_ms[name]) for name in REFERENCES]
        return float(np.exp(np.median(np.mean(logs, axis=0))))

    def a_to_a(self) -> float:
        """The relative difference between the two references; 0 but for what cannot be resolved."""
        first, second = (np.log(self.samples_ms[name]) for name in REFERENCES)
        return float(np.expm1(hodges_lehmann(first - second)))

    def to_json(self) -> dict[str, Any]:
        """The raw samples, in order."""
        samples = {name: list(values) for name, values in self.samples_ms.items()}
        return {
            "device_s": self.device_s,
            "samples_ms": samples,
            "failed": self.failed,
            "placement": self.placement,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Batch:
        """Read what ``to_json`` wrote."""
        samples = {n: tuple(map(float, s)) for n, s in value["samples_ms"].items()}
        if not all(name in samples for name in REFERENCES):
            raise KeyError(REFERENCES[0])
        device_s, placement = float(value["device_s"]), add_up([value["placement"]])
        return cls(samples, dict(value["failed"]), device_s, placement)


def hodges_lehmann(values: npt.NDArray[np.float64]) -> float:
    """The median of all pairwise means: nearly as efficient as the mean, robust to a heavy tail."""
    i, j = np.triu_indices(len(values))
    return float(np.median((values[i] + values[j]) / 2))


def time_replicates(
    agent: Agent,
    runtime: Runtime,
    networks: Sequence[tuple[str, Sequence[Block] | Network]],
    reference: Sequence[Block],
    plans: Sequence[Plan],
    *,
    image_size: int,
    clock: Callable[[], float] = time.monotonic,
) -> list[Batch]:
    """Export ``networks`` (id, network) and time them beside ``reference``, once for each plan.

    Each plan is a replicate: a fresh process, the same files. A network that cannot be exported has
    failed. Raises ``DeviceError`` where the reference itself cannot be timed.
    """
    _clear_abandoned()
    with tempfile.TemporaryDirectory(prefix=f"{_FOLDER}{os.getpid()}-") as folder:
        path = Path(folder) / f"reference{runtime.suffix}"
        runtime.export(reference, path, image_size=image_size)
        artifacts = [Artifact(name, path) for name in REFERENCES]
        failed: dict[str, str] = {}
        for i, (name, network) in enumerate(networks):
            path = Path(folder) / f"network{i}{runtime.suffix}"
            try:
                runtime.export(network, path, image_size=image_size)
            except ExportError as error:
                failed[name] = str(error)
                continue
            artifacts.append(Artifact(name, path))
        needs = [
            replace(plan, environment=runtime.environment, timeout_s=runtime.timeout_s)
            for plan in plans
        ]
        batches = []
        for plan in needs:
            start = clock()
            measurements = agent.measure(artifacts, plan)
            batches.append(_batch(measurements, failed, clock() - start))
        return batches


def _clear_abandoned() -> None:
    """Remove the networks of batches whose process was killed before it could do so itself."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_FOLDER}*-*"):
        owner = folder.name.removeprefix(_FOLDER).partition("-")[0]
        try:
            os.kill(int(owner), 0)
        except ProcessLookupError:
            shutil.rmtree(folder, ignore_errors=True)
        except (ValueError, OverflowError, PermissionError):
            continue  # not of ours


def _batch(
    measurements: Sequence[Measurement], not_exported: Mapping[str, str], device_s: float
) -> Batch:
    failed = {**not_exported, **{m.artifact_id: m.error for m in measurements if m.error}}
    for name in REFERENCES:
        if name in failed:
            raise DeviceError(f"the reference network could not be timed: {failed[name]}")
    timed = [m for m in measurements if not m.error]
    samples_ms = {m.artifact_id: tuple(round(s, 5) for s in m.samples_ms) for m in timed}
    return Batch(samples_ms, failed, device_s, add_up([m.placement or {} for m in timed]))


def add_up(placements: Iterable[Mapping[str, Mapping[str, int]]]) -> dict[str, dict[str, int]]:
    """The sum of placements: processor -> operator -> how many."""
    total: dict[str, dict[str, int]] = {}
    for placement in placements:
        for processor, operators in placement.items():
            counts = total.setdefault(str(processor), {})
            for operator, num in operators.items():
                counts[operator] = counts.get(operator, 0) + int(num)
    return total
