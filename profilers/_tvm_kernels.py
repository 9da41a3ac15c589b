"""Kernels that were tuned and compiled once, for all networks: a folder, and MetaSchedule.

A kernel is what fusing leaves of a few operators at their shapes; hundreds of networks of a design
have a few hundred between them. Each is known by the hash of its structure: ``HASH.workload.json``
and ``HASH.record.json`` are a MetaSchedule database of it and its fastest schedule, ``HASH.o`` is
its code. What is there is not made again; processes that share the folder take turns.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tvm
import tvm_ffi
from tvm.ir import IRModule
from tvm.s_tir import Schedule
from tvm.s_tir.meta_schedule.database import JSONDatabase
from tvm.tirx import PrimFunc

from hwnas.files import writing
from hwnas.profilers._tvm_tune import tune


class Kernels:
    """The kernels in ``folder``, for one target; tuned by that many ``trials`` each, or not (0)."""

    def __init__(self, folder: Path, target: dict[str, Any], *, trials: int):
        self.target = tvm.target.Target(target)
        self.trials = trials
        self._folder = folder

    def compiled(self, kernel: PrimFunc) -> tuple[str, Path]:
        """The name of ``kernel`` in its object file, and the file."""
        name = f"kernel_{_digest(kernel)}"
        path = self._folder / f"{_digest(kernel)}.o"
        if not path.exists():
            function = self.scheduled(kernel) if self.trials else kernel
            module = IRModule({name: function.with_attr("global_symbol", name)})
            with writing(path) as temporary:
                tvm.tirx.build(module, self.target).write_to_file(str(temporary), "o")
        return name, path

    def scheduled(self, kernel: PrimFunc) -> PrimFunc:
        """``kernel`` in the fastest schedule found, looked for where it was not before."""
        with self._locked():
            record = self._record(kernel)
        schedule = Schedule(record.workload.mod)
        record.trace.apply_to_schedule(schedule, remove_postproc=False)
        return schedule.mod["main"].with_attr("tirx.is_scheduled", True)

    def _record(self, kernel: PrimFunc) -> Any:
        record_path = self._folder / f"{_digest(kernel)}.record.json"
        workload_path = self._folder / f"{_digest(kernel)}.workload.json"
        if not record_path.exists():
            module = IRModule({"main": kernel.with_attr("global_symbol", "main")})
            best = tune(module, self.target, self.trials)
            with writing(record_path) as record, writing(workload_path) as workload:
                database = JSONDatabase(str(workload), str(record))
                database.commit_workload(module)
                database.commit_tuning_record(best)
        database = JSONDatabase(str(workload_path), str(record_path))
        (record,) = database.get_all_tuning_records()
        return record

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Wait for one's turn: nobody tunes a kernel twice, or beside another who times."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _digest(kernel: PrimFunc) -> str:
    anonymous = kernel.without_attr("global_symbol")
    return f"{tvm_ffi.structural_hash(anonymous) % 2**64:016x}"
