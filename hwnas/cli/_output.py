"""What goes to stdout: tables for people, JSON for programs."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence

import click

WIDTH = 80


def print_json(value: object) -> None:
    """Print ``value`` as indented JSON."""
    click.echo(json.dumps(value, indent=1, allow_nan=False))


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print columns as wide as their widest cell, those of numbers set to the right."""
    cells = [header, *rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    right = [all(row[i][:1].isdigit() for row in rows) for i in range(len(header))]
    for row in cells:
        padded = (
            c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)
        )
        click.echo("  ".join(padded).rstrip())


def print_wrapped(text: str) -> None:
    """Print a sentence over as many lines as it needs, the later ones indented."""
    lines = textwrap.wrap(
        text, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )
    click.echo("\n".join(lines))
