from __future__ import annotations

import numpy as np
import pytest
from fakes import true_ms

from hwnas.errors import TableError
from hwnas.luts._design import Design, count_blocks, keys_of
from hwnas.luts._fit import Fit, aliased, fit_entries
from hwnas.luts._timing import hodges_lehmann
from hwnas.spaces import Block, load_space

NOISE = 0.02


@pytest.fixture(scope="module")
def timed() -> tuple[list[Block], np.ndarray, np.ndarray, np.ndarray]:
    """Blocks, counts [N, K], exact latencies [N] and batches [N] of 20 planned batches."""
    design = Design(load_space("autovit-xxs"), 64, 10, seed=0)
    networks = [design.blocks(v) for i in range(20) for v in design.planned(i)]
    keys = keys_of(networks)
    blocks = [Block.parse(key) for key in keys]
    counts = count_blocks(networks, keys)
    return blocks, counts, counts @ np.array(list(map(true_ms, blocks))), np.repeat(range(20), 10)


def noisy(exact: np.ndarray, batch: np.ndarray, seed: int) -> np.ndarray:
    """Lognormal noise, a batch effect of half its size, and every twentieth timing 30% too slow."""
    rng = np.random.default_rng(seed)
    effects = NOISE / 2 * rng.standard_normal(batch.max() + 1)
    slow = 0.3 * (rng.random(len(exact)) < 0.05)
    result: np.ndarray = exact * np.exp(
        NOISE * rng.standard_normal(len(exact)) + effects[batch] + slow
    )
    return result


def test_exact_timings_give_the_exact_networks(timed) -> None:
    blocks, counts, exact, batch = timed
    fit = fit_entries(blocks, counts, exact, batch)
    assert np.abs(counts @ fit.entries_ms / exact - 1).mean() < 0.003


def test_entries_are_found_under_noise_and_outliers(timed) -> None:
    blocks, counts, exact, batch = timed
    truth = np.array(list(map(true_ms, blocks)))
    fits = [fit_entries(blocks, counts, noisy(exact, batch, s), batch) for s in range(5)]
    assert all((fit.entries_ms >= 0).all() for fit in fits)
    # Networks are predicted better than one timing of them is exact.
    networks = np.mean([np.abs(counts @ fit.entries_ms / exact - 1).mean() for fit in fits])
    assert networks < NOISE * 0.75
    # Standard errors mean what they say: about 95% of the entries lie within two of them.
    covered = np.mean([np.abs(fit.entries_ms - truth) < 2 * fit.se_ms for fit in fits])
    assert 0.80 < covered <= 1.0
    noise = np.mean([fit.noise for fit in fits])
    assert NOISE / 2 < noise < 2 * NOISE


def test_strong_data_move_an_entry_away_from_the_cost_model(timed) -> None:
    blocks, counts, exact, batch = timed
    truth = np.array(list(map(true_ms, blocks)))
    odd = max((i for i, b in enumerate(blocks) if b.kind == "vit_layer"), key=lambda i: truth[i])
    latency = exact + counts[:, odd] * 2 * truth[odd]  # three times what its neighbours cost
    fit = fit_entries(blocks, counts, noisy(latency, batch, 0), batch)
    assert fit.entries_ms[odd] == pytest.approx(3 * truth[odd], rel=0.15)


def test_more_timings_make_smaller_standard_errors(timed) -> None:
    blocks, counts, exact, batch = timed
    latency = noisy(exact, batch, 1)

    def median_se(fit: Fit) -> float:
        return float(np.median(fit.se_ms))

    half = slice(0, 60)
    few = fit_entries(blocks, counts[half], latency[half], batch[half])
    assert median_se(fit_entries(blocks, counts, latency, batch)) < median_se(few)


def test_one_network_is_no_table(timed) -> None:
    blocks, counts, exact, batch = timed
    with pytest.raises(TableError, match="at least two timed networks"):
        fit_entries(blocks, counts[:1], exact[:1], batch[:1])


def test_only_the_stem_cannot_be_told_from_the_fixed_cost(timed) -> None:
    blocks, counts, _, _ = timed
    (together,) = aliased(blocks, counts)
    assert together[0] == "base"
    assert {key.partition("/")[0] for key in together[1:]} == {"conv"}


def test_what_always_occurs_together_is_found() -> None:
    blocks = [
        Block.of("mbpool", **{"in": c, "expand": 6, "features": 10, "res": 2}) for c in range(3)
    ]
    counts = np.array([[1, 1, 0], [2, 2, 1], [0, 0, 1], [3, 3, 0]], dtype=float)
    (together,) = aliased(blocks, counts)
    assert together == [blocks[0].key, blocks[1].key]


def test_hodges_lehmann_against_its_definition() -> None:
    values = np.array([1.0, 2.0, 4.0, 100.0])
    pairs = [(a + b) / 2 for i, a in enumerate(values) for b in values[i:]]
    assert hodges_lehmann(values) == np.median(pairs)
