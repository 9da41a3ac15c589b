"""The member of a space with the least additive cost, exactly: dynamic programming over columns.

Every part's cost, and every rule, depends on few columns that lie close together. So what matters
of the columns gone by are the codes that a later part or rule still sees, a *state*, and the
parameters so far; for each state the least cost is kept for each number of parameters.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from hwnas.spaces import AdditiveCost, Codes, Space

Array: TypeAlias = npt.NDArray[np.float64]
Counts: TypeAlias = npt.NDArray[np.int64]


def least(
    space: Space, cost: AdditiveCost, params: AdditiveCost, max_params: int | None = None
) -> Codes | None:
    """The codes of the member that costs least, ``max_params`` or fewer ``params``; None if none.

    Combinations whose cost is NaN (a block without an entry) are left out.
    """
    factors = _factors(space, cost, params)
    unit = int(np.gcd.reduce(np.concatenate([f.own.ravel() for f in factors])))
    low, high = space.params_range
    if max_params is not None:
        high = min(high, max_params + sum(int(f.extra.max()) for f in factors))
    fronts = {_State((), 0): _Front(np.zeros(1), 0, 0.0)}
    live: tuple[int, ...] = ()
    trace: list[dict[_State, _Merged]] = []
    for column in range(len(space.columns)):
        later = [f for f in factors if f.columns[-1] > column]
        here = [f for f in factors if f.columns[-1] == column]
        stay = [c for c in (*live, column) if any(c in f.columns for f in later)]
        num_codes = len(space.columns[column].values)
        options = _extend(fronts, (*live, column), num_codes, here, stay, unit)
        # What later columns add at least and at most says which counts can still end in the range.
        first = (low - sum(int(f.own.max()) for f in later)) // unit
        last = (high - sum(int(f.own.min()) for f in later)) // unit
        trace.append({state: _merge(o, first, last) for state, o in options.items()})
        fronts = {state: merged.front for state, merged in trace[-1].items()}
        live = tuple(stay)
    ends = []
    for state, front in fronts.items():
        most = high if max_params is None else min(high, max_params + state.extra)
        ends.append((*front.best(-(-low // unit), most // unit), state))
    value, count, state = min(ends, default=(np.inf, 0, _State((), 0)))
    if value == np.inf:
        return None
    member: Codes = space.tidy(np.array([_walk_back(trace, state, count)], dtype=np.int8))[0]
    return member


class _State(NamedTuple):
    codes: tuple[int, ...]
    """Of the columns that are still seen."""
    extra: int
    """Parameters at the space's reference sizes beyond those that ``max_params`` bounds."""


class _Factor(NamedTuple):
    """A part, or a rule (NaN where it forbids), by the codes of its columns, which ascend."""

    columns: tuple[int, ...]
    cost: Array
    own: Counts
    """Parameters at the space's reference sizes, those that its range bounds."""
    extra: Counts


@dataclass(frozen=True)
class _Front:
    """Least costs: ``costs[i] + offset`` with ``start + i`` units of parameters; inf: none has."""

    costs: Array
    start: int
    offset: float

    def best(self, first: int, last: int) -> tuple[float, int]:
        """The least cost with ``first`` to ``last`` units, and the units it has."""
        begin = max(0, first - self.start)
        inside = self.costs[begin : max(begin, last + 1 - self.start)]
        if not len(inside):
            return np.inf, 0
        i = int(np.argmin(inside))
        return float(inside[i]) + self.offset, self.start + begin + i


class _Option(NamedTuple):
    """One way into a state: from which, with which code, which adds how many units."""

    source: _State
    code: int
    units: int
    front: _Front


class _Merged(NamedTuple):
    front: _Front
    options: Sequence[_Option]
    chosen: npt.NDArray[np.uint16] | None
    """Which option is the cheapest for each element of the front; None: the first throughout."""


def _factors(space: Space, cost: AdditiveCost, params: AdditiveCost) -> list[_Factor]:
    reference = space.additive_cost(lambda block: block.cost.params)
    tables = [
        (columns, ms, own, own - bounded)
        for (columns, ms), (_, bounded), (_, own) in zip(
            cost.tables, params.tables, reference.tables, strict=True
        )
    ]
    for columns, allowed in space.rule_tables:
        nothing = np.zeros(allowed.shape)
        tables.append((columns, np.where(allowed, 0.0, np.nan), nothing, nothing))
    factors = []
    for columns, *by_code in tables:
        order = np.argsort(columns)
        costs, own, extra = (table.transpose(order) for table in by_code)
        ascending = tuple(columns[i] for i in order)
        counts = (np.rint(table).astype(np.int64) for table in (own, extra))
        factors.append(_Factor(ascending, costs, *counts))
    return factors


def _extend(
    fronts: dict[_State, _Front],
    columns: Sequence[int],
    num_codes: int,
    factors: Sequence[_Factor],
    stay: Iterable[int],
    unit: int,
) -> dict[_State, list[_Option]]:
    """Give the last of ``columns`` each of its codes, and keep the codes of those that ``stay``."""
    options = defaultdict(list)
    for state, front in fronts.items():
        for code in range(num_codes):
            codes = dict(zip(columns, (*state.codes, code), strict=True))
            seen = [(f, tuple(codes[c] for c in f.columns)) for f in factors]
            cost = sum(float(f.cost[index]) for f, index in seen)
            if np.isnan(cost):
                continue
            units = sum(int(f.own[index]) for f, index in seen) // unit
            extra = state.extra + sum(int(f.extra[index]) for f, index in seen)
            moved = _Front(front.costs, front.start + units, front.offset + cost)
            target = _State(tuple(codes[c] for c in stay), extra)
            options[target].append(_Option(state, code, units, moved))
    return options


def _merge(options: Sequence[_Option], first: int, last: int) -> _Merged:
    """The cheapest of ``options`` for each number of units from ``first`` to ``last``."""
    distinct: dict[tuple[int, int, float], int] = {}
    for i, (*_, front) in enumerate(options):
        distinct.setdefault((id(front.costs), front.start, front.offset), i)
    if len(distinct) == 1:
        return _Merged(options[0].front, options, None)
    start = max(first, min(o.front.start for o in options))
    end = min(last + 1, max(o.front.start + len(o.front.costs) for o in options))
    costs = np.full(max(0, end - start), np.inf)
    chosen = np.zeros(len(costs), dtype=np.uint16)
    for i in distinct.values():
        front = options[i].front
        a, b = max(start, front.start), min(end, front.start + len(front.costs))
        if a < b:
            mine = front.costs[a - front.start : b - front.start] + front.offset
            cheaper = mine < costs[a - start : b - start]
            np.copyto(costs[a - start : b - start], mine, where=cheaper)
            chosen[a - start : b - start][cheaper] = i
    return _Merged(_Front(costs, start, 0.0), options, chosen)


def _walk_back(trace: Sequence[dict[_State, _Merged]], state: _State, units: int) -> list[int]:
    """The codes of all columns on the way to ``state`` with ``units``."""
    codes = []
    for merged in (step[state] for step in reversed(trace)):
        start, chosen = merged.front.start, merged.chosen
        option = merged.options[0 if chosen is None else int(chosen[units - start])]
        codes.append(option.code)
        state, units = option.source, units - option.units
    return codes[::-1]
