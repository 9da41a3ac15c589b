from __future__ import annotations

import copy
import io
import json
import platform
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import coreml_fake
import coremltools as ct
import numpy as np
import pytest
import torch
from coremltools.models.compute_device import (
    MLComputeDevice,
    MLCPUComputeDevice,
    MLGPUComputeDevice,
    MLNeuralEngineComputeDevice,
)
from coremltools.models.compute_plan import MLComputePlanDeviceUsage
from coremltools.models.ml_program.experimental.model_structure_path import ModelStructurePath
from coremltools.models.ml_program.experimental.perf_utils import MLModelBenchmarker
from torch import nn

from hwnas.devices import Artifact, LocalAgent, Plan, load_device, state
from hwnas.errors import DeviceError, ExportError
from hwnas.profilers import _coreml_compose, load_runtime
from hwnas.profilers._coreml_compose import Composer
from hwnas.profilers._coreml_program import converting, main_block, network_program
from hwnas.profilers.coreml_runtime import CoreMLRuntime, place
from hwnas.profilers.worker import run_job
from hwnas.spaces import Block
from hwnas.supernet import Network, build

SIZE = 24
STEM = Block.of("conv", **{"in": 3}, out=12, kernel=3, stride=2, res=SIZE)
MBCONV = Block.of("mbconv", **{"in": 12}, out=12, expand=2, kernel=3, stride=1, res=12)
HYBRID = Block.of("hybrid", c=12, d=16, kernel=3, patch=2, res=12)
LAYER = Block.of("vit_layer", d=16, heads=2, head_dim=8, ratio=1.5, pixels=4, tokens=36)
PLAIN_HYBRID = Block.of("hybrid", c=12, d=16, kernel=3, patch=1, res=12)
PLAIN_LAYER = Block.of("vit_layer", d=16, heads=1, head_dim=8, ratio=2, pixels=1, tokens=144)
HEAD = Block.of("mbpool", **{"in": 12}, expand=2, features=10, res=12)
WHOLE = (STEM, MBCONV, HYBRID, LAYER, LAYER, HEAD)
TOLERANCE = {"fp16": 3e-3, "fp32": 1e-5}  # of the greatest logit


def image(size: int = SIZE) -> torch.Tensor:
    return torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1))


def network_of(composer: Composer, blocks: Sequence[Block]) -> Network:
    """The network with the composer's weights, each block with a copy of its own."""
    layout = [(f"slot{i}", block) for i, block in enumerate(blocks)]
    return Network(layout, lambda _, block: copy.deepcopy(composer.module(block))).eval()


def check_numbers(package: Path, network: nn.Module, size: int, precision: str) -> None:
    with torch.no_grad():
        expected = network(image(size)).numpy()
    scale = np.abs(expected).max()
    assert expected.std() > 1e-3 * scale > 0
    found = coreml_fake.compute(package, image(size).numpy())
    np.testing.assert_allclose(found, expected, atol=TOLERANCE[precision] * scale, rtol=0)


def operations(package: Path) -> list[Any]:
    return list(main_block(ct.utils.load_spec(str(package))).operations)


@pytest.fixture(scope="module")
def composers() -> dict[str, Composer]:
    """Shared, so that each piece is converted once."""
    return {p: Composer(image_size=SIZE, precision=p) for p in TOLERANCE}


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize(
    "blocks",
    [
        WHOLE,
        (STEM, HYBRID, HYBRID, LAYER, HEAD),  # blocks removed
        (STEM,),  # and networks cut off
        (STEM, MBCONV),
        (STEM, HYBRID),
        (STEM, HYBRID, LAYER),
        (STEM, PLAIN_HYBRID, PLAIN_LAYER, HEAD),
    ],
    ids=lambda blocks: "-".join(block.kind for block in blocks),
)
def test_composed_program_is_the_network(
    composers: dict[str, Composer], tmp_path: Path, blocks: Sequence[Block], precision: str
) -> None:
    path = tmp_path / "net.mlpackage"
    composers[precision].write(blocks, path)
    check_numbers(path, network_of(composers[precision], blocks), SIZE, precision)
    assert list(tmp_path.iterdir()) == [path]
    spec = ct.utils.load_spec(str(path))
    (given,), (result,) = spec.description.input, spec.description.output
    assert (given.name, result.name) == ("image", "logits")
    names = [output.name for o in main_block(spec).operations for output in o.outputs]
    assert len(set(names)) == len(names)
    kinds = {f.type.multiArrayType.dataType for f in (given, result)}
    assert kinds == {ct.proto.FeatureTypes_pb2.ArrayFeatureType.FLOAT32}


