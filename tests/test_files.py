from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from hwnas.errors import StorageError, TableError
from hwnas.files import append_line, read_json, read_lines, write_json, writing


def test_what_stood_there_stays_when_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("before")
    with pytest.raises(ZeroDivisionError), writing(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("reason", ["No space left on device", "Read-only file system"])
def test_a_full_disk_is_one_sentence(tmp_path: Path, reason: str) -> None:
    with (
        pytest.raises(StorageError, match=rf"cannot write .*file: {reason}"),
        writing(tmp_path / "file") as temporary,
    ):
        temporary.write_text("half")
        raise OSError(28, reason)
    assert list(tmp_path.iterdir()) == []


def test_a_parent_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        write_json(tmp_path / "file" / "x.json", {})
    with pytest.raises(StorageError, match="cannot write"):
        append_line(tmp_path / "file" / "x.jsonl", {})


def test_what_is_no_file_is_not_replaced_by_one(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(StorageError, match="is there and is not a file"):
            write_json(path, {})
    assert (tmp_path / "pipe").is_fifo()


def test_lines_survive_a_kill_in_the_middle_of_one(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    append_line(path, {"n": 1})
    with path.open("a") as file:
        file.write('{"n": 2, "rest of the li')
    append_line(path, {"n": 3})
    assert read_lines(path, lambda value: value["n"]) == [1, 3]
    assert read_lines(tmp_path / "absent", lambda value: value) == []


@pytest.mark.parametrize(
    ("text", "match"),
    [("{", "is not a whole latency table"), ("[" * 100_000, "is not a whole latency table")],
)
def test_damaged_json(tmp_path: Path, text: str, match: str) -> None:
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(TableError, match=match):
        read_json(tmp_path / "t.json", "latency table", TableError)


def test_json_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="no latency table at"):
        read_json(tmp_path / "absent.json", "latency table", TableError)
    with pytest.raises(TableError, match="cannot read the latency table"):
        read_json(tmp_path, "latency table", TableError)
    write_json(tmp_path / "a" / "b.json", {"x": 1})
    assert json.loads((tmp_path / "a" / "b.json").read_text()) == {"x": 1}


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_a_number_that_json_does_not_have_is_damage(tmp_path: Path, number: str) -> None:
    (tmp_path / "t.json").write_text(f'{{"ms": {number}}}')
    with pytest.raises(TableError, match=f"damaged or cut short.*{number} is not JSON"):
        read_json(tmp_path / "t.json", "latency table", TableError)
