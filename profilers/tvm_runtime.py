"""TVM on the CPU or an NVIDIA GPU: compiled through Relax, tuned by MetaSchedule where asked."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hwnas.devices import NVIDIA_ENVIRONMENT, first_gpu
from hwnas.errors import DeviceError, ExportError, HwnasError
from hwnas.files import writing
from hwnas.profilers._runtime import Run, Runtime
from hwnas.profilers._tvm_build import import_tvm
from hwnas.profilers.onnx_runtime import OnnxRuntime
from hwnas.spaces import Block

if TYPE_CHECKING:
    from hwnas.supernet import Network

COMPILER = (sys.executable, "-m", "hwnas.profilers._tvm_build")


class TvmRuntime(Runtime):
    """fp32, imported from ONNX, compiled for the processor found; timed by ``time_evaluator``.

    Untuned code (``trials=0``) takes some 20 times as long as ONNX Runtime's and ranks blocks
    wrongly; with 16 trials, 1.7 times as long. MetaSchedule tries that many schedules of each
    kernel that it has not tuned before, and keeps the fastest in ``workspace`` for all networks:
    the first of autovit-xxs at 256 pixels took 11 minutes, the next 2.
    """

    name = "tvm"
    suffix = ".so"
    options: Mapping[str, tuple[str, ...] | int] = {"processor": ("cpu", "cuda"), "trials": 0}
    environment: Mapping[str, str] = {
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
        "TVM_BIND_THREADS": "0",  # the worker chooses its cores itself
    }

    def __init__(self, **chosen: str | int) -> None:
        super().__init__(**chosen)
        self._onnx = OnnxRuntime()
        self._on_cpu = self.chosen["processor"] == "cpu"
        self._target: dict[str, Any] = {}
        if not self._on_cpu:
            self.environment = NVIDIA_ENVIRONMENT

    def describe(self, threads: int) -> dict[str, str | int]:
        """Name, versions, threads, options, whether tuned, and the target as it was found.

        Raises ``DeviceError`` where TVM, or the GPU that is asked for, is not here.
        """
        version, ffi = _versions()
        described: dict[str, str | int] = {
            "name": self.name,
            "version": version,
            "ffi": ffi,
            "threads": threads,
            **self.chosen,
            "code": "tuned" if self.chosen["trials"] else "untuned",
            "target": json.dumps(self._found_target()),
        }
        if not self._on_cpu:
            gpu = first_gpu()
            described |= {"gpu": gpu.name, "driver": gpu.driver}
        return described

    def export(self, network: Network | Sequence[Block], path: Path, *, image_size: int) -> None:
        """Write a shared library: the network's ONNX model, compiled in a process of its own.

        Raises ``ExportError`` naming ``path`` where TVM fails on it or dies of it.
        """
        target = self._found_target()
        with tempfile.TemporaryDirectory(prefix="hwnas-tvm-") as folder, writing(path) as library:
            model = Path(folder) / "network.onnx"
            self._onnx.export(network, model, image_size=image_size)
            _ask(
                f"compile {path.name}",
                ExportError,
                model=str(model),
                library=str(library.resolve()),
                kernels=str(self.kernels_dir().resolve()),
                trials=self.chosen["trials"],
                target=target,
            )

    def kernels_dir(self) -> Path:
        """Where the kernels for this target, TVM and number of trials are kept."""
        made_by = json.dumps([self._found_target(), _versions()], sort_keys=True)
        trials = self.chosen["trials"]
        name = f"{self.chosen['processor']}-{trials}trials-{sha256(made_by.encode()).hexdigest()}"
        return self.workspace / "tvm" / name[:48]

    def load(self, path: Path, threads: int) -> Run:
        """Open a library with one fixed random input; a run is TVM's own timing of one.

        ``time_evaluator`` runs the network once untimed before each time.
        """
        os.environ["TVM_NUM_THREADS"] = str(threads)  # read when TVM's threads first start
        tvm = import_tvm()
        from tvm.relax import VirtualMachine

        device = tvm.cpu() if self._on_cpu else tvm.cuda()
        machine = VirtualMachine(tvm.runtime.load_module(str(path)), device)
        shape = [int(n) for n in machine["image_shape"]()]
        image = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
        machine.set_input("main", tvm.runtime.tensor(image, device))
        timed = machine.time_evaluator("invoke_stateful", device, number=1, repeat=1)
        return lambda: float(timed("main").mean) * 1e3

    def _found_target(self) -> dict[str, Any]:
        """What to compile for: the CPU and its features, or the GPU, as TVM finds them here."""
        _versions()
        if not self._target:
            if not self._on_cpu:
                first_gpu()
            processor = self.chosen["processor"]
            self._target = _ask("find what to compile for", DeviceError, processor=processor)
        return self._target


def _versions() -> tuple[str, str]:
    """Of TVM and its foreign-function interface. Raises ``DeviceError`` where there is none."""
    try:
        return metadata.version("apache-tvm"), metadata.version("apache-tvm-ffi")
    except metadata.PackageNotFoundError:
        raise DeviceError('TVM is not installed: `pip install "hwnas[tvm]"`') from None


def _ask(task: str, kind: type[HwnasError], **job: Any) -> Any:
    """What the compiling process answers to ``job``; an error of ``kind`` if it cannot or dies."""
    done = subprocess.run(
        COMPILER,
        check=False,
        input=json.dumps(job),
        capture_output=True,
        text=True,
        env={**os.environ, "TVM_NUM_THREADS": "1"},
    )
    if done.returncode or not done.stdout:
        how = f"exit status {done.returncode}"
        if done.returncode < 0:
            how = signal.Signals(-done.returncode).name
        words = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        raise kind(f"TVM could not {task}: its process died ({how}): {' '.join(words[-1:])}")
    answer = json.loads(done.stdout)
    if "error" in answer:
        raise kind(f"TVM could not {task}: {answer['error']}")
    return answer["result"]
