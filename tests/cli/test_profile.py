from __future__ import annotations

import errno
import json
import os
import platform
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from click.testing import Result
from fakes import FakeAgent, FakeRuntime, true_ms
from tiny import TOML, tiny_space

import hwnas.luts
from hwnas.luts import LatencyTable

Run = Callable[..., Result]

SMALL = ("--space", "tiny.toml", "--image-size", "16", "--num-classes", "10", "--rounds", "10")
TABLE = "luts/cpu-fake-tiny-16px-10classes.json"


class Clock:
    """A batch, looked at before and after, takes a second."""

    now = 0.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeAgent:
    """The device that is opened, and ``tiny.toml``."""
    (tmp_path / "tiny.toml").write_text(TOML)
    agent = FakeAgent()
    monkeypatch.setattr("hwnas.devices.open_agent", lambda description: agent)
    monkeypatch.setattr("hwnas.profilers.load_runtime", lambda name: FakeRuntime())
    monkeypatch.setattr("hwnas.luts.profile", partial(hwnas.luts.profile, clock=Clock()))
    return agent


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_table_is_measured_and_found_by_the_next_run(
    hwnas: Run, agent: FakeAgent, tmp_path: Path
) -> None:
    result = hwnas("profile", *SMALL, "--time-budget", "16s", "--json")
    assert result.exit_code == 0
    shown = json.loads(result.stdout)
    table = LatencyTable.read(tmp_path / "hwnas-runs" / TABLE)
    assert shown == {"lut": f"hwnas-runs/{TABLE}", "quality": table.quality.to_json()}
    assert (table.space, table.image_size, table.num_classes) == ("tiny", 16, 10)
    assert (table.quality.networks, agent.batches, agent.closed) == (40, 16, True)
    blocks = tiny_space().blocks(table.reference.arch, 16, 10)
    assert table.reference.ms == pytest.approx(1.1 * sum(map(true_ms, blocks)), rel=0.1)
    assert "Profiling at 16x16 pixels and 10 classes (as asked)." in result.stderr
    next_step = f"Next: hwnas search --space tiny.toml --latency {table.reference.ms:.3g}ms"
    assert next_step in result.stderr

    again = hwnas("profile", *SMALL, "--time-budget", "16s")
    assert agent.batches == 16  # nothing is measured twice
    q, method = table.quality, table.method
    paper = table.quality_by_keys["paper"].mape
    assert again.stdout.splitlines()[:7] == [
        f"table           hwnas-runs/{TABLE}",
        "fitted to       80 networks in 16 batches",
        "held out        40 networks, each timed twice",
        f"mean error      {q.mape:.1%} (the same networks timed again: {q.retest_mape:.1%})",
        f"                {paper:.1%} with --keys paper",
        f"within 5%, 10%  {q.within_5pct:.0%}, {q.within_10pct:.0%}",
        f"rank agreement  Kendall {q.kendall:.3f}, Spearman {q.spearman:.3f}",
    ]
    assert again.stdout.splitlines()[7].startswith("resolution      A/A ")
    assert f"A/A {method['a_to_a_mean']:+.2%} ± {method['a_to_a_sd']:.2%}" in again.stdout


def test_pairs_that_were_removed_together_are_told(
    hwnas: Run, agent: FakeAgent, tmp_path: Path
) -> None:
    result = hwnas("profile", *SMALL, "--time-budget", "18s", "--keys", "paper", "--out", "t.json")
    table = LatencyTable.read(tmp_path / "t.json")
    assert table.keys == "paper"
    assert f"{table.quality_by_keys['full'].mape:.1%} with --keys full" in result.stdout
    assert f"additivity      {len(table.pairs)} pairs removed together: " in result.stdout
    worst = table.pairs[0]
    assert f"ms of {worst.singly_ms:.3f}: {worst.first} + {worst.second}" in result.stdout


def test_the_plan_is_printed_and_nothing_is_timed(
    hwnas: Run, agent: FakeAgent, tmp_path: Path
) -> None:
    result = hwnas("profile", *SMALL, "--plan", "--json")
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(lines) == 160
    assert lines[0]["network"] == "fit/0/0"
    assert lines[0]["blocks"][0].startswith("conv/in=3/")
    assert hwnas("profile", *SMALL, "--plan", "--json").stdout == result.stdout
    other = hwnas("profile", *SMALL, "--plan", "--json", "--seed", 1)
    assert other.stdout != result.stdout
    rows = hwnas("profile", *SMALL, "--plan").stdout.splitlines()
    assert rows[0].split() == ["network", "blocks", "removed", "MMACs"]
    assert rows[1].split()[:2] == ["fit/0/0", str(len(lines[0]["blocks"]))]
    assert agent.batches == 0
    assert files(tmp_path).keys() == {"tiny.toml"}


def test_measuring_stops_at_the_standard_error_that_is_wanted(
    hwnas: Run, agent: FakeAgent, tmp_path: Path
) -> None:
    args = ("--time-budget", "1h", "--target-se", "1ms", "--out", "t.json")
    assert hwnas("profile", *SMALL, *args).exit_code == 0
    assert agent.batches == 16


