"""The raw samples behind a table, in a file beside it that all who measure for the table share.

The first line says under which conditions; then one line a batch, on disk before the next begins.
Whoever measures holds a lock on the file for as long as a batch takes: two processes measure in
turn, disturb each other's timings not at all, and each goes on from what both have measured.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hwnas.errors import StorageError, TableError
from hwnas.files import append_line, read_lines
from hwnas.luts._design import Variant
from hwnas.luts._timing import Batch


@dataclass(frozen=True)
class Record:
    """One batch that was timed."""

    task: str
    """``ROLE/INDEX``."""
    variants: tuple[Variant, ...]
    """Network i of the batch is called ``TASK/i``."""
    batch: Batch

    def to_json(self) -> dict[str, Any]:
        """The fields, and the raw samples in order."""
        networks = [variant.to_json() for variant in self.variants]
        return {"task": self.task, "networks": networks, **self.batch.to_json()}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Record:
        """Read what ``to_json`` wrote."""
        variants = tuple(map(Variant.from_json, value["networks"]))
        return cls(str(value["task"]), variants, Batch.from_json(value))


def measurements_path(table_path: Path) -> Path:
    """Where the raw samples behind a table are kept, beside it."""
    return table_path.with_suffix(".measurements.jsonl")


class Measurements:
    """The records of one table. ``restart`` forgets what is there."""

    def __init__(self, path: Path, conditions: Mapping[str, Any], *, restart: bool = False):
        self.path = path
        self._conditions = dict(conditions)
        with self._locked():
            if restart or not read_lines(path, lambda value: value):
                path.write_bytes(b"")
                append_line(path, {"conditions": self._conditions})

    @contextmanager
    def turn(self) -> Iterator[list[Record]]:
        """Wait for one's turn; give the records there are. ``add`` to them before it ends.

        Raises ``TableError`` where the file holds measurements under other conditions.
        """
        with self._locked():
            self._check()
            yield read_lines(self.path, Record.from_json)

    def add(self, record: Record) -> None:
        """Put a record on disk."""
        append_line(self.path, record.to_json())

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = self.path.open("ab")
        except OSError as error:
            raise StorageError(f"cannot write {self.path}: {error.strerror or error}") from error
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _check(self) -> None:
        lines = read_lines(self.path, lambda value: value)
        head = lines[0].get("conditions") if lines and isinstance(lines[0], dict) else None
        if not isinstance(head, dict):
            raise TableError(
                f"{self.path} is damaged: it does not begin with conditions; use --restart to "
                "measure anew"
            )
        for name, value in self._conditions.items():
            if (theirs := head.get(name)) != value:
                raise TableError(
                    f"{self.path} holds measurements under another {name} ({theirs} there, {value} "
                    "now): use --restart to measure anew, or write elsewhere with --out"
                )
