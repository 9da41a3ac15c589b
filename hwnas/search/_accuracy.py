"""Accuracy of subnets with inherited weights: measured once each, kept on disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hwnas.errors import CheckpointError
from hwnas.files import append_line, read_lines, write_text
from hwnas.spaces import Codes


class AccuracyLog:
    """Rates architectures with ``rate`` (codes -> accuracy in [0, 1]), each of them once.

    Every rating is a line on disk before the next begins, so a search that was killed goes through
    its ratings again without rating anything anew. ``key`` says under which conditions they hold.
    """

    def __init__(self, path: Path, key: Mapping[str, Any], rate: Callable[[Codes], float]):
        self._path, self._rate = path, rate
        self._known: dict[bytes, float] = {}
        self._asked: dict[bytes, Codes] = {}
        lines = read_lines(path, lambda value: value)
        if not lines:
            write_text(path, "")
            append_line(path, {"conditions": dict(key)})
            return
        theirs = lines[0].get("conditions") if isinstance(lines[0], dict) else None
        if not isinstance(theirs, dict):
            raise CheckpointError(
                f"{path} is damaged: it does not begin with conditions; remove it"
            )
        for name, value in key.items():
            if theirs.get(name) != value:
                raise CheckpointError(
                    f"{path} holds a search with another {name} ({theirs.get(name)!r} there, "
                    f"{value!r} now): give another --out, or remove that folder"
                )
        self._known = dict(read_lines(path, _rating))

    def __call__(self, codes: Codes) -> float:
        """The accuracy of one row of codes."""
        name = codes.tobytes()
        self._asked[name] = codes
        if name not in self._known:
            self._known[name] = self._rate(codes)
            line = {"accuracy": self._known[name], "codes": [int(c) for c in codes]}
            append_line(self._path, line)
        return self._known[name]

    def asked(self, codes: Codes) -> bool:
        """Whether this search has asked for these codes already."""
        return codes.tobytes() in self._asked

    def ranked(self) -> list[tuple[float, Codes]]:
        """All this search has asked for, the most accurate first; ties in a fixed order."""
        rated = [(self._known[name], codes) for name, codes in self._asked.items()]
        return sorted(rated, key=lambda pair: (-pair[0], pair[1].tobytes()))


def _rating(line: dict[str, Any]) -> tuple[bytes, float]:
    """The codes and the accuracy in a line of the log; ``ValueError`` where it is damaged."""
    accuracy = float(line["accuracy"])
    if not 0 <= accuracy <= 1:
        raise ValueError(f"{accuracy} is no accuracy")
    return bytes(line["codes"]), accuracy
