from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import Result
from fakes import FakeAgent, FakeRuntime, true_ms
from tiny import all_blocks, tiny_space

from hwnas.luts import Entry, LatencyTable, member_blocks
from hwnas.spaces import Block, load_space

Run = Callable[..., Result]
Use = Callable[[FakeAgent], FakeAgent]

XXS = load_space("autovit-xxs")
MEMBERS = member_blocks(XXS, image_size=64, num_classes=10)


@pytest.fixture
def written(files: Path, table: LatencyTable) -> LatencyTable:
    """``xxs.json``, with the entries that a member can have and no others."""
    entries = {key: table.entries[key] for key in MEMBERS}
    exact = replace(table, entries=entries)
    exact.write(files / "xxs.json")
    return exact


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Use:
    """Make an agent that of the device."""

    def use(agent: FakeAgent) -> FakeAgent:
        monkeypatch.setattr("hwnas.devices.open_agent", lambda description: agent)
        monkeypatch.setattr("hwnas.luts.table_runtime", lambda table: FakeRuntime())
        return agent

    return use


def drifted(block: Block) -> float:
    return true_ms(block) * (1.2 if block.kind == "vit_layer" else 1)


def test_reading_alone(hwnas: Run, files: Path, written: LatencyTable, use: Use) -> None:
    agent = use(FakeAgent())
    result = hwnas("lut", "check", "xxs.json", "--no-timing")
    assert result.exit_code == 0
    assert not result.stderr
    lines = result.stdout.splitlines()
    assert lines[:4] == [
        "schema          valid: xxs.json",
        "space           autovit-xxs, 64x64 pixels, 10 classes",
        f"coverage        {len(MEMBERS)} of {len(MEMBERS)} blocks that a member can have",
        f"entries         {len(MEMBERS)} resolved (above twice their standard error), "
        "0 not; 0 known only as a sum",
    ]
    assert "mean error      1.0% (the same networks timed again: 1.0%)" in lines
    assert agent.batches == 0


def test_what_is_missing(hwnas: Run, files: Path, written: LatencyTable) -> None:
    gone = MEMBERS[7]
    entries = {key: entry for key, entry in written.entries.items() if key != gone}
    entries[MEMBERS[0]] = Entry(0.1, 0.06, 1)
    aliased = (("base", MEMBERS[1], MEMBERS[2]),)
    replace(written, entries=entries, aliased=aliased).write(files / "xxs.json")
    result = hwnas("lut", "check", "xxs.json", "--no-timing")
    assert result.exit_code == 0
    num = len(MEMBERS)
    assert f"coverage        {num - 1} of {num} blocks that a member can have\n" in result.stdout
    assert f"no entry        {gone}\n" in result.stdout
    assert f"entries         {num - 2} resolved" in result.stdout
    assert " 1 not; 2 known only as a sum\n" in result.stdout
    assert (
        "Warning: blocks without an entry: 1; networks with them cannot be predicted"
        in result.stderr
    )
    found = json.loads(hwnas("lut", "check", "xxs.json", "--no-timing", "--json").stdout)
    assert found["coverage"] == {"blocks": num, "missing": [gone], "foreign": []}
    assert found["entries"] == {
        "total": num - 1,
        "resolved": num - 2,
        "not_resolved": 1,
        "only_as_sum": 2,
    }
    assert found["timing"] is None


def test_entries_of_blocks_that_no_member_has(hwnas: Run, files: Path) -> None:
    space = tiny_space()
    foreign = sorted(
        set(all_blocks(space, 16, 10)) - set(member_blocks(space, image_size=16, num_classes=10))
    )
    result = hwnas("lut", "check", "tiny.json", "--no-timing", "--space", "tiny.toml")
    shown = [line.split()[-1] for line in result.stdout.splitlines() if "in no member" in line]
    assert shown == foreign
    assert f"Warning: entries of blocks that no member has: {len(foreign)}; " in result.stderr


def test_a_table_that_holds(hwnas: Run, files: Path, written: LatencyTable, use: Use) -> None:
    agent = use(FakeAgent())
    result = hwnas("lut", "check", "xxs.json")
    assert result.exit_code == 0
    assert agent.closed
    lines = result.stdout.splitlines()
    header = next(i for i, line in enumerate(lines) if line.startswith("predicted ms"))
    timed = [line.split() for line in lines[header + 1 : header + 11]]
    for predicted, low, high, measured, error in timed:
        assert float(low) < float(measured) < float(high)
        relative = 1 - float(predicted) / float(measured)
        assert float(error.rstrip("%")) / 100 == pytest.approx(relative, abs=2e-3)
    assert "within 95%      10 of 10 networks" in lines
    assert any(line.startswith("holds           yes: ") for line in lines)
    # The fake device's drift is uniform in [0.8, 1.4].
    speed = next(line for line in lines if line.startswith("device's speed  reference"))
    assert speed.endswith("slower")


