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
from hwnas.supernet import Network

_NUM_COMPARED = 3


def write(network: Network, path: Path, deployment: Deployment) -> dict[str, Any]:
    """Write ``network`` to ``path``; return ``opset``, ``max_abs_error`` and ``operators``."""
    image = torch.zeros(deployment.input_shape)
    model = onnx_graph(
        network, (image,), input_names=["image"], output_name="logits", what="the network"
    )
    onnx.helper.set_model_props(model, deployment.metadata())
    data = model.SerializeToString()
    try:
        onnx.checker.check_model(data, full_check=True)
        error = _max_abs_error(network, data, deployment.input_shape)
    except Exception as cause:  # the errors of the two libraries share no base
        raise ExportError(f"{path} was not written: {first_line(cause)}") from cause
    check_error(error, MAX_ERROR, path)
    with writing(path) as temporary:
        temporary.write_bytes(data)
    counts = Counter(node.op_type for node in model.graph.node)
    return {"opset": OPSET, "max_abs_error": error, "operators": dict(counts.most_common())}


def _max_abs_error(network: Network, data: bytes, shape: tuple[int, ...]) -> float:
    """The greatest difference in a logit between ONNX Runtime and torch, over random images."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    errors = []
    for _ in range(_NUM_COMPARED):
        image = rng.standard_normal(shape, dtype=np.float32)
        (logits,) = session.run(["logits"], {"image": image})
        with torch.no_grad():
            expected = network(torch.from_numpy(image)).numpy()
        errors.append(np.abs(logits - expected).max())
    return float(np.max(errors))
