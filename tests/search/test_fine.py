from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny import Everything

from hwnas.luts import LatencyTable
from hwnas.search import Budget, Evolution
from hwnas.search._accuracy import AccuracyLog
from hwnas.search._coarse import coarse
from hwnas.search._fine import evolve
from hwnas.spaces import Arch, Space

Worth = dict[str, float]


@pytest.fixture(scope="module")
def budget(space: Space, table: LatencyTable, everything: Everything) -> Budget:
    latency_ms = float(np.percentile(everything.latency_ms(table), 40))
    return Budget(space, table, latency_ms, int(np.percentile(everything.params, 50)))


@pytest.fixture(scope="module")
def worth(everything: Everything) -> Worth:
    """What each block adds to an accuracy that is known: more where it costs more, and luck."""
    rng = np.random.default_rng(5)
    return {key: rng.uniform(0.01, 0.05) for key in everything.keys}


def run(
    budget: Budget,
    worth: Worth,
    path: Path,
    settings: Evolution,
    *,
    seed: int = 0,
    num_seeds: int | None = None,
) -> tuple[list[Arch], AccuracyLog, list[str]]:
    """Evolve from coarse seeds: what was rated in order, the log, what was shown."""
    space, rng = budget.space, np.random.default_rng(seed)
    seeds = coarse(
        budget, rng, num_samples=500, top=5, num_seeds=num_seeds or settings.population
    ).seeds
    rated: list[Arch] = []

    def rate(codes: np.ndarray) -> float:
        rated.append(space.decode(codes))
        size, classes = budget.table.image_size, budget.table.num_classes
        return sum(worth[block.key] for block in space.blocks(rated[-1], size, classes))

    log, shown = AccuracyLog(path, {}, rate), []
    evolve(budget, seeds, log, rng, settings, shown.append)
    return rated, log, shown


def within(budget: Budget, everything: Everything) -> list[Arch]:
    meets = everything.latency_ms(budget.table) <= budget.max_latency_ms
    meets &= everything.params <= (budget.max_params or 10**9)
    return [arch for arch, good in zip(everything.archs, meets, strict=True) if good]


def test_children_are_new_and_within_both_budgets(
    budget: Budget, worth: Worth, everything: Everything, tmp_path: Path
) -> None:
    rated, log, _ = run(budget, worth, tmp_path / "log", Evolution(20, 8, 6))
    assert len(rated) == 20 * 8
    assert len(set(rated)) == len(rated)
    assert set(rated) <= set(within(budget, everything))
    assert len(log.ranked()) == len(rated)


def test_it_finds_the_best_there_is(
    budget: Budget, worth: Worth, everything: Everything, tmp_path: Path
) -> None:
    good = set(within(budget, everything))
    value = everything.counts @ [worth[key] for key in everything.keys]
    best = max(v for arch, v in zip(everything.archs, value, strict=True) if arch in good)
    found = []
    for seed in range(4):
        rated, log, _ = run(budget, worth, tmp_path / f"log{seed}", Evolution(30, 15, 8), seed=seed)
        found.append(log.ranked()[0][0])
        assert len(rated) < len(good) / 3
    assert max(found) == pytest.approx(best)
    assert min(found) > 0.97 * best


def test_the_same_seed_is_the_same_evolution(budget: Budget, worth: Worth, tmp_path: Path) -> None:
    settings = Evolution(10, 4, 4)
    first, _, _ = run(budget, worth, tmp_path / "a", settings, seed=3)
    again, _, _ = run(budget, worth, tmp_path / "b", settings, seed=3)
    other, _, _ = run(budget, worth, tmp_path / "c", settings, seed=4)
    assert first == again
    assert set(first) != set(other)


def test_a_rerun_rates_nothing_and_ends_the_same(
    budget: Budget, worth: Worth, tmp_path: Path
) -> None:
    settings = Evolution(10, 4, 4)
    _, log, _ = run(budget, worth, tmp_path / "log", settings)
    rated, again, _ = run(budget, worth, tmp_path / "log", settings)
    assert rated == []
    assert str(again.ranked()) == str(log.ranked())


def test_it_ends_when_nothing_new_is_left(
    budget: Budget, worth: Worth, everything: Everything, tmp_path: Path
) -> None:
    few = float(np.partition(everything.latency_ms(budget.table), 12)[12])
    tight = replace(budget, max_latency_ms=few, max_params=None)
    there = within(tight, everything)
    rated, _, shown = run(tight, worth, tmp_path / "log", Evolution(20, 500, 10))
    assert 10 < len(there) < 20
    assert sorted(map(str, rated)) == sorted(map(str, there))
    assert not shown[-1].startswith("generation 500")


def test_one_generation_rates_the_seeds(budget: Budget, worth: Worth, tmp_path: Path) -> None:
    rated, _, shown = run(budget, worth, tmp_path / "log", Evolution(10, 1, 4), num_seeds=7)
    assert len(rated) == 7
    assert shown[0].startswith("generation 1/1: 1/7 rated, best ")
    assert shown[-1].startswith("generation 1/1: 7/7 rated, best ")


def test_parents_that_break_a_corrected_budget_have_no_children(
    budget: Budget, worth: Worth, everything: Everything, tmp_path: Path
) -> None:
    _, log, _ = run(budget, worth, tmp_path / "log", Evolution(10, 3, 4))
    asked = {budget.space.decode(codes) for _, codes in log.ranked()}
    tighter = replace(budget, max_latency_ms=0.97 * budget.max_latency_ms)
    seeds = np.stack([codes for _, codes in log.ranked() if tighter.meets(codes[None])[0]])
    rng = np.random.default_rng(1)
    evolve(tighter, seeds, log, rng, Evolution(10, 4, 4), lambda text: None)
    new = {budget.space.decode(codes) for _, codes in log.ranked()} - asked
    assert len(new) == 30
    assert new <= set(within(tighter, everything))
