"""Whole ML programs stitched from pieces that were converted once.

Converting a network takes some five seconds, most of it in torch.export and in coremltools' hundred
passes; converting a piece takes half a second, and joining the pieces of a network 0.02. The result
has the operators of the network converted whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from torch import nn

from hwnas.profilers._coreml_program import (
    converting,
    load_coremltools,
    main_block,
    ml_program,
    writing_package,
)
from hwnas.profilers._pieces import IMAGE, Modules, Shape, pieces
from hwnas.spaces import Block

_WEIGHTS = "weight.bin"
_DTYPES: dict[str, type[np.floating[Any]]] = {"fp16": np.float16, "fp32": np.float32}


class _Input(NamedTuple):
    """What a piece is given: the image in float32, or numbers of the program's own precision."""

    shape: Shape
    dtype: type[np.floating[Any]]


@dataclass(frozen=True)
class _Fragment:
    """A piece of a network as an ML program; its inputs in the order of its description."""

    spec: Any
    """coremltools' ``Model`` message."""
    weights: dict[int, npt.NDArray[Any]]
    """By the offset at which ``spec`` looks for them: float32, or float16 as its bits in uint16."""

    @property
    def output_shape(self) -> Shape:
        shape: Sequence[int] = self.spec.description.output[0].type.multiArrayType.shape
        return tuple(shape)


class Composer:
    """ML programs of ``image_size``-pixel networks with random weights, for timing.

    Pieces are kept from one network to the next, by block and inputs. A block that comes twice in a
    network has its weights twice, so that as much memory is read as by a deployed network.
    """

    def __init__(self, *, image_size: int, precision: str, seed: int = 0):
        self.module = Modules(seed)
        self._image_shape = (1, 3, image_size, image_size)
        self._precision = precision
        self._fragments: dict[tuple[Block | None, tuple[_Input, ...]], _Fragment] = {}

    def write(self, blocks: Sequence[Block], path: Path) -> None:
        """Write the network of ``blocks`` as a package: ``image`` in, ``logits`` out, in float32.

        Raises ``ExportError`` naming the block that cannot take what comes before it.
        """
        found = self._fragments_of(blocks)
        with writing_package(path) as package, converting("the network", path):
            weights = package.with_name("weights")
            weights.mkdir()
            model = _join(found, weights / _WEIGHTS)
            load_coremltools().utils.save_spec(model, str(package), weights_dir=str(weights))

    def _fragments_of(self, blocks: Sequence[Block]) -> list[tuple[_Fragment, tuple[int, ...]]]:
        """The fragments of a network and their sources; in fp16 the last one casts to float32."""
        parts: list[tuple[Block | None, tuple[int, ...]]] = [*pieces(blocks)]
        if self._precision == "fp16":
            parts.append((None, (len(parts) - 1,)))
        found: list[tuple[_Fragment, tuple[int, ...]]] = []
        for block, sources in parts:
            inputs = tuple(
                _Input(self._image_shape, np.float32)
                if source == IMAGE
                else _Input(found[source][0].output_shape, _DTYPES[self._precision])
                for source in sources
            )
            if (block, inputs) not in self._fragments:
                self._fragments[block, inputs] = self._convert(block, inputs)
            found.append((self._fragments[block, inputs], sources))
        return found

    def _convert(self, block: Block | None, inputs: tuple[_Input, ...]) -> _Fragment:
        """Convert the piece of ``block`` that has these inputs; without a block, the last cast."""
        ct, inner = load_coremltools(), _DTYPES[self._precision]
        shapes = " and ".join(str(given.shape) for given in inputs)
        what = f"{block.key if block else 'the output'} with input {shapes}"
        with TemporaryDirectory() as folder, converting(what, Path(folder)):
            model = ml_program(
                self.module.part(block, len(inputs)) if block else nn.Identity(),
                [
                    ct.TensorType(name=f"in{i}", shape=given.shape, dtype=given.dtype)
                    for i, given in enumerate(inputs)
                ],
                [ct.TensorType(name="out", dtype=inner if block else np.float32)],
                precision=self._precision,
                package=Path(folder, "piece.mlpackage"),
            )
            spec = model.get_spec()
            return _Fragment(spec, _read_weights(spec, Path(model.weights_dir, _WEIGHTS)))


