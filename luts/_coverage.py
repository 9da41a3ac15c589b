"""Coverage: which blocks the members of a space have, and which of them a table knows."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from operator import eq
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hwnas.luts._table import LatencyTable
from hwnas.spaces import AdditiveCost, Block, Space

_WITNESSES = 500


@dataclass(frozen=True)
class Coverage:
    """The keys of the blocks of a space's members, held against a table's entries."""

    blocks: tuple[str, ...]
    """Every block that a member has, at the table's sizes."""
    missing: tuple[str, ...]
    """Those of them without an entry."""
    foreign: tuple[str, ...]
    """Entries of blocks that no member has: the table was made of another space of this id."""


def coverage(table: LatencyTable, space: Space) -> Coverage:
    """Hold the blocks of every member of ``space`` against the entries of ``table``.

    Raises ``TableError`` where the table is of another space.
    """
    sizes = {"image_size": table.image_size, "num_classes": table.num_classes}
    table.check_use(space=space, **sizes)
    blocks = member_blocks(space, **sizes)
    return Coverage(
        blocks,
        tuple(key for key in blocks if key not in table.entries),
        tuple(sorted(set(table.entries) - set(blocks))),
    )


def member_blocks(space: Space, *, image_size: int, num_classes: int) -> tuple[str, ...]:
    """The keys of all blocks that a member of ``space`` has, exactly.

    A block seen in a member drawn at random is one. Whether a member has one of the others, which a
    rule or the range of parameters may forbid, is decided by dynamic programming.
    """
    all_blocks: dict[str, Block] = {}

    def note(block: Block) -> float:
        all_blocks[block.key] = block
        return 0.0

    space.additive_cost(note, image_size, num_classes)
    found: set[str] = set()
    for codes in space.sample(_WITNESSES, np.random.default_rng(0)):
        found |= {block.key for _, block in space.layout(codes, image_size, num_classes)}
    for block in all_blocks.values():
        if block.key not in found:
            has = space.additive_cost(partial(eq, block), image_size, num_classes)
            if _in_a_member(space, has):
                found.add(block.key)
    return tuple(sorted(found))


class _Factor(NamedTuple):
    """A part or a rule, by the codes of its columns."""

    columns: tuple[int, ...]
    params: npt.NDArray[np.int64]
    has: npt.NDArray[np.bool_]
    allowed: npt.NDArray[np.bool_]


def _in_a_member(space: Space, has: AdditiveCost) -> bool:
    """Whether ``has`` is above zero for a member.

    Column by column; what matters of the columns gone by is the codes that a later part or rule
    still sees, whether ``has`` was met, and which numbers of parameters are possible: the bits of
    one integer.
    """
    factors = _factors(space, has)
    unit = int(np.gcd.reduce(np.concatenate([f.params.ravel() for f in factors])))
    states: dict[tuple[tuple[int, ...], bool], int] = {((), False): 1}
    live: tuple[int, ...] = ()
    for column, choice in enumerate(space.columns):
        here = [f for f in factors if max(f.columns) == column]
        later = {c for f in factors if max(f.columns) > column for c in f.columns}
        stay = tuple(c for c in (*live, column) if c in later)
        reached: defaultdict[tuple[tuple[int, ...], bool], int] = defaultdict(int)
        for (seen, met), params in states.items():
            for code in range(len(choice.values)):
                codes = dict(zip((*live, column), (*seen, code), strict=True))
                at = [(f, tuple(codes[c] for c in f.columns)) for f in here]
                if not all(f.allowed[index] for f, index in at):
                    continue
                added = sum(int(f.params[index]) for f, index in at) // unit
                now = met or any(bool(f.has[index]) for f, index in at)
                reached[tuple(codes[c] for c in stay), now] |= params << added
        states, live = dict(reached), stay
    first, last = -(-space.params_range[0] // unit), space.params_range[1] // unit
    possible = states.get(((), True), 0) >> first
    least = (possible & -possible).bit_length() - 1  # -1: none
    return 0 <= least <= last - first


def _factors(space: Space, has: AdditiveCost) -> list[_Factor]:
    params = space.additive_cost(lambda block: block.cost.params)
    factors = [
        _Factor(columns, np.rint(count).astype(np.int64), met > 0, np.ones(met.shape, dtype=bool))
        for (columns, count), (_, met) in zip(params.tables, has.tables, strict=True)
    ]
    for columns, allowed in space.rule_tables:
        nothing = np.zeros(allowed.shape, dtype=np.int64)
        factors.append(_Factor(columns, nothing, nothing > 0, allowed))
    return factors
