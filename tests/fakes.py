"""A runtime and a device whose latency is a known formula: no clock, no noise but what is asked."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from hwnas.devices import Agent, Artifact, Fingerprint, Measurement, Plan
from hwnas.profilers import Run, Runtime
from hwnas.spaces import Block


def true_ms(block: Block) -> float:
    """What a block costs on the fake device: not what any cost model of hwnas would say."""
    tilt = 1 + 0.3 * ((sum(block.key.encode()) % 11) / 5 - 1)
    return tilt * (4e-8 * block.cost.macs + 1e-7 * block.cost.elements + 0.004)


class FakeRuntime(Runtime):
    """An artifact is the list of the network's block keys."""

    name = "fake"
    suffix = ".json"
    options: Mapping[str, tuple[str, ...] | int] = {}
    environment: Mapping[str, str] = {}

    def __init__(self, version: str = "1") -> None:
        super().__init__()
        self.version = version
        self.exported = 0

    def describe(self, threads: int) -> dict[str, str | int]:
        return {"name": "fake", "version": self.version, "threads": threads}

    def export(self, network: object, path: Path, *, image_size: int) -> None:
        blocks: Sequence[Block] = getattr(network, "blocks", network)  # type: ignore[assignment]
        path.write_text(json.dumps([block.key for block in blocks]))
        self.exported += 1

    def load(self, path: Path, threads: int) -> Run:
        raise AssertionError("the fake agent runs nothing")


class FakeAgent(Agent):
    """Times by ``formula`` (ms a block), times a drift that all artifacts of a round share.

    ``extra`` (ms) is what a network takes beyond the sum of its blocks.
    """

    def __init__(
        self,
        formula: Callable[[Block], float] = true_ms,
        *,
        extra: Callable[[Sequence[Block]], float] = lambda blocks: 0.0,
        noise: float = 0.01,
        fails: Callable[[Sequence[Block]], bool] = lambda blocks: False,
        cpu: str = "fake",
    ) -> None:
        self.formula, self.extra = formula, extra
        self.noise, self.fails, self.cpu = noise, fails, cpu
        self.batches = 0
        self.closed = False

    def info(self) -> Fingerprint:
        return {"cpu": self.cpu, "cores": 2}

    def measure(self, artifacts: Sequence[Artifact], plan: Plan) -> list[Measurement]:
        self.batches += 1
        rng = random.Random(plan.seed)
        drift = [rng.uniform(0.8, 1.4) for _ in range(plan.rounds)]
        measurements = []
        for artifact in artifacts:
            blocks = [Block.parse(key) for key in json.loads(artifact.path.read_text())]
            if self.fails(blocks):
                measurements.append(Measurement(artifact.id, error="out of memory"))
                continue
            latency = sum(map(self.formula, blocks)) + self.extra(blocks)
            samples = tuple(latency * d * (1 + rng.gauss(0, self.noise)) for d in drift)
            measurements.append(Measurement(artifact.id, samples))
        return measurements

    def close(self) -> None:
        self.closed = True
