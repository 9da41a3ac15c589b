"""What every runtime keeps to: add a runtime by its specs, and how to read its numbers if one can.

A spec whose library, compiler or device is missing here is skipped with the sentence that the
runtime itself gives for it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
import torch

from hwnas.devices import Artifact, LocalAgent, Measurement, Plan
from hwnas.errors import DeviceError, ExportError
from hwnas.profilers import RUNTIMES, Runtime, load_runtime, torch_runtime
from hwnas.profilers._tvm_build import import_tvm
from hwnas.spaces import Block
from hwnas.supernet import Network, build

SIZE = 24
STEM = Block.of("conv", **{"in": 3}, out=8, kernel=3, stride=2, res=SIZE)
HYBRID = Block.of("hybrid", c=8, d=12, kernel=3, patch=2, res=12)
LAYER = Block.of("vit_layer", d=12, heads=2, head_dim=4, ratio=2, pixels=4, tokens=36)
HEAD = Block.of("mbpool", **{"in": 8}, expand=2, features=5, res=12)
BLOCKS = (STEM, HYBRID, LAYER, HEAD)

Values = npt.NDArray[np.float32]


def read_onnx(path: Path, image: Values) -> Values:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"image": image})[0])


def read_torch(path: Path, image: Values) -> Values:
    network, _ = torch_runtime._read(path)
    with torch.inference_mode():
        return network(torch.from_numpy(image)).numpy()


def read_tvm(path: Path, image: Values) -> Values:
    tvm = import_tvm()
    machine = tvm.relax.VirtualMachine(tvm.runtime.load_module(str(path)), tvm.cpu())
    return np.asarray(machine["main"](tvm.runtime.tensor(image)).numpy())


@dataclass(frozen=True)
class Case:
    """A runtime, how to run what it wrote on an image, and how far off torch's numbers may be."""

    spec: str
    read: Callable[[Path, Values], Values] | None = None
    tolerance: float = 1e-5
    """Greatest difference in a logit, in standard deviations of the logits."""
    blocks: tuple[Block, ...] = BLOCKS
    """What is timed."""
    threads: tuple[int, ...] = (1, 2)
    """Which it can be asked for."""
    hardware: bool = False

    def param(self) -> Any:
        marks = [pytest.mark.hardware] if self.hardware else []
        return pytest.param(self, id=self.spec, marks=marks)


CASES = (
    Case("coreml", threads=(1,), hardware=True),
    Case("onnxruntime", read_onnx, 1e-4),
    Case("onnxruntime:precision=fp16", read_onnx, 0.02),
    Case("onnxruntime:precision=int8", read_onnx, 0.2),
    Case("onnxruntime:processor=cuda", hardware=True),
    Case("onnxruntime:processor=cuda-graph", hardware=True),
    Case("onnxruntime:precision=fp16,processor=cuda", hardware=True),
    Case("torch", read_torch, 1e-6),
    Case("torch:mode=compile", blocks=(STEM, HEAD)),  # a second of compiling a kernel
    Case("torch:processor=cuda", hardware=True),
    Case("torch:processor=cuda-graph", hardware=True),
    Case("torch:precision=fp16,processor=cuda", hardware=True),
    Case("torch:mode=compile,processor=cuda-graph", hardware=True),
    Case("tvm", read_tvm, 1e-4),
    Case("tvm:processor=cuda", hardware=True),
)
EVERY = [case.param() for case in CASES]
TIMED = {"rounds": 4, "warmup_rounds": 2, "timeout_s": 300.0}  # torch.compile takes its time


@pytest.fixture(scope="session", autouse=True)
def inductor_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What torch.compile compiles is compiled here, once, whatever earlier runs have left."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("inductor")))
        yield


@pytest.fixture(scope="session", autouse=True)
def tvm_workspace(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What TVM compiles is kept here, so that each kernel is compiled once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Runtime, "workspace", tmp_path_factory.mktemp("workspace"))
        yield


def runtime_of(case: Case) -> Runtime:
    """The runtime, where this machine can time with it."""
    runtime = load_runtime(case.spec)
    try:
        runtime.describe(1)
    except DeviceError as error:
        pytest.skip(str(error))
    return runtime


def measure(runtime: Runtime, artifacts: Sequence[Artifact]) -> list[Measurement]:
    plan = Plan(runtime.spec, environment=runtime.environment, **TIMED)  # type: ignore[arg-type]
    with LocalAgent() as agent:
        return agent.measure(artifacts, plan)


def test_every_runtime_has_a_case() -> None:
    assert {case.spec.partition(":")[0] for case in CASES} == set(RUNTIMES)


@pytest.mark.parametrize("case", EVERY)
def test_spec_is_whole(case: Case) -> None:
    runtime = load_runtime(case.spec)
    assert runtime.spec == case.spec
    assert runtime.chosen.keys() == runtime.options.keys()
    assert RUNTIMES[runtime.name].endswith(f":{type(runtime).__name__}")


