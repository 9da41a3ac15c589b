"""Where a network's latency goes: a table's entries added up by stage and kind of block."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from hwnas.luts._table import LatencyTable, Prediction
from hwnas.spaces import Arch, Space

BASE = "base"
"""The stage and kind of the fixed cost, in tables that have one."""


@dataclass(frozen=True)
class Piece:
    """The blocks of one kind in one stage: how many, and what they cost together (ms)."""

    stage: str
    kind: str
    num_blocks: int
    ms: float
    se_ms: float
    """As if different entries were independent; one entry used twice counts twice."""


@dataclass(frozen=True)
class Breakdown:
    """The pieces of one network, stages in the order in which they run."""

    name: str
    pieces: tuple[Piece, ...]
    prediction: Prediction
    """What the pieces add up to."""


def breakdown(table: LatencyTable, space: Space, arch: Arch, *, name: str) -> Breakdown:
    """Add up the entries of ``arch`` by stage and kind; ``name`` is what to call it.

    Raises ``SpaceError`` where it is not in ``space``, ``TableError`` for a block without an entry.
    """
    codes = space.encode(arch)
    counts: dict[tuple[str, str], Counter[str]] = {}
    blocks = []
    for slot, block in space.layout(codes, table.image_size, table.num_classes):
        counts.setdefault((_stage(space, slot), block.kind), Counter())[block.key] += 1
        blocks.append(block)
    prediction = table.predict(blocks)
    order = list(dict.fromkeys(stage for stage, _ in counts))
    pieces = [
        Piece(
            stage,
            kind,
            found.total(),
            math.fsum(n * table.entries[key].ms for key, n in found.items()),
            math.hypot(*(n * table.entries[key].se_ms for key, n in found.items())),
        )
        for (stage, kind), found in sorted(counts.items(), key=lambda item: order.index(item[0][0]))
    ]
    if table.base_ms:
        pieces.insert(0, Piece(BASE, BASE, 0, table.base_ms, 0.0))
    return Breakdown(name, tuple(pieces), prediction)


def _stage(space: Space, slot: str) -> str:
    """The stage of a slot such as ``transformer1_0``; the head is a stage of its own."""
    names = [s.name for s in space.stages if slot == s.name or slot.startswith(f"{s.name}_")]
    return max(names, key=len, default=slot)
