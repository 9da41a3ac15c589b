from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from tiny import TOML, exact_table, tiny_space

from hwnas.cli import main
from hwnas.luts import LatencyTable
from hwnas.spaces import Arch, load_space, num_params

Run = Callable[..., Result]

XXS = load_space("autovit-xxs")


@pytest.fixture(scope="module")
def table() -> LatencyTable:
    return exact_table(XXS, image_size=64)


@pytest.fixture
def files(tmp_path: Path, table: LatencyTable) -> Path:
    """``xxs.json`` and ``tiny.json``, tables; ``tiny.toml``, the space of the second."""
    table.write(tmp_path / "xxs.json")
    exact_table(tiny_space()).write(tmp_path / "tiny.json")
    (tmp_path / "tiny.toml").write_text(TOML)
    return tmp_path


def with_input(text: str | bytes, *args: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in args], input=text, prog_name="hwnas")


def test_show(hwnas: Run, files: Path, table: LatencyTable) -> None:
    result = hwnas("lut", "show", "xxs.json")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[:4] == [
        "space           autovit-xxs, 64x64 pixels, 10 classes",
        "device          cpu: cpu fake, cores 2",
        "runtime         name fake, version 1, threads 1",
        "created         2026-01-01T00:00:00+00:00",
    ]
    assert "mean error      1.0% (the same networks timed again: 1.0%)" in lines
    assert "rank agreement  Kendall 0.900, Spearman 0.950" in lines
    for key, entry in table.entries.items():
        kind, _, sizes = key.partition("/")
        (line,) = [line for line in lines if line.split()[3:] == [sizes]]
        assert line.split()[:3] == [f"{entry.ms:.4f}", "0.0010", "5"]
        headers = [line for line in lines if line.split()[-1:] == [kind]]
        assert len(headers) == 1


def test_show_json_is_the_file(hwnas: Run, files: Path) -> None:
    result = hwnas("lut", "show", "xxs.json", "--json")
    assert json.loads(result.stdout) == json.loads((files / "xxs.json").read_text())


def test_predict(hwnas: Run, files: Path, table: LatencyTable) -> None:
    sampled = hwnas("sample", "--space", "autovit-xxs", "--num", 6, "--seed", 4).stdout
    (files / "archs.jsonl").write_text(sampled.replace("\n", "\n\n", 1))
    result = hwnas("lut", "predict", "xxs.json", "archs.jsonl")
    assert result.exit_code == 0
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    archs = [Arch.from_json(json.loads(line)) for line in sampled.splitlines()]
    assert len(lines) == len(archs) == 6
    for line, arch in zip(lines, archs, strict=True):
        blocks = XXS.blocks(arch, 64, 10)
        expected_ms = sum(table.entries[block.key].ms for block in blocks)
        assert line == {
            "latency_ms": {
                "predicted": pytest.approx(expected_ms),
                "low": pytest.approx(expected_ms * (1 - 1.96 * 0.02)),
                "high": pytest.approx(expected_ms * (1 + 1.96 * 0.02)),
            },
            "params": num_params(blocks),
        }
    assert with_input(sampled, "lut", "predict", "xxs.json").stdout == result.stdout
    assert with_input(sampled, "lut", "predict", "xxs.json", "-").stdout == result.stdout
    assert with_input("", "lut", "predict", "xxs.json").output == ""


def test_predict_in_a_space_of_the_users_own(hwnas: Run, files: Path) -> None:
    sampled = hwnas("sample", "--space", "tiny.toml", "--num", 2).stdout
    result = with_input(sampled, "lut", "predict", "tiny.json", "--space", "tiny.toml")
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) == 2


def changed(arch: Arch, **stem: object) -> str:
    value = arch.to_json()
    value["stages"]["stem"] = stem
    return json.dumps(value)


