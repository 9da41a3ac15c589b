from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from shutil import copy
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from hwnas.devices import Artifact, LocalAgent, Plan
from hwnas.errors import DeviceError, ExportError
from hwnas.profilers import Runtime, tvm_runtime
from hwnas.profilers._tvm_build import import_tvm
from hwnas.profilers.onnx_runtime import OnnxRuntime
from hwnas.profilers.tvm_runtime import TvmRuntime
from hwnas.spaces import Block
from hwnas.supernet import Network, build

SIZE = 24
STEM = Block.of("conv", **{"in": 3}, out=8, kernel=3, stride=2, res=SIZE)
HYBRID = Block.of("hybrid", c=8, d=12, kernel=3, patch=2, res=12)
LAYER = Block.of("vit_layer", d=12, heads=2, head_dim=4, ratio=2, pixels=4, tokens=36)
HEAD = Block.of("mbpool", **{"in": 8}, expand=2, features=5, res=12)
WIDE_HEAD = Block.of("mbpool", **{"in": 8}, expand=2, features=7, res=12)


@pytest.fixture(scope="module", autouse=True)
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Kernels are compiled here, once for all tests."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("workspace")
        patch.setattr(Runtime, "workspace", folder)
        yield folder


def distinct(*blocks: Block) -> Network:
    """A network whose logits differ from each other."""
    network = build(blocks, seed=1)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return network.eval()


def logits(library: Path, image: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    tvm = import_tvm()
    machine = tvm.relax.VirtualMachine(tvm.runtime.load_module(str(library)), tvm.cpu())
    return np.asarray(machine["main"](tvm.runtime.tensor(image)).numpy())


def assert_computes(library: Path, network: Network) -> None:
    image = torch.randn(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(5)) * 3
    with torch.no_grad():
        expected = network(image).numpy()
    assert expected.std() > 0.1
    np.testing.assert_allclose(logits(library, image.numpy()), expected, atol=1e-4)


def kernels(runtime: TvmRuntime, suffix: str) -> dict[str, int]:
    """The kernels that are kept, and when each was written."""
    return {
        path.name.partition(".")[0]: path.stat().st_mtime_ns
        for path in runtime.kernels_dir().glob(f"*{suffix}")
    }


def test_untuned_code_computes_what_torch_does(tmp_path: Path) -> None:
    network = distinct(STEM, HYBRID, LAYER, LAYER, HEAD)
    runtime = TvmRuntime()
    runtime.export(network, tmp_path / "net.so", image_size=SIZE)
    assert_computes(tmp_path / "net.so", network)
    assert not kernels(runtime, ".record.json")


def test_kernels_are_tuned_once_for_all_networks_and_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = TvmRuntime(trials=2)
    network, model = distinct(STEM, HEAD), tmp_path / "model.onnx"
    OnnxRuntime().export(network, model, image_size=SIZE)
    paths = [tmp_path / f"{name}.so" for name in ("one", "two")]
    with monkeypatch.context() as patch, ThreadPoolExecutor() as pool:
        # Not at once by torch, which keeps what it exports in globals.
        patch.setattr(OnnxRuntime, "export", lambda _, _net, path, image_size: copy(model, path))
        list(pool.map(lambda path: runtime.export(network, path, image_size=SIZE), paths))
    for path in paths:
        assert_computes(path, network)  # and stays open: what is read next has another name
    first = kernels(runtime, ".record.json")
    assert len(first) == len(kernels(runtime, ".workload.json")) == len(kernels(runtime, ".o")) > 3
    runtime.export(distinct(STEM, HEAD), paths[0], image_size=SIZE)
    assert kernels(runtime, ".record.json") == first
    wider = distinct(STEM, WIDE_HEAD)
    runtime.export(wider, tmp_path / "wider.so", image_size=SIZE)
    assert_computes(tmp_path / "wider.so", wider)
    second = kernels(runtime, ".record.json")
    assert first.items() < second.items()
    assert len(second) - len(first) <= 2  # the last matrix product, and its weights transposed


def test_it_is_timed_in_the_worker(tmp_path: Path) -> None:
    runtime = TvmRuntime()
    small, large = tmp_path / "small.so", tmp_path / "large.so"
    runtime.export([STEM, HEAD], small, image_size=SIZE)
    runtime.export([STEM, HYBRID, *[LAYER] * 12, HEAD], large, image_size=SIZE)
    plan = Plan("tvm", rounds=9, warmup_rounds=2, threads=2, environment=runtime.environment)
    with LocalAgent() as agent:
        found = agent.measure([Artifact("small", small), Artifact("large", large)], plan)
    assert [m.error for m in found] == [None, None]
    assert all(len(m.samples_ms) == 9 and min(m.samples_ms) > 0 for m in found)
    least = [min(m.samples_ms) for m in found]
    assert least[0] < least[1]  # a dozen layers more, 50 times the work


def test_what_it_was_measured_under_is_said() -> None:
    described = TvmRuntime(trials=3).describe(2)
    assert described["version"] == metadata.version("apache-tvm")
    assert described["ffi"] == metadata.version("apache-tvm-ffi")
    assert (described["threads"], described["trials"], described["code"]) == (2, 3, "tuned")
    assert TvmRuntime().describe(1)["code"] == "untuned"
    assert json.loads(str(described["target"]))["mcpu"] not in ("", "generic")


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="reads what Linux says of the CPU")
def test_features_that_this_machine_hides_are_not_compiled_for() -> None:
    target = json.loads(str(TvmRuntime().describe(1)["target"]))
    flags = set(Path("/proc/cpuinfo").read_text().split())
    assert all(name.startswith("-") for name in target["mattr"])
    assert not flags & {name[1:] for name in target["mattr"]}


