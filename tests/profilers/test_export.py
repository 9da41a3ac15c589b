from __future__ import annotations

import copy
import json
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from hwnas.errors import ExportError, StorageError, UsageError
from hwnas.profilers import FORMATS, Preprocessing, _coreml_export, export_network
from hwnas.profilers._export import Deployment
from hwnas.spaces import Block
from hwnas.supernet import Network, build

SIZE = 24
PREPROCESSING = Preprocessing((0.5, 0.25, 0.125), (0.2, 0.3, 0.4), SIZE)
NAMES = ("ant", "bee", "cat", "dog", "eel")
BLOCKS = (
    Block.of("conv", **{"in": 3}, out=8, kernel=3, stride=2, res=SIZE),
    Block.of("hybrid", c=8, d=12, kernel=3, patch=2, res=12),
    Block.of("vit_layer", d=12, heads=2, head_dim=4, ratio=2, pixels=4, tokens=36),
    Block.of("mbpool", **{"in": 8}, expand=2, features=5, res=12),
)
OPERATORS = {"conv": 6, "linear": 5, "layer_norm": 3}  # counted by hand: stem 1, hybrid 4, head 1


@pytest.fixture
def network() -> Network:
    """A small network, with BatchNorm statistics that folding must not lose, left in training."""
    made = build(BLOCKS, seed=0)
    generator = torch.Generator().manual_seed(1)
    for norm in made.modules():
        if isinstance(norm, nn.BatchNorm2d):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            norm.running_mean.copy_(torch.randn(norm.num_features, generator=generator))
            norm.running_var.copy_(0.5 + torch.rand(norm.num_features, generator=generator))
    return made


@pytest.fixture
def image() -> torch.Tensor:
    return torch.randn(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2))


