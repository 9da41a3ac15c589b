"""Spaces written as TOML files: read back whole, or refused with a sentence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hwnas.errors import SpaceError, UsageError
from hwnas.spaces import SPACES, load_space, parse_space

MINE = """
family = "autovit"
id = "mine"
params = [1, 100_000_000]
expansion = 4
pool_expansion = 2
head_dim = 16

[stem]
width = [8, 16]
stride = 2

[[mbconv]]
width = [16, 24]
depth = [1, 2, 4]
stride = 2

[[transformer]]
width = [32, 40]
depth = [1]
heads = [2, 4]
ratio = [1, 2.5]
"""
OPTIONAL = """
[[transformer]]
width = [48]
depth = [1]
heads = [2]
ratio = [2]
optional = true
"""


def edited(old: str, new: str) -> str:
    assert MINE.count(old) == 1
    return MINE.replace(old, new)


def test_a_users_file_has_the_fields_of_the_built_in_ones(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(MINE)
    space = load_space(str(path))
    assert space.id == "mine"
    assert space.definition == MINE
    assert space.params_range == (1, 100_000_000)
    stages = [(s.name, s.width, s.depth, dict(s.per_layer), s.optional) for s in space.stages]
    assert stages == [
        ("stem", (8, 16), (1,), {}, False),
        ("mbconv1", (16, 24), (1, 2, 4), {}, False),
        ("transformer1", (32, 40), (1,), {"heads": (2, 4), "ratio": (1, 2.5)}, False),
    ]
    blocks = [block for _, block in space.layout(space.largest, image_size=32)]
    assert [b["expand"] for b in blocks if b.kind == "mbconv"] == [4] * 4
    assert [b["head_dim"] for b in blocks if b.kind == "vit_layer"] == [16]
    assert [b["res"] for b in blocks if b.kind in ("hybrid", "mbpool")] == [8, 8]
    assert blocks[-1]["in"] == 24


@pytest.mark.parametrize("name", SPACES)
def test_a_built_in_space_is_its_own_definition(name: str, tmp_path: Path) -> None:
    space = load_space(name)
    path = tmp_path / "copy.toml"
    path.write_text(space.definition.replace(f'id = "{name}"', 'id = "copy"'))
    copy = load_space(str(path))
    assert (copy.id, copy.stages, copy.params_range) == ("copy", space.stages, space.params_range)
    assert copy.layout(copy.largest) == space.layout(space.largest)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("autovit-xss", "unknown space 'autovit-xss': did you mean 'autovit-xs"),
        ("resnet", "known are autovit-s, autovit-xs, autovit-xxs; .* ends in .toml"),
        ("", "unknown space ''"),
    ],
)
def test_an_unknown_name_is_told_with_the_known_ones(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_space(name)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(SpaceError, match=r"cannot read the space file .*nowhere.toml"):
        load_space(str(tmp_path / "nowhere.toml"))


def test_a_folder_is_no_space_file(tmp_path: Path) -> None:
    folder = tmp_path / "folder.toml"
    folder.mkdir()
    with pytest.raises(SpaceError, match="cannot read the space file"):
        load_space(str(folder))


def test_a_file_that_is_no_text_is_told(tmp_path: Path) -> None:
    path = tmp_path / "binary.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SpaceError, match="cannot read the space file"):
        load_space(str(path))


@pytest.mark.parametrize("name", SPACES)
def test_the_id_of_a_built_in_space_cannot_be_taken(name: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(edited('id = "mine"', f'id = "{name}"'))
    with pytest.raises(SpaceError, match=f"calls itself '{name}', which is built in"):
        load_space(str(path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MINE[: MINE.index("[[mbconv]]") - 5], "mine.toml is not TOML"),
        (edited('"autovit"', '"autovitt"'), "unknown family 'autovitt': did you mean 'autovit'"),
        (edited('family = "autovit"\n', ""), "unknown family ''"),
        (edited('"autovit"', '["autovit"]'), "unknown family"),
        ("", "unknown family ''"),
        (edited("params = [1, 100_000_000]\n", ""), "lacks the field 'params'"),
        (edited("head_dim = 16\n", ""), "lacks the field 'head_dim'"),
        (edited('id = "mine"\n', ""), "lacks the field 'id'"),
        (edited("width = [8, 16]\n", ""), "lacks the field 'width'"),
        (edited("heads = [2, 4]\n", ""), "lacks the field 'heads'"),
        (MINE[: MINE.index("[[transformer]]")], "lacks the field 'transformer'"),
        (edited("depth = [1, 2, 4]\n", ""), "lacks the field 'depth'"),
        (edited('id = "mine"', "id = 7"), "id must be a text; got 7"),
        (edited("[1, 100_000_000]", "[1]"), "wrong shape"),
        (edited("[1, 100_000_000]", "7"), "wrong shape"),
        (edited("[1, 100_000_000]", '["1M", "2M"]'), "params must be a positive whole number"),
        (edited("head_dim = 16", "head_dim = 0"), "head_dim must be a positive .*; got 0"),
        (edited("expansion = 4\npool", "expansion = inf\npool"), "expansion must be a positive"),
        (edited("[8, 16]\nstride = 2", "[8, 16]\nstride = 0"), "stride must be a positive"),
        (edited("width = [16, 24]", "width = [24, 16]"), "mbconv1.width must ascend"),
        (edited("width = [16, 24]", "width = [16, 16]"), "mbconv1.width must ascend"),
        (edited("width = [16, 24]", "width = []"), "mbconv1.width must be a list of positive"),
        (edited("width = [16, 24]", "width = 16"), "mbconv1.width must be a list of positive"),
        (edited("width = [16, 24]", "width = [16.5, 24]"), "width must be .* whole numbers"),
        (edited("depth = [1, 2, 4]", "depth = [0, 1]"), "mbconv1.depth must be a list of positive"),
        (edited("[1, 2.5]", "[-1, 2.5]"), "transformer1.ratio must be a list of positive numbers"),
        (edited("[1, 2.5]", "[1, nan]"), "transformer1.ratio must be a list of positive numbers"),
        (edited("[1, 2.5]", "[1, inf]"), "transformer1.ratio must be a list of positive numbers"),
        (edited("[1, 2.5]", '["1", "2"]'), "transformer1.ratio must be a list of positive numbers"),
        (edited("[1, 2.5]", str(list(range(1, 200)))), "at most 127 values"),
        (edited("head_dim", "head_dims"), "unknown field of the space 'head_dims': did you mean"),
        (edited("ratio", "ratios"), "unknown field of transformer1 'ratios': did you mean 'ratio'"),
        (edited("[stem]\n", "[stem]\ndepth = [1]\n"), "unknown field of stem 'depth'"),
        (edited("[stem]\nwidth = [8, 16]\nstride = 2", "stem = 8"), "wrong shape"),
        (MINE.replace("[[transformer]]", "[transformer]"), "unknown field of transformer1"),
        (MINE + "optional = 1\n", "transformer1.optional must be true or false; got 1"),
        (MINE + "optional = true\n", "needs a transformer stage that is not optional"),
        (MINE + "stride = 2\n", "the first transformer stage must have stride 1"),
        (MINE + OPTIONAL + "stride = 2\n", "an optional stage must have stride 1"),
        (MINE + OPTIONAL + OPTIONAL, "only the last transformer stage .* may be optional"),
        ("transformer = []" + MINE[: MINE.index("[[transformer]]")], "needs a transformer stage"),
    ],
)
def test_a_damaged_definition_is_refused(text: str, message: str) -> None:
    with pytest.raises(SpaceError, match=message) as caught:
        parse_space(text, "mine.toml")
    assert "mine.toml" in str(caught.value)


@pytest.mark.parametrize("params", ["[1, 10]", "[900_000_000, 1_000_000_000]", "[20_000, 10_000]"])
def test_a_range_that_holds_nothing_ends_with_an_error(params: str) -> None:
    space = parse_space(edited("[1, 100_000_000]", params), "mine.toml")
    with pytest.raises(SpaceError, match=r"no architecture of mine with .* widen its range"):
        space.sample(1, np.random.default_rng(0))


def test_a_rule_that_nothing_obeys_ends_with_an_error() -> None:
    space = parse_space(edited("width = [32, 40]", "width = [8]"), "mine.toml")
    assert space.num_archs == 0
    with pytest.raises(SpaceError, match="no architecture of mine"):
        space.sample(1, np.random.default_rng(0))
