from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import norm
from tiny import exact_table, tiny_space

from hwnas.errors import TableError
from hwnas.luts import Condition, Entry, LatencyTable, diff
from hwnas.spaces import load_space

EXACT = exact_table(tiny_space())
KEYS = sorted(EXACT.entries)


def table(ms: list[float], se_ms: float | list[float] = 0.1) -> LatencyTable:
    """A table whose first entries are ``ms``."""
    errors = se_ms if isinstance(se_ms, list) else [se_ms] * len(ms)
    pairs = zip(KEYS, ms, errors, strict=False)
    return replace(EXACT, entries={key: Entry(value, se, 1) for key, value, se in pairs})


def test_the_false_discovery_rate_by_hand() -> None:
    # Two-sided p = 2 (1 - Phi(|z|)). Sorted, the k-th of 10 is held against 0.05 k / 10: the
    # fourth (0.0188 against 0.02) is the last to pass, and takes the third (0.0161 against 0.015)
    # along, which does not by itself. The fifth (0.0278 against 0.025) fails.
    z = [0.2, -2.40, 3.5, 1.0, 2.35, -0.4, 2.20, -3.1, 0.0, 1.5]
    p = np.sort([2 * norm.sf(abs(value)) for value in z])
    limits = 0.05 * np.arange(1, 11) / 10
    assert [p[k] <= limits[k] for k in range(5)] == [True, True, False, True, False]
    se = 0.1 / math.sqrt(2)
    found = diff(table([1.0] * 10, se), table([1 + 0.1 * value for value in z], se))
    assert [entry.z for entry in found.entries] == pytest.approx(sorted(z, key=abs, reverse=True))
    assert [entry.significant for entry in found.entries] == [True] * 4 + [False] * 6
    assert found.num_significant == 4


def test_an_entry_of_each() -> None:
    found = diff(table([2.0, 4.0, 1.0], [0.3, 0.1, 0.1]), table([2.5, 4.0, 1.1], [0.4, 0.1, 0.1]))
    first, second, third = found.entries
    assert (first.block, first.a_ms, first.b_ms) == (KEYS[0], 2.0, 2.5)
    assert first.difference_ms == pytest.approx(0.5)
    assert first.se_ms == pytest.approx(0.5)  # 3-4-5
    assert first.z == pytest.approx(1.0)
    assert (second.block, third.block) == (KEYS[2], KEYS[1])
    assert found.median_ratio == pytest.approx(1.1)


def test_chance_is_not_called_a_finding() -> None:
    rng = np.random.default_rng(5)
    calls = 0
    for _ in range(40):
        a, b = (table(list(rng.normal(1.0, 0.1, len(KEYS)))) for _ in "ab")
        calls += diff(a, b).num_significant > 0
    assert calls <= 6  # of 40 pairs of equal tables, 5% (2) in the long run


def test_real_differences_among_many_are_found() -> None:
    rng = np.random.default_rng(6)
    ms = rng.normal(1.0, 0.02, (2, len(KEYS)))
    ms[1, :5] += 0.2
    found = diff(table(list(ms[0]), 0.02), table(list(ms[1]), 0.02))
    assert {entry.block for entry in found.entries[:5]} == set(KEYS[:5])
    assert all(entry.significant for entry in found.entries[:5])
    assert found.num_significant <= 7


def test_a_device_that_is_slower_as_a_whole() -> None:
    ms = list(np.linspace(1, 5, 20))
    ms[4] *= 1.3
    found = diff(table(list(np.linspace(1, 5, 20)), 0.01), table([1.2 * x for x in ms], 0.01))
    assert found.median_ratio == pytest.approx(1.2)
    assert found.num_significant == 20
    assert found.num_beyond_ratio == 1
    assert found.entries[0].block in KEYS[:20]


def test_entries_without_an_error_of_their_own() -> None:
    found = diff(table([1.0, 2.0, 0.0], 0.0), table([1.0, 1.5, 0.0], 0.0))
    assert [e.z for e in found.entries] == [-math.inf, 0.0, 0.0]
    assert [e.significant for e in found.entries] == [True, False, False]
    nothing = diff(table([0.0]), table([0.0]))
    assert math.isnan(nothing.median_ratio)
    assert nothing.num_significant == nothing.num_beyond_ratio == 0


def test_entries_in_one_table_only() -> None:
    a, b = table([1.0] * 4), table([1.0] * 6)
    assert diff(a, b).only_b == tuple(KEYS[4:6])
    assert diff(b, a).only_a == tuple(KEYS[4:6])
    assert diff(b, a).only_b == ()
    assert len(diff(a, b).entries) == 4


def test_what_was_different() -> None:
    device = {"id": "cpu", "fingerprint": {**EXACT.device["fingerprint"], "cpu": "new", "os": "X"}}
    runtime = {**EXACT.runtime, "version": "2"}
    other = replace(EXACT, device=device, runtime=runtime, image_size=32, base_ms=0.5)
    assert diff(EXACT, EXACT).conditions == ()
    assert set(diff(EXACT, other).conditions) == {
        Condition("device cpu", "fake", "new"),
        Condition("device os", None, "X"),
        Condition("runtime version", "1", "2"),
        Condition("image size", 16, 32),
        Condition("base ms", 0.0, 0.5),
    }


def test_tables_of_different_spaces_where_they_overlap() -> None:
    xxs, xs = (
        exact_table(load_space(name), image_size=64) for name in ("autovit-xxs", "autovit-xs")
    )
    found = diff(xxs, xs)
    assert found.conditions == (Condition("space", "autovit-xxs", "autovit-xs"),)
    common = set(xxs.entries) & set(xs.entries)
    assert 0 < len(common) == len(found.entries) < len(xxs.entries)
    assert found.num_significant == 0


def test_nothing_in_common() -> None:
    other = exact_table(load_space("autovit-xxs"), image_size=64)
    match = "no entry in common: one is of tiny, 16x16 pixels and 10 classes, the other of autovit-"
    with pytest.raises(TableError, match=match):
        diff(EXACT, other)
