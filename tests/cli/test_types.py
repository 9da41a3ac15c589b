from __future__ import annotations

from contextlib import suppress
from decimal import Decimal

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwnas.cli._types import COUNT, DURATION, LATENCY, Quantity

POSITIVE = st.integers(1, 10**12)


def read(quantity: Quantity, text: str) -> float:
    return quantity.convert(text, None, None)


def shifted(number: int, places: int) -> str:
    """``number / 10 ** places`` in plain digits."""
    return f"{Decimal(number).scaleb(-places):f}"


@given(POSITIVE)
def test_a_latency_is_the_same_in_every_unit(microseconds: int) -> None:
    expected = microseconds / 1000
    assert read(LATENCY, f"{microseconds}us") == expected
    assert read(LATENCY, f"{microseconds}µs") == expected
    assert read(LATENCY, f"{shifted(microseconds, 3)}ms") == expected
    assert read(LATENCY, f"{shifted(microseconds, 6)} s") == expected


@given(POSITIVE)
def test_a_count_is_the_same_in_every_unit(number: int) -> None:
    for text in (str(number), f"{shifted(number, 3)}k", f"{shifted(number, 6)}M"):
        count = read(COUNT, text)
        assert count == number
        assert isinstance(count, int)


@given(st.integers(1, 10**6))
def test_a_duration_is_in_seconds(number: int) -> None:
    assert read(DURATION, f"{number}s") == number
    assert read(DURATION, f"{number}m") == number * 60
    assert read(DURATION, f"{number}h") == number * 3600


@pytest.mark.parametrize(
    ("quantity", "text", "expected"),
    [
        (LATENCY, "10ms", 10.0),
        (LATENCY, "0.01s", 10.0),
        (LATENCY, "800us", 0.8),
        (LATENCY, " .5 ms ", 0.5),
        (COUNT, "2M", 2_000_000),
        (COUNT, "1500k", 1_500_000),
        (COUNT, "1300000", 1_300_000),
        (COUNT, "1.3M", 1_300_000),
        (DURATION, "10m", 600.0),
        (DURATION, "90s", 90.0),
        (DURATION, "1.5h", 5400.0),
    ],
)
def test_reads(quantity: Quantity, text: str, expected: float) -> None:
    assert read(quantity, text) == expected


NO_NUMBER = ["", "ms", "nan", "inf", "-1", "0", "0.0", "1e3", "1_000", "9" * 16]
NO_NUMBER += ["\N{ARABIC-INDIC DIGIT ONE}"]


@pytest.mark.parametrize(
    ("quantity", "text", "expected"),
    [
        *((LATENCY, text + "ms", "such as 10ms, 0.01s or 800us") for text in NO_NUMBER[1:]),
        *((LATENCY, text, "with its unit") for text in ("10", "10mss", "10m", "10 m s", "10MS")),
        *((COUNT, text, "such as 2M, 1500k or 1300000") for text in NO_NUMBER),
        *((COUNT, text, "whole number") for text in ("1.5", "1.0000001M", "2Mi", "2ms")),
        *((DURATION, text + "m", "such as 90s, 10m or 1h") for text in NO_NUMBER),
        *((DURATION, text, "with its unit") for text in ("10", "10ms", "1h30m")),
    ],
)
def test_refuses(quantity: Quantity, text: str, expected: str) -> None:
    with pytest.raises(click.BadParameter, match=expected) as caught:
        read(quantity, text)
    assert repr(text) in caught.value.message
    assert caught.value.exit_code == 2


@given(st.sampled_from([LATENCY, COUNT, DURATION]), st.text())
def test_any_text_is_read_or_refused(quantity: Quantity, text: str) -> None:
    with suppress(click.BadParameter):
        assert read(quantity, text) > 0
