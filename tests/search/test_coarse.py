from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable

import numpy as np
import pytest
from tiny import Everything, exact_table

from hwnas.errors import BudgetError
from hwnas.luts import LatencyTable
from hwnas.search import Budget
from hwnas.search._coarse import Coarse, coarse
from hwnas.spaces import Arch, Space, load_space, num_macs, num_params

XXS = load_space("autovit-xxs")


def search(budget: Budget, *, num_samples: int = 3000, top: int = 10, num_seeds: int = 50):
    rng = np.random.default_rng(0)
    return coarse(budget, rng, num_samples=num_samples, top=top, num_seeds=num_seeds)


def skeleton(arch: Arch) -> Hashable:
    return tuple(
        (stage, tuple((n, v) for n, v in choices if n not in ("heads", "ratio")))
        for stage, choices in arch.stages
    )


def check_seeds(found: Coarse, budget: Budget) -> list[Arch]:
    """All seeds are different members that meet both budgets by the table's own sums."""
    space, table = budget.space, budget.table
    archs = [space.decode(codes) for codes in found.seeds]
    assert len(set(archs)) == len(archs)
    for arch in archs:
        blocks = space.blocks(arch, table.image_size, table.num_classes)
        assert space.contains(arch)
        assert table.predict(blocks).predicted <= budget.max_latency_ms
        assert budget.max_params is None or num_params(blocks) <= budget.max_params
    return archs


@pytest.fixture(scope="module")
def medium(space: Space, table: LatencyTable, everything: Everything) -> Budget:
    latency_ms = float(np.percentile(everything.latency_ms(table), 30))
    return Budget(space, table, latency_ms, int(np.percentile(everything.params, 60)))


def test_counts_are_of_different_architectures(
    medium: Budget, table: LatencyTable, everything: Everything
) -> None:
    found = search(medium)
    sampled = {medium.space.decode(c) for c in medium.space.sample(3000, np.random.default_rng(0))}
    meets = (everything.latency_ms(table) <= medium.max_latency_ms) & (
        everything.params <= medium.max_params
    )
    within = {arch for arch, good in zip(everything.archs, meets, strict=True) if good}
    assert found.num_sampled == 3000
    assert found.num_feasible == len(sampled & within)
    assert found.num_skeletons == len({skeleton(arch) for arch in sampled & within})
    assert len(check_seeds(found, medium)) == 50


def test_seeds_are_of_the_skeletons_with_most_macs_in_turn(
    medium: Budget, table: LatencyTable, everything: Everything
) -> None:
    sampled = {medium.space.decode(c) for c in medium.space.sample(3000, np.random.default_rng(0))}
    members = defaultdict(list)
    for arch, ms, params in zip(
        everything.archs, everything.latency_ms(table), everything.params, strict=True
    ):
        if arch in sampled and ms <= medium.max_latency_ms and params <= medium.max_params:
            members[skeleton(arch)].append(
                num_macs(medium.space.blocks(arch, table.image_size, table.num_classes))
            )
    ranked = sorted(members, key=lambda s: -np.mean(members[s]))
    seeds = [skeleton(arch) for arch in check_seeds(search(medium, top=4), medium)]
    assert seeds[:4] == ranked[:4]
    best, rest = set(ranked[:4]), [s for s in seeds if s not in ranked[:4]]
    held = sum(len(members[s]) for s in best)
    assert [s in best for s in seeds] == [i < held for i in range(50)]
    assert set(rest) <= set(ranked[4:])
    turns = [seeds[: len(best)], seeds[len(best) :][: sum(len(members[s]) > 1 for s in best)]]
    assert all(len(set(turn)) == len(turn) for turn in turns)  # one of each before a second


@pytest.mark.parametrize(("margin", "num"), [(1.001, 2), (1.02, 20)])
@pytest.mark.parametrize("bounded", [False, True])
def test_tight_budgets_still_give_seeds(bounded: bool, margin: float, num: int) -> None:
    table = exact_table(XXS, image_size=64)
    free = Budget(XXS, table, 1e9, None)
    max_params = int(free.num_params(free.fastest()[None])[0] * 1.01) if bounded else None
    fastest = Budget(XXS, table, 1e9, max_params).fastest()
    least_ms = float(free.latency_ms(fastest[None])[0])
    tight = Budget(XXS, table, least_ms * margin, max_params)
    found = search(tight, num_samples=2000)
    assert found.num_feasible == 0
    assert len(check_seeds(found, tight)) >= num


def test_a_budget_of_exactly_the_least_gives_the_fastest(
    space: Space, table: LatencyTable, everything: Everything
) -> None:
    latency_ms = everything.latency_ms(table)
    budget = Budget(space, table, float(latency_ms.min()) * 1.001, None)
    archs = check_seeds(search(budget, num_samples=100), budget)
    assert everything.archs[int(latency_ms.argmin())] in archs


def test_nothing_within_the_budgets(space: Space, table: LatencyTable) -> None:
    with pytest.raises(BudgetError, match="the least it can reach is"):
        search(Budget(space, table, 1e-3, None))
