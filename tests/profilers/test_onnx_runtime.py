from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from hwnas.errors import DeviceError, ExportError, UsageError
from hwnas.profilers import _onnx_precision, load_runtime
from hwnas.profilers._onnx_compose import Composer
from hwnas.spaces import Block, load_space
from hwnas.supernet import build

SIZE = 64
IMAGE = np.random.default_rng(7).standard_normal((1, 3, SIZE, SIZE), dtype=np.float32)


def blocks_of(seed: int) -> tuple[Block, ...]:
    space = load_space("autovit-xxs")
    (codes,) = space.sample(1, np.random.default_rng(seed))
    return tuple(block for _, block in space.layout(codes, SIZE, 10))


def exported(precision: str, folder: Path, seed: int = 0) -> onnx.ModelProto:
    path = folder / f"{precision}.onnx"
    load_runtime(f"onnxruntime:precision={precision}").export(
        blocks_of(seed), path, image_size=SIZE
    )
    return onnx.load(path)


def logits(
    model: onnx.ModelProto,
    level: onnxruntime.GraphOptimizationLevel = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = level
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return np.asarray(session.run(["logits"], {"image": IMAGE})[0])


def weight_types(model: onnx.ModelProto, op_type: str) -> set[int]:
    """The data types of what the nodes of one type multiply by, dequantised or not."""
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    types |= {
        node.output[0]: types[node.input[0]]
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in types
    }
    return {types.get(n.input[1], 0) for n in model.graph.node if n.op_type == op_type}


def test_fp16_has_its_weights_and_numbers(tmp_path: Path) -> None:
    single, half = exported("fp32", tmp_path), exported("fp16", tmp_path)
    onnx.checker.check_model(half, full_check=True)
    assert weight_types(half, "Conv") == {onnx.TensorProto.FLOAT16}
    ends = [*half.graph.input, *half.graph.output]
    assert {v.type.tensor_type.elem_type for v in ends} == {onnx.TensorProto.FLOAT}
    difference = np.abs(logits(half) - logits(single)).max()
    assert 0 < difference < 0.02 * logits(single).std()


def test_int8_has_its_weights_and_numbers(tmp_path: Path) -> None:
    single, quantised = exported("fp32", tmp_path), exported("int8", tmp_path)
    onnx.checker.check_model(quantised, full_check=True)
    assert weight_types(quantised, "Conv") == {onnx.TensorProto.INT8}
    assert weight_types(quantised, "Gemm") == {onnx.TensorProto.INT8}
    assert quantised.opset_import[0].version == 17
    ends = [*quantised.graph.input, *quantised.graph.output]
    assert {v.type.tensor_type.elem_type for v in ends} == {onnx.TensorProto.FLOAT}
    expected = logits(single)
    difference = np.abs(logits(quantised) - expected).max()
    assert 0 < difference < 0.35 * expected.std()
    assert np.corrcoef(logits(quantised).ravel(), expected.ravel())[0, 1] > 0.99


def test_int8_is_optimised_to_the_numbers_it_was_written_with(tmp_path: Path) -> None:
    # As products of two activations are not, were they quantised: ONNX Runtime 1.31 fuses them.
    model = exported("int8", tmp_path)
    plain = logits(model, onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL)
    assert np.abs(logits(model) - plain).max() < 0.2 * plain.std()


def test_int8_quantises_every_product_with_weights_and_none_of_attention(tmp_path: Path) -> None:
    single, quantised = exported("fp32", tmp_path), exported("int8", tmp_path)
    blocks = blocks_of(0)
    num_layers = sum(block.kind == "vit_layer" for block in blocks)
    assert num_layers > 0
    made = {name: node for node in quantised.graph.node for name in node.output}
    by_activations = 0
    for node in quantised.graph.node:
        if node.op_type in ("Conv", "Gemm", "MatMul"):
            sources = {made[name].op_type for name in node.input[:2] if name in made}
            by_activations += sources.isdisjoint({"DequantizeLinear"})
            assert sources == {"DequantizeLinear"} or "DequantizeLinear" not in sources
    assert by_activations == 2 * num_layers  # queries by keys, attention by values
    counts = [Counter(n.op_type for n in m.graph.node) for m in (single, quantised)]
    assert counts[0]["Conv"] == counts[1]["Conv"]


def test_int8_weights_have_a_scale_for_each_channel(tmp_path: Path) -> None:
    model = exported("int8", tmp_path)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    made = {node.output[0]: node for node in model.graph.node}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    for node in convolutions:
        weight, scale, _ = made[node.input[1]].input
        assert tensors[scale].dims == [tensors[weight].dims[0]]


def test_ranges_are_those_of_the_images() -> None:
    composer, blocks = Composer(image_size=SIZE), blocks_of(0)
    quiet = np.full((2, 3, SIZE, SIZE), 0.5, dtype=np.float32)
    scales = []
    for images in (quiet, 100 * quiet):
        model = _onnx_precision.to_int8(composer.compose(blocks), images)
        (quantise,) = [n for n in model.graph.node if n.input and n.input[0] == "image"]
        (scale,) = [t for t in model.graph.initializer if t.name == quantise.input[1]]
        scales.append(float(onnx.numpy_helper.to_array(scale)))
    assert scales == pytest.approx([0.5 / 255, 50 / 255], rel=1e-3)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_network_of_its_own_weights_in_other_precisions(tmp_path: Path, precision: str) -> None:
    network = build(blocks_of(1), seed=3).eval()
    path = tmp_path / "net.onnx"
    load_runtime(f"onnxruntime:precision={precision}").export(network, path, image_size=SIZE)
    with torch.no_grad():
        expected = network(torch.from_numpy(IMAGE)).numpy()
    assert np.corrcoef(logits(onnx.load(path)).ravel(), expected.ravel())[0, 1] > 0.99


@pytest.mark.parametrize(
    ("precision", "function", "message"),
    [
        (
            "fp16",
            "onnxruntime.transformers.float16.convert_float_to_float16",
            "cannot convert the network to fp16: no such operator$",
        ),
        (
            "int8",
            "hwnas.profilers._onnx_precision.quantize_static",
            "cannot quantise the network: no such operator$",
        ),
    ],
)
def test_network_that_a_converter_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, function: str, message: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ValueError("no such operator\nand its stack")

    monkeypatch.setattr(function, refuse)
    with pytest.raises(ExportError, match=message):
        exported(precision, tmp_path)
    assert not list(tmp_path.iterdir())


def test_precision_is_part_of_what_a_table_was_measured_under() -> None:
    specs = [f"onnxruntime:precision={p}" for p in ("fp32", "fp16", "int8")]
    described = [load_runtime(spec).describe(1) for spec in specs]
    assert [d["precision"] for d in described] == ["fp32", "fp16", "int8"]
    assert "calibration images" in str(described[2]["quantization"])


def test_int8_on_cuda_is_refused() -> None:
    with pytest.raises(UsageError, match="no int8 kernels: choose precision fp16 or fp32"):
        load_runtime("onnxruntime:precision=int8,processor=cuda")


# CUDA, without any: the calls that are made, on a session of the CPU.


@pytest.fixture
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver that lists a GPU, and an ONNX Runtime that says it has CUDA."""
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\nprint('NVIDIA H200, 580.65.06')\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)


class FakeCuda:
    """Sessions that say they are on the GPU (or not) and run on the CPU; what they were asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, provider: str) -> None:
        self.asked: list[dict[str, Any]] = []
        self.entries: dict[str, str] = {}
        self.calls: list[str] = []
        self.devices: set[str] = set()
        real_session, real_value = onnxruntime.InferenceSession, onnxruntime.OrtValue

        def session(path: str, options: Any, **asked: Any) -> Any:
            self.asked.append(asked)
            key = "session.disable_cpu_ep_fallback"
            self.entries[key] = options.get_session_config_entry(key)
            made = real_session(path, providers=["CPUExecutionProvider"])
            monkeypatch.setattr(made, "get_providers", lambda: [provider])
            return made

        class Value:
            @staticmethod
            def ortvalue_from_numpy(array: np.ndarray, device: str, device_id: int) -> Any:
                self.devices.add(f"{device}:{device_id}")
                return real_value.ortvalue_from_numpy(array)

            @staticmethod
            def ortvalue_from_shape_and_type(
                shape: Any, kind: type, device: str, device_id: int
            ) -> Any:
                self.devices.add(f"{device}:{device_id}")
                return real_value.ortvalue_from_shape_and_type(shape, kind)

        monkeypatch.setattr(onnxruntime, "InferenceSession", session)
        monkeypatch.setattr(onnxruntime, "OrtValue", Value)
        monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: self.calls.append("preload"))


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(("processor", "graph"), [("cuda", "0"), ("cuda-graph", "1")])
def test_cuda_sessions_are_wholly_on_the_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processor: str, graph: str
) -> None:
    runtime, path = load_runtime(f"onnxruntime:processor={processor}"), tmp_path / "net.onnx"
    runtime.export(blocks_of(0), path, image_size=SIZE)
    fake = FakeCuda(monkeypatch, "CUDAExecutionProvider")
    assert runtime.load(path, 1)() > 0
    options = {"device_id": "0", "enable_cuda_graph": graph}
    expected = {"providers": [("CUDAExecutionProvider", options)], "enable_fallback": False}
    assert fake.asked == [expected]
    assert fake.entries == {"session.disable_cpu_ep_fallback": "1"}
    assert fake.devices == {"cuda:0"}
    assert fake.calls == ["preload"]


