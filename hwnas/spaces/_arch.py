"""Arch: one architecture of a space, as people and files hold it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hwnas.errors import SpaceError

Value = int | float | tuple[int | float, ...]


@dataclass(frozen=True)
class Arch:
    """What was chosen: for each stage its choices, per-layer choices as tuples of its depth.

    ``Arch("autovit-xxs", (("stem", (("width", 16),)), …))``; frozen, hashable, and the same after
    ``Arch.from_json(arch.to_json())``. Whether it is in its space is for the space to say.
    """

    space: str
    stages: tuple[tuple[str, tuple[tuple[str, Value], ...]], ...]

    def to_json(self) -> dict[str, Any]:
        """The object an ARCH.json holds: ``{"space": …, "stages": {"stem": {"width": 16}, …}}``."""
        stages = {
            stage: {name: list(v) if isinstance(v, tuple) else v for name, v in choices}
            for stage, choices in self.stages
        }
        return {"space": self.space, "stages": stages}

    @classmethod
    def from_json(cls, value: object) -> Arch:
        """Read what ``to_json`` wrote. Raises ``SpaceError`` where a field is missing or odd."""
        if not isinstance(value, Mapping) or not isinstance(value.get("space"), str):
            raise SpaceError('an architecture is an object with "space" and "stages"')
        stages = value.get("stages")
        if not isinstance(stages, Mapping):
            raise SpaceError('the architecture has no object "stages"')
        return cls(value["space"], tuple((str(n), _choices(n, c)) for n, c in stages.items()))

    def __str__(self) -> str:
        return json.dumps(self.to_json())


def _choices(stage: object, choices: object) -> tuple[tuple[str, Value], ...]:
    if not isinstance(choices, Mapping):
        raise SpaceError(f"stage {stage!r} of the architecture is not an object of choices")
    return tuple((str(name), _value(stage, name, v)) for name, v in choices.items())


def _value(stage: object, name: object, value: object) -> Value:
    items = value if isinstance(value, list) else [value]
    numbers = tuple(v for v in items if isinstance(v, int | float) and not isinstance(v, bool))
    if len(numbers) < len(items):
        raise SpaceError(f"{stage}.{name} of the architecture is {value!r}, not a number or a list")
    return numbers if isinstance(value, list) else numbers[0]
