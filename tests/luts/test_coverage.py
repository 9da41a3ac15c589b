from __future__ import annotations

from dataclasses import replace

import pytest
from tiny import CLASSES, SIZE, TOML, all_blocks, everything, exact_table, tiny_space

from hwnas.errors import SpaceError, TableError
from hwnas.luts import coverage, member_blocks
from hwnas.spaces import Arch, Space, load_space, num_params, parse_space


def ranged(low: int, high: int) -> Space:
    """The tiny space with another range of parameters."""
    return parse_space(TOML.replace("[24_000, 29_500]", f"[{low}, {high}]"), "tiny.toml")


@pytest.fixture(scope="module")
def every() -> list[tuple[Arch, int]]:
    """Every architecture that obeys the rules, found one by one, with its parameters."""
    space = ranged(1, 10**9)
    return [(arch, num_params(space.blocks(arch))) for arch in everything(space).archs]


# The narrower the range, the fewer blocks are in a member; at its end stands one architecture.
@pytest.mark.parametrize(
    ("low", "high", "num"),
    [
        (1, 10**9, 41),
        (24_000, 29_500, 39),
        (22_000, 23_000, 18),
        (20_000, 21_000, 10),
        (31_940, 32_440, 19),
        (13_814, 13_814, 6),
    ],
)
def test_blocks_of_members_against_going_through_all(
    every: list[tuple[Arch, int]],
    monkeypatch: pytest.MonkeyPatch,
    low: int,
    high: int,
    num: int,
) -> None:
    space = ranged(low, high)
    members = [arch for arch, params in every if low <= params <= high]
    expected = {b.key for arch in members for b in space.blocks(arch, SIZE, CLASSES)}
    assert len(expected) == num
    for num_drawn in (0, 1, 500):  # with 0 drawn, every block is decided by the programme
        monkeypatch.setattr("hwnas.luts._coverage._WITNESSES", num_drawn)
        found = member_blocks(space, image_size=SIZE, num_classes=CLASSES)
        assert found == tuple(sorted(expected))


def test_the_range_counts_at_the_spaces_own_sizes(every: list[tuple[Arch, int]]) -> None:
    space = tiny_space()
    members = [arch for arch, params in every if 24_000 <= params <= 29_500]
    expected = {b.key for arch in members for b in space.blocks(arch, 32, 500)}
    assert set(member_blocks(space, image_size=32, num_classes=500)) == expected


def test_a_space_without_a_member_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hwnas.spaces._space._MAX_DRAWS", 10_000)
    with pytest.raises(SpaceError, match=r"no architecture of tiny .* was found"):
        member_blocks(ranged(1, 2), image_size=SIZE, num_classes=CLASSES)


def test_what_a_table_lacks_and_has_beyond() -> None:
    space = tiny_space()
    members = member_blocks(space, image_size=SIZE, num_classes=CLASSES)
    whole = exact_table(space)  # of every combination of choices, those of no member too
    found = coverage(whole, space)
    assert found.blocks == members
    assert found.missing == ()
    assert found.foreign == tuple(sorted(set(all_blocks(space, SIZE, CLASSES)) - set(members)))
    gone = {members[3], members[20]}
    holed = {k: e for k, e in whole.entries.items() if k in members and k not in gone}
    found = coverage(replace(whole, entries=holed), space)
    assert set(found.missing) == gone
    assert found.foreign == ()


def test_a_table_of_another_space_is_refused() -> None:
    with pytest.raises(TableError, match="of space tiny, but autovit-xs is asked for"):
        coverage(exact_table(tiny_space()), load_space("autovit-xs"))