def test_tuning_for_each_number_of_trials_is_kept_apart() -> None:
    folders = {TvmRuntime(trials=n).kernels_dir() for n in (0, 1, 2)}
    assert len(folders) == 3
    assert TvmRuntime(trials=2).kernels_dir() in folders


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("import os; os.abort()", r"compile net\.so: its process died \(SIGABRT\)"),
        ("import sys; sys.exit('no memory')", r"process died \(exit status 1\): no memory"),
        ("import os; os._exit(0)", r"process died \(exit status 0\)"),
    ],
)
def test_a_compiler_that_dies_is_an_error_naming_the_network(
    script: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = TvmRuntime()
    runtime.describe(1)
    monkeypatch.setattr(tvm_runtime, "COMPILER", (sys.executable, "-c", script))
    with pytest.raises(ExportError, match=message):
        runtime.export([STEM, HEAD], tmp_path / "net.so", image_size=SIZE)
    assert not list(tmp_path.iterdir())


def test_what_tvm_refuses_is_an_error_naming_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = TvmRuntime()
    monkeypatch.setattr(
        OnnxRuntime, "export", lambda _self, _net, path, image_size: path.write_text("no model")
    )
    with pytest.raises(ExportError, match=r"could not compile net\.so: DecodeError"):
        runtime.export([STEM, HEAD], tmp_path / "net.so", image_size=SIZE)
    assert not list(tmp_path.iterdir())


def test_without_tvm_the_command_to_install_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    for use in (
        lambda: TvmRuntime().describe(1),
        lambda: TvmRuntime().export([STEM], tmp_path / "net.so", image_size=SIZE),
    ):
        with pytest.raises(DeviceError, match=r'`pip install "hwnas\[tvm\]"`'):
            use()


CANDIDATES = """
import json, multiprocessing, os, sys, time
from hwnas.profilers._tvm_build import import_tvm
tvm = import_tvm()
from tvm import te
from hwnas.profilers import _tvm_tune

_tvm_tune._CANDIDATE_LIMIT_S = 0.3
def ending(run):
    _tvm_tune._run = run
    return _tvm_tune._time(None, None)

found = {
    "ran": ending(lambda candidate, target, answer: answer.send(2.5)),
    "crashed": ending(lambda candidate, target, answer: os.abort()),
    "failed": ending(lambda candidate, target, answer: 1 / 0),
    "hung": ending(lambda candidate, target, answer: time.sleep(60)),
    "children": len(multiprocessing.active_children()),
}
x = te.placeholder((8,), "float32")
module = tvm.IRModule({"main": te.create_prim_func([x, te.compute((8,), lambda i: x[i] + 1)])})
_tvm_tune._time = lambda candidate, target: None
try:
    _tvm_tune.tune(module, tvm.target.Target({"kind": "llvm", "num-cores": 1}), 3)
except RuntimeError as error:
    found["none"] = str(error)
json.dump(found, sys.stderr)
"""


def test_candidates_that_crash_or_hang_are_left_out() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CANDIDATES], capture_output=True, text=True, check=True
    )
    found: dict[str, Any] = json.loads(done.stderr.splitlines()[-1])
    assert found == {
        "ran": [2.5],
        "crashed": None,
        "failed": None,
        "hung": None,
        "children": 0,
        "none": "none of 3 schedules of a kernel ran",
    }


def test_tuning_ends_with_whoever_asked_for_it() -> None:
    script = (
        "from hwnas.profilers._tvm_build import import_tvm; import_tvm()\n"
        "from hwnas.profilers import _tvm_tune; _tvm_tune._PARENT = -1\n"
        "_tvm_tune._time(None, None)"
    )
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True)
    assert done.returncode == 1
    assert b"is gone" in done.stderr


def test_a_gpu_is_compiled_for_where_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("cuda.bindings.nvrtc", reason="NVIDIA's compiler is not installed")
    limits = {"max_shared_memory_per_block": 49152, "max_threads_per_block": 1024}
    runtime = TvmRuntime(processor="cuda")
    monkeypatch.setattr(
        runtime,
        "_target",
        {"kind": "cuda", "arch": "sm_80", **limits, "thread_warp_size": 32, "host": "llvm"},
    )
    runtime.export([STEM, HYBRID, LAYER, HEAD], tmp_path / "net.so", image_size=SIZE)
    assert b"__global__ void" in (tmp_path / "net.so").read_bytes()  # CUDA sources are kept


@pytest.mark.hardware
@pytest.mark.parametrize("trials", [0, 2])
def test_it_runs_on_a_gpu(trials: int, tmp_path: Path) -> None:
    runtime = TvmRuntime(processor="cuda", trials=trials)
    try:
        runtime.describe(1)
    except DeviceError as error:
        pytest.skip(str(error))
    path = tmp_path / "net.so"
    runtime.export([STEM, HYBRID, LAYER, HEAD], path, image_size=SIZE)
    plan = Plan(runtime.spec, rounds=3, warmup_rounds=1, environment=runtime.environment)
    with LocalAgent() as agent:
        (found,) = agent.measure([Artifact("net", path)], plan)
    assert found.error is None
    assert min(found.samples_ms) > 0
