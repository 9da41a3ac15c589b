from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import Result

from hwnas.luts import Entry, LatencyTable

Run = Callable[..., Result]


@pytest.fixture
def changed(files: Path, table: LatencyTable) -> list[str]:
    """``new.json``: like ``xxs.json`` but for its runtime, two slower blocks and one without."""
    slow, slower, gone, *_ = sorted(table.entries)
    entries = dict(table.entries)
    del entries[gone]
    for key, z in ((slow, 6), (slower, -8)):
        entries[key] = Entry(entries[key].ms + z * 0.001 * 2**0.5, 0.001, 5)
    runtime = {**table.runtime, "version": "2"}
    replace(table, entries=entries, runtime=runtime).write(files / "new.json")
    return [slower, slow, gone]


def listed(stdout: str) -> list[list[str]]:
    """The words of each entry."""
    lines = stdout.splitlines()
    return [line.split() for line in lines[lines.index("") + 2 :]]


def test_significant_entries_the_clearest_first(
    hwnas: Run, changed: list[str], table: LatencyTable
) -> None:
    slower, slow, _ = changed
    result = hwnas("lut", "diff", "xxs.json", "new.json")
    assert result.exit_code == 0
    num = len(table.entries) - 1
    assert result.stdout.splitlines()[:6] == [
        "A               xxs.json, created 2026-01-01T00:00:00+00:00",
        "B               new.json, created 2026-01-01T00:00:00+00:00",
        "differs         runtime version: 1 in A, 2 in B",
        f"compared        {num} entries: 2 differ significantly",
        "ratio B / A     1.0000 in the median; B divided by it: 2 differ significantly",
        "only in A       1",
    ]
    for words, key, z in zip(listed(result.stdout), (slower, slow), (-8, 6), strict=True):
        a_ms = table.entries[key].ms
        assert words[-1] == key
        assert words[0] == f"{a_ms:.4f}"
        assert float(words[2]) == pytest.approx(z * 0.00141421, abs=6e-5)
        assert words[3:6] == ["0.0014", f"{z:+.1f}", "*"]


def test_all_entries(hwnas: Run, changed: list[str], table: LatencyTable) -> None:
    words = listed(hwnas("lut", "diff", "xxs.json", "new.json", "--all").stdout)
    assert {word[-1] for word in words} == set(table.entries) - {changed[2]}
    assert [word[-1] for word in words[:2]] == changed[:2]
    assert sum("*" in word for word in words) == 2


def test_json(hwnas: Run, changed: list[str], table: LatencyTable) -> None:
    found = json.loads(hwnas("lut", "diff", "new.json", "xxs.json", "--json").stdout)
    assert (found["a"], found["b"]) == ("new.json", "xxs.json")
    assert found["conditions"] == [{"name": "runtime version", "a": "2", "b": "1"}]
    assert found["compared"] == len(found["entries"]) == len(table.entries) - 1
    assert found["significant"] == found["significant_beyond_ratio"] == 2
    assert found["median_ratio"] == pytest.approx(1)
    assert (found["only_a"], found["only_b"]) == ([], [changed[2]])
    first = found["entries"][0]
    assert first["block"] == changed[0]
    assert first["b_ms"] == table.entries[changed[0]].ms
    assert first["difference_ms"] == pytest.approx(8 * 0.00141421, rel=1e-4)
    assert first["z"] == pytest.approx(8)
    assert first["significant"] is True


def test_a_table_against_itself(hwnas: Run, files: Path) -> None:
    result = hwnas("lut", "diff", "xxs.json", "xxs.json")
    assert result.exit_code == 0
    assert "measured        under the same conditions\n" in result.stdout
    assert " entries: 0 differ significantly\n" in result.stdout
    assert "block" not in result.stdout


def test_entries_that_claim_no_error(hwnas: Run, files: Path, table: LatencyTable) -> None:
    for name, scale in (("a.json", 1), ("b.json", 2), ("0.json", 0)):
        entries = {k: Entry(scale * e.ms, 0.0, 1) for k, e in table.entries.items()}
        replace(table, entries=entries).write(files / name)
    found = json.loads(hwnas("lut", "diff", "a.json", "b.json", "--json").stdout)
    assert found["entries"][0]["z"] is None
    assert found["significant"] == found["compared"]
    assert found["median_ratio"] == pytest.approx(2)
    assert found["significant_beyond_ratio"] == 0
    assert "+inf" in hwnas("lut", "diff", "a.json", "b.json").stdout
    assert (
        json.loads(hwnas("lut", "diff", "0.json", "a.json", "--json").stdout)["median_ratio"]
        is None
    )
    assert "ratio B / A" not in hwnas("lut", "diff", "0.json", "a.json").stdout
