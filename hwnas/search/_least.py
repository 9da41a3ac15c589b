"""The member of a space with the least additive cost, exactly: a small integer program.

Every part's cost, and every rule, depends on few columns, so one binary variable for each code of
each column, and one joint variable for each combination a part or rule sees, make it linear.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise, product

import numpy as np
import numpy.typing as npt

from hwnas.spaces import AdditiveCost, Codes, Space

Array = npt.NDArray[np.float64]


def least(
    space: Space, cost: AdditiveCost, params: AdditiveCost, max_params: int | None = None
) -> Codes | None:
    """The codes of the member that costs least, ``max_params`` or fewer ``params``; None if none.

    Combinations whose cost is NaN (a block without an entry) are left out.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    offsets = np.concatenate([[0], np.cumsum([len(c.values) for c in space.columns])])
    reference = space.additive_cost(lambda block: block.cost.params)
    tables = [
        (columns, table, budget, own)
        for (columns, table), (_, budget), (_, own) in zip(
            cost.tables, params.tables, reference.tables, strict=True
        )
    ]
    zeros = [np.zeros(allowed.shape) for _, allowed in space.rule_tables]
    tables += [
        (columns, np.where(allowed, 0.0, np.nan), zero, zero)
        for (columns, allowed), zero in zip(space.rule_tables, zeros, strict=True)
    ]
    starts = offsets[-1] + np.concatenate([[0], np.cumsum([t.size for _, t, _, _ in tables])])
    num = int(starts[-1])
    triples = list(_consistency(space, [(c, t) for c, t, _, _ in tables], offsets, starts))
    rows, columns, values = (np.array(column) for column in zip(*triples, strict=True))
    right = np.zeros(int(rows.max()) + 1)
    right[: len(space.columns)] = 1.0
    consistent = csr_array((values, (rows, columns)), shape=(len(right), num))
    objective, budget_row, own_row = np.zeros(num), np.zeros(num), np.zeros(num)
    upper, integral = np.ones(num), np.zeros(num)
    integral[: offsets[-1]] = 1
    for start, (_, table, budget, own) in zip(starts, tables, strict=False):
        here = slice(start, start + table.size)
        objective[here] = np.nan_to_num(table.ravel())
        upper[here] = ~np.isnan(table.ravel())
        budget_row[here], own_row[here] = budget.ravel(), own.ravel()
    low, high = space.params_range
    bounded = np.vstack([own_row, budget_row]) / 1e6
    most = np.inf if max_params is None else max_params / 1e6
    result = milp(
        objective,
        integrality=integral,
        bounds=Bounds(0, upper),
        constraints=[
            LinearConstraint(consistent, right, right),
            LinearConstraint(bounded, [low / 1e6, 0.0], [high / 1e6, most]),
        ],
    )
    if result.x is None:
        return None
    chosen = [int(np.argmax(result.x[a:b])) for a, b in pairwise(offsets)]
    member: Codes = space.tidy(np.array([chosen], dtype=np.int8))[0]
    return member


def _consistency(
    space: Space,
    tables: list[tuple[tuple[int, ...], Array]],
    offsets: npt.NDArray[np.int_],
    starts: npt.NDArray[np.int_],
) -> Iterator[tuple[int, int, float]]:
    """(row, variable, coefficient) of: each column has one code; each table agrees with it."""
    for i in range(len(space.columns)):
        yield from ((i, int(v), 1.0) for v in range(offsets[i], offsets[i + 1]))
    row = len(space.columns)
    for start, (columns, table) in zip(starts, tables, strict=False):
        combinations = list(product(*(range(n) for n in table.shape)))
        for axis, column in enumerate(columns):
            for code in range(table.shape[axis]):
                yield row, int(offsets[column] + code), -1.0
                for position, combination in enumerate(combinations):
                    if combination[axis] == code:
                        yield row, int(start + position), 1.0
                row += 1
