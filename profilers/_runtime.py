"""Runtime: how to make an artifact for it, and how a worker loads and runs one."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from hwnas.errors import UsageError, unknown_name
from hwnas.spaces import Block

if TYPE_CHECKING:
    from hwnas.supernet import Network

RUNTIMES = {
    "coreml": "hwnas.profilers.coreml_runtime:CoreMLRuntime",
    "onnxruntime": "hwnas.profilers.onnx_runtime:OnnxRuntime",
    "torch": "hwnas.profilers.torch_runtime:TorchRuntime",
    "tvm": "hwnas.profilers.tvm_runtime:TvmRuntime",
}

Run = Callable[[], float]
"""Runs a loaded network once, to its end, and gives how long that took (ms)."""


class Runtime(ABC):
    """One inference runtime, with its options chosen."""

    name: str
    """As in ``RUNTIMES``."""
    suffix: str
    """How the name of an artifact's file ends."""
    options: Mapping[str, tuple[str, ...] | int]
    """What may be chosen: the words an option takes, the default first, or the default of a number.

    Every option belongs to what a table was measured under: ``describe`` names it.
    """
    environment: Mapping[str, str]
    """Variables that its worker process starts with; part of what a table was measured under."""
    workspace: Path = Path("hwnas-runs")
    """Folder where a runtime that tunes keeps what it has found, for all networks and tables."""
    timeout_s: float = 60.0
    """The longest that loading a network or running it once may take before it counts as hung."""

    def __init__(self, **chosen: str | int):
        self.chosen: dict[str, str | int] = {
            name: values if isinstance(values, int) else values[0]
            for name, values in self.options.items()
        }
        self._defaults = dict(self.chosen)
        self.chosen.update(chosen)

    @property
    def spec(self) -> str:
        """What ``load_runtime`` makes this runtime of: its name and the options not at default."""
        changed = {k: v for k, v in self.chosen.items() if v != self._defaults[k]}
        return full_spec(self.name, **{k: str(v) for k, v in sorted(changed.items())})

    @abstractmethod
    def describe(self, threads: int) -> dict[str, str | int]:
        """Name, version, threads, chosen options and settings, for a table's provenance.

        Raises ``DeviceError`` with what to do where this machine cannot time with the runtime.
        """

    @abstractmethod
    def export(self, network: Network | Sequence[Block], path: Path, *, image_size: int) -> None:
        """Write ``network``, or the network of blocks with random weights, to ``path``."""

    @abstractmethod
    def load(self, path: Path, threads: int) -> Run:
        """Load an artifact, to run on a fixed input, outputs preallocated."""

    def placement(self, path: Path) -> dict[str, dict[str, int]] | None:
        """Where a loaded artifact's operators run: processor -> operator -> how many of them.

        None for a runtime that leaves no choice of processor to itself.
        """
        return None


def host_timed(run: Callable[[], object]) -> Run:
    """Time ``run``, which returns when its work is done, on the host's clock."""

    def timed() -> float:
        start = time.perf_counter_ns()
        run()
        return (time.perf_counter_ns() - start) / 1e6

    return timed


def load_runtime(spec: str) -> Runtime:
    """The runtime that ``spec`` names: ``NAME``, or ``NAME:option=value,option=value``.

    Raises ``UsageError`` for an unknown name, option or value.
    """
    name, _, settings = spec.partition(":")
    if name not in RUNTIMES:
        raise UsageError(unknown_name("runtime", name, RUNTIMES))
    module, _, attribute = RUNTIMES[name].partition(":")
    kind: type[Runtime] = getattr(import_module(module), attribute)
    chosen: dict[str, str | int] = {}
    for setting in filter(None, settings.split(",")):
        option, _, value = setting.partition("=")
        if option not in kind.options:
            raise UsageError(unknown_name(f"option of {name}", option, kind.options))
        chosen[option] = _value(name, option, value, kind.options[option])
    return kind(**chosen)


def full_spec(spec: str, **settings: str | None) -> str:
    """``spec`` with more options set, those that are None left out; later ones take precedence."""
    given = ",".join(f"{name}={value}" for name, value in settings.items() if value is not None)
    if not given:
        return spec
    return f"{spec},{given}" if ":" in spec else f"{spec}:{given}"


def _value(runtime: str, option: str, value: str, known: tuple[str, ...] | int) -> str | int:
    if isinstance(known, int):
        if not value.isdecimal():
            raise UsageError(f"{option} of {runtime} is a whole number; got {value!r}")
        return int(value)
    if value not in known:
        raise UsageError(unknown_name(f"{option} of {runtime}", value, known))
    return value
