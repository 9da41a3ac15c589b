"""PyTorch itself, eager or compiled, on the CPU or an NVIDIA GPU."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from hwnas.devices import NVIDIA_ENVIRONMENT, first_gpu
from hwnas.errors import DeviceError, SpaceError, StorageError, UsageError
from hwnas.files import writing
from hwnas.profilers._runtime import Run, Runtime, host_timed
from hwnas.spaces import Block
from hwnas.supernet import Network, build

Forward = Callable[[], Tensor]
"""Runs a network on its fixed input; on a GPU it may return before the work is done."""

_LAYOUT, _IMAGE_SIZE = "layout", "image_size"
_MAX_NETWORKS = 200  # in one process; below dynamo's limit for all code together, 256
_WARMUP_RUNS = 3  # before a CUDA graph is captured, as torch's documentation has it


class TorchRuntime(Runtime):
    """What a user of torch gets: eval and inference mode, channels first, torch's own defaults.

    An artifact is a safetensors file, the network's layout in its metadata. ``compile`` is
    ``torch.compile`` as it comes, while the artifact is loaded: 30 to 55 s on a core for a network
    of 1 M parameters, 2 to 5 s for one that Inductor has in its cache.

    CUDA is timed by events on the GPU's own clock. ``cuda`` launches kernel by kernel, so that it
    also shows how fast Python launches; ``cuda-graph`` captures the launches once and replays them.
    """

    name = "torch"
    suffix = ".safetensors"
    options: Mapping[str, tuple[str, ...] | int] = {
        "mode": ("eager", "compile"),
        "processor": ("cpu", "cuda", "cuda-graph"),
        "precision": ("fp32", "fp16"),
    }
    environment: Mapping[str, str] = {}

    def __init__(self, **chosen: str | int) -> None:
        super().__init__(**chosen)
        self._on_cpu = self.chosen["processor"] == "cpu"
        if self.chosen["mode"] == "compile":
            self.timeout_s = 600.0
        if not self._on_cpu:
            self.environment = NVIDIA_ENVIRONMENT
        elif self.chosen["precision"] == "fp16":
            raise UsageError("fp16 of torch is for processor=cuda or cuda-graph; the CPU has fp32")

    def describe(self, threads: int) -> dict[str, str | int]:
        """Name, version, threads and options; GPU and driver where CUDA is used.

        Raises ``DeviceError`` where there is no GPU that torch can use, or no C++ compiler for
        ``compile`` on the CPU.
        """
        described = {
            "name": self.name,
            "version": torch.__version__,
            "threads": threads,
            **self.chosen,
        }
        if self._on_cpu:
            if self.chosen["mode"] == "compile":
                _require_compiler()
            return described
        gpu = first_gpu()
        if not torch.cuda.is_available():
            raise DeviceError(
                f"torch {torch.__version__} cannot use the {gpu.name} here: install a build of "
                "torch for a CUDA version that its driver supports, or use processor=cpu"
            )
        return described | {"gpu": gpu.name, "driver": gpu.driver}

    def export(self, network: Network | Sequence[Block], path: Path, *, image_size: int) -> None:
        """Write weights (random ones of blocks), block keys and image size."""
        if not isinstance(network, Network):
            network = build(network, seed=0)
        metadata = {
            _LAYOUT: json.dumps([(slot, block.key) for slot, block in network.layout]),
            _IMAGE_SIZE: str(image_size),
        }
        tensors = {name: value.contiguous() for name, value in network.state_dict().items()}
        with writing(path) as temporary:
            save_file(tensors, temporary, metadata)

    def load(self, path: Path, threads: int) -> Run:
        """Build the network and run it once, so that it is compiled.

        Raises ``StorageError`` for a file that ``export`` did not write, ``DeviceError`` where
        there is no compiler.
        """
        torch.set_num_threads(threads)
        network, image_size = _read(path)
        device = "cpu" if self._on_cpu else "cuda"
        dtype = torch.float16 if self.chosen["precision"] == "fp16" else torch.float32
        network = network.to(device, dtype)
        generator = torch.Generator().manual_seed(0)
        image = torch.randn(1, 3, image_size, image_size, generator=generator).to(device, dtype)
        run = self._forward(network, image)
        run()
        return host_timed(run) if self._on_cpu else _event_timed(run)

    def _forward(self, network: nn.Module, image: Tensor) -> Forward:
        """How the network is called: as it is or compiled, launched or replayed."""
        module: Callable[[Tensor], Tensor] = network
        if self.chosen["mode"] == "compile":
            if self._on_cpu:
                _require_compiler()
            # All networks share one forward, of which dynamo compiles only so many versions; with
            # fullgraph it says so where it would otherwise go on in eager mode.
            torch._dynamo.config.recompile_limit = _MAX_NETWORKS
            module = torch.compile(network, dynamic=False, fullgraph=True)

        def forward() -> Tensor:
            with torch.inference_mode():
                return module(image)

        return _replayed(forward) if self.chosen["processor"] == "cuda-graph" else forward


def _read(path: Path) -> tuple[Network, int]:
    """The network in evaluation mode, and its image size."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        layout = [(slot, Block.parse(key)) for slot, key in json.loads(metadata[_LAYOUT])]
        image_size = int(metadata[_IMAGE_SIZE])
        network = Network(layout)
        network.load_state_dict(tensors)
    except (
        safetensors.SafetensorError,
        SpaceError,
        OSError,
        KeyError,
        TypeError,
        ValueError,
    ) as error:
        raise StorageError(f"{path} is no network written for torch: {error}") from error
    except RuntimeError as error:  # load_state_dict: weights that are missing or of other shapes
        raise StorageError(f"{path} lacks weights of its network: {error}") from error
    return network.eval(), image_size


def _require_compiler() -> None:
    """Raise ``DeviceError`` where Inductor will not find the C++ compiler that it looks for."""
    default = "clang++" if sys.platform == "darwin" else "g++"
    name = os.environ.get("CXX", default)
    if shutil.which(name) is None:
        raise DeviceError(
            f"torch.compile needs a C++ compiler, and there is no {name}: install it, name one in "
            "the variable CXX, or use mode=eager"
        )


def _replayed(forward: Forward) -> Forward:
    """Capture ``forward`` in a CUDA graph, after runs that allocate and choose kernels."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARMUP_RUNS):
            forward()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = forward()

    def replay() -> Tensor:
        graph.replay()
        return output

    return replay


def _event_timed(run: Forward) -> Run:
    """Time ``run`` by CUDA events: from an idle GPU to the end of its last kernel."""
    start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]

    def timed() -> float:
        torch.cuda.synchronize()
        start.record()
        run()
        end.record()
        end.synchronize()
        elapsed_ms: float = start.elapsed_time(end)
        return elapsed_ms

    return timed