@pytest.mark.parametrize("case", EVERY)
def test_description_names_what_a_table_depends_on(case: Case) -> None:
    runtime = runtime_of(case)
    one = runtime.describe(1)
    assert one["name"] == runtime.name
    assert one["version"]
    assert [runtime.describe(num)["threads"] for num in case.threads] == list(case.threads)
    assert runtime.chosen.items() <= one.items()
    assert json.loads(json.dumps(one)) == one
    assert runtime.describe(1) == one


@pytest.mark.parametrize("case", EVERY)
def test_blocks_and_networks_are_timed_and_a_broken_file_fails_alone(
    case: Case, tmp_path: Path
) -> None:
    runtime = runtime_of(case)
    paths = {name: tmp_path / f"{name}{runtime.suffix}" for name in ("blocks", "network", "broken")}
    runtime.export(case.blocks, paths["blocks"], image_size=SIZE)
    runtime.export(build(case.blocks, seed=1).eval(), paths["network"], image_size=SIZE)
    runtime.export(case.blocks, paths["broken"], image_size=SIZE)
    damage(paths["broken"])
    good = [Artifact(name, paths[name]) for name in ("blocks", "network")]
    found = measure(runtime, [*good, Artifact("broken", paths["broken"])])
    assert [m.artifact_id for m in found] == ["blocks", "network", "broken"]
    for measurement in found[:2]:
        assert measurement.error is None
        assert len(measurement.samples_ms) == TIMED["rounds"]
        assert len(measurement.warmup_ms) == TIMED["warmup_rounds"]
        assert all(np.isfinite(s) and s > 0 for s in measurement.samples_ms)
    assert found[2].error
    assert "Traceback" not in found[2].error
    assert not found[2].samples_ms


def damage(path: Path) -> None:
    """Cut every file of the artifact to half its length."""
    for file in path.rglob("*") if path.is_dir() else [path]:
        if file.is_file():
            data = file.read_bytes()
            file.write_bytes(data[: len(data) // 2])


@pytest.mark.parametrize("case", EVERY)
def test_export_replaces_what_stood_there_and_leaves_nothing_else(
    case: Case, tmp_path: Path
) -> None:
    runtime, path = runtime_of(case), tmp_path / "new" / "net"
    path = path.with_suffix(runtime.suffix)
    network = build(BLOCKS, seed=1).eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    runtime.export(BLOCKS, path, image_size=SIZE)
    shorter = size_bytes(path)
    runtime.export([STEM, HYBRID, LAYER, LAYER, LAYER, HEAD], path, image_size=SIZE)
    longer = size_bytes(path)
    runtime.export(network, path, image_size=SIZE)
    assert shorter < longer != size_bytes(path)
    assert list(path.parent.iterdir()) == [path]
    assert all(torch.equal(network.state_dict()[name], value) for name, value in before.items())


def size_bytes(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


@pytest.mark.parametrize("case", [c.param() for c in CASES if "mode=compile" not in c.spec])
def test_network_that_cannot_run_is_an_error_that_costs_nothing_else(
    case: Case, tmp_path: Path
) -> None:
    runtime = runtime_of(case)
    good, bad = (tmp_path / f"{name}{runtime.suffix}" for name in ("good", "bad"))
    runtime.export(BLOCKS, good, image_size=SIZE)
    try:
        runtime.export([HEAD], bad, image_size=SIZE)  # takes 8 channels, and an image has 3
    except ExportError as error:
        assert str(error)
        shutil.copytree(good, bad) if good.is_dir() else shutil.copy(good, bad)
        damage(bad)
    found = measure(runtime, [Artifact("good", good), Artifact("bad", bad)])
    assert len(found[0].samples_ms) == TIMED["rounds"]
    assert found[1].error


@pytest.mark.parametrize("case", [case.param() for case in CASES if case.read])
def test_numbers_are_those_of_torch(case: Case, tmp_path: Path) -> None:
    runtime = runtime_of(case)
    path = tmp_path / f"net{runtime.suffix}"
    network = spread_out(build(BLOCKS, seed=1))
    runtime.export(network, path, image_size=SIZE)
    generator = np.random.default_rng(5)
    image = generator.standard_normal((1, 3, SIZE, SIZE), dtype=np.float32)
    with torch.no_grad():
        expected = network(torch.from_numpy(image)).numpy()
    assert case.read is not None
    found = case.read(path, image)
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() < case.tolerance * expected.std()
    other = build(BLOCKS, seed=2).eval()
    with torch.no_grad():
        wrong = other(torch.from_numpy(image)).numpy()
    assert np.abs(wrong - expected).max() > 0.5 * expected.std()


def spread_out(network: Network) -> Network:
    """In evaluation mode, with weights that make the logits differ from each other."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return network.eval()
