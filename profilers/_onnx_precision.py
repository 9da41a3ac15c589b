"""A fp32 ONNX model in fp16 or int8, by ONNX Runtime's own tools."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.onnx_model import ONNXModel
from onnxruntime.quantization.quant_utils import add_pre_process_metadata

from hwnas.errors import ExportError
from hwnas.profilers._onnx_graph import first_line

Images = npt.NDArray[np.float32]

NUM_CALIBRATION_IMAGES = 4
"""As many as ``noise_images`` gives: ranges of random networks on random images vary little."""

INT8_SCHEME = (
    f"static QDQ of Conv, Gemm and MatMul by weights; u8 activations, s8 weights per channel; "
    f"{NUM_CALIBRATION_IMAGES} calibration images"
)
"""How ``to_int8`` quantises, for a table's provenance."""

_QUANTIZED = ("Conv", "Gemm", "MatMul")


def to_fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    """``model``, which is used up, in fp16; what goes in and comes out stays fp32.

    Raises ``ExportError`` where the converter refuses.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16

    try:
        converted: onnx.ModelProto = convert_float_to_float16(model, keep_io_types=True)
    except (RuntimeError, ValueError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"cannot convert the network to fp16: {first_line(error)}") from error
    ONNXModel(converted).topological_sort()  # the casts of what goes in were put last
    return converted


def to_int8(model: onnx.ModelProto, images: Images) -> onnx.ModelProto:
    """``model``, which is used up, in int8; ranges are taken from ``images`` [N, 3, H, W].

    What goes in and comes out stays fp32. Products of two activations (of attention) stay fp32 too:
    quantised, ONNX Runtime 1.31 gave logits wrong by two of their standard deviations once it had
    optimised the graph, right ones before that, and ran at half the speed. Element-wise operators
    stay fp32 between them for the same speed. u8 activations are what x86 kernels want: s8 took
    1.5 times as long.

    Raises ``ExportError`` where the quantiser refuses.
    """
    add_pre_process_metadata(model)  # BatchNorm is folded and shapes are static: nothing is left
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "int8.onnx"
        try:
            quantize_static(
                model,
                path,
                _Calibration(model.graph.input[0].name, images),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(_QUANTIZED),
                nodes_to_exclude=_products_of_activations(model.graph),
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
        except (RuntimeError, ValueError, onnx.shape_inference.InferenceError) as error:
            raise ExportError(f"cannot quantise the network: {first_line(error)}") from error
        return onnx.load(path)


def noise_images(shape: Sequence[int], *, num: int = NUM_CALIBRATION_IMAGES) -> Images:
    """Standard normal images, the same each time; ``shape`` is that of one, [1, 3, H, W]."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((num, *shape[1:]), dtype=np.float32)


class _Calibration(CalibrationDataReader):  # type: ignore[misc]
    """Feeds the calibration images one by one."""

    def __init__(self, name: str, images: Images):
        self._feeds: Iterator[dict[str, Images]] = ({name: image[None]} for image in images)

    def get_next(self) -> dict[str, Images] | None:
        return next(self._feeds, None)


def _products_of_activations(graph: onnx.GraphProto) -> list[str]:
    """The names of the MatMul nodes that multiply no weights."""
    constant = {tensor.name for tensor in graph.initializer}
    constant |= {node.output[0] for node in graph.node if node.op_type == "Constant"}
    return [n.name for n in graph.node if n.op_type == "MatMul" and constant.isdisjoint(n.input)]
