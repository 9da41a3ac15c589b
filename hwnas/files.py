"""Files that are written whole or not at all, and read with a sentence where they fail."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hwnas.errors import HwnasError, StorageError


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Give a path beside ``path`` to write to; rename it into place when the block ends well.

    Raises ``StorageError`` where the folder cannot be made or the disk is full; whatever was
    written so far is then removed, and what stood at ``path`` before still stands.
    """
    if path.exists() and not path.is_file():  # a rename would put a file where /dev/null was
        raise StorageError(f"cannot write {path}: it is there and is not a file")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path``, whole or not at all."""
    with writing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: object) -> None:
    """Write ``value`` to ``path`` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path, what: str, error: type[HwnasError]) -> Any:
    """Read JSON from ``path``; raise ``error`` naming ``what`` where it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_number)
    except FileNotFoundError:
        raise error(f"no {what} at {path}") from None
    except OSError as cause:
        raise error(f"cannot read the {what} {path}: {cause.strerror or cause}") from cause
    except (ValueError, RecursionError) as cause:
        raise error(f"{path} is not a whole {what} (damaged or cut short?): {cause}") from cause


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def append_line(path: Path, value: object) -> None:
    """Append ``value`` to ``path`` as one JSON line, on disk before this returns."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            if file.tell() and not _ends_with_newline(path):
                file.write(b"\n")
            file.write((json.dumps(value, allow_nan=False) + "\n").encode())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from error


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def read_lines(path: Path, parse: Callable[[Any], Any]) -> list[Any]:
    """Read the JSON lines of ``path`` that are whole; a line cut short by a kill is left out."""
    if not path.exists():
        return []
    parsed = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            parsed.append(parse(json.loads(line)))
        except (ValueError, KeyError, TypeError):
            continue
    return parsed
