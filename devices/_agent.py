"""Agent: what stands between hwnas and a device, whatever the device is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

Fingerprint = dict[str, str | int]


@dataclass(frozen=True)
class Artifact:
    """A compiled or serialised network on disk; how it was built does not matter here.

    Two artifacts with one path and different ids are two sessions of the same network.
    """

    id: str
    path: Path


@dataclass(frozen=True)
class Plan:
    """How to time a batch: every artifact once a round, in a new order each round."""

    runtime: str
    rounds: int = 30
    warmup_rounds: int = 5
    threads: int = 1
    seed: int = 0
    timeout_s: float = 60.0
    """The longest one step of the worker (a load, a round) may take before it counts as hung."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables the runtime wants set before its process starts."""


@dataclass(frozen=True)
class Measurement:
    """The raw samples of one artifact, one a round and in order (ms), or why there are none."""

    artifact_id: str
    samples_ms: tuple[float, ...] = ()
    warmup_ms: tuple[float, ...] = ()
    error: str | None = None
    placement: Mapping[str, Mapping[str, int]] | None = None
    """Where its operators ran, for a runtime that chooses: processor -> operator -> how many."""


class Agent(ABC):
    """Lends one device. Use it as a context manager; leaving it leaves nothing running there."""

    @abstractmethod
    def info(self) -> Fingerprint:
        """What the device is: hardware and operating system, in a form that can be compared."""

    @abstractmethod
    def measure(self, artifacts: Sequence[Artifact], plan: Plan) -> list[Measurement]:
        """Time ``artifacts`` interleaved, in one fresh process: one replicate.

        An artifact that fails (does not load, crashes or hangs the runtime) is a Measurement with
        an ``error``; the others are timed without it.
        """

    @abstractmethod
    def close(self) -> None:
        """Give the device back."""

    def __enter__(self) -> Agent:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
