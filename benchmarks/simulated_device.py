"""Devices whose latencies are a known formula, timed like real ones: what a table ought to find.

A block costs what a roofline says (the slower of arithmetic and traffic, and a launch cost), times
a factor of its own between 0.7 and 1.4 that no cost model knows. Alone, in a model of its own, it
costs something else: it pays the fixed cost of a run, and nothing of it is fused with a neighbour.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from hwnas.devices import Agent, Artifact, Fingerprint, Measurement, Plan
from hwnas.profilers import Run, Runtime
from hwnas.spaces import Block

SETTINGS = ("additive", "pairs", "heavy")
_BATCH_S = 1.0  # to start a process and load its networks
_RUN_MS = 0.03  # the fixed cost of a run
_SAMPLE_SD, _SESSION_SD = 0.025, 0.008  # relative: of one run, of one session of a network


class SimulatedDevice(Agent):
    """``additive``: the sum of the blocks. ``pairs``: neighbours cost less or more together.

    ``heavy``: additive, in noise as seen on shared machines: a tenth of all runs 25% slower, a
    heavy right tail, drift that all networks of a round share.
    """

    def __init__(self, setting: str, seed: int):
        self.setting, self.seed = setting, seed
        self.device_s = 0.0

    def info(self) -> Fingerprint:
        """Setting and seed."""
        return {"simulated": self.setting, "seed": self.seed}

    def close(self) -> None:
        """There is nothing to give back."""

    def block_ms(self, block: Block) -> float:
        """What ``block`` costs inside a network."""
        cost = block.cost
        roofline = max(cost.macs / 30e6, cost.elements / 6e6) + 0.004 * cost.launches
        return self._factor(block.key, 0.7, 1.4) * roofline

    def network_ms(self, blocks: Sequence[Block]) -> float:
        """What a network costs; a lone block that could not read an image, in a model of its own.

        The factor of a lone block, 0.8 to 1.5, is an assumption.
        """
        if len(blocks) == 1 and blocks[0].kind != "conv":
            return _RUN_MS + self._factor(f"alone {blocks[0].key}", 0.8, 1.5) * self.block_ms(
                blocks[0]
            )
        total = _RUN_MS + sum(map(self.block_ms, blocks))
        if self.setting == "pairs":
            for a, b in pairwise(blocks):
                smaller = min(self.block_ms(a), self.block_ms(b))
                total += self._factor(f"{a.kind} {b.kind}", -0.3, 0.1) * smaller
        return total

    def measure(self, artifacts: Sequence[Artifact], plan: Plan) -> list[Measurement]:
        """Time ``artifacts`` with noise; ``device_s`` grows by what a real device would take."""
        rng = random.Random(f"{self.seed} {plan.seed}")
        drift, walk = [], 0.0
        for _ in range(plan.rounds):
            walk += rng.gauss(0, 0.02)
            drift.append(math.exp(walk))
        measurements = []
        for artifact in artifacts:
            blocks = [Block.parse(key) for key in json.loads(artifact.path.read_text())]
            session_ms = self.network_ms(blocks) * math.exp(rng.gauss(0, _SESSION_SD))
            samples = tuple(session_ms * d * self._noise(rng) for d in drift)
            measurements.append(Measurement(artifact.id, samples))
            self.device_s += 2 * sum(samples) / 1e3 * (1 + plan.warmup_rounds / plan.rounds)
        self.device_s += _BATCH_S
        return measurements

    def _noise(self, rng: random.Random) -> float:
        noise = math.exp(rng.gauss(0, _SAMPLE_SD))
        if self.setting == "heavy":
            noise *= 1.25 if rng.random() < 0.1 else 1.0
            noise *= 1 + 0.02 * rng.expovariate(1.0) ** 2
        return noise

    def _factor(self, what: str, low: float, high: float) -> float:
        return random.Random(f"{self.seed} {what}").uniform(low, high)


class SimulatedRuntime(Runtime):
    """An artifact is the list of the network's block keys."""

    name = "simulated"
    suffix = ".json"
    options: Mapping[str, tuple[str, ...] | int] = {}
    environment: Mapping[str, str] = {}

    def describe(self, threads: int) -> dict[str, str | int]:
        """Its name."""
        return {"name": self.name, "version": "1", "threads": threads}

    def export(self, network: object, path: Path, *, image_size: int) -> None:
        """Write the keys."""
        blocks: Sequence[Block] = network  # type: ignore[assignment]
        path.write_text(json.dumps([block.key for block in blocks]))

    def load(self, path: Path, threads: int) -> Run:
        """Nothing runs."""
        raise NotImplementedError("a simulated device times by formula")
