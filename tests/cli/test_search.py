from __future__ import annotations

import errno
import json
import os
import platform
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from fakes import FakeAgent, FakeRuntime, true_ms
from tiny import TOML, exact_table, tiny_run, tiny_space

from hwnas.cli._workspace import Workspace
from hwnas.luts import LatencyTable
from hwnas.search._search import _Subnets
from hwnas.spaces import Arch, Codes, num_params

Run = Callable[..., Result]

SPACE = tiny_space()
TINY = ("--space", "tiny.toml", "--latency", "0.05ms")
SHORT = ("--population", "6", "--generations", "2", "--parents", "3")
OUT = Path("hwnas-runs/searches/tiny-0.05ms")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace with a trained supernet of the tiny space and its table for this machine."""
    made = Workspace(tmp_path_factory.mktemp("workspace"))
    tiny_run(made.supernet_dir("tiny", "digits", 16))
    exact_table(SPACE).write(made.table_path("cpu", "fake", "tiny", 16, 10))
    return made


@pytest.fixture
def folder(workspace: Workspace, tmp_path: Path) -> Path:
    """Where the command runs: ``hwnas-runs``, as above, and ``tiny.toml``."""
    shutil.copytree(workspace.root, tmp_path / "hwnas-runs")
    (tmp_path / "tiny.toml").write_text(TOML)
    return tmp_path


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch) -> FakeAgent:
    agent = FakeAgent(noise=0.0)
    monkeypatch.setattr("hwnas.devices.open_agent", lambda description: agent)
    monkeypatch.setattr("hwnas.profilers.load_runtime", lambda name: FakeRuntime())
    return agent


@pytest.fixture
def rated(monkeypatch: pytest.MonkeyPatch) -> list[Codes]:
    """What is rated, by an accuracy that takes no time."""
    asked: list[Codes] = []

    def rate(subnets: _Subnets, codes: Codes) -> float:
        asked.append(codes)
        return float(codes.sum()) / 100

    monkeypatch.setattr(_Subnets, "rate", rate)
    return asked


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def table_path(folder: Path) -> Path:
    return Workspace(folder / "hwnas-runs").table_path("cpu", "fake", "tiny", 16, 10)


def test_json_is_the_winner_that_is_written(hwnas: Run, folder: Path, agent: FakeAgent) -> None:
    result = hwnas("search", *TINY, "--params", "11k", *SHORT, "--seed", 3, "--json")
    assert result.exit_code == 0
    winner = json.loads(result.stdout)
    assert winner == json.loads((folder / OUT / "winner.json").read_text())
    blocks = SPACE.blocks(Arch.from_json(winner["arch"]), 16, 10)
    assert winner["params"] == num_params(blocks) <= 11_000
    assert winner["latency_ms"]["budget"] == 0.05
    assert winner["latency_ms"]["predicted"] == pytest.approx(sum(map(true_ms, blocks)))
    assert winner["latency_ms"]["measured"] <= 0.05
    assert winner["seed"] == 3
    assert winner["settings"]["evolution"]["population"] == 6
    assert winner["lut"] == str(table_path(Path()))
    assert winner["supernet"] == "hwnas-runs/supernets/tiny-digits-16px"
    assert winner["candidates"]["evaluated"] == 12
    assert f"Next: hwnas export {OUT} --format onnx" in result.stderr
    assert agent.closed


def test_what_is_shown(hwnas: Run, folder: Path, agent: FakeAgent, rated: list[Codes]) -> None:
    agent.formula = lambda block: true_ms(block) / 1.1  # what the fake device drifts by
    result = hwnas("search", *TINY, *SHORT, "--out", "here")
    winner = json.loads((folder / "here" / "winner.json").read_text())
    latency, candidates = winner["latency_ms"], winner["candidates"]
    assert result.stdout.splitlines() == [
        f"accuracy        {100 * winner['accuracy']:.2f}% on the validation images",
        f"latency         {latency['measured']:.3f} ± 0.000 ms measured; budget 0.05 ms",
        f"predicted       {latency['predicted']:.3f} ms "
        f"({latency['low']:.3f} to {latency['high']:.3f})",
        f"parameters      {winner['params']:,}",
        f"candidates      100,000 sampled, {candidates['feasible_total']:,} within the budgets, "
        "12 rated",
        "written         here/winner.json, here/winner.safetensors",
    ]
    assert "Warning" not in result.stderr


def test_a_slower_day_is_a_warning(
    hwnas: Run, folder: Path, agent: FakeAgent, rated: list[Codes]
) -> None:
    agent.formula = lambda block: 3 * true_ms(block)
    result = hwnas("search", *TINY, *SHORT, "--json")
    assert result.exit_code == 0
    assert "Warning: the device now runs the reference network in " in result.stderr
    assert json.loads(result.stdout)["latency_ms"]["measured"] <= 0.05


def test_a_rerun_rates_nothing_anew(
    hwnas: Run, folder: Path, agent: FakeAgent, rated: list[Codes]
) -> None:
    first = hwnas("search", *TINY, *SHORT, "--json")
    assert len(rated) == 12
    assert hwnas("search", *TINY, *SHORT, "--json").stdout == first.stdout
    assert len(rated) == 12


def test_ctrl_c_says_that_the_same_command_goes_on(
    hwnas: Run, folder: Path, agent: FakeAgent, rated: list[Codes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(blocks: object) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(agent, "fails", killed)
        result = hwnas("search", *TINY, *SHORT)
    assert result.exit_code == 130
    assert "Interrupted. What was written is kept; the same command goes on." in result.stderr
    assert [path.name for path in (folder / OUT).iterdir()] == ["evaluations.jsonl"]
    assert agent.closed
    assert hwnas("search", *TINY, *SHORT).exit_code == 0
    assert len(rated) == 12


def change_table(folder: Path, **fields: Any) -> None:
    path = table_path(folder)
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def supernet(folder: Path) -> Path:
    return folder / "hwnas-runs/supernets/tiny-digits-16px"


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)


def add_another_supernet(folder: Path) -> None:
    shutil.copytree(supernet(folder), supernet(folder).with_name("another"))


NOTHING: Callable[[Path], object] = lambda folder: None  # noqa: E731


@pytest.mark.parametrize(
    ("damage", "args", "exit_code", "message"),
    [
        # Usage: nothing is looked at before.
        (NOTHING, ("--latency", "10"), 2, "such as 10ms, 0.01s or 800us; got '10'"),
        (NOTHING, ("--latency", "-5ms"), 2, "a latency above zero with its unit"),
        (NOTHING, ("--latency", "10mss"), 2, "got '10mss'"),
        (NOTHING, ("--latency", "0ms"), 2, "a latency above zero"),
        (NOTHING, ("--params", "2.5"), 2, "a whole number above zero, such as 2M"),
        (NOTHING, ("--population", "1"), 2, "1 is not in the range x>=2"),
        (NOTHING, ("--p-depth", "2"), 2, "2.0 is not in the range 0<=x<=1"),
        (NOTHING, ("--out", "tiny.toml"), 2, "Directory 'tiny.toml' is a file"),
        # Budgets out of reach.
        (NOTHING, ("--latency", "1us"), 1, "keeps to 0.001 ms: the least it can reach is 0.04"),
        (NOTHING, ("--params", "500"), 1, "ms and 500 parameters: the least it can reach is 0.0"),
        # The table.
        (lambda f: table_path(f).unlink(), (), 1, "--space tiny.toml --image-size 16 --num-cl"),
        (lambda f: table_path(f).unlink(), (), 1, "measure one with `hwnas profile --device cpu"),
        (NOTHING, ("--lut", "none.json"), 1, "no latency table at none.json"),
        (lambda f: cut(table_path(f)), (), 1, "is not a whole latency table (damaged or cut"),
        (lambda f: change_table(f, schema=3), (), 1, "has schema 3; this hwnas reads schema 2"),
        (lambda f: change_table(f, space="x"), (), 1, "table is of space x, but tiny is asked"),
        (lambda f: change_table(f, image_size=32), (), 1, "of image size 32, but 16 is asked for"),
        (lambda f: change_table(f, num_classes=9), (), 1, "number of classes 9, but 10 is asked"),
        (lambda f: change_table(f, runtime={}), (), 1, "it lacks the field 'threads'"),
        (lambda f: change_table(f, entries=[]), (), 1, "is damaged: it has no entries"),
        (
            lambda f: change_table(f, device={"id": "cpu", "fingerprint": {"cpu": "M1"}}),
            (),
            1,
            "measured on another device: cores was None and is 2; profile this one",
        ),
        # The supernet.
        (lambda f: shutil.rmtree(supernet(f)), (), 1, "with `hwnas train --space tiny.toml`"),
        (NOTHING, ("--supernet", "none"), 1, "no trained supernet at none: train one with"),
        (add_another_supernet, (), 2, "several supernets of tiny in hwnas-runs: name one of"),
        (
            NOTHING,
            ("--supernet", supernet(Path()), "--space", "autovit-xs"),
            2,
            "is of tiny, not of autovit-xs",
        ),
        (lambda f: cut(supernet(f) / "run.json"), (), 1, "is not a whole run description"),
        (
            lambda f: cut(supernet(f) / "supernet.safetensors"),
            (),
            1,
            "supernet.safetensors is not a whole checkpoint (damaged or cut short?)",
        ),
        (
            lambda f: flip_a_bit(supernet(f) / "supernet.safetensors"),
            (),
            1,
            "supernet.safetensors is damaged: its tensors are not those it was written with",
        ),
        # Where it is to be written.
        (NOTHING, ("--out", "tiny.toml/sub"), 1, "cannot write tiny.toml/sub/evaluations.jsonl"),
        (NOTHING, ("--workspace", "tiny.toml"), 2, "Directory 'tiny.toml' is a file"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    hwnas: Run,
    folder: Path,
    agent: FakeAgent,
    rated: list[Codes],
    damage: Callable[[Path], object],
    args: tuple[object, ...],
    exit_code: int,
    message: str,
) -> None:
    damage(folder)
    before = files(folder)
    result = hwnas("search", *TINY, *SHORT, *args)
    assert result.exit_code == exit_code
    assert message in result.stderr
    assert result.stderr.count("Error: ") == 1
    assert not result.stdout
    assert files(folder) == before
    assert rated == []
    assert agent.batches == 0


@pytest.mark.parametrize(
    ("args", "exit_code", "message"),
    [
        (("--space", "autovit-xxs"), 2, "Missing option '--latency'"),
        ((*TINY, "--device", "cpuu"), 2, "unknown device 'cpuu': did you mean 'cpu'?"),
        ((*TINY, "--runtime", "onnxruntim"), 2, "did you mean 'onnxruntime'?"),
        ((*TINY, "--space", "autovit-x"), 2, "unknown space 'autovit-x': did you mean 'autovit-x"),
        ((*TINY, "--space", "none.toml"), 1, "cannot read the space file none.toml"),
        (("--latency", "9ms"), 2, "give --space, or --params to pick one"),
        (("--latency", "9ms", "--params", "500k"), 1, "500,000 parameters: the least is 1,000,000"),
        (("--latency", "9ms", "--params", "1.7M"), 1, "`hwnas train --space autovit-xxs`"),
        (("--latency", "9ms", "--params", "2M"), 1, "`hwnas train --space autovit-xs`"),
        (("--latency", "9ms", "--params", "3M"), 1, "`hwnas train --space autovit-xs`"),
        (("--latency", "9ms", "--params", "7M"), 1, "`hwnas train --space autovit-s`"),
        ((*TINY, "--lut", "phone.json"), 1, "measured on another device: cores was None and is"),
    ],
)
def test_names_and_defaults_of_this_machine(
    hwnas: Run, folder: Path, args: tuple[str, ...], exit_code: int, message: str
) -> None:
    """Nothing is faked; nothing is timed either."""
    phone = {"id": "phone", "fingerprint": {"cpu": "A15"}}
    replace(exact_table(SPACE), device=phone).write(folder / "phone.json")
    before = files(folder)
    result = hwnas("search", *args)
    assert result.exit_code == exit_code
    assert message in result.stderr
    assert result.stderr.count("Error: ") == 1
    assert not result.stdout
    assert files(folder) == before


def test_a_phone_that_is_not_attached(
    hwnas: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    result = hwnas("search", *TINY, "--device", "iphone13")
    assert result.exit_code == 1
    assert "Error: an iPhone 13 is reached from a Mac only: connect it by cable" in result.stderr
    assert "run `hwnas devices` to see what is attached" in result.stderr
    assert not result.stdout


def test_a_disk_that_is_full(
    hwnas: Run, folder: Path, agent: FakeAgent, rated: list[Codes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: object, target: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = files(folder)
    monkeypatch.setattr(os, "replace", full)
    result = hwnas("search", *TINY, *SHORT)
    assert result.exit_code == 1
    expected = f"Error: cannot write {OUT / 'evaluations.jsonl'}: No space left on device\n"
    assert result.stderr.endswith(expected)
    assert files(folder) == before
    assert rated == []


def test_a_damaged_winner_is_one_sentence(
    hwnas: Run, folder: Path, agent: FakeAgent, rated: list[Codes]
) -> None:
    assert hwnas("search", *TINY, *SHORT).exit_code == 0
    for name, message in (
        ("winner.safetensors", "winner.safetensors is damaged or cut short"),
        ("winner.json", "winner.json is not a whole search result"),
    ):
        cut(folder / OUT / name)
        before = files(folder)
        result = hwnas("export", OUT, "--format", "onnx")
        assert result.exit_code == 1
        assert message in result.stderr
        assert result.stderr.count("Error: ") == 1
        assert files(folder) == before


def test_the_supernet_may_be_named(
    hwnas: Run, folder: Path, agent: FakeAgent, rated: list[Codes]
) -> None:
    shutil.move(supernet(folder), folder / "mine")
    table = LatencyTable.read(table_path(folder))
    replace(table, created="now").write(folder / "mine.json")
    named = ("--supernet", "mine", "--lut", "mine.json", "--out", "found", "--json")
    result = hwnas("search", "--latency", "50us", *SHORT, *named)
    assert result.exit_code == 0
    winner = json.loads(result.stdout)
    assert (winner["supernet"], winner["lut"], winner["space"]) == ("mine", "mine.json", "tiny")
    assert winner["latency_ms"]["budget"] == pytest.approx(0.05)
    assert np.isfinite(winner["accuracy"])
