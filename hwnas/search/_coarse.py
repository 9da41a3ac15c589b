"""The coarse stage (AutoViT, Algorithm 2): which skeletons meet the budgets, by the table alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hwnas.search._budget import Budget
from hwnas.spaces import Codes

_WALK_STEPS = 8


@dataclass(frozen=True)
class Coarse:
    """What the coarse stage found."""

    seeds: Codes
    """Architectures [N, columns] within both budgets, of the best skeletons in turn."""
    num_sampled: int
    num_feasible: int
    """Different architectures within both budgets among those sampled."""
    num_skeletons: int


def coarse(
    budget: Budget, rng: np.random.Generator, *, num_samples: int, top: int, num_seeds: int
) -> Coarse:
    """Sample members, keep those within both budgets, rank their skeletons, seed from the best.

    A skeleton is an architecture without its per-layer choices: stages, widths and depths. The
    table knows nothing of accuracy, so skeletons rank by the capacity they fit into the budget:
    the mean MACs of their feasible members. Where the budget is so tight that sampling finds too
    few, the fastest member (found exactly) is the start of a random walk inside the budgets.

    Raises ``BudgetError`` where nothing meets the budgets.
    """
    fastest = budget.fastest()
    samples = budget.space.sample(num_samples, rng)
    feasible = np.unique(samples[budget.meets(samples)], axis=0)
    num_feasible = len(feasible)
    if num_feasible < num_seeds:
        feasible = np.unique(
            np.concatenate([feasible, _walk(budget, fastest, num_seeds, rng)]), axis=0
        )
    columns = [i for i, c in enumerate(budget.space.columns) if c.layer is None]
    skeletons, member_of = np.unique(feasible[:, columns], axis=0, return_inverse=True)
    member_of = member_of.ravel()
    table = budget.table
    macs = budget.space.additive_cost(
        lambda block: block.cost.macs, table.image_size, table.num_classes
    )(feasible)
    capacity = np.bincount(member_of, macs) / np.bincount(member_of)
    best = np.argsort(-capacity, kind="stable")
    return Coarse(
        seeds=_in_turn(feasible, member_of, best, top, num_seeds, rng),
        num_sampled=num_samples,
        num_feasible=num_feasible,
        num_skeletons=len(skeletons),
    )


def _in_turn(
    feasible: Codes,
    member_of: np.ndarray[tuple[int], np.dtype[np.intp]],
    best: np.ndarray[tuple[int], np.dtype[np.intp]],
    top: int,
    num: int,
    rng: np.random.Generator,
) -> Codes:
    """``num`` architectures: one of each of the ``top`` skeletons, then a second, and so on.

    Skeletons further down the ranking fill up where the first have too few members.
    """
    members = [rng.permutation(np.flatnonzero(member_of == skeleton)) for skeleton in best]
    chosen: list[int] = []
    for start in range(0, len(members), top):
        group = members[start : start + top]
        for turn in range(max(len(m) for m in group)):
            chosen += [int(m[turn]) for m in group if turn < len(m)]
        if len(chosen) >= num:
            break
    return feasible[chosen[:num]]


def _walk(budget: Budget, start: Codes, num: int, rng: np.random.Generator) -> Codes:
    walkers = np.repeat(start[None], num, axis=0)
    seen = [walkers]
    for _ in range(_WALK_STEPS):
        walkers = budget.space.mutate(walkers, rng, p_depth=0.1, p_block=0.1, accept=budget.meets)
        seen.append(walkers)
    return np.concatenate(seen)
