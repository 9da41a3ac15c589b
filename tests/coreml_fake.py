"""Core ML where there is none: what stands for coremltools' C++ extension, and nothing above it.

A program is read by coremltools' own loader, which checks names, types and shapes as it goes, and
computed by torch in float32, operator by operator. Time is a script.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from coremltools.converters.mil.frontend.milproto.load import load
from coremltools.models import compute_device, compute_plan, model
from torch import Tensor

OPERATORS: dict[str, Callable[..., Any]] = {
    "add": lambda x, y: x + y,
    "mul": lambda x, y: x * y,
    "cast": lambda x, dtype: x,
    "silu": lambda x: x * x.sigmoid(),
    "reshape": lambda x, shape: x.reshape(*map(int, shape)),
    "transpose": lambda x, perm: x.permute(*map(int, perm)),
    "squeeze": lambda x, axes: x.squeeze(tuple(map(int, axes))),
    "split": lambda x, split_sizes, axis: x.split([int(s) for s in split_sizes], int(axis)),
    "concat": lambda values, axis, interleave: torch.cat(values, int(axis)),
    "softmax": lambda x, axis: x.softmax(int(axis)),
    "linear": lambda x, weight, bias: x @ weight.mT + bias,
    "reduce_mean": lambda x, axes, keep_dims: x.mean(tuple(map(int, axes)), bool(keep_dims)),
    "matmul": lambda x, y, transpose_x, transpose_y: (
        (x.mT if transpose_x else x) @ (y.mT if transpose_y else y)
    ),
    "layer_norm": lambda x, axes, gamma, beta, epsilon: F.layer_norm(
        x, x.shape[int(axes[0]) :], gamma, beta, float(epsilon)
    ),
    "conv": lambda x, weight, strides, pad_type, pad, dilations, groups, bias=None: F.conv2d(
        F.pad(x, [int(p) for p in (*pad[2:], *pad[:2])]),
        weight,
        bias,
        [int(s) for s in strides],
        groups=int(groups),
    ),
}


def compute(package: Path, image: np.ndarray) -> np.ndarray:
    """What the program in ``package`` gives for ``image``."""
    spec = ct.utils.load_spec(str(package))
    weights = package / "Data" / "com.apple.CoreML" / "weights"
    function = load(spec, spec.specificationVersion, str(weights)).functions["main"]
    known: dict[str, Any] = {"image": torch.from_numpy(image)}

    def value(given: Any) -> Any:
        if isinstance(given, list | tuple):
            return [value(one) for one in given]
        if given.name in known:
            return known[given.name]
        constant = given.val
        weight = isinstance(constant, np.ndarray) and constant.dtype.kind == "f"
        return torch.from_numpy(constant.astype(np.float32)) if weight else constant

    for operation in function.operations:
        if operation.op_type == "const":
            continue
        found = OPERATORS[operation.op_type](**{n: value(v) for n, v in operation.inputs.items()})
        results = found if isinstance(found, tuple) else (found,)
        for output, result in zip(operation.outputs, results, strict=True):
            assert tuple(output.shape) == tuple(result.shape)
            known[output.name] = result
    logits: Tensor = known["logits"]
    return logits.numpy()


class Device:
    """Stands for the extension's handle of a compute device."""


class Model:
    """Stands for the extension's model: an opened package, run on torch."""

    opened: list[tuple[str, str]] = []  # noqa: RUF012  (package, compute units), emptied by install
    nanoseconds: Callable[[], int] = staticmethod(lambda: 2_000_000)

    def __init__(self, path: str, units: str, function: str, hints: object, asset: object):
        spec = ct.utils.load_spec(path)
        if not spec.mlProgram.functions:
            raise RuntimeError("Error compiling model: no function\nand its stack")
        self.path = Path(path)
        self.opened.append((path, units))
        self.took: int | None = None

    @staticmethod
    def maximum_supported_specification_version() -> int:
        return 9

    def predict(self, features: dict[str, np.ndarray], state: object) -> dict[str, np.ndarray]:
        self.took = type(self).nanoseconds()
        return {"logits": compute(self.path, features["image"])}

    def get_last_predict_duration_in_nano_seconds(self) -> int | None:
        return self.took

    def get_compiled_model_path(self) -> str:
        return str(self.path)

    @staticmethod
    def get_compute_plan(path: str, units: str) -> compute_plan.MLComputePlan:
        return compute_plan.MLComputePlan(Plan(Path(path), units))


class Plan:
    """Stands for the extension's compute plan: the neural engine takes all but ``reshape``."""

    def __init__(self, package: Path, units: str):
        self.units = units
        spec = ct.utils.load_spec(str(package))
        function = spec.mlProgram.functions["main"]
        operations = function.block_specializations[function.opset].operations
        block = compute_plan.MLModelStructureProgramBlock(
            [], [structure(operation) for operation in operations], ["logits"]
        )
        program = compute_plan.MLModelStructureProgram(
            {"main": compute_plan.MLModelStructureProgramFunction([], block)}
        )
        self.model_structure = compute_plan.MLModelStructure(None, program, None)

    def get_compute_device_usage_for_mlprogram_operation(
        self, operation: compute_plan.MLModelStructureProgramOperation
    ) -> compute_plan.MLComputePlanDeviceUsage | None:
        kind = operation.operator_name.removeprefix("ios16.")
        if kind == "const":
            return None
        cpu = compute_device.MLCPUComputeDevice(Device())
        engine = compute_device.MLNeuralEngineComputeDevice(Device())
        falls = kind == "reshape" or self.units in ("CPU_ONLY", "CPU_AND_GPU")
        return compute_plan.MLComputePlanDeviceUsage(cpu if falls else engine, [cpu, engine])

    def get_estimated_cost_for_mlprogram_operation(
        self, operation: compute_plan.MLModelStructureProgramOperation
    ) -> compute_plan.MLComputePlanCost:
        return compute_plan.MLComputePlanCost(0.01)


def structure(operation: Any) -> compute_plan.MLModelStructureProgramOperation:
    """What Core ML's compiler would tell of ``operation``."""
    kind = operation.type if operation.type == "const" else f"ios16.{operation.type}"
    outputs = [
        compute_plan.MLModelStructureProgramNamedValueType(
            output.name, compute_plan.MLModelStructureProgramValueType()
        )
        for output in operation.outputs
    ]
    return compute_plan.MLModelStructureProgramOperation({}, kind, outputs, [], None)


def install(monkeypatch: pytest.MonkeyPatch) -> type[Model]:
    """Put the stand-ins where coremltools keeps its extension; give that of the model."""
    monkeypatch.setattr(Model, "opened", [])
    for module in (model, compute_plan):
        monkeypatch.setattr(module, "_MLModelProxy", Model)
    monkeypatch.setattr(compute_plan, "_MLComputePlanProxy", Plan)
    for name in ("CPU", "GPU", "NeuralEngine"):
        monkeypatch.setattr(compute_device, f"_ML{name}ComputeDeviceProxy", Device)
    return Model
