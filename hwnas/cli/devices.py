"""``hwnas devices``."""

from __future__ import annotations

from dataclasses import asdict

import click

from hwnas.cli._output import print_json, print_table, print_wrapped


@click.command("devices")
@click.option("--json", "as_json", is_flag=True, help="Print a list of objects instead.")
def command(as_json: bool) -> None:
    """Show the known devices, which are attached now, and why the others are not."""
    from hwnas.devices import DEVICES, load_device, state

    found = [(device, state(device)) for device in map(load_device, DEVICES)]
    if as_json:
        print_json([asdict(device) | asdict(now) for device, now in found])
        return
    print_table(
        ("device", "name", "runtime", "now"),
        [(d.id, d.name, d.runtime, "attached" if s.attached else "not attached") for d, s in found],
    )
    for device, now in found:
        if not now.attached:
            click.echo()
            print_wrapped(f"{device.id}: {now.reason}.")
