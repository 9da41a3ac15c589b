"""Writing one network for a runtime, and checking that what was written is that network."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hwnas import __version__
from hwnas.errors import ExportError, UsageError, unknown_name

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from hwnas.supernet import Network

MAX_ERROR = 1e-4
"""The greatest difference from torch, in any logit, that a file in fp32 may have."""

STEPS = "RGB pixels scaled to [0, 1], minus mean, divided by std"


@dataclass(frozen=True)
class Preprocessing:
    """What makes a network's input out of an RGB image; pixels are in [0, 1] before ``mean``."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    image_size: int
    """Pixels on a side."""


@dataclass(frozen=True)
class Deployment:
    """What a format's writer needs beside the network."""

    precision: str
    preprocessing: Preprocessing
    class_names: tuple[str, ...] | None
    calibration: npt.NDArray[np.float32] | None = None
    """Network inputs [N, 3, S, S] that int8 ranges are taken from; ``None``: random ones."""

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        """One image, channels first."""
        return (1, 3, self.preprocessing.image_size, self.preprocessing.image_size)

    def description(self) -> dict[str, object]:
        """What a user of the file needs to know, JSON-able."""
        how = self.preprocessing
        values: dict[str, object] = {
            "version": __version__,
            "preprocessing": STEPS,
            "image_size": how.image_size,
            "mean": how.mean,
            "std": how.std,
        }
        return values if self.class_names is None else {**values, "class_names": self.class_names}

    def metadata(self) -> dict[str, str]:
        """The description for formats that hold text alone: each value but text as JSON."""
        return {
            f"hwnas.{name}": value if isinstance(value, str) else json.dumps(value)
            for name, value in self.description().items()
        }


@dataclass(frozen=True)
class ExportReport:
    """What was written, and what came out when it was checked."""

    path: Path
    format: str
    detail: dict[str, Any]
    """JSON-able: ``precision``, ``size_bytes``, and what the format says (``max_abs_error``, …)."""


@dataclass(frozen=True)
class Format:
    """A file format: how its names end, its precisions (the first is the default), its writer."""

    suffix: str
    precisions: tuple[str, ...]
    writer: str
    """``module:function``; takes the network, the path and a ``Deployment``, returns the detail."""


FORMATS = {
    "onnx": Format(".onnx", ("fp32", "fp16", "int8"), "hwnas.profilers._onnx_export:write"),
    "coreml": Format(".mlpackage", ("fp16", "fp32"), "hwnas.profilers._coreml_export:write"),
    "torch": Format(".pt2", ("fp32",), "hwnas.profilers._torch_export:write"),
}


def export_network(
    network: Network,
    path: Path,
    *,
    format: str,
    preprocessing: Preprocessing,
    precision: str | None = None,
    class_names: tuple[str, ...] | None = None,
    calibration: npt.NDArray[np.float32] | None = None,
) -> ExportReport:
    """Write ``network`` in evaluation mode to ``path``, for a batch of one image.

    The input, [1, 3, S, S], is called ``image`` and the output, [1, classes], ``logits`` where the
    format has names. int8 takes its ranges from ``calibration``, network inputs [N, 3, S, S];
    random ones are for random weights only. ``network`` stays as it is. What stood at ``path`` is
    replaced once the new file has passed its check.

    Raises:
        UsageError: for an unknown format, a precision it lacks, a path that does not end in its
            suffix, or class names that are not as many as the classes.
        ExportError: where the converter refuses, or the numbers are not those of torch.
        StorageError: where ``path`` cannot be written.
    """
    import torch

    chosen = check_request(format, precision, path)
    precision = precision or chosen.precisions[0]
    module, _, function = chosen.writer.partition(":")
    write: Callable[[Network, Path, Deployment], dict[str, Any]]
    write = getattr(import_module(module), function)
    frozen = copy.deepcopy(network).cpu().eval().requires_grad_(False)
    deployment = Deployment(precision, preprocessing, class_names, calibration)
    num_classes = frozen(torch.zeros(deployment.input_shape)).shape[1]
    if class_names is not None and len(class_names) != num_classes:
        raise UsageError(f"{len(class_names)} class names for a network of {num_classes} classes")
    detail = write(frozen, path, deployment)
    return ExportReport(
        path, format, {"precision": precision, "size_bytes": _size_bytes(path), **detail}
    )


def check_request(format: str, precision: str | None, path: Path) -> Format:
    """The format called ``format``; raises ``UsageError`` where the request does not suit it."""
    if format not in FORMATS:
        raise UsageError(unknown_name("format", format, FORMATS))
    chosen = FORMATS[format]
    if precision is not None and precision not in chosen.precisions:
        known = " or ".join(chosen.precisions)
        raise UsageError(f"{format} is written in {known}; got precision {precision!r}")
    if path.suffix != chosen.suffix:
        raise UsageError(f"the name of {format} output ends in {chosen.suffix}; got {path}")
    return chosen


def check_error(error: float, limit: float, path: Path) -> None:
    """Raise ``ExportError`` where ``error``, a difference from torch, is not below ``limit``."""
    if not error < limit:  # NaN is not
        raise ExportError(
            f"{path} was not written: its numbers differ from torch's by {error:.2g}, where less "
            f"than {limit:.2g} was expected; are the network's weights finite?"
        )


def _size_bytes(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
