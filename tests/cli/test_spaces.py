from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

from click.testing import Result

import hwnas.spaces

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Run = Callable[..., Result]
FOLDER = Path(hwnas.spaces.__file__).parent
BUILT_IN = ["autovit-xxs", "autovit-xs", "autovit-s"]


def test_table(hwnas: Run) -> None:
    result = hwnas("spaces")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines[1:4]] == BUILT_IN
    assert "5.4e17  1.0 to 1.8 M" in lines[1]
    assert all(len(line) <= 80 for line in lines)
    assert result.stdout.count("head dimension: 8") == 2
    assert result.stdout.count("head dimension: 32") == 1


def test_json_has_the_choices_of_each_stage(hwnas: Run) -> None:
    spaces = json.loads(hwnas("spaces", "--json").stdout)
    assert [space["id"] for space in spaces] == BUILT_IN
    for space in spaces:
        given = tomllib.loads((FOLDER / f"{space['id']}.toml").read_text())
        assert space["params_range"] == given["params"]
        stages = {stage["name"]: stage for stage in space["stages"]}
        assert stages["stem"]["width"] == given["stem"]["width"]
        for kind in ("mbconv", "transformer"):
            for i, expected in enumerate(given[kind], 1):
                stage = stages[f"{kind}{i}"]
                assert stage["optional"] == expected.pop("optional", False)
                expected.pop("stride")
                assert {name: stage[name] for name in expected} == expected


def test_the_number_of_architectures_is_exact(hwnas: Run) -> None:
    """XXS by hand: width chains, times depths of MBConv stages, times layers of transformers.

    From mbconv1 on, a stage's wide width is the next one's narrow width, so once a stage is wide
    all later ones are: n + 1 chains of n stages. Where mbconv1 is wide the stem may be too: one
    more. A transformer layer has 3 x 2 choices, a stage 2 to 5 layers.
    """
    layers = sum(6**depth for depth in (2, 3, 4, 5))
    with_three, with_four = ((6 + 1 + 1) * layers**3, (7 + 1 + 1) * layers**4)
    space = json.loads(hwnas("spaces", "--json").stdout)[0]
    assert space["architectures"] == (with_three + with_four) * 2**3


def test_a_file_of_ones_own(hwnas: Run, tmp_path: Path) -> None:
    text = (FOLDER / "autovit-xxs.toml").read_text()
    (tmp_path / "mine.toml").write_text(text.replace('"autovit-xxs"', '"mine"'))
    result = hwnas("spaces", "mine.toml")
    assert [line.split()[0] for line in result.stdout.splitlines()[1:5]] == [*BUILT_IN, "mine"]
    assert "\nmine, where its paper is silent:\n" in result.stdout


def test_a_file_that_is_no_space(hwnas: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('family = "autovit"\n')
    result = hwnas("spaces", "mine.toml")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: mine.toml lacks the field ")
    assert hwnas("spaces", "none.toml").exit_code == 1
    assert hwnas("spaces", "autovit-xxxs").exit_code == 2
