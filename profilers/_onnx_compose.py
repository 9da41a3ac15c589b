"""Whole ONNX models stitched from pieces that were exported once: hundreds of networks in seconds.

A latency table times hundreds of networks made of a few hundred distinct blocks. Exporting
each network whole takes about a second; exporting each distinct block once and joining the pieces
as protobufs takes milliseconds, and ONNX Runtime optimises the result to the same graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import onnx
import torch
from torch import nn

from hwnas.profilers._onnx_graph import OPSET, onnx_graph
from hwnas.profilers._pieces import IMAGE, Modules, Shape, pieces
from hwnas.spaces import Block

_IR_VERSION = 8  # what belongs to opset 17


@dataclass(frozen=True)
class _Fragment:
    """A piece of a network as an ONNX graph; its inputs in the order of ``graph.input``."""

    graph: onnx.GraphProto
    output_shape: Shape

    @classmethod
    def of(cls, module: nn.Module, shapes: Sequence[Shape], what: str) -> _Fragment:
        """Export ``module`` at input ``shapes``. Raises ``ExportError`` naming ``what``."""
        model = onnx_graph(
            module,
            tuple(torch.zeros(shape) for shape in shapes),
            input_names=[f"in{i}" for i in range(len(shapes))],
            output_name="out",
            what=what,
        )
        output = model.graph.output[0].type.tensor_type.shape.dim
        return cls(model.graph, tuple(d.dim_value for d in output))


@dataclass
class _Pieces:
    """Fragments in the order in which they run, each with where its inputs come from.

    ``sources`` holds, for each input of a fragment, the position of the fragment that makes it.
    """

    image_shape: Shape
    fragments: list[_Fragment] = field(default_factory=list)
    sources: list[tuple[int, ...]] = field(default_factory=list)

    def shape(self, position: int) -> Shape:
        """The shape of what the fragment at ``position`` puts out."""
        return self.image_shape if position == IMAGE else self.fragments[position].output_shape

    def add(self, fragment: _Fragment, *sources: int) -> None:
        """Append ``fragment``."""
        self.fragments.append(fragment)
        self.sources.append(sources)

    def stitch(self) -> onnx.ModelProto:
        """One model, ``image`` to ``logits``; names and weights are each position's own."""
        model = onnx.ModelProto(ir_version=_IR_VERSION, producer_name="hwnas")
        model.opset_import.add(domain="", version=OPSET)
        graph = model.graph
        graph.name = "network"
        last = len(self.fragments) - 1
        names = {IMAGE: "image", **{i: f"{i}/out" for i in range(last)}, last: "logits"}
        for position, (fragment, sources) in enumerate(
            zip(self.fragments, self.sources, strict=True)
        ):
            inputs = (value.name for value in fragment.graph.input)
            renamed = dict(zip(inputs, (names[s] for s in sources), strict=True))
            renamed[fragment.graph.output[0].name] = names[position]
            _append(graph, fragment.graph, renamed, f"{position}/")
        float32 = onnx.TensorProto.FLOAT
        graph.input.append(onnx.helper.make_tensor_value_info("image", float32, self.image_shape))
        graph.output.append(onnx.helper.make_tensor_value_info("logits", float32, self.shape(last)))
        return model


def _append(
    graph: onnx.GraphProto, piece: onnx.GraphProto, renamed: dict[str, str], prefix: str
) -> None:
    """Copy the nodes and weights of ``piece`` behind ``graph``, every name of its own prefixed."""
    for node in piece.node:
        copy = graph.node.add()
        copy.CopyFrom(node)
        copy.name = prefix + node.name
        copy.input[:] = [renamed.get(n, prefix + n) if n else "" for n in node.input]
        copy.output[:] = [renamed.get(n, prefix + n) if n else "" for n in node.output]
    for tensor in piece.initializer:
        weights = graph.initializer.add()
        weights.CopyFrom(tensor)
        weights.name = prefix + tensor.name


class Composer:
    """Models of ``image_size``-pixel networks with random weights, for timing.

    Pieces are kept from one network to the next, by block and input shape. A block that comes twice
    in a network has its weights twice, so that as much memory is read as by a deployed network.
    """

    def __init__(self, *, image_size: int, seed: int = 0):
        self.module = Modules(seed)
        self._image_shape = (1, 3, image_size, image_size)
        self._fragments: dict[tuple[Block, tuple[Shape, ...]], _Fragment] = {}

    def compose(self, blocks: Sequence[Block]) -> onnx.ModelProto:
        """The model of ``blocks`` in the order ``Network`` runs them: image in, logits out.

        Raises ``ExportError`` naming the block that cannot take what comes before it.
        """
        joined = _Pieces(self._image_shape)
        for block, sources in pieces(blocks):
            shapes = tuple(joined.shape(source) for source in sources)
            if (block, shapes) not in self._fragments:
                module = self.module.part(block, len(sources))
                what = f"{block.key} with input {' and '.join(map(str, shapes))}"
                self._fragments[block, shapes] = _Fragment.of(module, shapes, what)
            joined.add(self._fragments[block, shapes], *sources)
        return joined.stitch()
