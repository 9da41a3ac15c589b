"""A torch module as a Core ML program: the one call into coremltools' converter."""

from __future__ import annotations

import gc
import io
import logging
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import nn

from hwnas.errors import ExportError, StorageError
from hwnas.profilers._onnx_graph import first_line

TARGET = "iOS16"
"""The minimum deployment target; on a Mac, macOS 13."""
_PRECISIONS = {"fp16": "FLOAT16", "fp32": "FLOAT32"}
_DISK_MARKS = ("filesystem error", "FileWriter")  # of what its C++ side says


def load_coremltools() -> Any:
    """Import coremltools without its warnings about the versions of other packages."""
    logging.getLogger("coremltools").setLevel(logging.ERROR)
    import coremltools

    return coremltools


def ml_program(
    module: nn.Module,
    inputs: Sequence[Any],
    outputs: Sequence[Any] | None,
    *,
    precision: str,
    package: Path,
    classifier: Any = None,
) -> Any:
    """Convert ``module``, in evaluation mode; the model's own files are written to ``package``.

    ``inputs`` and ``outputs`` are coremltools' ``TensorType``; ``outputs`` is None for a
    ``classifier``, its ``ClassifierConfig``. Gives an ``MLModel`` that is not loaded.
    """
    ct = load_coremltools()
    examples = tuple(torch.zeros(tuple(i.shape.to_list())) for i in inputs)
    program = torch.export.export(module, examples)
    gc.freeze()  # the converter collects garbage: a third of a piece's time goes to torch's own
    try:
        return ct.convert(
            program.run_decompositions({}),
            convert_to="mlprogram",
            minimum_deployment_target=ct.target[TARGET],
            compute_precision=ct.precision[_PRECISIONS[precision]],
            inputs=list(inputs),
            outputs=None if outputs is None else list(outputs),
            classifier_config=classifier,
            skip_model_load=True,
            package_dir=str(package),
        )
    finally:
        gc.unfreeze()


def network_program(
    network: nn.Module,
    input_shape: tuple[int, ...],
    *,
    precision: str,
    package: Path,
    class_names: Sequence[str] | None = None,
) -> Any:
    """``ml_program`` of a network: ``image`` in, ``logits`` out, both float32, or a classifier."""
    ct = load_coremltools()
    return ml_program(
        network,
        [ct.TensorType(name="image", shape=input_shape, dtype=np.float32)],
        [ct.TensorType(name="logits", dtype=np.float32)] if class_names is None else None,
        precision=precision,
        package=package,
        classifier=None if class_names is None else ct.ClassifierConfig(list(class_names)),
    )


def main_block(spec: Any) -> Any:
    """The operations and outputs of the one function of a model's ``spec``."""
    function = spec.mlProgram.functions["main"]
    return function.block_specializations[function.opset]


@contextmanager
def converting(what: str, path: Path) -> Iterator[None]:
    """Silence coremltools, and give what it raises on its way from ``what`` to ``path`` as ours.

    Raises ``StorageError`` where its C++ side could not write, ``ExportError`` for all but OSError.
    """
    nowhere = io.StringIO()
    try:
        with warnings.catch_warnings(), redirect_stdout(nowhere), redirect_stderr(nowhere):
            warnings.simplefilter("ignore")
            yield
    except (OSError, ExportError):
        raise
    except Exception as error:  # coremltools raises many kinds
        if any(mark in str(error) for mark in _DISK_MARKS):
            reason = f"{first_line(error)} (is a disk full?)"
            raise StorageError(f"cannot write {path}: {reason}") from error
        raise ExportError(f"Core ML refused {what}: {first_line(error)}") from error


@contextmanager
def writing_package(path: Path) -> Iterator[Path]:
    """Give a path for a folder; it takes the place of ``path`` when the block ends well.

    What else is written beside it is removed. Raises ``StorageError`` as ``hwnas.files.writing``
    does, of which this is the form for folders.
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
