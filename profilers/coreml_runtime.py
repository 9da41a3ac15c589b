"""Core ML on this Mac: ML programs, predicted and timed through coremltools; exported anywhere."""

from __future__ import annotations

import asyncio
import copy
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hwnas.devices import macos_release
from hwnas.errors import DeviceError
from hwnas.profilers._runtime import Run, Runtime
from hwnas.spaces import Block

if TYPE_CHECKING:
    from hwnas.profilers._coreml_compose import Composer
    from hwnas.supernet import Network

_DEVICES = {
    "MLNeuralEngineComputeDevice": "neural_engine",
    "MLGPUComputeDevice": "gpu",
    "MLCPUComputeDevice": "cpu",
}


class CoreMLRuntime(Runtime):
    """Timed by coremltools' ``MLModelBenchmarker``, one prediction at a time.

    A sample is what Core ML's own prediction call took, without Python around it. Which units may
    be used is chosen; which ones are used, Core ML decides, and ``placement`` tells.
    """

    name = "coreml"
    suffix = ".mlpackage"
    options: Mapping[str, tuple[str, ...] | int] = {
        "precision": ("fp16", "fp32"),
        "compute_units": ("all", "cpu_only", "cpu_and_gpu", "cpu_and_ne"),
    }
    environment: Mapping[str, str] = {}

    def __init__(self, **chosen: str | int) -> None:
        super().__init__(**chosen)
        self._composers: dict[int, Composer] = {}
        self._loaded: dict[Path, tuple[Any, dict[str, Any]]] = {}  # benchmarker, inputs

    def describe(self, threads: int) -> dict[str, str | int]:
        """Name, versions of coremltools and macOS, precision, compute units, deployment target."""
        from hwnas.profilers._coreml_program import TARGET

        release = macos_release()
        if threads != 1:
            raise DeviceError(
                f"Core ML chooses its threads itself; got {threads}: leave --threads out"
            )
        return {
            "name": self.name,
            "version": metadata.version("coremltools"),
            "macos": release,
            "threads": threads,
            "scheduling": "threads chosen by Core ML",
            **self.chosen,
            "minimum_deployment_target": TARGET,
        }

    def export(self, network: Network | Sequence[Block], path: Path, *, image_size: int) -> None:
        """Write an ML program; of blocks, each distinct one is converted once and composed."""
        from hwnas.profilers._coreml_compose import Composer
        from hwnas.profilers._coreml_program import converting, network_program, writing_package
        from hwnas.supernet import Network

        precision = str(self.chosen["precision"])
        if isinstance(network, Network):
            frozen = copy.deepcopy(network).cpu().eval().requires_grad_(False)
            with writing_package(path) as package, converting("the network", path):
                network_program(
                    frozen,
                    (1, 3, image_size, image_size),
                    precision=precision,
                    package=package.with_name("converted.mlpackage"),
                ).save(str(package))
        else:
            if image_size not in self._composers:
                self._composers[image_size] = Composer(image_size=image_size, precision=precision)
            self._composers[image_size].write(network, path)

    def load(self, path: Path, threads: int) -> Run:
        """Compile and open a package with the chosen compute units; the input is fixed."""
        from hwnas.profilers._coreml_program import load_coremltools

        ct = load_coremltools()
        from coremltools.models.ml_program.experimental.perf_utils import MLModelBenchmarker

        units = ct.ComputeUnit[str(self.chosen["compute_units"]).upper()]
        # Not loaded here: the benchmarker opens a copy of its own, the only one.
        model = ct.models.MLModel(str(path), compute_units=units, skip_model_load=True)
        (image,) = model.get_spec().description.input
        shape = tuple(image.type.multiArrayType.shape)
        inputs = {image.name: np.random.default_rng(0).standard_normal(shape, dtype=np.float32)}
        benchmarker = MLModelBenchmarker(model)

        def run() -> float:
            measured = asyncio.run(benchmarker.benchmark_predict(inputs, iterations=1))
            return float(measured.samples[0])

        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)  # it warns of why it could not open
            run()
        self._loaded[path] = benchmarker, inputs
        return run

    def placement(self, path: Path) -> dict[str, dict[str, int]]:
        """Which operators Core ML prefers to run where, by its compute plan."""
        benchmarker, inputs = self._loaded[path]
        return place(asyncio.run(benchmarker.benchmark_operation_execution(inputs, iterations=1)))


def place(operations: Iterable[Any]) -> dict[str, dict[str, int]]:
    """Count ``operations``, coremltools' ``OperationExecutionInfo``, by device and operator.

    The device is that which the compute plan prefers; ``undetermined`` where it names none.
    Constants run nowhere and are left out.
    """
    counts: dict[str, Counter[str]] = {}
    # An operation of several outputs comes once for each of them.
    for operation in {o.spec.outputs[0].name: o for o in operations}.values():
        if operation.spec.type == "const":
            continue
        usage = operation.compute_device_usage
        kind = "" if usage is None else type(usage.preferred_compute_device).__name__
        device = _DEVICES.get(kind, kind) or "undetermined"
        counts.setdefault(device, Counter())[operation.spec.type] += 1
    return {device: dict(found.most_common()) for device, found in counts.items()}
