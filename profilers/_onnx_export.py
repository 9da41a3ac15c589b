"""ONNX: checked by onnx's checker, run in ONNX Runtime, compared with torch."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch

from hwnas.errors import ExportError
from hwnas.files import writing
from hwnas.profilers._export import MAX_ERROR, Deployment, check_error
from hwnas.profilers._onnx_graph import OPSET, first_line, onnx_graph
from hwnas.profilers._onnx_precision import Images, noise_images, to_fp16, to_int8
from hwnas.supernet import Network

_NUM_COMPARED = 3
_MAX_ERROR_FP16 = 0.02  # of the greatest logit, or of 1: as for Core ML
_MAX_ERROR_INT8 = 1.0  # standard deviation of the logits: more is another network


def write(network: Network, path: Path, deployment: Deployment) -> dict[str, Any]:
    """Write ``network`` to ``path``; return ``opset``, ``max_abs_error`` and ``operators``.

    fp16 and int8 are within: the input and the output stay fp32.
    """
    image = torch.zeros(deployment.input_shape)
    model = onnx_graph(
        network, (image,), input_names=["image"], output_name="logits", what="the network"
    )
    noise = noise_images(deployment.input_shape, num=_NUM_COMPARED)
    images = noise if deployment.calibration is None else deployment.calibration
    if deployment.precision == "fp16":
        model = to_fp16(model)
    elif deployment.precision == "int8":
        model = to_int8(model, images)
    onnx.helper.set_model_props(model, deployment.metadata())
    data = model.SerializeToString()
    try:
        onnx.checker.check_model(data, full_check=True)
        found, expected = _logits(network, data, images[:_NUM_COMPARED])
    except Exception as cause:  # the errors of the two libraries share no base
        raise ExportError(f"{path} was not written: {first_line(cause)}") from cause
    error = float(np.abs(found - expected).max())
    check_error(error, _limit(deployment.precision, expected), path)
    with writing(path) as temporary:
        temporary.write_bytes(data)
    counts = Counter(node.op_type for node in model.graph.node)
    return {"opset": OPSET, "max_abs_error": error, "operators": dict(counts.most_common())}


def _limit(precision: str, expected: Images) -> float:
    """The greatest difference from the logits that torch gives that is still the same network."""
    if precision == "fp16":
        return _MAX_ERROR_FP16 * max(1.0, float(np.abs(expected).max()))
    return MAX_ERROR if precision == "fp32" else _MAX_ERROR_INT8 * float(expected.std())


def _logits(network: Network, data: bytes, images: Images) -> tuple[Images, Images]:
    """The logits [N, classes] of ``images`` by ONNX Runtime, and by torch."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    found = [session.run(["logits"], {"image": image[None]})[0] for image in images]
    with torch.no_grad():
        expected = [network(torch.from_numpy(image[None])).numpy() for image in images]
    return np.concatenate(found), np.concatenate(expected)