def _join(fragments: Sequence[tuple[_Fragment, tuple[int, ...]]], weights: Path) -> Any:
    """The model of ``fragments``; their weights are written to ``weights``."""
    from coremltools.libmilstoragepython import _BlobStorageWriter

    last = len(fragments) - 1
    model = _without_operations(fragments[0][0].spec, fragments[last][0].spec)
    operations, writer = main_block(model).operations, _BlobStorageWriter(str(weights))
    names = {IMAGE: "image", **{i: f"p{i}" for i in range(last)}, last: "logits"}
    for position, (fragment, sources) in enumerate(fragments):
        description = fragment.spec.description
        renamed = {i.name: names[s] for i, s in zip(description.input, sources, strict=True)}
        renamed[description.output[0].name] = names[position]
        for operation in main_block(fragment.spec).operations:
            copy = operations.add()
            copy.CopyFrom(operation)
            _rename(copy, renamed, f"p{position}_")
            if _in_file(copy):
                blob = copy.attributes["val"].blobFileValue
                blob.offset = _write(writer, fragment.weights[blob.offset])
    return model


def _without_operations(first: Any, last: Any) -> Any:
    """A model that takes what the model ``first`` takes and gives what ``last`` gives."""
    model = type(first)(specificationVersion=first.specificationVersion)
    (image,), (logits,) = first.description.input, last.description.output
    model.description.input.add().CopyFrom(image)
    model.description.output.add().CopyFrom(logits)
    model.description.input[0].name, model.description.output[0].name = "image", "logits"
    model.mlProgram.version = first.mlProgram.version
    function, given = model.mlProgram.functions["main"], first.mlProgram.functions["main"]
    function.opset = given.opset
    function.inputs.add().CopyFrom(given.inputs[0])
    function.inputs[0].name = "image"
    function.block_specializations[function.opset].outputs.append("logits")
    return model


def _rename(operation: Any, renamed: Mapping[str, str], prefix: str) -> None:
    """Give what ``operation`` reads and writes, and itself, its name in the whole program."""

    def new(name: str) -> str:
        return renamed.get(name, prefix + name)

    for argument in operation.inputs.values():
        for binding in argument.arguments:
            if binding.name:  # the others hold a value
                binding.name = new(binding.name)
    for result in operation.outputs:
        result.name = new(result.name)
    label = operation.attributes["name"].immediateValue.tensor.strings
    label.values[:] = map(new, label.values)


def _read_weights(spec: Any, path: Path) -> dict[int, npt.NDArray[Any]]:
    """The weights that ``spec`` keeps in the file ``path``, by offset."""
    from coremltools.libmilstoragepython import _BlobStorageReader

    reader, kinds = _BlobStorageReader(str(path)), load_coremltools().proto.MIL_pb2.DataType
    read = {kinds.FLOAT16: reader.read_fp16_data, kinds.FLOAT32: reader.read_float_data}
    weights = {}
    for operation in filter(_in_file, main_block(spec).operations):
        value = operation.attributes["val"]
        offset = value.blobFileValue.offset
        weights[offset] = np.array(read[value.type.tensorType.dataType](offset))
    return weights


def _in_file(operation: Any) -> bool:
    """Whether ``operation`` is a constant that is kept in a file of weights."""
    # Reading a missing key of a protobuf map adds it: only a constant has this one.
    return operation.type == "const" and bool(operation.attributes["val"].HasField("blobFileValue"))


def _write(writer: Any, weights: npt.NDArray[Any]) -> int:
    """Append ``weights`` to the file of ``writer``; give their offset."""
    write = writer.write_fp16_data if weights.dtype == np.uint16 else writer.write_float_data
    offset: int = write(weights)
    return offset
