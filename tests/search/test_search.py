from __future__ import annotations

import errno
import json
import os
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import FakeAgent, FakeRuntime, true_ms
from tiny import Everything, exact_table

from hwnas.devices import Artifact, Measurement, Plan
from hwnas.errors import BudgetError, DeviceError, HwnasError, StorageError, TableError
from hwnas.luts import LatencyTable
from hwnas.luts._timing import REFERENCES
from hwnas.search import Evolution, Found, Settings, load_winner, search
from hwnas.search._search import _Subnets
from hwnas.spaces import Arch, Block, Codes, Space, load_space, num_params
from hwnas.train import Data, Run, accuracy, inherited_accuracy

Rate = Callable[[_Subnets, Codes], float]
Go = Callable[..., Found]


class Tilted(FakeAgent):
    """Slower than the table says, by a factor that depends on the whole network."""

    def __init__(self, factor: Callable[[Sequence[Block]], float]) -> None:
        super().__init__(noise=0.0)
        self.factor = factor
        self.num_timed: Counter[str] = Counter()
        """How often each finalist was timed."""

    def measure(self, artifacts: Sequence[Artifact], plan: Plan) -> list[Measurement]:
        finalists = [a for a in artifacts if a.id.startswith("finalist/")]
        self.num_timed.update(a.path.read_text() for a in finalists)
        return [
            m if m.artifact_id in REFERENCES else self._slower(m, artifact.path)
            for m, artifact in zip(super().measure(artifacts, plan), artifacts, strict=True)
        ]

    def _slower(self, measurement: Measurement, path: Path) -> Measurement:
        factor = self.factor([Block.parse(key) for key in json.loads(path.read_text())])
        return replace(measurement, samples_ms=tuple(factor * s for s in measurement.samples_ms))


def num_layers(blocks: Sequence[Block]) -> int:
    return sum(block.kind == "vit_layer" for block in blocks)


def rate_by_layers(subnets: _Subnets, codes: Codes) -> float:
    """The deeper the better; the rest of the digits tell architectures apart."""
    blocks = [block for _, block in subnets._supernet.layout(codes)]
    return num_layers(blocks) / 5 + 1e-6 * (sum(b.cost.params for b in blocks) % 1009)


@pytest.fixture
def go(run: Run, run_dir: Path, data: Data, table: LatencyTable, tmp_path: Path) -> Go:
    """Search the tiny space with what a test changes; ``go.out`` is where."""

    def go(
        max_latency_ms: float,
        *,
        agent: FakeAgent | None = None,
        runtime: FakeRuntime | None = None,
        max_params: int | None = None,
        table: LatencyTable = table,
        out: Path = tmp_path / "out",
        evolution: Evolution = Evolution(8, 3, 4),  # noqa: B008 - frozen
        progress: Callable[[str], None] = lambda text: None,
    ) -> Found:
        return search(
            table,
            Path("cpu.json"),
            run,
            run_dir,
            data,
            agent or FakeAgent(noise=0.0),
            runtime or FakeRuntime(),
            out,
            max_latency_ms=max_latency_ms,
            max_params=max_params,
            settings=Settings(evolution, num_samples=2000, top_skeletons=5, seed=2),
            plan=Plan("fake", rounds=10, seed=2),
            progress=progress,
        )

    return go


@pytest.fixture
def rated(monkeypatch: pytest.MonkeyPatch) -> list[Codes]:
    """What is rated, in order, by ``rate_by_layers`` in place of the digits."""
    asked: list[Codes] = []

    def rate(subnets: _Subnets, codes: Codes) -> float:
        asked.append(codes)
        return rate_by_layers(subnets, codes)

    monkeypatch.setattr(_Subnets, "rate", rate)
    return asked


@pytest.fixture(scope="session")
def middling_ms(everything: Everything, table: LatencyTable) -> float:
    return float(np.percentile(everything.latency_ms(table), 25))


