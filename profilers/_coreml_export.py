"""Core ML: an ML program in an ``.mlpackage``, checked by reading it back.

Predicting needs macOS; there the predictions are compared with torch as well. With class names the
package is a classifier: ``classLabel`` and the probabilities ``classLabel_probs`` take the place of
``logits``.
"""

from __future__ import annotations

import io
import logging
import platform
import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hwnas.errors import ExportError, StorageError
from hwnas.profilers._export import MAX_ERROR, STEPS, Deployment, check_error
from hwnas.profilers._onnx_graph import first_line
from hwnas.supernet import Network

_TARGET = "iOS16"
_MAX_ERROR_FP16 = 0.02  # of the greatest output, or of 1
_DISK_MARKS = ("filesystem error", "FileWriter")  # of what its C++ side says
_LAYERS = {"conv": nn.Conv2d, "linear": nn.Linear, "layer_norm": nn.LayerNorm}


def write(network: Network, path: Path, deployment: Deployment) -> dict[str, Any]:
    """Write ``network`` to ``path``: ``target``, ``inputs``, ``outputs``, ``operators``.

    ``max_abs_error`` is None where nothing could be predicted, that is, elsewhere than on macOS.
    """
    logging.getLogger("coremltools").setLevel(logging.ERROR)
    module = network if deployment.class_names is None else nn.Sequential(network, nn.Softmax(1))
    module.eval()
    with _writing_package(path) as package:
        try:
            with _quiet():
                _convert(module, deployment, package)
        except OSError:
            raise
        except Exception as error:  # coremltools raises many kinds
            if any(mark in str(error) for mark in _DISK_MARKS):
                reason = f"{first_line(error)} (is a disk full?)"
                raise StorageError(f"cannot write {path}: {reason}") from error
            raise ExportError(f"Core ML refused the network: {first_line(error)}") from error
        detail = _read_back(package, module, deployment)
        max_abs_error = None
        if platform.system() == "Darwin":  # pragma: no cover - predicting needs macOS
            import coremltools as ct

            units = ct.ComputeUnit.CPU_ONLY
            model = ct.models.MLModel(str(package), compute_units=units)
            max_abs_error = compare(model.predict, module, deployment, path)
    return {"target": _TARGET, "max_abs_error": max_abs_error, **detail}


def _convert(module: nn.Module, deployment: Deployment, package: Path) -> None:
    """Convert ``module`` by way of torch.export and save it, with its metadata, as ``package``."""
    import coremltools as ct

    program = torch.export.export(module, (torch.zeros(deployment.input_shape),))
    names = deployment.class_names
    model = ct.convert(
        program.run_decompositions({}),
        convert_to="mlprogram",
        minimum_deployment_target=ct.target[_TARGET],
        compute_precision=ct.precision[
            {"fp16": "FLOAT16", "fp32": "FLOAT32"}[deployment.precision]
        ],
        inputs=[ct.TensorType(name="image", shape=deployment.input_shape, dtype=np.float32)],
        outputs=[ct.TensorType(name="logits", dtype=np.float32)] if names is None else None,
        classifier_config=None if names is None else ct.ClassifierConfig(list(names)),
        skip_model_load=True,
        package_dir=str(package.with_name("converted.mlpackage")),
    )
    for key, text in deployment.metadata().items():
        model.user_defined_metadata[key] = text
    model.input_description["image"] = f"[1, 3, S, S]: {STEPS}"
    model.save(str(package))


def _read_back(package: Path, module: nn.Module, deployment: Deployment) -> dict[str, Any]:
    """What the package says of itself. Raises ``ExportError`` where that is not ``module``."""
    import coremltools as ct

    spec = ct.utils.load_spec(str(package))
    inputs = {i.name: _shape(i) for i in spec.description.input}
    outputs = {o.name: _shape(o) for o in spec.description.output}
    function = spec.mlProgram.functions["main"]
    operations = function.block_specializations[function.opset].operations
    counts = Counter(o.type for o in operations if o.type != "const")
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


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep coremltools' progress bars and the warnings about its own code to itself."""
    nowhere = io.StringIO()
    with warnings.catch_warnings(), redirect_stdout(nowhere), redirect_stderr(nowhere):
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _writing_package(path: Path) -> Iterator[Path]:
    """Give a path for a folder; it takes the place of ``path`` when the block ends well.

    Raises ``StorageError`` as ``hwnas.files.writing`` does, of which this is the form for folders.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            package, before = Path(folder, path.name), Path(folder, "before")
            yield package
            if path.exists():
                path.rename(before)
            package.rename(path)
    except shutil.Error as error:  # of a copied tree: a list of (from, to, reason)
        raise StorageError(f"cannot write {path}: {error.args[0][0][2]}") from error
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from error
