from __future__ import annotations

import math
from dataclasses import replace

import pytest
from tiny import CLASSES, SIZE, exact_table, tiny_space

from hwnas.errors import SpaceError, TableError
from hwnas.luts import Breakdown, Entry, LatencyTable, Piece, breakdown
from hwnas.spaces import Arch, Block

ARCH = Arch.from_json(
    {
        "space": "tiny",
        "stages": {
            "stem": {"width": 4},
            "mbconv1": {"width": 8, "depth": 2},
            "mbconv2": {"width": 10, "depth": 1},
            "transformer1": {"width": 14, "depth": 2, "heads": [2, 2], "ratio": [1, 1]},
            "transformer2": {"width": 18, "depth": 2, "heads": [1, 2], "ratio": [1.5, 1.5]},
        },
    }
)


def mbconv(before: int, after: int, stride: int, res: int) -> str:
    sizes = {"in": before, "out": after, "expand": 1, "kernel": 3, "stride": stride, "res": res}
    return Block.of("mbconv", **sizes).key


def vit(d: int, heads: int, ratio: float) -> str:
    sizes = {"d": d, "heads": heads, "head_dim": 4, "ratio": ratio, "pixels": 4, "tokens": 4}
    return Block.of("vit_layer", **sizes).key


def hybrid(c: int, d: int) -> str:
    return Block.of("hybrid", c=c, d=d, kernel=3, patch=2, res=4).key


STEM = Block.of("conv", **{"in": 3, "out": 4, "kernel": 3, "stride": 2, "res": SIZE}).key
HEAD = Block.of("mbpool", **{"in": 14, "expand": 1, "features": CLASSES, "res": 4}).key
# Written out by hand: what ARCH consists of, and a price for each (ms, standard error).
PRICES = {
    STEM: (1.0, 0.1),
    mbconv(4, 8, 1, 8): (2.0, 0.3),
    mbconv(8, 8, 1, 8): (3.0, 0.4),
    mbconv(8, 10, 2, 8): (4.0, 0.5),
    hybrid(10, 14): (5.0, 0.6),
    vit(14, 2, 1): (6.0, 0.7),
    mbconv(10, 14, 1, 4): (7.0, 0.8),
    hybrid(14, 18): (8.0, 0.9),
    vit(18, 1, 1.5): (9.0, 0.3),
    vit(18, 2, 1.5): (10.0, 0.4),
    HEAD: (11.0, 0.2),
}
PIECES = (
    Piece("stem", "conv", 1, 1.0, 0.1),
    Piece("mbconv1", "mbconv", 2, 5.0, 0.5),
    Piece("mbconv2", "mbconv", 1, 4.0, 0.5),
    Piece("transformer1", "hybrid", 1, 5.0, 0.6),
    Piece("transformer1", "vit_layer", 2, 12.0, 1.4),  # one entry, twice
    Piece("transformer2", "mbconv", 1, 7.0, 0.8),
    Piece("transformer2", "hybrid", 1, 8.0, 0.9),
    Piece("transformer2", "vit_layer", 2, 19.0, 0.5),
    Piece("head", "mbpool", 1, 11.0, 0.2),
)


def priced() -> LatencyTable:
    entries = {key: Entry(ms, se, 1) for key, (ms, se) in PRICES.items()}
    return replace(exact_table(tiny_space()), entries=entries)


def rounded(found: Breakdown) -> list[Piece]:
    return [replace(p, ms=round(p.ms, 9), se_ms=round(p.se_ms, 9)) for p in found.pieces]


def test_pieces_by_stage_and_kind_in_running_order() -> None:
    table, space = priced(), tiny_space()
    found = breakdown(table, space, ARCH, name="mine")
    assert found.name == "mine"
    assert rounded(found) == list(PIECES)
    assert found.prediction == table.predict(space.blocks(ARCH, SIZE, CLASSES))
    assert found.prediction.predicted == pytest.approx(72.0)


@pytest.mark.parametrize("base_ms", [0.75, -0.25])
def test_the_fixed_cost_is_a_piece_of_its_own(base_ms: float) -> None:
    found = breakdown(replace(priced(), base_ms=base_ms), tiny_space(), ARCH, name="mine")
    assert rounded(found) == [Piece("base", "base", 0, base_ms, 0.0), *PIECES]
    assert math.fsum(p.ms for p in found.pieces) == pytest.approx(found.prediction.predicted)


def test_a_stage_that_is_left_out_is_in_no_piece() -> None:
    stages = tuple(pair for pair in ARCH.stages if pair[0] != "transformer2")
    found = breakdown(exact_table(tiny_space()), tiny_space(), Arch("tiny", stages), name="short")
    assert {p.stage for p in found.pieces} == {p.stage for p in PIECES} - {"transformer2"}
    assert [p.stage for p in found.pieces][-2:] == ["transformer1", "head"]


def test_what_cannot_be_broken_down() -> None:
    table = priced()
    with pytest.raises(SpaceError, match="of space 'other', not of 'tiny'"):
        breakdown(table, tiny_space(), Arch("other", ARCH.stages), name="mine")
    entries = {key: entry for key, entry in table.entries.items() if key != HEAD}
    with pytest.raises(TableError, match="no entry for block mbpool"):
        breakdown(replace(table, entries=entries), tiny_space(), ARCH, name="mine")
