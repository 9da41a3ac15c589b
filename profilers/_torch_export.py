"""torch: an exported program (``.pt2``), which runs without the code of hwnas."""

from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from hwnas.errors import ExportError
from hwnas.files import writing
from hwnas.profilers._export import MAX_ERROR, Deployment, check_error
from hwnas.profilers._onnx_graph import first_line
from hwnas.supernet import Network

METADATA_FILE = "hwnas.json"
"""Read it with ``torch.export.load(path, extra_files={"hwnas.json": ""})``."""


def write(network: Network, path: Path, deployment: Deployment) -> dict[str, Any]:
    """Write ``network`` to ``path``; return ``max_abs_error`` and ``operators``."""
    image = torch.randn(deployment.input_shape, generator=torch.Generator().manual_seed(0))
    try:
        program = torch.export.export(network, (image,))
    except RuntimeError as error:
        raise ExportError(f"torch.export refused the network: {first_line(error)}") from error
    file = io.BytesIO()
    metadata = json.dumps(deployment.description())
    torch.export.save(program, file, extra_files={METADATA_FILE: metadata})
    file.seek(0)
    with torch.no_grad():
        logits = torch.export.load(file).module()(image)
        difference = float((logits - network(image)).abs().max())
    check_error(difference, MAX_ERROR, path)
    with writing(path) as temporary:
        temporary.write_bytes(file.getvalue())
    targets = (str(node.target) for node in program.graph.nodes if node.op == "call_function")
    counts = Counter(target for target in targets if target.startswith("aten."))
    return {"max_abs_error": difference, "operators": dict(counts.most_common())}
