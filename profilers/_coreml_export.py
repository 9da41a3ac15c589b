"""Core ML: an ML program in an ``.mlpackage``, checked by reading it back.

Predicting needs macOS; there the predictions are compared with torch as well. With class names the
package is a classifier: ``classLabel`` and the probabilities ``classLabel_probs`` take the place of
``logits``.
"""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hwnas.errors import ExportError
from hwnas.profilers._coreml_program import (
    TARGET,
    converting,
    load_coremltools,
    main_block,
    network_program,
    writing_package,
)
from hwnas.profilers._export import MAX_ERROR, STEPS, Deployment, check_error
from hwnas.supernet import Network

_MAX_ERROR_FP16 = 0.02  # of the greatest output, or of 1
_LAYERS = {"conv": nn.Conv2d, "linear": nn.Linear, "layer_norm": nn.LayerNorm}


def write(network: Network, path: Path, deployment: Deployment) -> dict[str, Any]:
    """Write ``network`` to ``path``: ``target``, ``inputs``, ``outputs``, ``operators``.

    ``max_abs_error`` is None where nothing could be predicted, that is, elsewhere than on macOS.
    """
    module = network if deployment.class_names is None else nn.Sequential(network, nn.Softmax(1))
    module.eval()
    with writing_package(path) as package:
        with converting("the network", path):
            _convert(module, deployment, package)
        detail = _read_back(package, module, deployment)
        max_abs_error = None
        if platform.system() == "Darwin":  # pragma: no cover - predicting needs macOS
            ct = load_coremltools()
            units = ct.ComputeUnit.CPU_ONLY
            model = ct.models.MLModel(str(package), compute_units=units)
            max_abs_error = compare(model.predict, module, deployment, path)
    return {"target": TARGET, "max_abs_error": max_abs_error, **detail}


def _convert(module: nn.Module, deployment: Deployment, package: Path) -> None:
    """Convert ``module`` and save it, with its metadata, as ``package``."""
    model = network_program(
        module,
        deployment.input_shape,
        precision=deployment.precision,
        package=package.with_name("converted.mlpackage"),
        class_names=deployment.class_names,
    )
    for key, text in deployment.metadata().items():
        model.user_defined_metadata[key] = text
    model.input_description["image"] = f"[1, 3, S, S]: {STEPS}"
    model.save(str(package))


def _read_back(package: Path, module: nn.Module, deployment: Deployment) -> dict[str, Any]:
    """What the package says of itself. Raises ``ExportError`` where that is not ``module``."""
    spec = load_coremltools().utils.load_spec(str(package))
    inputs = {i.name: _shape(i) for i in spec.description.input}
    outputs = {o.name: _shape(o) for o in spec.description.output}
    counts = Counter(o.type for o in main_block(spec).operations if o.type != "const")
    classifier = deployment.class_names is not None
    _same("inputs", inputs, {"image": list(deployment.input_shape)})
    _same("outputs", set(outputs), {"classLabel", "classLabel_probs"} if classifier else {"logits"})
    for name, kind in _LAYERS.items():
        _same(f"{name} operators", counts[name], sum(isinstance(m, kind) for m in module.modules()))
    return {"inputs": inputs, "outputs": outputs, "operators": dict(counts.most_common())}


def _shape(feature: Any) -> list[int] | str:
    kind = feature.type.WhichOneof("Type")
    return list(feature.type.multiArrayType.shape) if kind == "multiArrayType" else str(kind)


def _same(what: str, found: object, expected: object) -> None:
    if found != expected:
        raise ExportError(f"the Core ML package has {what} {found}, where {expected} was expected")


def compare(
    predict: Callable[[dict[str, Any]], Mapping[str, Any]],
    module: nn.Module,
    deployment: Deployment,
    path: Path,
) -> float:
    """The greatest difference of ``predict`` from torch on a random image.

    ``predict`` is that of a Core ML model: features by name in, features by name out.
    Raises ``ExportError`` where the difference is not that of rounding.
    """
    image = torch.randn(deployment.input_shape, generator=torch.Generator().manual_seed(0))
    features = predict({"image": image.numpy()})
    names = deployment.class_names
    if names is None:
        found = np.asarray(features["logits"])
    else:
        found = np.array([[features["classLabel_probs"][name] for name in names]])
    with torch.no_grad():
        expected: Tensor = module(image)
    error = float(np.abs(found - expected.numpy()).max())
    scale = max(1.0, float(expected.abs().max()))
    check_error(
        error, MAX_ERROR if deployment.precision == "fp32" else _MAX_ERROR_FP16 * scale, path
    )
    return error
