"""ONNX Runtime on the CPU: composed ONNX models, timed through IO binding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hwnas.files import writing
from hwnas.profilers._runtime import Run, Runtime, host_timed
from hwnas.spaces import Block

if TYPE_CHECKING:
    from hwnas.profilers._onnx_compose import Composer
    from hwnas.supernet import Network


class OnnxRuntime(Runtime):
    """The CPU execution provider, fp32, graph optimisation as deployed.

    The memory arena is off and glibc's malloc asks for huge pages: between two processes the same
    file then differs by a quarter of what it does with the defaults (0.06 against 0.22 ms in 12).
    """

    name = "onnxruntime"
    suffix = ".onnx"
    options: Mapping[str, tuple[str, ...] | int] = {"precision": ("fp32",)}
    environment: Mapping[str, str] = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}

    def __init__(self, **chosen: str | int) -> None:
        super().__init__(**chosen)
        self._composers: dict[int, Composer] = {}

    def describe(self, threads: int) -> dict[str, str | int]:
        """Name, version, provider, precision, threads and memory settings."""
        import onnxruntime

        return {
            "name": self.name,
            "version": onnxruntime.__version__,
            "provider": "CPUExecutionProvider",
            "threads": threads,
            **self.chosen,
            "memory": "no arena, huge pages",
        }

    def export(self, network: Network | Sequence[Block], path: Path, *, image_size: int) -> None:
        """Write an ONNX model; of blocks, each distinct one is exported once and composed."""
        import torch

        from hwnas.profilers._onnx_compose import Composer
        from hwnas.profilers._onnx_graph import onnx_graph
        from hwnas.supernet import Network

        if isinstance(network, Network):
            image = torch.zeros(1, 3, image_size, image_size)
            model = onnx_graph(
                network, (image,), input_names=["image"], output_name="logits", what="the network"
            )
        else:
            if image_size not in self._composers:
                self._composers[image_size] = Composer(image_size=image_size)
            model = self._composers[image_size].compose(network)
        with writing(path) as temporary:
            temporary.write_bytes(model.SerializeToString())

    def load(self, path: Path, threads: int) -> Run:
        """Open a session on one fixed random input, its outputs preallocated."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.enable_cpu_mem_arena = False
        options.log_severity_level = 3
        providers = ["CPUExecutionProvider"]
        session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        binding, rng = session.io_binding(), np.random.default_rng(0)
        (image,) = session.get_inputs()
        images = rng.standard_normal(image.shape, dtype=np.float32)
        binding.bind_ortvalue_input(image.name, onnxruntime.OrtValue.ortvalue_from_numpy(images))
        for output in session.get_outputs():
            value = onnxruntime.OrtValue.ortvalue_from_shape_and_type(output.shape, np.float32)
            binding.bind_ortvalue_output(output.name, value)
        return host_timed(lambda: session.run_with_iobinding(binding))
