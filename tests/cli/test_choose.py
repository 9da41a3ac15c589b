from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from hwnas.cli._choose import sizes_for, space_for, supernet_for
from hwnas.cli._workspace import Workspace
from hwnas.errors import BudgetError, CheckpointError, UsageError
from hwnas.spaces import load_space

XXS = load_space("autovit-xxs")


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "runs")


def add(workspace: Workspace, name: str, space: str, image_size: int, num_classes: int) -> Path:
    """A folder in which the training of a supernet has begun."""
    folder = workspace.root / "supernets" / name
    folder.mkdir(parents=True)
    run = {"space": space, "image_size": image_size, "num_classes": num_classes}
    (folder / "run.json").write_text(json.dumps(run))
    return folder


@pytest.mark.parametrize(
    ("max_params", "space"),
    [
        (1_000_000, "autovit-xxs"),
        (1_700_000, "autovit-xxs"),
        (1_800_000, "autovit-xxs"),  # in the ranges of two: the smaller
        (1_800_001, "autovit-xs"),
        (2_000_000, "autovit-xs"),
        (3_000_000, "autovit-xs"),  # between two ranges: all of the space below fits
        (4_000_000, "autovit-s"),
        (7_000_000, "autovit-s"),
        (90_000_000, "autovit-s"),
    ],
)
def test_parameters_choose_the_space(max_params: int, space: str) -> None:
    assert space_for(None, max_params).id == space


def test_a_space_that_is_named_is_taken() -> None:
    assert space_for("autovit-s", 1_000_000).id == "autovit-s"


def test_fewer_parameters_than_any_space_has() -> None:
    with pytest.raises(BudgetError, match=r"down to 500,000 parameters: the least is 1,000,000"):
        space_for(None, 500_000)


def test_neither_a_space_nor_parameters() -> None:
    with pytest.raises(UsageError, match="give --space, or --params"):
        space_for(None, None)


def test_the_one_supernet_of_the_space(workspace: Workspace) -> None:
    add(workspace, "a", "autovit-xs", 48, 10)
    mine = add(workspace, "b", "autovit-xxs", 48, 10)
    assert supernet_for(XXS, workspace, None) == mine


def test_no_supernet_of_the_space(workspace: Workspace) -> None:
    add(workspace, "a", "autovit-xs", 48, 10)
    with pytest.raises(CheckpointError, match="`hwnas train --space autovit-xxs`, or name its"):
        supernet_for(XXS, workspace, None)
    with pytest.raises(CheckpointError, match=r"`hwnas train --space my/own\.toml`"):
        supernet_for(XXS, workspace, "my/own.toml")


def test_several_supernets_of_the_space(workspace: Workspace) -> None:
    folders = [add(workspace, name, "autovit-xxs", 48, 10) for name in "ab"]
    with pytest.raises(UsageError, match=r"name one of .* with --supernet") as caught:
        supernet_for(XXS, workspace, None)
    assert all(str(folder) in str(caught.value) for folder in folders)


@pytest.mark.parametrize(
    "text", ['{"space": "autovit-xxs"}', "[]", '{"space": 1, "image_size": []']
)
def test_a_damaged_description_of_a_supernet(workspace: Workspace, text: str) -> None:
    (add(workspace, "a", "autovit-xxs", 48, 10) / "run.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"run\.json is (damaged|not a whole run)"):
        supernet_for(XXS, workspace, None)


@pytest.mark.parametrize(
    ("supernets", "asked", "expected", "why"),
    [
        ([], (None, None), (256, 1000), "the default"),
        ([], (64, None), (64, 1000), "the default"),
        ([], (64, 5), (64, 5), "as asked"),
        ([(48, 10)], (None, None), (48, 10), "as the supernet .*/0"),
        ([(48, 10)], (64, None), (64, 1000), "the default"),
        ([(48, 10)], (None, 7), (256, 7), "the default"),
        ([(48, 10)], (32, 3), (32, 3), "as asked"),
        ([(48, 10), (64, 5)], (None, None), (256, 1000), "the default"),
        ([(48, 10), (64, 5)], (64, None), (64, 5), "as the supernet .*/1"),
        ([(48, 10), (64, 5)], (None, 5), (64, 5), "as the supernet .*/1"),
        ([(48, 10), (48, 10)], (None, None), (48, 10), "as the supernet .*/0"),
    ],
)
def test_sizes_are_those_asked_for_or_of_the_supernet_or_of_the_paper(
    workspace: Workspace,
    supernets: list[tuple[int, int]],
    asked: tuple[int | None, int | None],
    expected: tuple[int, int],
    why: str,
) -> None:
    add(workspace, "other", "autovit-s", 99, 99)
    for i, sizes in enumerate(supernets):
        add(workspace, str(i), "autovit-xxs", *sizes)
    *sizes, reason = sizes_for(XXS, workspace, *asked)
    assert tuple(sizes) == expected
    assert re.fullmatch(why, reason)
