from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from scipy.stats import t

from hwnas.cli import main
from hwnas.luts import LatencyTable
from hwnas.spaces import Arch, load_space, num_params

Run = Callable[..., Result]

XXS = load_space("autovit-xxs")
T95 = t.ppf(0.975, 40)  # of the 40 held-out networks that the exact table claims


def with_input(text: str | bytes, *args: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in args], input=text, prog_name="hwnas")


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
                "low": pytest.approx(expected_ms * (1 - T95 * 0.02), rel=1e-4),
                "high": pytest.approx(expected_ms * (1 + T95 * 0.02), rel=1e-4),
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
