"""The fine stage (AutoViT, Algorithm 2): evolution by accuracy, inside the budgets throughout."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hwnas.search._accuracy import AccuracyLog
from hwnas.search._budget import Budget
from hwnas.spaces import Codes

_TRIES = 10


@dataclass(frozen=True)
class Evolution:
    """Settings of the evolution; the defaults are the paper's (section 4.1)."""

    population: int = 50
    generations: int = 20
    parents: int = 10
    p_depth: float = 0.2
    p_block: float = 0.4


def evolve(
    budget: Budget,
    seeds: Codes,
    accuracy: AccuracyLog,
    rng: np.random.Generator,
    settings: Evolution,
    progress: Callable[[str], None],
) -> None:
    """Evolve from ``seeds`` [N, columns]; what was rated is in ``accuracy``.

    Each generation rates its population, takes the best rated so far as parents, and makes half of
    the next by crossover and half by mutation. Every child meets both budgets, and no architecture
    is rated twice; where no new one is left to be found, the evolution ends.
    """
    population = seeds
    for generation in range(1, settings.generations + 1):
        for i, codes in enumerate(population, 1):
            accuracy(codes)
            best = accuracy.ranked()[0][0]
            progress(
                f"generation {generation}/{settings.generations}: {i}/{len(population)} rated, "
                f"best {100 * best:.1f}%"
            )
        if generation == settings.generations:
            break
        ranked = [codes for _, codes in accuracy.ranked()]
        meets = budget.meets(np.stack(ranked))
        parents = [codes for codes, good in zip(ranked, meets, strict=True) if good]
        population = _children(
            np.stack(parents[: settings.parents]), budget, accuracy, rng, settings
        )
        if not len(population):
            break


def _children(
    parents: Codes,
    budget: Budget,
    accuracy: AccuracyLog,
    rng: np.random.Generator,
    settings: Evolution,
) -> Codes:
    num_crossed = settings.population // 2
    space, accept = budget.space, budget.meets
    children: dict[bytes, Codes] = {}

    def keep(candidates: Codes, limit: int) -> None:
        for codes in candidates:
            if len(children) < limit and not accuracy.asked(codes):
                children.setdefault(codes.tobytes(), codes)

    for limit, crossed in ((num_crossed, True), (settings.population, False)):
        for _ in range(_TRIES):
            missing = limit - len(children)
            if missing <= 0:
                break
            first = parents[rng.integers(len(parents), size=missing)]
            if crossed:
                second = parents[rng.integers(len(parents), size=missing)]
                keep(space.crossover(first, second, rng, accept), limit)
            else:
                chances = {"p_depth": settings.p_depth, "p_block": settings.p_block}
                keep(space.mutate(first, rng, **chances, accept=accept), limit)
    return np.array(list(children.values()), dtype=np.int8).reshape(-1, parents.shape[1])