@pytest.mark.parametrize(("precision", "casts"), [("fp16", 2), ("fp32", 0)])
def test_composed_program_has_the_operators_of_a_whole_conversion(
    composers: dict[str, Composer], tmp_path: Path, precision: str, casts: int
) -> None:
    composer = composers[precision]
    composer.write(WHOLE, tmp_path / "composed.mlpackage")
    with converting("the network", tmp_path):
        whole = network_program(
            network_of(composer, WHOLE),
            (1, 3, SIZE, SIZE),
            precision=precision,
            package=tmp_path / "whole.mlpackage",
        )
    counts = [
        Counter(o.type for o in found if o.type != "const")
        for found in (
            operations(tmp_path / "composed.mlpackage"),
            main_block(whole.get_spec()).operations,
        )
    ]
    assert counts[0] == counts[1]
    # By hand: a stem has 1 convolution, an MBConv 3, a hybrid 4, the head 1; a layer 4 linears.
    assert {name: counts[0][name] for name in ("conv", "linear", "cast")} == {
        "conv": 9,
        "linear": 9,
        "cast": casts,
    }


def test_repeated_blocks_have_weights_of_their_own(
    composers: dict[str, Composer], tmp_path: Path
) -> None:
    blocks = (STEM, HYBRID, LAYER, LAYER, LAYER, HEAD)
    path = tmp_path / "net.mlpackage"
    composers["fp16"].write(blocks, path)
    values = [o.attributes["val"] for o in operations(path) if o.type == "const"]
    stored = [value for value in values if value.HasField("blobFileValue")]
    assert len({value.blobFileValue.offset for value in stored}) == len(stored)
    found = sum(
        np.prod([d.constant.size for d in value.type.tensorType.dimensions]) for value in stored
    )
    network = build(blocks, seed=0)
    # A folded BatchNorm leaves one number a channel, the bias, of its weight and bias.
    folded = sum(m.num_features for m in network.modules() if isinstance(m, nn.BatchNorm2d))
    assert found == sum(p.numel() for p in network.parameters()) - folded
    (weights,) = path.rglob("weight.bin")
    assert weights.stat().st_size >= 2 * found


