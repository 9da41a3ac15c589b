from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from hwnas.errors import CheckpointError, StorageError
from hwnas.search._accuracy import AccuracyLog
from hwnas.spaces import Codes

KEY = {"space": "tiny", "supernet": "abc", "image_size": 16}
ROWS = [np.array([1, 0, i], dtype=np.int8) for i in (3, 1, 2, 127)]


class Rater:
    """An accuracy that is known, and which rows it was asked for."""

    def __init__(self) -> None:
        self.rated: list[int] = []

    def __call__(self, codes: Codes) -> float:
        self.rated.append(int(codes[2]))
        return min(int(codes[2]), 2) / 4


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The log of a search that has rated all rows."""
    log = AccuracyLog(tmp_path / "out" / "evaluations.jsonl", KEY, Rater())
    for row in ROWS:
        log(row)
    return tmp_path / "out" / "evaluations.jsonl"


def resume(path: Path) -> list[int]:
    """Which rows are rated when the search asks for all of them again."""
    rater = Rater()
    log = AccuracyLog(path, KEY, rater)
    assert [log(row) for row in ROWS] == [0.5, 0.25, 0.5, 0.5]
    assert resume_none(path)
    return rater.rated


def resume_none(path: Path) -> bool:
    rater = Rater()
    log = AccuracyLog(path, KEY, rater)
    return [log(row) for row in ROWS] == [0.5, 0.25, 0.5, 0.5] and not rater.rated


def test_each_rating_is_on_disk_before_the_next_begins(tmp_path: Path) -> None:
    path, lines = tmp_path / "log.jsonl", []

    def rate(codes: Codes) -> float:
        lines.append(path.read_text().splitlines())
        return 0.5

    log = AccuracyLog(path, KEY, rate)
    for row in [*ROWS, *ROWS]:
        log(row)
    assert [len(seen) for seen in lines] == [1, 2, 3, 4]
    assert json.loads(lines[1][1]) == {"accuracy": 0.5, "codes": [1, 0, 3]}


def test_it_goes_on_from_disk(path: Path) -> None:
    assert resume(path) == []


def test_a_line_cut_short_is_rated_again(path: Path) -> None:
    path.write_text(path.read_text()[:-9])
    assert resume(path) == [127]


def test_a_log_cut_short_in_its_first_line_begins_anew(path: Path) -> None:
    path.write_text(path.read_text()[:30])
    assert resume(path) == [3, 1, 2, 127]


@pytest.mark.parametrize(
    "line",
    [
        '{"accuracy": NaN, "codes": [1, 0, 1]}',
        '{"accuracy": 1.5, "codes": [1, 0, 1]}',
        '{"accuracy": "high", "codes": [1, 0, 1]}',
        '{"accuracy": 0.25, "codes": [1, 0, 300]}',
        '{"accuracy": 0.25, "codes": null}',
        '{"accuracy": 0.25}',
        "[1]",
        "3",
        "\ufffd",
    ],
)
def test_a_damaged_line_is_rated_again(path: Path, line: str) -> None:
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], line, *lines[3:]]) + "\n")
    assert resume(path) == [1]


@pytest.mark.parametrize("line", ["[]", "3", '{"codes": []}', '{"conditions": 3}'])
def test_a_log_that_does_not_begin_as_one(path: Path, line: str) -> None:
    path.write_text("\n".join([line, *path.read_text().splitlines()[1:]]))
    before = path.read_text()
    with pytest.raises(CheckpointError, match=r"evaluations\.jsonl is damaged: .*; remove it"):
        AccuracyLog(path, KEY, Rater())
    assert path.read_text() == before


@pytest.mark.parametrize(
    ("name", "now"), [("supernet", "def"), ("space", "other"), ("image_size", 32)]
)
def test_ratings_under_other_conditions_do_not_mix(path: Path, name: str, now: object) -> None:
    before = path.read_text()
    match = f"holds a search with another {name} \\({KEY[name]!r} there, {now!r} now\\): give"
    with pytest.raises(CheckpointError, match=match):
        AccuracyLog(path, {**KEY, name: now}, Rater())
    assert path.read_text() == before


def test_a_folder_that_cannot_be_made_is_said_before_anything_is_rated(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot write .*evaluations\.jsonl"):
        AccuracyLog(tmp_path / "file" / "evaluations.jsonl", KEY, Rater())


def test_ranked_is_what_this_search_asked_for(path: Path) -> None:
    log = AccuracyLog(path, KEY, Rater())
    assert log.ranked() == []
    for row in (ROWS[3], ROWS[0], ROWS[1]):
        assert not log.asked(row)
        log(row)
        assert log.asked(row.copy())
    assert not log.asked(ROWS[2])
    assert [(accuracy, int(row[2])) for accuracy, row in log.ranked()] == [
        (0.5, 3),
        (0.5, 127),
        (0.25, 1),
    ]
