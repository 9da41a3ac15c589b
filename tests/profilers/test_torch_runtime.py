from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from safetensors.torch import save_file

from hwnas.errors import DeviceError, StorageError, UsageError
from hwnas.profilers import load_runtime, torch_runtime
from hwnas.spaces import Block
from hwnas.supernet import build

SIZE = 24
STEM = Block.of("conv", **{"in": 3}, out=8, kernel=3, stride=2, res=SIZE)
HYBRID = Block.of("hybrid", c=8, d=12, kernel=3, patch=2, res=12)
LAYER = Block.of("vit_layer", d=12, heads=2, head_dim=4, ratio=2, pixels=4, tokens=36)
HEAD = Block.of("mbpool", **{"in": 8}, expand=2, features=5, res=12)
BLOCKS = (STEM, HYBRID, LAYER, HEAD)


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of threads that torch was told to use; it keeps its own."""
    told: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", told.append)
    return told


def test_a_file_holds_the_network(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    network = build(BLOCKS, ["a", "b", "c", "d"], seed=4)
    load_runtime("torch").export(network, path, image_size=SIZE)
    found, image_size = torch_runtime._read(path)
    assert found.layout == network.layout
    assert not found.training
    assert image_size == SIZE
    state = found.state_dict()
    assert state.keys() == network.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in network.state_dict().items())


def test_blocks_have_the_same_random_weights_each_time(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.safetensors" for i in range(2)]
    for path in paths:
        load_runtime("torch").export(BLOCKS, path, image_size=SIZE)
    first, second = (torch_runtime._read(path)[0].state_dict() for path in paths)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_network_runs_in_evaluation_without_gradients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: list[int]
) -> None:
    path, seen = tmp_path / "net.safetensors", []
    load_runtime("torch").export(BLOCKS, path, image_size=SIZE)
    forward = torch_runtime.Network.forward

    def watched(network: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        facts = (network.training, torch.is_inference_mode_enabled(), tuple(x.shape), x.dtype)
        seen.append(facts)
        return forward(network, x)

    monkeypatch.setattr(torch_runtime.Network, "forward", watched)
    run = load_runtime("torch").load(path, 3)
    assert run() > 0
    assert seen == [(False, True, (1, 3, SIZE, SIZE), torch.float32)] * 2  # one while loading
    assert threads == [3]


def test_as_many_networks_as_a_batch_has_are_all_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: list[int]
) -> None:
    compiled: list[tuple[int, ...]] = []

    def backend(graph: torch.fx.GraphModule, examples: list[Any]) -> Callable[..., Any]:
        compiled.append(tuple(len(tensor) for tensor in examples if tensor.ndim == 1))
        return graph.forward

    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=8):
        plain = torch.compile
        monkeypatch.setattr(torch, "compile", functools.partial(plain, backend=backend))
        runtime = load_runtime("torch:mode=compile")
        num = 12  # beyond the 8 that dynamo compiles of one function
        runs = []
        for i in range(num):
            path = tmp_path / f"{i}.safetensors"
            stem = Block.of("conv", **{"in": 3}, out=4 + i, kernel=3, stride=2, res=SIZE)
            runtime.export([stem], path, image_size=SIZE)
            runs.append(runtime.load(path, 1))
        assert [set(widths) for widths in compiled] == [{4 + i} for i in range(num)]
        for run in runs:
            assert run() > 0
        assert len(compiled) == num
    torch._dynamo.reset()


def test_compiling_needs_a_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: list[int]
) -> None:
    path, runtime = tmp_path / "net.safetensors", load_runtime("torch:mode=compile")
    runtime.export(BLOCKS, path, image_size=SIZE)
    monkeypatch.setenv("CXX", "no-such-compiler")
    for attempt in (lambda: runtime.describe(1), lambda: runtime.load(path, 1)):
        with pytest.raises(DeviceError, match=r"needs a C\+\+ compiler.* no no-such-compiler"):
            attempt()
    assert load_runtime("torch").describe(1)["mode"] == "eager"


@pytest.mark.parametrize("damage", ["cut", "empty", "plain", "weights", "keys"])
def test_a_file_of_something_else(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "net.safetensors"
    load_runtime("torch").export(BLOCKS, path, image_size=SIZE)
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:1000])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "plain":
        save_file(tensors, path)
    elif damage == "weights":
        save_file(dict(list(tensors.items())[1:]), path, metadata)
    else:
        save_file(tensors, path, metadata | {"layout": '[["a", "conv/in=3"]]'})
    with pytest.raises(StorageError, match=r"net\.safetensors (is no network|lacks weights)"):
        torch_runtime._read(path)


def test_fp16_is_for_a_gpu() -> None:
    with pytest.raises(UsageError, match="fp16 of torch is for processor=cuda or cuda-graph"):
        load_runtime("torch:precision=fp16")
    assert load_runtime("torch:precision=fp16,processor=cuda").chosen["precision"] == "fp16"


# CUDA, without any: the order of the calls that are made.


def test_a_gpu_that_torch_cannot_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!{sys.executable}\nprint('NVIDIA H200, 580.65.06')\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    runtime = load_runtime("torch:processor=cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match="cannot use the NVIDIA H200 here: install a build"):
        runtime.describe(1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    found = runtime.describe(1)
    assert (found["gpu"], found["driver"]) == ("NVIDIA H200", "580.65.06")
    assert runtime.environment == {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


def test_a_run_is_timed_by_events_around_it_and_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[str] = []

    class Event:
        def __init__(self, *, enable_timing: bool) -> None:
            assert enable_timing
            self.name = "end" if events else "start"
            events.append(self)

        def record(self) -> None:
            calls.append(f"{self.name} recorded")

        def synchronize(self) -> None:
            calls.append(f"{self.name} waited for")

        def elapsed_time(self, end: Event) -> float:
            assert (self.name, end.name) == ("start", "end")
            return 1.25

    events: list[Event] = []
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: calls.append("idle"))

    def run() -> torch.Tensor:
        calls.append("run")
        return torch.zeros(1)

    timed = torch_runtime._event_timed(run)
    assert timed() == 1.25
    assert calls == ["idle", "start recorded", "run", "end recorded", "end waited for"]


def test_a_graph_is_captured_once_after_warm_up_and_then_replayed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[str] = []

    class Stream:
        def wait_stream(self, other: Stream) -> None:
            calls.append("wait")

        def __enter__(self) -> None:
            calls.append("side stream")

        def __exit__(self, *_: object) -> None:
            calls.append("back")

    class Graph:
        def replay(self) -> None:
            calls.append("replay")

        def __enter__(self) -> None:
            calls.append("capture")

        def __exit__(self, *_: object) -> None:
            calls.append("captured")

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: graph)

    def forward() -> torch.Tensor:
        calls.append("forward")
        return torch.ones(1)

    replay = torch_runtime._replayed(forward)
    warm = ["wait", "side stream", "forward", "forward", "forward", "back", "wait"]
    assert calls == [*warm, "capture", "forward", "captured"]
    calls.clear()
    assert replay().item() == 1
    assert replay().item() == 1
    assert calls == ["replay", "replay"]
