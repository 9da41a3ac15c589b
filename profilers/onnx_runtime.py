"""ONNX Runtime on the CPU or an NVIDIA GPU: composed ONNX models, timed through IO binding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hwnas.devices import NVIDIA_ENVIRONMENT, first_gpu
from hwnas.errors import DeviceError, UsageError
from hwnas.files import writing
from hwnas.profilers._runtime import Run, Runtime, host_timed
from hwnas.spaces import Block

if TYPE_CHECKING:
    import onnx

    from hwnas.profilers._onnx_compose import Composer
    from hwnas.supernet import Network

_CPU, _CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
_INSTALL_CUDA = (
    "`pip uninstall onnxruntime`, then `pip install onnxruntime-gpu`; or measure with processor=cpu"
)


class OnnxRuntime(Runtime):
    """Graph optimisation as deployed, on the CPU's or CUDA's execution provider.

    CPU: the memory arena is off and glibc's malloc asks for huge pages: between two processes the
    same file then differs by a quarter of what it does with the defaults (0.06 against 0.22 ms
    in 12). fp16 runs as deployed too: where the CPU has no fp16 kernel ONNX Runtime casts to fp32.

    CUDA: input and output stay on the GPU and every node must run there. ``cuda`` launches kernel
    by kernel; ``cuda-graph`` captures the launches once and replays them. int8 is for the CPU.
    """

    name = "onnxruntime"
    suffix = ".onnx"
    options: Mapping[str, tuple[str, ...] | int] = {
        "precision": ("fp32", "fp16", "int8"),
        "processor": ("cpu", "cuda", "cuda-graph"),
    }
    environment: Mapping[str, str] = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}

    def __init__(self, **chosen: str | int) -> None:
        super().__init__(**chosen)
        self._composers: dict[int, Composer] = {}
        self._on_cpu = self.chosen["processor"] == "cpu"
        if not self._on_cpu:
            self.environment = NVIDIA_ENVIRONMENT
            if self.chosen["precision"] == "int8":
                raise UsageError(
                    "ONNX Runtime's CUDA provider has no int8 kernels: choose precision fp16 or "
                    "fp32, or processor=cpu"
                )

    def describe(self, threads: int) -> dict[str, str | int]:
        """Name, version, provider, threads, options, and the settings of processor and precision.

        Raises ``DeviceError`` where CUDA is asked for and the provider or the GPU is not here.
        """
        import onnxruntime

        described = {
            "name": self.name,
            "version": onnxruntime.__version__,
            "provider": _CPU if self._on_cpu else _CUDA,
            "threads": threads,
            **self.chosen,
        }
        if self._on_cpu:
            described["memory"] = "no arena, huge pages"
        else:
            _require_cuda_provider()
            gpu = first_gpu()
            described |= {"gpu": gpu.name, "driver": gpu.driver}
        if self.chosen["precision"] == "int8":
            from hwnas.profilers._onnx_precision import INT8_SCHEME

            described["quantization"] = INT8_SCHEME
        return described

    def export(self, network: Network | Sequence[Block], path: Path, *, image_size: int) -> None:
        """Write an ONNX model; of blocks, each distinct one is exported once and composed.

        int8 ranges come from random images: good for measuring latency, not for accuracy.
        """
        from hwnas.profilers._onnx_precision import noise_images, to_fp16, to_int8

        model = self._model(network, image_size)
        if self.chosen["precision"] == "fp16":
            model = to_fp16(model)
        elif self.chosen["precision"] == "int8":
            model = to_int8(model, noise_images((1, 3, image_size, image_size)))
        with writing(path) as temporary:
            temporary.write_bytes(model.SerializeToString())

    def _model(self, network: Network | Sequence[Block], image_size: int) -> onnx.ModelProto:
        """The model in fp32."""
        import torch

        from hwnas.profilers._onnx_compose import Composer
        from hwnas.profilers._onnx_graph import onnx_graph
        from hwnas.supernet import Network

        if isinstance(network, Network):
            image = torch.zeros(1, 3, image_size, image_size)
            return onnx_graph(
                network, (image,), input_names=["image"], output_name="logits", what="the network"
            )
        if image_size not in self._composers:
            self._composers[image_size] = Composer(image_size=image_size)
        return self._composers[image_size].compose(network)

    def load(self, path: Path, threads: int) -> Run:
        """Open a session on one fixed random input, its outputs preallocated.

        Raises ``DeviceError`` where a CUDA session would run on the CPU.
        """
        import onnxruntime

        session = self._cpu_session(path, threads) if self._on_cpu else self._cuda_session(path)
        place = ("cpu", 0) if self._on_cpu else ("cuda", 0)
        value, binding = onnxruntime.OrtValue, session.io_binding()
        (image,) = session.get_inputs()
        images = np.random.default_rng(0).standard_normal(image.shape, dtype=np.float32)
        binding.bind_ortvalue_input(image.name, value.ortvalue_from_numpy(images, *place))
        for output in session.get_outputs():
            made = value.ortvalue_from_shape_and_type(output.shape, np.float32, *place)
            binding.bind_ortvalue_output(output.name, made)

        def run() -> None:
            session.run_with_iobinding(binding)
            binding.synchronize_outputs()

        return host_timed(run)

    def _cpu_session(self, path: Path, threads: int) -> Any:
        import onnxruntime

        options = _session_options(threads)
        options.enable_cpu_mem_arena = False
        return onnxruntime.InferenceSession(str(path), options, providers=[_CPU])

    def _cuda_session(self, path: Path) -> Any:
        """A session that is all on the GPU: ONNX Runtime refuses to make one that is not."""
        import onnxruntime

        _require_cuda_provider()
        onnxruntime.preload_dlls()  # CUDA and cuDNN may be Python packages, off the loader's path
        options = _session_options(1)
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        graph = "1" if self.chosen["processor"] == "cuda-graph" else "0"
        providers = [(_CUDA, {"device_id": "0", "enable_cuda_graph": graph})]
        session = onnxruntime.InferenceSession(
            str(path), options, providers=providers, enable_fallback=False
        )
        if _CUDA not in session.get_providers():
            raise DeviceError(
                f"ONNX Runtime could not start {_CUDA} and took {session.get_providers()[0]}: "
                "install the CUDA and cuDNN versions that this version of it was built for"
            )
        return session


def _session_options(threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return options


def _require_cuda_provider() -> None:
    """Raise ``DeviceError`` where this build of ONNX Runtime cannot use an NVIDIA GPU."""
    import onnxruntime

    if _CUDA not in onnxruntime.get_available_providers():
        raise DeviceError(
            f"onnxruntime {onnxruntime.__version__} is built without {_CUDA}: {_INSTALL_CUDA}"
        )
