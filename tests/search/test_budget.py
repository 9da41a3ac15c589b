from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from tiny import Everything, exact_table

from hwnas.errors import BudgetError, TableError
from hwnas.luts import Entry, LatencyTable
from hwnas.search import Budget
from hwnas.spaces import Space, load_space, num_params, parse_space

XXS = load_space("autovit-xxs")


@pytest.fixture(scope="module")
def xxs() -> LatencyTable:
    return exact_table(XXS, image_size=64)


def random_table(table: LatencyTable, seed: int) -> LatencyTable:
    """Entries that follow no cost model at all."""
    rng = np.random.default_rng(seed)
    entries = {key: Entry(rng.random(), 0.0, 1) for key in table.entries}
    return replace(table, base_ms=0.5, entries=entries)


def without(table: LatencyTable, *keys: str) -> LatencyTable:
    kept = {key: entry for key, entry in table.entries.items() if key not in keys}
    return replace(table, entries=kept)


def test_costs_are_sums_over_blocks(xxs: LatencyTable) -> None:
    table = random_table(xxs, 0)
    budget, codes = Budget(XXS, table, 1.0, None), XXS.sample(50, np.random.default_rng(0))
    networks = [XXS.blocks(XXS.decode(row), 64, 10) for row in codes]
    expected = [0.5 + sum(table.entries[block.key].ms for block in blocks) for blocks in networks]
    np.testing.assert_allclose(budget.latency_ms(codes), expected, rtol=1e-12)
    assert budget.num_params(codes).tolist() == [num_params(blocks) for blocks in networks]


def test_meets_both_budgets_to_the_last(xxs: LatencyTable) -> None:
    codes = XXS.sample(400, np.random.default_rng(1))
    free = Budget(XXS, xxs, 1.0, None)
    latency_ms, params = free.latency_ms(codes), free.num_params(codes)
    for ms, count in zip(latency_ms[:20], params[-20:], strict=True):
        budget = Budget(XXS, xxs, float(ms), int(count))
        assert budget.meets(codes).tolist() == ((latency_ms <= ms) & (params <= count)).tolist()
        unbounded = replace(budget, max_params=None)
        assert unbounded.meets(codes).tolist() == (latency_ms <= ms).tolist()


def test_a_block_that_the_table_lacks_is_named(xxs: LatencyTable) -> None:
    codes = XXS.sample(50, np.random.default_rng(2))
    key = next(b.key for _, b in XXS.layout(codes[3], 64, 10) if b.kind == "vit_layer")
    with pytest.raises(TableError, match=f"no entry for block {re.escape(key)}: "):
        Budget(XXS, without(xxs, key), 1.0, None).latency_ms(codes)


@pytest.mark.parametrize("name", ["autovit-xxs", "autovit-s"])
def test_no_sampled_member_is_faster_than_the_fastest(name: str) -> None:
    space = load_space(name)
    table = exact_table(space, image_size=64)
    budget, codes = Budget(space, table, 1e9, None), space.sample(20_000, np.random.default_rng(3))
    latency_ms, params = budget.latency_ms(codes), budget.num_params(codes)
    for bound in (None, int(np.percentile(params, 5)), int(np.median(params))):
        fastest = replace(budget, max_params=bound).fastest()[None]
        within = latency_ms if bound is None else latency_ms[params <= bound]
        assert space.members(fastest)[0]
        assert budget.latency_ms(fastest)[0] <= within.min()
        assert bound is None or budget.num_params(fastest)[0] <= bound


def frontier(latency_ms: np.ndarray, params: np.ndarray) -> list[int]:
    """Each number of parameters from which on a faster member is within, and the one before."""
    order = np.lexsort((latency_ms, params))
    best = np.minimum.accumulate(latency_ms[order])
    (steps,) = np.nonzero(np.diff(best, prepend=np.inf))
    at = params[order[steps]].tolist()
    return [at[0], *(bound for count in at[1:] for bound in (count - 1, count))]


@pytest.mark.parametrize("seed", range(6))
def test_the_fastest_is_that_of_going_through_all(
    space: Space, table: LatencyTable, everything: Everything, seed: int
) -> None:
    table = random_table(table, seed) if seed else table
    latency_ms, params = everything.latency_ms(table), everything.params
    for limit in (None, *frontier(latency_ms, params)):
        expected = latency_ms[params <= limit].min() if limit is not None else latency_ms.min()
        fastest = Budget(space, table, 1e9, limit).fastest()
        blocks = space.blocks(space.decode(fastest), table.image_size, table.num_classes)
        assert space.decode(fastest) in everything.archs
        assert table.predict(blocks).predicted == pytest.approx(expected, rel=1e-12)
        assert limit is None or num_params(blocks) <= limit


SWAPS = """
family = "autovit"
id = "swaps"
params = [1, 1_000_000]
expansion = 1
pool_expansion = 1
head_dim = 26
[stem]
width = [2]
stride = 2
[[mbconv]]
width = [4]
depth = [1, 2]
stride = 1
[[transformer]]
width = [6]
depth = [1, 2, 3]
heads = [1, 2]
ratio = [1, 10]
stride = 1
"""


