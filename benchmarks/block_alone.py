"""A runtime that also exports a block alone, on an input of the shape it has inside a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from hwnas.files import writing
from hwnas.profilers import Run, Runtime
from hwnas.profilers._onnx_graph import onnx_graph
from hwnas.profilers._pieces import Modules
from hwnas.spaces import Block
from hwnas.supernet import Hybrid, Network


class BlocksAlone(Runtime):
    """ONNX Runtime as it is, but a network of one block that reads no image is exported alone."""

    name = "blocks-alone"
    suffix = ".onnx"
    options: Mapping[str, tuple[str, ...] | int] = {}
    environment: Mapping[str, str] = {}

    def __init__(self, inner: Runtime):
        super().__init__()
        self._inner, self._modules = inner, Modules(0)
        self.environment = inner.environment

    def describe(self, threads: int) -> dict[str, str | int]:
        """As the runtime itself."""
        return self._inner.describe(threads)

    def export(self, network: Network | Sequence[Block], path: Path, *, image_size: int) -> None:
        """Write a network, or the module of a single block."""
        if isinstance(network, Network) or len(network) > 1 or network[0].kind == "conv":
            self._inner.export(network, path, image_size=image_size)
            return
        module = self._modules(network[0])
        model = onnx_graph(
            _Through(module) if isinstance(module, Hybrid) else module,
            (torch.zeros(_input_shape(network[0])),),
            input_names=["image"],
            output_name="logits",
            what=network[0].key,
        )
        with writing(path) as temporary:
            temporary.write_bytes(model.SerializeToString())

    def load(self, path: Path, threads: int) -> Run:
        """As the runtime itself."""
        return self._inner.load(path, threads)


class _Through(nn.Module):
    """Into a transformer stage and out of it, with no layer inside."""

    def __init__(self, hybrid: Hybrid):
        super().__init__()
        self.hybrid = hybrid

    def forward(self, x: Tensor) -> Tensor:
        return self.hybrid.leave(self.hybrid.enter(x), x)


def _input_shape(block: Block) -> tuple[int, ...]:
    if block.kind == "vit_layer":
        return (block["pixels"], block["tokens"], block["d"])
    return (1, block["c" if block.kind == "hybrid" else "in"], block["res"], block["res"])