def test_a_table_that_does_not(hwnas: Run, files: Path, written: LatencyTable, use: Use) -> None:
    use(FakeAgent(drifted))
    result = hwnas("lut", "check", "xxs.json")
    assert result.exit_code == 1
    assert "\nholds           no: " in result.stdout
    assert "Error: the table no longer holds: 10 networks miss their predict" in result.stderr
    assert "1.0% when it was made" in result.stderr


def test_a_device_that_is_disturbed(
    hwnas: Run, files: Path, written: LatencyTable, use: Use
) -> None:
    sentence = r"the device is disturbed: .* are [0-9.]+% apart, 1.0% when the table was made"
    use(FakeAgent(noise=0.1))
    result = hwnas("lut", "check", "xxs.json")
    assert result.exit_code == 0
    assert re.search(f"Warning: {sentence}", result.stderr)
    again = next(line for line in result.stdout.splitlines() if line.startswith("timed again"))
    assert float(again.split()[2].rstrip("%")) > 2.0
    assert again.endswith("% apart (when it was made: 1.0%)")
    use(FakeAgent(lambda block: true_ms(block) * (9 if block.kind == "conv" else 1), noise=0.1))
    result = hwnas("lut", "check", "xxs.json")
    assert result.exit_code == 1
    assert re.search(
        f"Error: whether the table holds cannot be told, for {sentence}", result.stderr
    )


def test_what_fails_is_told(hwnas: Run, files: Path, written: LatencyTable, use: Use) -> None:
    num = len(XXS.blocks(written.reference.arch))
    use(FakeAgent(fails=lambda blocks: len(blocks) < num))
    result = hwnas("lut", "check", "xxs.json")
    line = next(x for x in result.stdout.splitlines() if x.startswith("not timed"))
    failed = int(line.split()[2])
    assert line == f"not timed       {failed} of the networks: out of memory"
    assert f" of {10 - failed} networks\n" in result.stdout


@pytest.mark.parametrize(("formula", "holds"), [(true_ms, True), (drifted, False)])
def test_json(
    hwnas: Run,
    files: Path,
    written: LatencyTable,
    use: Use,
    formula: Callable[[Block], float],
    holds: bool,
) -> None:
    use(FakeAgent(formula))
    result = hwnas("lut", "check", "xxs.json", "--json")
    assert result.exit_code == 1 - holds
    found = json.loads(result.stdout)
    assert (found["lut"], found["space"]) == ("xxs.json", "autovit-xxs")
    assert found["quality"] == written.quality.to_json()
    timing = found["timing"]
    assert timing["holds"] is holds
    assert (timing["p_value"] < 0.01) is not holds
    assert timing["reference_ms"]["then"] == written.reference.ms
    assert 0 < timing["retest_mape"] < 0.01
    latencies = [network["latency_ms"] for network in timing["networks"]]
    errors = [1 - x["predicted"] / x["measured"] for x in latencies]
    assert timing["mape"] == pytest.approx(sum(map(abs, errors)) / 10)
    assert timing["bias"] == pytest.approx(sum(errors) / 10)
    inside = sum(x["low"] <= x["measured"] <= x["high"] for x in latencies)
    assert timing["within_interval"] == inside


def test_nothing_is_timed_on_another_device(
    hwnas: Run, files: Path, written: LatencyTable, use: Use
) -> None:
    agent = use(FakeAgent(cpu="other"))
    result = hwnas("lut", "check", "xxs.json")
    assert result.exit_code == 1
    assert "another device: cpu was 'fake' and is 'other'" in result.stderr
    assert "coverage" in result.stdout
    assert agent.batches == 0
    assert agent.closed
    result = hwnas("lut", "check", "xxs.json", "--device", "iphone13")
    assert result.exit_code == 2
    assert "the table is of device cpu, not of iphone13" in result.stderr


def test_a_runtime_that_is_not_there(hwnas: Run, files: Path, written: LatencyTable) -> None:
    result = hwnas("lut", "check", "xxs.json")  # measured by a runtime called "fake"
    assert result.exit_code == 1
    assert "the table's runtime cannot be had here: unknown runtime 'fake'" in result.stderr