def test_each_distinct_block_is_converted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    converted, original = [], _coreml_compose.ml_program

    def counting(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        converted.append(module)
        return original(module, *args, **kwargs)

    monkeypatch.setattr(_coreml_compose, "ml_program", counting)
    composer = Composer(image_size=SIZE, precision="fp16")
    composer.write([STEM, HYBRID, LAYER, LAYER], tmp_path / "a.mlpackage")
    # A hybrid is two, what enters and what leaves; the last is the cast of the output.
    assert len(converted) == 5
    composer.write([STEM, HYBRID, LAYER, LAYER, LAYER, HYBRID, LAYER], tmp_path / "b.mlpackage")
    assert len(converted) == 5


def test_block_that_does_not_fit_is_named(tmp_path: Path) -> None:
    composer = Composer(image_size=SIZE, precision="fp16")
    message = r"Core ML refused mbpool/in=12/.* with input \(1, 3, 24, 24\)"
    with pytest.raises(ExportError, match=message):
        composer.write([HEAD], tmp_path / "net.mlpackage")
    with pytest.raises(ExportError, match="at least one"):
        composer.write([], tmp_path / "net.mlpackage")
    assert not list(tmp_path.iterdir())


def test_network_with_its_own_weights(tmp_path: Path) -> None:
    runtime, path = load_runtime("coreml:precision=fp32"), tmp_path / "net.mlpackage"
    network = build(WHOLE, seed=3)  # left in training
    before = copy.deepcopy(network.state_dict())
    runtime.export(network, path, image_size=SIZE)
    assert network.training
    assert all(torch.equal(network.state_dict()[n], tensor) for n, tensor in before.items())
    check_numbers(path, network.eval(), SIZE, "fp32")


def test_options_choose_what_is_written(tmp_path: Path) -> None:
    types = []
    for spec in ("coreml", "coreml:precision=fp32,compute_units=cpu_only"):
        path = tmp_path / f"{len(types)}.mlpackage"
        load_runtime(spec).export([STEM], path, image_size=SIZE)
        (conv,) = (o for o in operations(path) if o.type == "conv")
        types.append(ct.proto.MIL_pb2.DataType.Name(conv.outputs[0].type.tensorType.dataType))
    assert types == ["FLOAT16", "FLOAT32"]


@pytest.fixture
def on_mac(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(platform, "mac_ver", lambda: ("15.1", ("", "", ""), "arm64"))


@pytest.mark.usefixtures("on_mac")
def test_what_is_measured_is_said() -> None:
    described = load_runtime("coreml:compute_units=cpu_and_ne").describe(1)
    assert described == {
        "name": "coreml",
        "version": ct.__version__,
        "macos": "15.1",
        "threads": 1,
        "scheduling": "threads chosen by Core ML",
        "precision": "fp16",
        "compute_units": "cpu_and_ne",
        "minimum_deployment_target": "iOS16",
    }
    assert state(load_device("mac")).attached
    with pytest.raises(DeviceError, match="chooses its threads itself; got 2"):
        load_runtime("coreml").describe(2)


@pytest.mark.parametrize(
    ("system", "release", "message"),
    [
        ("Linux", "", r"macOS only: .*a Mac \(--device mac\).*`hwnas export --format coreml`"),
        ("Darwin", "13.6.1", "macOS 13.6.1 does not tell where .* update it to 14.4 or later"),
        ("Darwin", "14.3", "update it to 14.4"),
    ],
)
def test_where_nothing_can_be_timed(
    monkeypatch: pytest.MonkeyPatch, system: str, release: str, message: str
) -> None:
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "mac_ver", lambda: (release, ("", "", ""), ""))
    with pytest.raises(DeviceError, match=message) as caught:
        load_runtime("coreml").describe(1)
    now = state(load_device("mac"))
    assert not now.attached
    assert now.reason == str(caught.value)


@pytest.fixture
def extension(monkeypatch: pytest.MonkeyPatch) -> type[coreml_fake.Model]:
    return coreml_fake.install(monkeypatch)


def answers(runtime: CoreMLRuntime, paths: Sequence[Path], rounds: int) -> dict[str, Any]:
    """What the worker says of each artifact, less that it has it in hand."""
    artifacts = [{"id": path.stem, "path": str(path)} for path in paths]
    job = {"artifacts": artifacts, "rounds": rounds, "warmup_rounds": 1, "threads": 1, "seed": 7}
    out = io.StringIO()
    run_job(job, runtime, out)
    found = [json.loads(line) for line in out.getvalue().splitlines()]
    return {message["id"]: message for message in found if "id" in message}


def test_the_worker_times_and_places_networks(
    extension: type[coreml_fake.Model],
    composers: dict[str, Composer],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock: Iterator[int] = iter(range(1_000_000, 1_000_000_000, 1_000_000))
    monkeypatch.setattr(extension, "nanoseconds", staticmethod(lambda: next(clock)))
    paths = [tmp_path / "whole.mlpackage", tmp_path / "cut.mlpackage"]
    composers["fp16"].write(WHOLE, paths[0])
    composers["fp16"].write(WHOLE[:2], paths[1])
    found = answers(CoreMLRuntime(compute_units="cpu_and_ne"), paths, rounds=3)
    # Each opens with 1 run and is placed with 1; then 4 rounds of an untimed and a timed run each.
    ticks = [found[name][f"{kind}_ms"] for name in found for kind in ("warmup", "samples")]
    assert sorted(tick for part in ticks for tick in part) == [6, 8, 10, 12, 14, 16, 18, 20]
    assert [len(part) for part in ticks] == [1, 3, 1, 3]
    assert [units for _, units in extension.opened] == ["CPU_AND_NE"] * 2  # each opened once
    assert found["cut"]["placement"] == {
        "neural_engine": {"conv": 4, "silu": 3, "cast": 2, "add": 1}
    }
    placement = found["whole"]["placement"]
    assert placement["cpu"] == {"reshape": 10}  # 3 enter and 3 leave a hybrid, 2 in each layer
    assert placement["neural_engine"]["split"] == 2  # though each has three outputs
    assert placement["neural_engine"]["conv"] == 9


@pytest.mark.usefixtures("extension")
def test_reported_inputs_are_those_of_the_package(
    composers: dict[str, Composer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[np.ndarray] = []

    def compute(_: Path, given: np.ndarray) -> np.ndarray:
        seen.append(given)
        return np.zeros(1)

    monkeypatch.setattr(coreml_fake, "compute", compute)
    path = tmp_path / "net.mlpackage"
    composers["fp32"].write([STEM], path)
    runs = [CoreMLRuntime(precision="fp32").load(path, 1) for _ in range(2)]
    assert [run() for run in runs] == [2.0, 2.0]
    assert all(given.shape == (1, 3, SIZE, SIZE) for given in seen)
    assert all(np.array_equal(given, seen[0]) for given in seen)
    assert seen[0].std() == pytest.approx(1, rel=0.1)


@pytest.mark.usefixtures("extension")
def test_a_package_that_does_not_open_fails_alone(
    composers: dict[str, Composer], tmp_path: Path
) -> None:
    good, damaged, refused = (tmp_path / f"{n}.mlpackage" for n in ("good", "damaged", "refused"))
    for path in (good, damaged, refused):
        composers["fp16"].write([STEM], path)
    (model,) = damaged.rglob("model.mlmodel")
    model.write_bytes(model.read_bytes()[:100])
    (model,) = refused.rglob("model.mlmodel")
    spec = ct.utils.load_spec(str(refused))
    spec.mlProgram.functions.clear()
    model.write_bytes(spec.SerializeToString())
    found = answers(CoreMLRuntime(), [good, damaged, refused], rounds=2)
    assert found["good"]["samples_ms"] == [2.0, 2.0]
    assert "DecodeError" in found["damaged"]["error"]
    assert "Error compiling model: no function" in found["refused"]["error"]


def test_without_the_framework_a_package_fails_alone(
    composers: dict[str, Composer], tmp_path: Path
) -> None:
    if platform.system() == "Darwin":
        pytest.skip("there is a framework here")
    path = tmp_path / "net.mlpackage"
    composers["fp16"].write([STEM], path)
    assert answers(CoreMLRuntime(), [path], rounds=1)["net"]["error"] == (
        "ValueError: Failed to load model"
    )


def execution(
    kind: str, device: type[MLComputeDevice] | None, name: str = ""
) -> MLModelBenchmarker.OperationExecutionInfo:
    usage = None
    if device is not None:
        chosen = device(coreml_fake.Device())  # type: ignore[call-arg]
        usage = MLComputePlanDeviceUsage(chosen, [chosen])
    spec = ct.proto.MIL_pb2.Operation(type=kind)
    spec.outputs.add(name=name or f"{kind}_{len(kind)}")
    measured = MLModelBenchmarker.Measurement.from_samples([0.5])
    return MLModelBenchmarker.OperationExecutionInfo(
        spec, ModelStructurePath(components=()), usage, measured
    )


@pytest.mark.usefixtures("extension")
def test_a_fall_from_the_neural_engine_shows() -> None:
    found = [
        execution("conv", MLNeuralEngineComputeDevice, "a"),
        execution("conv", MLNeuralEngineComputeDevice, "b"),
        execution("conv", MLGPUComputeDevice, "c"),
        execution("reshape", MLCPUComputeDevice),
        execution("softmax", None),
        execution("const", None),
    ]
    assert place(found) == {
        "neural_engine": {"conv": 2},
        "gpu": {"conv": 1},
        "cpu": {"reshape": 1},
        "undetermined": {"softmax": 1},
    }


def test_placement_reaches_the_measurement(tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    placement = {"neural_engine": {"conv": 2}, "cpu": {"reshape": 1}}
    script.write_text(
        "import json, sys\n"
        "job = json.load(sys.stdin)\n"
        f"for artifact, placement in zip(job['artifacts'], ({placement!r}, None)):\n"
        "    answer = dict(id=artifact['id'], warmup_ms=[], samples_ms=[1.0])\n"
        "    print(json.dumps(dict(answer, placement=placement)))\n"
    )
    with LocalAgent((sys.executable, str(script))) as agent:
        first, second = agent.measure([Artifact(n, tmp_path) for n in "ab"], Plan("coreml"))
    assert first.placement == placement
    assert second.placement is None


@pytest.mark.hardware
@pytest.mark.skipif(platform.system() != "Darwin", reason="Core ML predicts on macOS only")
@pytest.mark.parametrize("compute_units", CoreMLRuntime.options["compute_units"])
def test_on_this_mac(tmp_path: Path, compute_units: str) -> None:
    runtime = load_runtime(f"coreml:compute_units={compute_units}")
    runtime.describe(1)
    path, broken = tmp_path / "net.mlpackage", tmp_path / "broken.mlpackage"
    runtime.export(WHOLE, path, image_size=SIZE)
    broken.mkdir()
    model = ct.models.MLModel(str(path), compute_units=ct.ComputeUnit[compute_units.upper()])
    features = model.predict({"image": image().numpy()})
    expected = coreml_fake.compute(path, image().numpy())
    np.testing.assert_allclose(
        features["logits"], expected, atol=0.02 * np.abs(expected).max(), rtol=0
    )
    with LocalAgent() as agent:
        artifacts = [Artifact("net", path), Artifact("broken", broken)]
        net, failed = agent.measure(artifacts, Plan(runtime.spec, rounds=5, warmup_rounds=1))
    assert len(net.samples_ms) == 5
    assert min(net.samples_ms) > 0
    assert net.placement is not None
    assert sum(net.placement.get("undetermined", {}).values()) == 0
    assert failed.error
