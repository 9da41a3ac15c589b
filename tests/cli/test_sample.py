from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from click.testing import Result

from hwnas.spaces import SPACES, Arch, load_space

Run = Callable[..., Result]


@pytest.mark.parametrize("space", SPACES)
def test_lines_are_members(hwnas: Run, space: str) -> None:
    lines = hwnas("sample", "--space", space, "--num", 20).stdout.splitlines()
    archs = [Arch.from_json(json.loads(line)) for line in lines]
    assert len(set(archs)) == 20
    assert all(load_space(space).contains(arch) for arch in archs)


def test_same_seed_same_draws(hwnas: Run) -> None:
    def draw(num: int, seed: int) -> list[str]:
        result = hwnas("sample", "--space", "autovit-xxs", "--num", num, "--seed", seed)
        return list(result.stdout.splitlines())

    many = draw(600, 7)
    assert len(many) == 600
    assert draw(600, 7) == many
    assert draw(3, 7) == many[:3]
    assert set(draw(3, 8)).isdisjoint(many)


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--num", 2], "Missing option '--space'"),
        (["--space", "autovit-xxs", "--num", 0], "x>=1"),
        (["--space", "autovit-xxs", "--seed", -1], "x>=0"),
        (["--space", "autovit-xx"], "unknown space 'autovit-xx': did you mean"),
    ],
)
def test_wrong_usage(hwnas: Run, args: list[object], expected: str) -> None:
    result = hwnas("sample", *args)
    assert (result.exit_code, result.stdout) == (2, "")
    assert expected in result.stderr
