"""Options of several commands, and quantities such as ``10ms``, ``2M``, ``10m``."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any, TypeVar

import click

_F = TypeVar("_F", bound=Callable[..., Any])

_QUANTITY = re.compile(r"([0-9]{1,15}(?:\.[0-9]{0,15})?|\.[0-9]{1,15})\s*([A-Za-zµ]*)")


class Quantity(click.ParamType[float]):
    """A positive number and its unit, converted exactly to the unit whose factor is 1.

    ``units`` maps a unit to its factor; ``expected`` completes "expected …" in the usage error.
    With ``whole`` the result is an ``int`` and a fraction is refused, else it is a ``float``.
    """

    def __init__(
        self, name: str, units: Mapping[str, Fraction], *, expected: str, whole: bool = False
    ):
        self.name = name
        self._units = units
        self._expected = expected
        self._whole = whole

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Read a quantity. Ends in a usage error (exit status 2) that says what is expected."""
        match = _QUANTITY.fullmatch(str(value).strip())
        if match and match[2] in self._units:
            amount = Fraction(match[1]) * self._units[match[2]]
            if amount > 0 and not self._whole:
                return float(amount)
            if amount > 0 and amount.denominator == 1:
                return int(amount)
        self.fail(f"expected {self._expected}; got {value!r}", param, ctx)


LATENCY = Quantity(
    "latency",
    {"us": Fraction(1, 1000), "µs": Fraction(1, 1000), "ms": Fraction(1), "s": Fraction(1000)},
    expected="a latency above zero with its unit, such as 10ms, 0.01s or 800us",
)
"""Milliseconds, as a float."""

COUNT = Quantity(
    "count",
    {"": Fraction(1), "k": Fraction(10**3), "K": Fraction(10**3), "M": Fraction(10**6)},
    expected="a whole number above zero, such as 2M, 1500k or 1300000",
    whole=True,
)
"""A number of things, as an int."""

DURATION = Quantity(
    "duration",
    {"s": Fraction(1), "m": Fraction(60), "h": Fraction(3600)},
    expected="a time above zero with its unit, such as 90s, 10m or 1h",
)
"""Seconds, as a float."""


def runtime_options(command: _F) -> _F:
    """Give a command ``--runtime`` and ``--precision``, for ``hwnas.profilers.full_spec``."""
    command = click.option(
        "--precision", help="fp32, fp16 or int8, where the runtime has it.  [default: its own]"
    )(command)
    return click.option(
        "--runtime",
        help="Inference runtime, as NAME or NAME:option=value,option=value.  "
        "[default: the device's own]",
    )(command)
