from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

Run = Callable[..., Result]


@pytest.mark.parametrize(
    ("args", "exit_code", "message"),
    [
        (("show", "none.json"), 1, "no latency table at none.json"),
        (("show", "."), 1, "cannot read the latency table ."),
        (("show", "cut.json"), 1, "cut.json is not a whole latency table"),
        (("show", "future.json"), 1, "future.json has schema 99; this hwnas reads schema "),
        (("show", "tiny.toml"), 1, "tiny.toml is not a whole latency table"),
        (("predict", "cut.json"), 1, "cut.json is not a whole latency table"),
        (("predict", "xxs.json", "none.jsonl"), 2, "'none.jsonl': No such file"),
        (("predict", "tiny.json"), 2, "unknown space 'tiny'"),
        (("predict", "xxs.json", "--space", "autovit-xs"), 1, "is of space autovit-xxs, but"),
        (("predict", "xxs.json", "--space", "autovit-xx"), 2, "did you mean 'autovit-xxs'?"),
        (("show", "xxs.json", "--space", "autovit-xs"), 1, "is of space autovit-xxs, but"),
        (("show", "xxs.json", "--space", "none.toml"), 1, "cannot read the space file none.toml"),
        (("show", "tiny.json", "--picture", "a.png"), 2, "unknown space 'tiny'"),
        (("show", "xxs.json", "--picture", "a.jpg"), 2, "ends in .png or .svg; got 'a.jpg'"),
        (("show", "xxs.json", "--picture", "xxs.json/a.png"), 1, "cannot write xxs.json/a.png"),
        (("show", "xxs.json", "--arch", "none.json"), 1, "no architecture at none.json"),
        (("show", "xxs.json", "--arch", "future.json"), 1, "future.json: the architecture has no"),
        (("show", "xxs.json", "--json", "--picture", "a.png"), 2, "--json prints the table alone"),
        (("check", "none.json"), 1, "no latency table at none.json"),
        (("check", "tiny.json", "--no-timing"), 2, "unknown space 'tiny'"),
        (("check", "xxs.json", "--no-timing", "--space", "tiny.toml"), 1, "autovit-xxs, but tiny"),
        (("diff", "xxs.json", "none.json"), 1, "no latency table at none.json"),
        (("diff", "xxs.json"), 2, "Missing argument 'B'"),
        (("diff", "xxs.json", "tiny.json"), 1, "the tables have no entry in common"),
        ((), 2, "Usage: "),
        (("shwo",), 2, "No such command 'shwo'"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    hwnas: Run, files: Path, args: tuple[str, ...], exit_code: int, message: str
) -> None:
    text = (files / "xxs.json").read_text()
    (files / "cut.json").write_text(text[: len(text) // 2])
    (files / "future.json").write_text(json.dumps(json.loads(text) | {"schema": 99}))
    result = hwnas("lut", *args)
    assert result.exit_code == exit_code
    assert message in result.stderr
    assert not result.stdout


ODD: list[object] = [None, True, -3, 0, 1.5, "text", [], {}, [3], {"a": None}, 10**400]
ODD += [float("nan"), float("inf")]


def places(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Where in a table something can be replaced; of a list, its first element."""
    if path:
        yield path
    if isinstance(value, dict):
        for name in value:
            yield from places(value[name], (*path, name))
    elif isinstance(value, list) and value:
        yield from places(value[0], (*path, 0))


def test_no_damage_to_a_table_is_a_traceback(hwnas: Run, files: Path) -> None:
    whole = (files / "tiny.json").read_text()
    refused = 0
    for path in places(json.loads(whole)):
        for odd in ODD:
            value = json.loads(whole)
            *outer, last = path
            inner = value
            for name in outer:
                inner = inner[name]
            inner[last] = odd
            (files / "odd.json").write_text(json.dumps(value))
            result = hwnas("lut", "show", "odd.json")
            where = f"{path} = {odd!r:.20}: {result.exception!r}"
            assert result.exit_code in (0, 1), where
            assert isinstance(result.exception, SystemExit | None), where
            if result.exit_code:
                refused += 1
                assert result.stderr.startswith("Error: odd.json "), where
                assert not result.stdout, where
    assert refused > 200
