"""The process that TVM compiles in: a job as JSON on standard input, an answer as JSON out.

``python -m hwnas.profilers._tvm_build``. Compiler and tuner can crash, so hwnas itself never runs
them: the death of this process is an answer. Whatever TVM prints goes to standard error.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    """Take a job, do it, answer ``{"result": …}`` or, in one line, ``{"error": …}``."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    job = json.load(sys.stdin)
    try:
        import_tvm()
        answer = {"result": _do(**job)}
    except Exception as error:  # TVM may raise anything; it is data here
        answer = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
    json.dump(answer, answers)
    answers.flush()


def import_tvm() -> Any:
    """Import TVM without torch, which it imports where it can: 0.6 s instead of 3.3 s."""
    without_torch = "torch" not in sys.modules
    if without_torch:
        sys.modules["torch"] = None  # type: ignore[assignment]  # to import it now fails
    try:
        import tvm
    finally:
        if without_torch:
            del sys.modules["torch"]
    return tvm


def _do(
    *,
    target: dict[str, Any] | None = None,
    processor: str = "cpu",
    model: str = "",
    library: str = "",
    kernels: str = "",
    trials: int = 0,
) -> Any:
    """Find the target of ``processor``; or, given a ``target``, compile ``model``."""
    if target is None:
        return _cuda_target() if processor == "cuda" else _host_target()
    from hwnas.profilers._tvm_compile import compile_model
    from hwnas.profilers._tvm_kernels import Kernels

    compile_model(Path(model), Path(library), Kernels(Path(kernels), target, trials=trials))
    return None


def _host_target() -> dict[str, Any]:
    """The CPU as LLVM finds it, less what a virtual machine hides of the model it names.

    Kernels are tuned to run on one core; a network's own threads are set where it is loaded.
    """
    import tvm
    from tvm.target import codegen

    target = {"kind": "llvm", "mcpu": codegen.llvm_get_system_cpu()}
    found = dict(tvm.get_global_func("tvm.codegen.llvm.GetHostCPUFeatures")())
    assumed = codegen.llvm_get_cpu_features(tvm.target.Target(target))
    hidden = sorted(name for name in map(str, assumed) if not found.get(name, True))
    return {**target, "mattr": [f"-{name}" for name in hidden], "num-cores": 1}


def _cuda_target() -> dict[str, Any]:
    """The first GPU, as its driver describes it."""
    import tvm

    found = json.loads(str(tvm.target.Target.from_device(tvm.cuda(0))))
    wanted = ("kind", "arch", "max_shared_memory_per_block", "max_threads_per_block")
    return {
        **{name: found[name] for name in (*wanted, "thread_warp_size") if name in found},
        "host": _host_target(),
    }


if __name__ == "__main__":
    main()