XXS_ARCH = XXS.decode(XXS.largest * 0)  # every choice at its least: too few parameters
XS_ARCH = load_space("autovit-xs").decode(load_space("autovit-xs").largest)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2, is not JSON: "),
        (b"\xff\xfe", "line 2, is not JSON: "),
        ("[" * 100_000, "line 2, is not JSON: "),
        ("3", 'line 2: an architecture is an object with "space" and "stages"'),
        (str(XS_ARCH), "line 2: the architecture is of space 'autovit-xs', not of 'autovit-xxs'"),
        (str(XXS_ARCH), "line 2: the architecture has "),
        (changed(XXS_ARCH, width=17), "line 2: stem.width is 17; autovit-xxs has 16, 24"),
        (changed(XXS_ARCH, width=24), "line 2: the architecture breaks "),
    ],
)
def test_a_line_that_is_no_member(hwnas: Run, files: Path, line: str | bytes, message: str) -> None:
    good = hwnas("sample", "--space", "autovit-xxs", "--num", 1).stdout.encode()
    bad = line if isinstance(line, bytes) else line.encode()
    (files / "archs.jsonl").write_bytes(good + bad + b"\n" + good)
    result = hwnas("lut", "predict", "xxs.json", "archs.jsonl")
    assert result.exit_code == 1
    assert f"Error: archs.jsonl, {message}" in result.stderr
    assert result.stderr.count("Error: ") == result.stderr.count("\n") == 1
    assert len(result.stdout.splitlines()) == 1


def test_a_block_that_the_table_lacks(hwnas: Run, files: Path) -> None:
    value = json.loads((files / "xxs.json").read_text())
    value["entries"] = [e for e in value["entries"] if not e["block"].startswith("mbpool/")]
    (files / "xxs.json").write_text(json.dumps(value))
    sampled = hwnas("sample", "--space", "autovit-xxs", "--num", 1).stdout
    result = with_input(sampled, "lut", "predict", "xxs.json")
    assert result.exit_code == 1
    assert re.search(r"Error: the table has no entry for block mbpool/\S+: ", result.stderr)


@pytest.mark.parametrize(
    ("args", "exit_code", "message"),
    [
        (("show", "none.json"), 1, "no latency table at none.json"),
        (("show", "."), 1, "cannot read the latency table ."),
        (("show", "cut.json"), 1, "cut.json is not a whole latency table"),
        (("show", "future.json"), 1, "future.json has schema 99; this hwnas reads schema 1"),
        (("show", "tiny.toml"), 1, "tiny.toml is not a whole latency table"),
        (("predict", "cut.json"), 1, "cut.json is not a whole latency table"),
        (("predict", "xxs.json", "none.jsonl"), 2, "'none.jsonl': No such file"),
        (("predict", "tiny.json"), 2, "unknown space 'tiny'"),
        (("predict", "xxs.json", "--space", "autovit-xs"), 1, "is of space autovit-xxs, but"),
        (("predict", "xxs.json", "--space", "autovit-xx"), 2, "did you mean 'autovit-xxs'?"),
        ((), 2, "Usage: "),
        (("shwo",), 2, "No such command 'shwo'"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    hwnas: Run, files: Path, args: tuple[str, ...], exit_code: int, message: str
) -> None:
    text = (files / "xxs.json").read_text()
    (files / "cut.json").write_text(text[: len(text) // 2])
    (files / "future.json").write_text(json.dumps(json.loads(text) | {"schema": 99}))
    result = hwnas("lut", *args)
    assert result.exit_code == exit_code
    assert message in result.stderr
    assert not result.stdout


ODD: list[object] = [None, True, -3, 0, 1.5, "text", [], {}, [3], {"a": None}, 10**400]
ODD += [float("nan"), float("inf")]


def places(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Where in a table something can be replaced; of a list, its first element."""
    if path:
        yield path
    if isinstance(value, dict):
        for name in value:
            yield from places(value[name], (*path, name))
    elif isinstance(value, list) and value:
        yield from places(value[0], (*path, 0))


def test_no_damage_to_a_table_is_a_traceback(hwnas: Run, files: Path) -> None:
    whole = (files / "tiny.json").read_text()
    refused = 0
    for path in places(json.loads(whole)):
        for odd in ODD:
            value = json.loads(whole)
            *outer, last = path
            inner = value
            for name in outer:
                inner = inner[name]
            inner[last] = odd
            (files / "odd.json").write_text(json.dumps(value))
            result = hwnas("lut", "show", "odd.json")
            where = f"{path} = {odd!r:.20}: {result.exception!r}"
            assert result.exit_code in (0, 1), where
            assert isinstance(result.exception, SystemExit | None), where
            if result.exit_code:
                refused += 1
                assert result.stderr.startswith("Error: odd.json "), where
                assert not result.stdout, where
    assert refused > 200