def logits(network: Network, image: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        return np.asarray(copy.deepcopy(network).eval()(image))


def test_onnx_file_runs_with_the_numbers_of_torch(
    network: Network, image: torch.Tensor, tmp_path: Path
) -> None:
    path = tmp_path / "new" / "net.onnx"
    report = export_network(network, path, format="onnx", preprocessing=PREPROCESSING)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(["logits"], {"image": image.numpy()})
    np.testing.assert_allclose(found, logits(network, image), atol=1e-5)
    assert session.get_inputs()[0].shape == [1, 3, SIZE, SIZE]
    assert report.path == path
    assert report.detail["max_abs_error"] < 1e-5
    assert report.detail["size_bytes"] == path.stat().st_size
    assert report.detail["operators"]["Conv"] == OPERATORS["conv"]


def test_onnx_file_states_its_opset_and_preprocessing(network: Network, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    report = export_network(
        network, path, format="onnx", preprocessing=PREPROCESSING, class_names=NAMES
    )
    model = onnx.load(path)
    assert [o.version for o in model.opset_import] == [report.detail["opset"]] == [17]
    check_metadata({prop.key: prop.value for prop in model.metadata_props})


@pytest.mark.parametrize(("precision", "limit"), [("fp16", 0.02), ("int8", 0.5)])
def test_onnx_file_in_fewer_bits(
    network: Network, image: torch.Tensor, tmp_path: Path, precision: str, limit: float
) -> None:
    path = tmp_path / "net.onnx"
    report = export_network(
        network, path, format="onnx", preprocessing=PREPROCESSING, precision=precision
    )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(["logits"], {"image": image.numpy()})
    expected = logits(network, image)
    assert 0 < np.abs(found - expected).max() < limit * expected.std()
    assert report.detail["max_abs_error"] > 0
    assert report.detail["precision"] == precision
    model = onnx.load(path)
    bits = onnx.TensorProto.FLOAT16 if precision == "fp16" else onnx.TensorProto.INT8
    assert bits in {tensor.data_type for tensor in model.graph.initializer}
    found_props = {prop.key: prop.value for prop in model.metadata_props}
    assert json.loads(found_props["hwnas.image_size"]) == SIZE


@pytest.mark.parametrize("brightness", [0.5, 50.0])
def test_int8_ranges_are_those_of_the_images_given(
    network: Network, tmp_path: Path, brightness: float
) -> None:
    path = tmp_path / "net.onnx"
    images = np.full((2, 3, SIZE, SIZE), brightness, dtype=np.float32)
    export_network(
        network,
        path,
        format="onnx",
        preprocessing=PREPROCESSING,
        precision="int8",
        calibration=images,
    )
    graph = onnx.load(path).graph
    (quantise,) = [node for node in graph.node if "image" in node.input]
    (scale,) = [tensor for tensor in graph.initializer if tensor.name == quantise.input[1]]
    assert float(onnx.numpy_helper.to_array(scale)) == pytest.approx(brightness / 255, rel=1e-3)


def check_metadata(found: Mapping[str, str]) -> None:
    assert json.loads(found["hwnas.mean"]) == [0.5, 0.25, 0.125]
    assert json.loads(found["hwnas.std"]) == [0.2, 0.3, 0.4]
    assert json.loads(found["hwnas.image_size"]) == SIZE
    assert json.loads(found["hwnas.class_names"]) == list(NAMES)


def test_torch_file_runs_with_the_numbers_of_torch(
    network: Network, image: torch.Tensor, tmp_path: Path
) -> None:
    path = tmp_path / "net.pt2"
    report = export_network(
        network, path, format="torch", preprocessing=PREPROCESSING, class_names=NAMES
    )
    extra = {"hwnas.json": ""}
    found = torch.export.load(path, extra_files=extra).module()(image)
    np.testing.assert_allclose(found.detach().numpy(), logits(network, image), atol=1e-5)
    description = json.loads(extra["hwnas.json"])
    assert description["mean"] == [0.5, 0.25, 0.125]
    assert description["class_names"] == list(NAMES)
    assert report.detail["max_abs_error"] < 1e-5
    assert report.detail["operators"]["aten.conv2d.default"] == OPERATORS["conv"]


@pytest.mark.parametrize(("precision", "weight_type"), [(None, "FLOAT16"), ("fp32", "FLOAT32")])
def test_coreml_package_is_an_ml_program(
    network: Network, tmp_path: Path, precision: str | None, weight_type: str
) -> None:
    path = tmp_path / "net.mlpackage"
    (path / "old").mkdir(parents=True)
    report = export_network(
        network, path, format="coreml", preprocessing=PREPROCESSING, precision=precision
    )
    assert not (path / "old").exists()
    spec = read_spec(path)
    (given,), (result,) = spec.description.input, spec.description.output
    assert (given.name, result.name) == ("image", "logits")
    assert list(given.type.multiArrayType.shape) == [1, 3, SIZE, SIZE]
    assert list(result.type.multiArrayType.shape) == [1, 5]
    counts, types = operations(spec)
    assert {name: counts[name] for name in OPERATORS} == OPERATORS
    assert types["conv"] == {weight_type}
    assert report.detail["operators"]["conv"] == OPERATORS["conv"]
    assert [child.name for child in tmp_path.iterdir()] == ["net.mlpackage"]


def test_coreml_package_with_class_names_is_a_classifier(network: Network, tmp_path: Path) -> None:
    path = tmp_path / "net.mlpackage"
    export_network(network, path, format="coreml", preprocessing=PREPROCESSING, class_names=NAMES)
    spec = read_spec(path)
    assert spec.description.predictedFeatureName == "classLabel"
    assert spec.description.predictedProbabilitiesName == "classLabel_probs"
    counts, _ = operations(spec)
    assert counts["classify"] == 1
    assert counts["softmax"] == 2  # attention's, and that of the probabilities
    check_metadata(spec.description.metadata.userDefined)


def read_spec(path: Path) -> Any:
    import coremltools as ct

    return ct.utils.load_spec(str(path))


def operations(spec: Any) -> tuple[Counter[str], dict[str, set[str]]]:
    """How often each operator comes, and the types of its results."""
    import coremltools as ct

    function = spec.mlProgram.functions["main"]
    found = function.block_specializations[function.opset].operations
    types: dict[str, set[str]] = {}
    data_type = ct.proto.MIL_pb2.DataType
    for operation in found:
        for output in operation.outputs:
            name = data_type.Name(output.type.tensorType.dataType)
            types.setdefault(operation.type, set()).add(name)
    return Counter(operation.type for operation in found), types


@pytest.mark.parametrize("format", FORMATS)
def test_what_stood_there_is_replaced_and_the_network_untouched(
    network: Network, tmp_path: Path, format: str
) -> None:
    path = tmp_path / f"net{FORMATS[format].suffix}"
    path.write_text("old")
    before = copy.deepcopy(network.state_dict())
    report = export_network(network, path, format=format, preprocessing=PREPROCESSING)
    assert report.detail["size_bytes"] > 1000
    assert network.training
    after = network.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("format", ["onnx", "torch"])
def test_numbers_that_differ_write_nothing(network: Network, tmp_path: Path, format: str) -> None:
    path = tmp_path / f"net{FORMATS[format].suffix}"
    path.write_text("old")
    with torch.no_grad():
        next(network.parameters()).fill_(float("nan"))
    with pytest.raises(ExportError, match=r"differ from torch's by nan, where less than 0\.0001"):
        export_network(network, path, format=format, preprocessing=PREPROCESSING)
    assert [(p, p.read_text()) for p in tmp_path.iterdir()] == [(path, "old")]


@pytest.mark.parametrize(
    ("format", "function"),
    [("onnx", "onnxruntime.InferenceSession"), ("torch", "torch.export.export")],
)
def test_network_that_a_library_refuses(
    network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str, function: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("no such operator\nand its stack")

    monkeypatch.setattr(function, refuse)
    path = tmp_path / f"net{FORMATS[format].suffix}"
    with pytest.raises(ExportError, match=r": no such operator$"):
        export_network(network, path, format=format, preprocessing=PREPROCESSING)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format", ["onnx", "torch"])
def test_file_where_a_folder_stands(network: Network, tmp_path: Path, format: str) -> None:
    path = tmp_path / f"net{FORMATS[format].suffix}"
    path.mkdir()
    with pytest.raises(StorageError, match=f"cannot write {path}: it is there and is not a file"):
        export_network(network, path, format=format, preprocessing=PREPROCESSING)
    assert list(tmp_path.iterdir()) == [path]


def test_coreml_package_where_none_can_be_made(network: Network, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    path = tmp_path / "file" / "net.mlpackage"
    with pytest.raises(StorageError, match=f"cannot write {path}"):
        export_network(network, path, format="coreml", preprocessing=PREPROCESSING)


@pytest.mark.parametrize(
    ("error", "expected", "message"),
    [
        (RuntimeError("[MIL FileWriter]: Unknown error"), StorageError, "is a disk full"),
        (OSError(28, "No space left on device"), StorageError, "No space left on device"),
        (shutil.Error([("a", "b", "disk quota")]), StorageError, r"mlpackage: disk quota$"),
        (NotImplementedError("op 'foo'\nand more"), ExportError, "refused the network: op 'foo'$"),
    ],
)
def test_coreml_conversion_that_fails_leaves_the_old_package(
    network: Network,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    expected: type[Exception],
    message: str,
) -> None:
    path = tmp_path / "net.mlpackage"
    path.mkdir()
    (path / "old").touch()

    def convert(_module: nn.Module, _deployment: Deployment, package: Path) -> None:
        package.mkdir()
        raise error

    monkeypatch.setattr(_coreml_export, "_convert", convert)
    with pytest.raises(expected, match=message):
        export_network(network, path, format="coreml", preprocessing=PREPROCESSING)
    assert sorted(tmp_path.rglob("*")) == [path, path / "old"]


def test_coreml_package_of_another_network_is_refused(
    network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = _coreml_export._convert
    other = build((BLOCKS[0], BLOCKS[3]), seed=0).eval()

    def convert(_module: nn.Module, deployment: Deployment, package: Path) -> None:
        original(other, deployment, package)

    monkeypatch.setattr(_coreml_export, "_convert", convert)
    with pytest.raises(ExportError, match="has conv operators 2, where 6 was expected"):
        export_network(
            network, tmp_path / "net.mlpackage", format="coreml", preprocessing=PREPROCESSING
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("names", [None, NAMES])
@pytest.mark.parametrize(
    ("precision", "shift", "passes"),
    [("fp32", 5e-5, True), ("fp32", 5e-4, False), ("fp16", 5e-3, True), ("fp16", 0.5, False)],
)
def test_coreml_predictions_are_compared(
    network: Network, names: tuple[str, ...] | None, precision: str, shift: float, passes: bool
) -> None:
    module = network.eval() if names is None else nn.Sequential(network, nn.Softmax(1)).eval()
    deployment = Deployment(precision, PREPROCESSING, names)

    def predict(features: dict[str, Any]) -> dict[str, Any]:
        with torch.no_grad():
            values = module(torch.from_numpy(features["image"])).numpy() + np.float32(shift)
        if names is None:
            return {"logits": values}
        return {"classLabel_probs": dict(zip(names, values[0], strict=True))}

    if passes:
        error = _coreml_export.compare(predict, module, deployment, Path("net.mlpackage"))
        assert error == pytest.approx(shift, rel=0.01)
    else:
        with pytest.raises(ExportError, match="differ from torch's"):
            _coreml_export.compare(predict, module, deployment, Path("net.mlpackage"))


@pytest.mark.parametrize(
    ("path", "options", "message"),
    [
        ("net.onnx", {"format": "onxx"}, "unknown format 'onxx': did you mean 'onnx'"),
        (
            "net.onnx",
            {"format": "onnx", "precision": "fp8"},
            "onnx is written in fp32 or fp16 or int8; got",
        ),
        ("net.mlpackage", {"format": "coreml", "precision": "fp8"}, "in fp16 or fp32; got"),
        ("net.pt2", {"format": "onnx"}, r"ends in \.onnx; got net\.pt2"),
        (
            "net.onnx",
            {"format": "onnx", "class_names": ("ant",)},
            "1 class names for a network of 5",
        ),
    ],
)
def test_request_that_cannot_be_meant(
    network: Network, path: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        export_network(network, Path(path), preprocessing=PREPROCESSING, **options)