@pytest.mark.usefixtures("gpu")
def test_a_session_that_fell_back_to_the_cpu_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime, path = load_runtime("onnxruntime:processor=cuda"), tmp_path / "net.onnx"
    runtime.export(blocks_of(0), path, image_size=SIZE)
    FakeCuda(monkeypatch, "CPUExecutionProvider")
    with pytest.raises(DeviceError, match=r"could not start CUDAEx.* took CPUEx.*: install"):
        runtime.load(path, 1)


@pytest.mark.usefixtures("gpu")
def test_cuda_is_described_with_gpu_and_driver() -> None:
    runtime = load_runtime("onnxruntime:processor=cuda,precision=fp16")
    found = runtime.describe(1)
    assert (found["gpu"], found["driver"]) == ("NVIDIA H200", "580.65.06")
    assert (found["provider"], found["processor"]) == ("CUDAExecutionProvider", "cuda")
    assert "memory" not in found
    assert runtime.environment == {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


def test_onnx_runtime_without_cuda_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    runtime = load_runtime("onnxruntime:processor=cuda")
    for attempt in (lambda: runtime.describe(1), lambda: runtime.load(tmp_path / "net.onnx", 1)):
        with pytest.raises(DeviceError, match=r"without CUDAEx.*pip install onnxruntime-gpu"):
            attempt()