@pytest.mark.parametrize("seed", range(6))
def test_blocks_of_equal_parameters_are_told_apart_by_latency(seed: int) -> None:
    """One more head of 26 channels has as many parameters as an MLP that is wider by 9 d."""
    space = parse_space(SWAPS, "swaps.toml")
    table = random_table(exact_table(space), seed)
    sampled = {space.decode(codes) for codes in space.sample(3000, np.random.default_rng(0))}
    assert len(sampled) == space.num_archs == 2 * (4 + 4**2 + 4**3)
    networks = [space.blocks(arch, table.image_size, table.num_classes) for arch in sampled]
    latency_ms = np.array([table.predict(blocks).predicted for blocks in networks])
    params = np.array([num_params(blocks) for blocks in networks])
    assert len(set(params)) < len(params) / 4
    for limit in (None, *frontier(latency_ms, params)):
        expected = latency_ms.min() if limit is None else latency_ms[params <= limit].min()
        budget = Budget(space, table, 1e9, limit)
        assert budget.latency_ms(budget.fastest()[None])[0] == pytest.approx(expected, rel=1e-12)


def alone(params: str, width: int = 4) -> Space:
    """A space of one architecture at most."""
    one = SWAPS.replace("[1, 1_000_000]", params).replace("[4]", f"[{width}]")
    for several in ("[1, 2]", "[1, 2, 3]", "[1, 10]"):
        one = one.replace(several, "[1]")
    return parse_space(one, "alone.toml")


def test_a_space_of_one_architecture() -> None:
    space = alone("[1, 1_000_000]")
    (codes,) = space.sample(1, np.random.default_rng(0))
    table, num = exact_table(space), int(space.num_params(codes[None])[0])
    for params in (f"[{num}, {num}]", f"[1, {num}]", f"[{num}, {num + 9}]"):
        assert Budget(alone(params), table, 1e9, None).fastest().tolist() == codes.tolist()
    for outside in (
        alone(f"[1, {num - 1}]"),
        alone(f"[{num + 1}, 1_000_000]"),
        alone("[1, 1_000_000]", width=6),  # no wider than what comes before
    ):
        with pytest.raises(BudgetError, match="swaps holds no architecture at all"):
            Budget(outside, table, 1e9, None).fastest()


def test_the_fastest_of_what_the_table_has_entries_for(
    space: Space, table: LatencyTable, everything: Everything
) -> None:
    fastest = everything.archs[int(everything.latency_ms(table).argmin())]
    blocks = space.blocks(fastest, table.image_size, table.num_classes)
    lacking = without(table, *(block.key for block in blocks if block.kind == "vit_layer"))
    expected = np.nanmin(everything.latency_ms(lacking))
    assert expected > everything.latency_ms(table).min()
    budget = Budget(space, lacking, 1e9, None)
    assert budget.latency_ms(budget.fastest()[None])[0] == pytest.approx(expected, rel=1e-12)


def test_a_table_without_any_stem_names_it(space: Space, table: LatencyTable) -> None:
    stems = [key for key in table.entries if key.startswith("conv/")]
    with pytest.raises(TableError, match="no entry for block conv/in=3/"):
        Budget(space, without(table, *stems), 1.0, None).fastest()


def test_a_latency_out_of_reach(space: Space, table: LatencyTable, everything: Everything) -> None:
    latency_ms, params = everything.latency_ms(table), everything.params
    least = latency_ms.min()
    assert Budget(space, table, least * (1 + 1e-9), None).fastest() is not None
    expected = (
        f"no architecture of tiny keeps to 0.01 ms: the least it can reach is {least:.3f} ms "
        f"(with {params[latency_ms.argmin()]:,} parameters) and {params.min():,} parameters"
    )
    with pytest.raises(BudgetError, match=re.escape(expected)):
        Budget(space, table, 0.01, None).fastest()


def test_a_latency_out_of_reach_within_the_parameters(
    space: Space, table: LatencyTable, everything: Everything
) -> None:
    latency_ms, params = everything.latency_ms(table), everything.params
    bound = int(params.min()) + 100
    least = latency_ms[params <= bound].min()
    assert least > latency_ms.min()
    with pytest.raises(BudgetError, match=f"parameters: the least it can reach is {least:.3f} ms"):
        Budget(space, table, float(latency_ms.min()), bound).fastest()


def test_parameters_out_of_reach(space: Space, table: LatencyTable, everything: Everything) -> None:
    latency_ms, params = everything.latency_ms(table), everything.params
    assert Budget(space, table, 1e9, int(params.min())).fastest() is not None
    expected = (
        f"keeps to 5 ms and {params.min() - 1:,} parameters: the least it can reach is "
        f"{latency_ms.min():.3f} ms (with {params[latency_ms.argmin()]:,} parameters) and "
        f"{params.min():,} parameters"
    )
    with pytest.raises(BudgetError, match=re.escape(expected)):
        Budget(space, table, 5.0, int(params.min()) - 1).fastest()


def test_a_space_whose_range_holds_nothing(space: Space) -> None:
    empty = parse_space(
        space.definition.replace("[24_000, 29_500]", "[26_001, 26_001]"), "empty.toml"
    )
    with pytest.raises(BudgetError, match="tiny holds no architecture at all: widen its range"):
        Budget(empty, exact_table(space), 1.0, None).fastest()


def test_recalibrating_keeps_the_budgets(space: Space, table: LatencyTable) -> None:
    budget, codes = Budget(space, table, 0.05, 9000), space.sample(9, np.random.default_rng(0))
    slower = budget.with_table(table.recalibrated(2.0, 0.25))
    np.testing.assert_allclose(slower.latency_ms(codes), 2 * budget.latency_ms(codes) + 0.25)
    assert (slower.max_latency_ms, slower.max_params) == (0.05, 9000)
