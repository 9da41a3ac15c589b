"""Two latency tables held against each other, entry by entry."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hwnas.errors import TableError
from hwnas.luts._table import LatencyTable

FALSE_DISCOVERY_RATE = 0.05
"""Of the entries called different, the share that is so by chance (Benjamini and Hochberg)."""

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Condition:
    """Something under which the two tables were measured differently; None: one does not say."""

    name: str
    a: Any
    b: Any


@dataclass(frozen=True)
class EntryDiff:
    """One block in both tables (ms)."""

    block: str
    a_ms: float
    b_ms: float
    se_ms: float
    """Standard error of the difference."""
    significant: bool

    @property
    def difference_ms(self) -> float:
        """What the block costs more in B."""
        return self.b_ms - self.a_ms

    @property
    def z(self) -> float:
        """The difference in standard errors; infinite where it differs and both claim no error."""
        if self.se_ms > 0:
            return self.difference_ms / self.se_ms
        return math.copysign(math.inf, self.difference_ms) if self.difference_ms else 0.0


@dataclass(frozen=True)
class TableDiff:
    """What differs between tables A and B."""

    conditions: tuple[Condition, ...]
    entries: tuple[EntryDiff, ...]
    """Of the blocks in both, by falling |z|."""
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    median_ratio: float
    """Of B's entries to A's, those that are 0 in A left out; NaN where all are."""
    num_beyond_ratio: int
    """How many entries differ significantly once B is divided by the median ratio."""

    @property
    def num_significant(self) -> int:
        """How many entries differ significantly."""
        return sum(entry.significant for entry in self.entries)


def diff(a: LatencyTable, b: LatencyTable) -> TableDiff:
    """Compare the entries that ``a`` and ``b`` have in common.

    An entry differs significantly where it does among all of them with the false discovery rate
    held; entries of one table are taken to be independent. Raises ``TableError`` where the tables
    have no entry in common.
    """
    keys = sorted(set(a.entries) & set(b.entries))
    if not keys:
        raise TableError(
            f"the tables have no entry in common: one is of {_sizes(a)}, the other of {_sizes(b)}"
        )
    a_ms, a_se = _columns(a, keys)
    b_ms, b_se = _columns(b, keys)
    se_ms, above = np.hypot(a_se, b_se), a_ms > 0
    ratio = float(np.median(b_ms[above] / a_ms[above])) if above.any() else math.nan
    scale = ratio if ratio > 0 else 1.0
    beyond = _differ(a_ms, b_ms / scale, np.hypot(a_se, b_se / scale))
    entries = [
        EntryDiff(key, float(ours), float(theirs), float(se), bool(significant))
        for key, ours, theirs, se, significant in zip(
            keys, a_ms, b_ms, se_ms, _differ(a_ms, b_ms, se_ms), strict=True
        )
    ]
    return TableDiff(
        conditions=_conditions(a, b),
        entries=tuple(sorted(entries, key=lambda e: (-abs(e.z), e.block))),
        only_a=tuple(sorted(set(a.entries) - set(b.entries))),
        only_b=tuple(sorted(set(b.entries) - set(a.entries))),
        median_ratio=ratio,
        num_beyond_ratio=int(beyond.sum()),
    )


def _differ(a_ms: Values, b_ms: Values, se_ms: Values) -> npt.NDArray[np.bool_]:
    """Which pairs differ, the false discovery rate held over all of them."""
    from scipy.stats import false_discovery_control, norm

    difference = np.abs(b_ms - a_ms)
    known = se_ms > 0
    p = np.where(difference > 0, 0.0, 1.0)  # of entries that claim to have no error
    p[known] = 2 * norm.sf(difference[known] / se_ms[known])
    adjusted: Values = false_discovery_control(p, method="bh")
    return adjusted <= FALSE_DISCOVERY_RATE


def _columns(table: LatencyTable, keys: list[str]) -> tuple[Values, Values]:
    entries = [table.entries[key] for key in keys]
    return np.array([e.ms for e in entries]), np.array([e.se_ms for e in entries])


def _conditions(a: LatencyTable, b: LatencyTable) -> tuple[Condition, ...]:
    ours, theirs = _facts(a), _facts(b)
    names = dict.fromkeys([*ours, *theirs])
    pairs = [Condition(name, ours.get(name), theirs.get(name)) for name in names]
    return tuple(pair for pair in pairs if pair.a != pair.b)


def _facts(table: LatencyTable) -> dict[str, Any]:
    fingerprint: Mapping[str, Any] = table.device["fingerprint"]
    return {
        "device": table.device["id"],
        **{f"device {name}": value for name, value in fingerprint.items()},
        **{f"runtime {name}": value for name, value in table.runtime.items()},
        "space": table.space,
        "image size": table.image_size,
        "classes": table.num_classes,
        "keys": table.keys,
        "base ms": table.base_ms,
    }


def _sizes(table: LatencyTable) -> str:
    size = table.image_size
    return f"{table.space}, {size}x{size} pixels and {table.num_classes} classes"