def record(folder: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((folder / "winner.json").read_text())
    return value


def blocks_of(winner: dict[str, Any], space: Space) -> tuple[Block, ...]:
    return space.blocks(Arch.from_json(winner["arch"]), 16, 10)


def test_the_winner_is_within_the_budgets_and_says_all_about_itself(
    go: Go, run: Run, run_dir: Path, space: Space, middling_ms: float, tmp_path: Path
) -> None:
    agent = FakeAgent(noise=0.0)
    found = go(middling_ms, agent=agent, max_params=11_500)
    winner, blocks = found.winner, blocks_of(found.winner, space)
    assert record(tmp_path / "out") == winner
    assert agent.batches == 6  # one round of fresh processes, no second
    assert found.warnings == ()
    assert winner["space"] == "tiny"
    assert space.contains(Arch.from_json(winner["arch"]))
    assert winner["params"] == num_params(blocks) == sum(_trainable(found)) <= 11_500
    latency_ms, expected_ms = winner["latency_ms"], sum(map(true_ms, blocks))
    assert latency_ms["budget"] == middling_ms
    assert latency_ms["predicted"] == pytest.approx(expected_ms)
    assert latency_ms["low"] == pytest.approx(expected_ms * (1 - 2.02 * 0.02))
    assert latency_ms["high"] == pytest.approx(expected_ms * (1 + 2.02 * 0.02))
    assert latency_ms["measured"] == pytest.approx(expected_ms, rel=1e-3)
    assert latency_ms["measured"] <= middling_ms
    assert winner["device"] == {"id": "cpu", "fingerprint": {"cpu": "fake", "cores": 2}}
    assert (winner["lut"], winner["supernet"]) == ("cpu.json", str(run_dir))
    assert (winner["supernet_digest"], winner["data"]) == (run.digest, "digits")
    assert winner["seed"] == 2
    assert {"hwnas", "python", "torch", "fake"} <= winner["versions"].keys()
    candidates = winner["candidates"]
    assert candidates["sampled"] == 2000
    assert candidates["evaluated"] == 8 * 3
    assert candidates["evaluated"] < candidates["feasible_total"] < 2000


def _trainable(found: Found) -> list[int]:
    return [parameter.numel() for parameter in found.network.parameters()]


def test_the_winner_that_is_read_back_is_as_accurate(
    go: Go, data: Data, middling_ms: float, tmp_path: Path
) -> None:
    found = go(middling_ms)
    winner = load_winner(tmp_path / "out")
    assert winner.arch == Arch.from_json(found.winner["arch"])
    assert accuracy(winner.network, data.batches("val", 31)) == found.winner["accuracy"]
    ratings = (tmp_path / "out" / "evaluations.jsonl").read_text().splitlines()[1:]
    assert found.winner["accuracy"] == max(json.loads(line)["accuracy"] for line in ratings)


def test_ratings_are_of_subnets_with_batchnorm_of_their_own(
    go: Go, run: Run, data: Data, middling_ms: float, tmp_path: Path
) -> None:
    go(middling_ms)
    _, *ratings = (tmp_path / "out" / "evaluations.jsonl").read_text().splitlines()
    images = [images for images, _ in data.batches("train", 128, shuffle_seed=0)]
    for rating in map(json.loads, ratings):
        expected = inherited_accuracy(
            run.supernet,
            np.array(rating["codes"], dtype=np.int8),
            calibration=images,
            batches=data.batches("val", 128),
        )
        assert rating["accuracy"] == expected


def test_of_equally_accurate_ones_the_fastest_wins(
    go: Go, space: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    def formula(block: Block) -> float:
        return 0.01 + zlib.crc32(block.key.encode()) % 101 / 1000

    asked: list[float] = []

    def rate(subnets: _Subnets, codes: Codes) -> float:
        asked.append(sum(formula(block) for _, block in space.layout(codes, 16, 10)))
        return 0.5

    monkeypatch.setattr(_Subnets, "rate", rate)
    table, agent = exact_table(space, formula=formula), FakeAgent(formula, noise=0.0)
    assert go(9.0, table=table, agent=agent).winner["latency_ms"]["predicted"] == pytest.approx(
        min(asked)
    )


def test_a_table_that_was_wrong_for_some_networks_is_recalibrated(
    go: Go, space: Space, table: LatencyTable, everything: Everything, rated: list[Codes]
) -> None:
    """Deep networks take 15% longer than the table says, and the budget just holds them."""
    layers = [num_layers(space.blocks(arch, 16, 10)) for arch in everything.archs]
    deep_ms = everything.latency_ms(table)[np.array(layers) >= 3]
    budget_ms, shown = float(np.percentile(deep_ms, 10)), []
    agent = Tilted(lambda blocks: 1.15 if num_layers(blocks) >= 3 else 1.0)
    found = go(budget_ms, agent=agent, progress=shown.append)
    blocks = blocks_of(found.winner, space)
    assert agent.batches > 6
    assert set(agent.num_timed.values()) == {6}  # once: in six processes
    assert any(line.startswith("verify: ") and "round 2" in line for line in shown)
    assert "the table had to be corrected" in found.warnings[0]
    measured_ms = found.winner["latency_ms"]["measured"]
    assert measured_ms <= budget_ms
    assert measured_ms == pytest.approx(agent.factor(blocks) * sum(map(true_ms, blocks)), rel=1e-3)
    assert found.winner["latency_ms"]["predicted"] == pytest.approx(sum(map(true_ms, blocks)))


def test_a_finalist_that_failed_is_not_timed_again(
    go: Go,
    space: Space,
    everything: Everything,
    table: LatencyTable,
    rated: list[Codes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The best does not run; it would keep the corrected budget, which the next best break."""
    budget_ms = float(np.percentile(everything.latency_ms(table), 40))
    go(budget_ms, out=tmp_path / "first")
    seeds = {codes.tobytes(): [b for _, b in space.layout(codes, 16, 10)] for codes in rated[:8]}
    best = min(seeds, key=lambda codes: sum(map(true_ms, seeds[codes])))
    assert 1.05 * sum(map(true_ms, seeds[best])) <= budget_ms

    def rate(subnets: _Subnets, codes: Codes) -> float:
        latency_ms = sum(true_ms(block) for _, block in space.layout(codes, 16, 10))
        return 1.0 if codes.tobytes() == best else latency_ms / budget_ms / 2

    monkeypatch.setattr(_Subnets, "rate", rate)
    agent = Tilted(lambda blocks: 1.05)
    agent.fails = lambda blocks: blocks == seeds[best]
    found = go(budget_ms, agent=agent)
    assert agent.batches > 6
    assert agent.num_timed[json.dumps([block.key for block in seeds[best]])] == 6
    assert set(agent.num_timed.values()) == {6}
    assert found.winner["latency_ms"]["measured"] <= budget_ms


def test_where_all_rated_break_the_budget_it_searches_on(
    go: Go, space: Space, table: LatencyTable, everything: Everything, rated: list[Codes]
) -> None:
    latency_ms = everything.latency_ms(table)
    budget_ms, shown = 1.25 * float(latency_ms.min()), []
    found = go(
        budget_ms,
        agent=Tilted(lambda blocks: 1.2),
        evolution=Evolution(4, 1, 2),
        progress=shown.append,
    )
    assert "every rated candidate broke the budget; searching on with a corrected table" in shown
    assert found.winner["latency_ms"]["measured"] <= budget_ms
    assert found.winner["latency_ms"]["measured"] == pytest.approx(
        1.2 * sum(map(true_ms, blocks_of(found.winner, space))), rel=1e-3
    )
    assert len({codes.tobytes() for codes in rated}) == len(rated)
    assert found.winner["candidates"]["evaluated"] == len(rated)


def test_a_device_that_nothing_runs_on_in_time(
    go: Go, middling_ms: float, rated: list[Codes], tmp_path: Path
) -> None:
    with pytest.raises(BudgetError, match=r"of tiny keeps to .*: the least it can reach"):
        go(middling_ms, agent=Tilted(lambda blocks: 3.0))
    assert not (tmp_path / "out" / "winner.json").exists()


def test_a_device_that_always_needs_a_little_longer(
    go: Go, middling_ms: float, rated: list[Codes], tmp_path: Path
) -> None:
    agent = Tilted(lambda blocks: 1.001 * middling_ms / sum(map(true_ms, blocks)))
    with pytest.raises(BudgetError, match=r"\d+ finalists were timed and none kept .*nearest took"):
        go(middling_ms, agent=agent)
    assert not (tmp_path / "out" / "winner.json").exists()


def test_a_slower_day_is_told_and_does_not_count(
    go: Go, middling_ms: float, rated: list[Codes]
) -> None:
    found = go(middling_ms, agent=FakeAgent(lambda block: 2 * true_ms(block), noise=0.0))
    assert "slower than when it was profiled" in found.warnings[0]
    assert found.winner["latency_ms"]["measured"] <= middling_ms


def test_a_finalist_that_fails_on_the_device_does_not_win(
    go: Go, space: Space, middling_ms: float, rated: list[Codes], tmp_path: Path
) -> None:
    best = blocks_of(go(middling_ms).winner, space)
    agent = FakeAgent(noise=0.0, fails=lambda blocks: tuple(blocks) == best)
    winner = go(middling_ms, agent=agent).winner
    assert blocks_of(winner, space) != best
    with pytest.raises(DeviceError, match="no finalist could be timed: out of memory"):
        go(middling_ms, agent=_FailsButReference(), out=tmp_path / "other")


class _FailsButReference(FakeAgent):
    def measure(self, artifacts: Sequence[Artifact], plan: Plan) -> list[Measurement]:
        return [
            m if m.artifact_id in REFERENCES else Measurement(m.artifact_id, error="out of memory")
            for m in super().measure(artifacts, plan)
        ]


class _KilledWhileTiming(FakeAgent):
    def measure(self, artifacts: Sequence[Artifact], plan: Plan) -> list[Measurement]:
        if self.batches == 3:
            raise KeyboardInterrupt
        return super().measure(artifacts, plan)


def test_a_search_killed_while_rating_goes_on(
    go: Go, middling_ms: float, rated: list[Codes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = go(middling_ms, out=tmp_path / "whole")
    in_order = [codes.tobytes() for codes in rated]
    rated.clear()

    def killed(subnets: _Subnets, codes: Codes) -> float:
        if len(rated) == 11:
            raise KeyboardInterrupt
        rated.append(codes)
        return rate_by_layers(subnets, codes)

    with monkeypatch.context() as patch:
        patch.setattr(_Subnets, "rate", killed)
        with pytest.raises(KeyboardInterrupt):
            go(middling_ms)
    assert not (tmp_path / "out" / "winner.json").exists()
    assert go(middling_ms).winner == whole.winner
    assert [codes.tobytes() for codes in rated] == in_order  # the rerun's are those left


def test_a_search_killed_while_timing_goes_on(
    go: Go, middling_ms: float, rated: list[Codes], tmp_path: Path
) -> None:
    whole = go(middling_ms, out=tmp_path / "whole")
    rated.clear()
    with pytest.raises(KeyboardInterrupt):
        go(middling_ms, agent=_KilledWhileTiming(noise=0.0))
    assert not (tmp_path / "out" / "winner.json").exists()
    num = len(rated)
    assert go(middling_ms).winner == whole.winner
    assert len(rated) == num == 24


def test_a_disk_that_fills_up_leaves_nothing_half_written(
    go: Go, middling_ms: float, rated: list[Codes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = go(middling_ms, out=tmp_path / "whole")
    sync, left = os.fsync, iter(range(26))  # the log, its conditions, 24 ratings; then the winner

    def fsync(file: int) -> None:
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(file)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(
            StorageError, match=r"cannot write .*winner\.safetensors: No space left"
        ):
            go(middling_ms)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["evaluations.jsonl"]
    assert go(middling_ms).winner == whole.winner


def test_an_old_winner_stands_until_there_is_a_new_one(
    go: Go, middling_ms: float, rated: list[Codes], tmp_path: Path
) -> None:
    go(middling_ms)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(BudgetError, match="the least it can reach is"):
        go(0.001)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def _of_another_space(table: LatencyTable) -> LatencyTable:
    return exact_table(load_space("autovit-xxs"))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (_of_another_space, "is of space autovit-xxs, but tiny is asked for"),
        (lambda t: replace(t, image_size=32), "is of image size 32, but 16 is asked for"),
        (lambda t: replace(t, num_classes=3), "of number of classes 3, but 10 is asked for"),
        (
            lambda t: replace(t, device={"id": "cpu", "fingerprint": {"cpu": "M1", "cores": 2}}),
            "another device: cpu was 'M1' and is 'fake'",
        ),
        (
            lambda t: replace(t, runtime={**t.runtime, "version": "0"}),
            "another runtime: version was '0' and is '1'",
        ),
    ],
)
def test_a_table_of_something_else_is_refused(
    go: Go,
    table: LatencyTable,
    rated: list[Codes],
    tmp_path: Path,
    change: Callable[[LatencyTable], LatencyTable],
    match: str,
) -> None:
    with pytest.raises(TableError, match=match):
        go(1.0, table=change(table))
    assert rated == []
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("budgets", "error", "match"),
    [
        ({"max_latency_ms": 0.001}, BudgetError, r"keeps to 0\.001 ms: the least it can reach is"),
        ({"max_latency_ms": 9.0, "max_params": 99}, BudgetError, "keeps to 9 ms and 99 parameters"),
        ({"max_latency_ms": 9.0, "out": Path(__file__)}, StorageError, "cannot write"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_rated(
    go: Go,
    rated: list[Codes],
    tmp_path: Path,
    budgets: dict[str, Any],
    error: type[HwnasError],
    match: str,
) -> None:
    agent = FakeAgent()
    with pytest.raises(error, match=match):
        go(agent=agent, **budgets)
    assert rated == []
    assert agent.batches == 0
    assert not (tmp_path / "out").exists()
