from __future__ import annotations

import numpy as np
import pytest
from fakes import true_ms

from hwnas.luts._design import (
    Design,
    Layout,
    Timings,
    Variant,
    count_blocks,
    cut,
    keeps_shape,
    keys_of,
    lower_most,
    thinned,
)
from hwnas.luts._fit import fit_entries
from hwnas.profilers._onnx_compose import Composer
from hwnas.spaces import Block, load_space


@pytest.fixture(scope="module")
def design() -> Design:
    return Design(load_space("autovit-xxs"), 32, 10, seed=3)


def layouts(num: int) -> list[Layout]:
    design = Design(load_space("autovit-xxs"), 32, 10, seed=5)
    return [design.blocks(variant) for variant in design.held_out(num)]


def test_a_planned_batch_depends_on_the_seed_alone(design: Design) -> None:
    again = Design(design.space, 32, 10, seed=3)
    assert again.planned(2) == design.planned(2)
    assert Design(design.space, 32, 10, seed=4).planned(0) != design.planned(0)


def test_every_planned_network_can_be_built(design: Design) -> None:
    composer = Composer(image_size=32)
    for variant in [*design.planned(0), *design.pairs(0)]:
        composer.compose(design.blocks(variant))


def test_no_held_out_network_is_fitted_to(design: Design) -> None:
    fitted = {variant for i in range(20) for variant in design.planned(i)}
    assert not fitted & set(design.held_out(40))


def test_the_second_time_round_each_comes_in_other_company(design: Design) -> None:
    first, second = design.held_out(40), design.held_out(40, again=True)
    assert set(first) == set(second)
    assert set(first[:10]) != set(second[:10])


def test_the_reference_is_a_member_of_middling_cost(design: Design) -> None:
    codes = np.array(design.reference().codes, dtype=np.int8)
    assert design.space.members(codes[None])[0]
    macs = design.space.additive_cost(lambda block: block.cost.macs, 32, 10)
    sample = macs(design.space.sample(500, np.random.default_rng(0)))
    low, high = np.quantile(sample, [0.3, 0.7])
    assert low < macs(codes[None])[0] < high


def test_only_blocks_that_keep_the_shape_are_taken_out() -> None:
    rng = np.random.default_rng(0)
    for network in layouts(20):
        removed = thinned(network, rng)
        assert removed
        assert all(keeps_shape(network[i]) for i in removed)
        behind = cut(network, rng)
        assert behind == tuple(range(behind[0], len(network)))
        assert behind[0] > 0


def test_a_variant_survives_json(design: Design) -> None:
    for variant in design.planned(0):
        assert Variant.from_json(variant.to_json()) == variant


def test_the_planned_design_beats_a_random_one() -> None:
    pool = layouts(60)
    keys = keys_of(pool)
    counts = count_blocks(pool, keys)

    def log_det(chosen: list[int]) -> float:
        rows = counts[chosen]
        return float(np.linalg.slogdet(rows.T @ rows + 0.1 * np.eye(len(keys)))[1])

    covariance = 10 * np.eye(len(keys))
    chosen = lower_most(counts, np.ones(60), covariance, 15, by_variance=False)
    rng = np.random.default_rng(0)
    random = [log_det(list(rng.choice(60, 15, replace=False))) for _ in range(50)]
    assert log_det(chosen) > max(random)
    # The covariance was brought up to date: it is that of the networks chosen.
    rows = counts[chosen]
    expected = np.linalg.inv(rows.T @ rows + 0.1 * np.eye(len(keys)))
    np.testing.assert_allclose(covariance, expected, atol=1e-8)


def test_by_variance_the_sum_of_the_variances_falls_most() -> None:
    rng = np.random.default_rng(1)
    rows, noise = rng.random((30, 6)), rng.uniform(0.5, 2, 30)
    start = np.diag(rng.uniform(0.1, 2, 6))

    def trace_after(i: int) -> float:
        precision = np.linalg.inv(start) + np.outer(rows[i], rows[i]) / noise[i]
        return float(np.trace(np.linalg.inv(precision)))

    (best,) = lower_most(rows, noise, start.copy(), 1, by_variance=True)
    assert best == min(range(30), key=trace_after)


def test_later_batches_go_where_the_standard_errors_are_largest(design: Design) -> None:
    timed = [design.blocks(v) for i in range(8) for v in design.planned(i)]
    exact = np.array([sum(map(true_ms, network)) for network in timed])
    latency = exact * np.exp(0.02 * np.random.default_rng(0).standard_normal(len(exact)))
    timings = Timings(timed, latency, np.repeat(range(8), 10))
    chosen = [design.blocks(v) for v in design.informative(8, timings)]
    assert design.informative(8, timings) == design.informative(8, timings)

    def total_variance(more: list[Layout]) -> float:
        networks = timed + more
        blocks = [Block.parse(key) for key in keys_of(networks)]
        fit = fit_entries(
            blocks,
            count_blocks(networks, keys_of(networks)),
            np.array([sum(map(true_ms, n)) for n in networks]) * np.resize([1.02, 0.98], 90),
            np.repeat(range(9), 10),
        )
        return float((fit.se_ms**2).sum() / fit.noise**2)

    planned = [[design.blocks(v) for v in design.planned(i)] for i in range(8, 12)]
    assert total_variance(chosen) < np.mean([total_variance(more) for more in planned])


def test_a_batch_of_pairs_puts_two_adjacent_blocks_back_singly_and_together(
    design: Design,
) -> None:
    for index in range(10):
        bare, *others = design.pairs(index)
        assert len(others) in (3, 6, 9)
        network = design.blocks(Variant(bare.codes))
        kinds = [block.kind for block in design.blocks(bare)]
        assert all(kinds[i + 1] == "vit_layer" for i, k in enumerate(kinds) if k == "hybrid")
        for first, second, both in zip(others[::3], others[1::3], others[2::3], strict=True):
            (a,), (b,) = (set(bare.removed) - set(v.removed) for v in (first, second))
            assert b == a + 1
            assert set(bare.removed) - set(both.removed) == {a, b}
            assert keeps_shape(network[a])
            assert keeps_shape(network[b])