def test_sizes_are_those_of_the_supernet(hwnas: Run, agent: FakeAgent, tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere" / "supernets" / "mine"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text('{"space": "tiny", "image_size": 16, "num_classes": 10}')
    result = hwnas(
        "profile", *SMALL[:2], "--workspace", "elsewhere", "--rounds", 5, "--time-budget", "2s"
    )
    assert "at 16x16 pixels and 10 classes (as the supernet elsewhere/supernets/mine)" in (
        result.stderr
    )


def test_too_small_a_time_budget_says_which_is_enough(
    hwnas: Run, agent: FakeAgent, tmp_path: Path
) -> None:
    result = hwnas("profile", *SMALL, "--time-budget", "3s", "--out", "t.json")
    assert result.exit_code == 1
    assert "ended after 3 batches of at least 16" in result.stderr
    assert "run again with --time-budget 17s or more" in result.stderr
    assert not result.stdout
    assert files(tmp_path).keys() == {"tiny.toml", "t.measurements.jsonl"}
    assert hwnas("profile", *SMALL, "--time-budget", "17s", "--out", "t.json").exit_code == 0
    assert agent.batches == 17
    other = hwnas("profile", *SMALL[:6], "--rounds", 11, "--time-budget", "17s", "--out", "t.json")
    assert other.exit_code == 1
    assert "holds measurements under another rounds (10 there, 11 now): use --restart" in (
        other.stderr
    )


def test_killed_it_says_so_and_keeps_what_was_measured(
    hwnas: Run, agent: FakeAgent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(blocks: object) -> bool:
        if agent.batches == 4:
            raise KeyboardInterrupt
        return False

    monkeypatch.setattr(agent, "fails", killed)
    result = hwnas("profile", *SMALL, "--time-budget", "16s", "--out", "t.json")
    assert result.exit_code == 130
    assert "What was written is kept; the same command goes on." in result.stderr
    assert agent.closed
    assert len((tmp_path / "t.measurements.jsonl").read_text().splitlines()) == 1 + 3
    assert not (tmp_path / "t.json").exists()


@pytest.mark.parametrize(
    ("args", "exit_code", "message"),
    [
        (("--device", "cpuu"), 2, "unknown device 'cpuu': did you mean 'cpu'?"),
        (("--device", "none.toml"), 1, "cannot read the device file none.toml"),
        (("--space", "autovit-xxx"), 2, "unknown space 'autovit-xxx': did you mean 'autovit-xx"),
        (("--space", "none.toml"), 1, "cannot read the space file none.toml"),
        (
            ("--runtime", "onnxruntme"),
            2,
            "unknown runtime 'onnxruntme': did you mean 'onnxruntime'?",
        ),
        (("--runtime", "zzz"), 2, "unknown runtime 'zzz': known are "),
        (("--time-budget", "10"), 2, "such as 90s, 10m or 1h; got '10'"),
        (("--time-budget", "-10m"), 2, "such as 90s, 10m or 1h; got '-10m'"),
        (("--image-size", "0"), 2, "0 is not in the range x>=1"),
        (("--rounds", "4"), 2, "4 is not in the range x>=5"),
        (("--threads", "0"), 2, "0 is not in the range x>=1"),
        (("--seed", "-1"), 2, "-1 is not in the range x>=0"),
        (("--out", "."), 2, "File '.' is a directory"),
        (("--out", ""), 2, "--out needs the name of a file"),
        (("surplus",), 2, "unexpected extra argument"),
    ],
)
def test_bad_input_is_one_sentence(
    hwnas: Run, tmp_path: Path, args: tuple[str, ...], exit_code: int, message: str
) -> None:
    result = hwnas("profile", *args)
    assert result.exit_code == exit_code
    assert message in result.stderr
    assert result.stderr.count("Error: ") == 1
    assert not result.stdout
    assert files(tmp_path) == {}


def test_a_phone_that_is_not_attached(
    hwnas: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    result = hwnas("profile", "--device", "iphone13")
    assert result.exit_code == 1
    assert "Error: an iPhone 13 is reached from a Mac only: connect it by cable" in result.stderr
    assert "run `hwnas devices` to see what is attached" in result.stderr
    assert result.stderr.count("\n") == 1
    assert files(tmp_path) == {}


def test_a_table_below_a_file_is_refused_before_anything_is_measured(
    hwnas: Run, agent: FakeAgent, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    result = hwnas("profile", *SMALL, "--out", "file/t.json")
    assert result.exit_code == 1
    assert "Error: cannot write file/t.measurements.jsonl: " in result.stderr
    assert agent.batches == 0
    assert files(tmp_path).keys() == {"tiny.toml", "file"}


@pytest.mark.parametrize("num", [0, 1, 5, 17])
def test_a_disk_that_fills_up_leaves_nothing_half_written(
    hwnas: Run, agent: FakeAgent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num: int
) -> None:
    """Writing fails after ``num`` times: the log's first line, 16 batches, the table."""
    sync, left = os.fsync, iter(range(num))

    def fsync(file: int) -> None:
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(file)

    monkeypatch.setattr(os, "fsync", fsync)
    result = hwnas("profile", *SMALL, "--time-budget", "16s", "--out", "t.json")
    assert result.exit_code == 1
    assert f": {os.strerror(errno.ENOSPC)}\n" in result.stderr
    assert "Error: cannot write t." in result.stderr
    assert not result.stdout
    assert files(tmp_path).keys() <= {"tiny.toml", "t.measurements.jsonl"}
    monkeypatch.setattr(os, "fsync", sync)
    assert hwnas("profile", *SMALL, "--time-budget", "16s", "--out", "t.json").exit_code == 0
    assert LatencyTable.read(tmp_path / "t.json").method["batches"] == 16
