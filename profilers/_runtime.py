"""Runtime: how to make an artifact for it, and how a worker loads and runs one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from hwnas.errors import UsageError, unknown_name
from hwnas.spaces import Block

if TYPE_CHECKING:
    from hwnas.supernet import Network

RUNTIMES = {"onnxruntime": "hwnas.profilers.onnx_runtime:OnnxRuntime"}


class Runtime(ABC):
    """One inference runtime."""

    suffix: str
    """How the name of an artifact's file ends."""
    environment: Mapping[str, str]
    """Variables that its worker process starts with; part of what a table was measured under."""

    @abstractmethod
    def describe(self, threads: int) -> dict[str, str | int]:
        """Name, version, precision, threads and session settings, for a table's provenance."""

    @abstractmethod
    def export(self, network: Network | Sequence[Block], path: Path, *, image_size: int) -> None:
        """Write ``network``, or the network of blocks with random weights, to ``path``."""

    @abstractmethod
    def load(self, path: Path, threads: int) -> Callable[[], None]:
        """Load an artifact; the callable runs it once, on a fixed input, outputs preallocated."""


def load_runtime(name: str) -> Runtime:
    """The runtime called ``name``. Raises ``UsageError`` for an unknown one."""
    if name not in RUNTIMES:
        raise UsageError(unknown_name("runtime", name, RUNTIMES))
    module, _, attribute = RUNTIMES[name].partition(":")
    runtime: Runtime = getattr(import_module(module), attribute)()
    return runtime
