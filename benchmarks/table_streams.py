"""What each way of predicting latency has timed: an endless row of batches of ten networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from hwnas.luts import BATCH_SIZE, Design
from hwnas.luts._design import Variant, keeps_shape
from hwnas.luts._measurements import Record
from hwnas.luts._profile import next_batch

Batch = tuple[str, list[Variant]]
Stream = Callable[[Design, Sequence[Record]], Batch]
"""From what the stream has timed so far to the name of its next batch and the networks in it."""

NUM_HELD_OUT = 60
_SEED = 77  # apart from the seeds of the design


def joint(design: Design, records: Sequence[Record]) -> Batch:
    """What ``hwnas profile`` times, the networks that it judges itself by included."""
    _, task, variants = next_batch(design, records)
    return task.name, variants


def whole(design: Design, records: Sequence[Record]) -> Batch:
    """Members drawn uniformly."""
    return f"whole/{len(records)}", _members(design, BATCH_SIZE, 1, len(records))


def singly(design: Design, records: Sequence[Record]) -> Batch:
    """Each block in turn: a network without it, and with it.

    One that keeps the shape is taken out of a member; another ends a member that is cut behind it,
    and is missing where it is cut before it. The stem, without which there is nothing, is timed
    twice by itself.
    """
    variants: list[Variant] = []
    start = len(records) * BATCH_SIZE // 2
    for turn in range(start, start + BATCH_SIZE // 2):
        member, position = _member_with(design, turn)
        blocks = design.blocks(member)
        behind = tuple(range(position + 1, len(blocks)))
        if keeps_shape(blocks[position]):
            variants += [Variant(member.codes, (position,)), member]
        else:
            before = (position, *behind) if position else behind
            variants += [Variant(member.codes, before), Variant(member.codes, behind)]
    return f"singly/{len(records)}", variants


def alone(design: Design, records: Sequence[Record]) -> Batch:
    """Each block in turn, all others taken out."""
    variants = []
    for turn in range(len(records) * BATCH_SIZE, (len(records) + 1) * BATCH_SIZE):
        member, position = _member_with(design, turn)
        others = (i for i in range(len(design.blocks(member))) if i != position)
        variants.append(Variant(member.codes, tuple(others)))
    return f"alone/{len(records)}", variants


def held_out(design: Design, records: Sequence[Record]) -> Batch:
    """The networks that all are judged by, and then the same again in other company."""
    members, index = _members(design, NUM_HELD_OUT, 2), len(records) * BATCH_SIZE
    if index >= NUM_HELD_OUT:
        order = np.random.default_rng([design.seed, _SEED, 3]).permutation(NUM_HELD_OUT)
        members = [members[int(i)] for i in order]
    start = index % NUM_HELD_OUT
    return f"held-out/{len(records)}", members[start : start + BATCH_SIZE]


STREAMS: dict[str, Stream] = {
    "joint": joint,
    "whole": whole,
    "singly": singly,
    "alone": alone,
    "held-out": held_out,
}


_Places = dict[str, list[tuple[Variant, int]]]
_places_of: dict[tuple[str, int, int], _Places] = {}


def places(design: Design) -> _Places:
    """For each block of the space members that have it, and where: from a thousand drawn."""
    cached = (design.space.id, design.image_size, design.seed)
    if cached not in _places_of:
        found = _places_of[cached] = {}
        for member in _members(design, 1000, 4):
            for i, block in enumerate(design.blocks(member)):
                found.setdefault(block.key, []).append((member, i))
    return _places_of[cached]


def _member_with(design: Design, turn: int) -> tuple[Variant, int]:
    """A member that has the block whose turn it is, and where; another one each time."""
    found = places(design)
    keys = sorted(found)
    known = found[keys[turn % len(keys)]]
    return known[turn // len(keys) * 31 % len(known)]


def _members(design: Design, num: int, *seed: int) -> list[Variant]:
    rows = design.space.sample(num, np.random.default_rng([design.seed, _SEED, *seed]))
    return [Variant(tuple(map(int, row))) for row in rows]
