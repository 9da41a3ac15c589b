"""``hwnas lut``: the life of a latency table after it was measured."""

from __future__ import annotations

import click

from hwnas.cli.lut import check, diff, predict, show


@click.group("lut")
def command() -> None:
    """Show, check and compare latency tables, and predict with them."""


for module in (show, check, diff, predict):
    command.add_command(module.command)
