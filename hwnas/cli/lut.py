"""``hwnas lut``: look into latency tables, and predict with them."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import BinaryIO

import click

from hwnas.cli._output import print_json, print_table
from hwnas.errors import SpaceError


@click.group("lut")
def command() -> None:
    """Show latency tables, and predict with them."""


@command.command("show")
@click.argument("table", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON.")
def show(table: Path, as_json: bool) -> None:
    """Show TABLE: where it was measured, how good it is, and every entry."""
    from hwnas.cli.profile import show_quality
    from hwnas.errors import TableError
    from hwnas.files import read_json
    from hwnas.luts import LatencyTable

    read = LatencyTable.read(table)
    if as_json:
        print_json(read_json(table, "latency table", TableError))
        return
    sizes = f"{read.image_size}x{read.image_size} pixels, {read.num_classes} classes"
    click.echo(f"space           {read.space}, {sizes}")
    fingerprint = ", ".join(f"{k} {v}" for k, v in read.device["fingerprint"].items())
    click.echo(f"device          {read.device['id']}: {fingerprint}")
    click.echo("runtime         " + ", ".join(f"{k} {v}" for k, v in read.runtime.items()))
    click.echo(f"created         {read.created}")
    show_quality(read)
    by_kind = defaultdict(list)
    for key, entry in read.entries.items():
        by_kind[key.partition("/")[0]].append((key, entry))
    for kind, entries in by_kind.items():
        click.echo()
        rows = [
            (f"{e.ms:.4f}", f"{e.se_ms:.4f}", str(e.count), key.partition("/")[2])
            for key, e in sorted(entries)
        ]
        print_table(("ms", "± se", "seen", kind), rows)


@command.command("predict")
@click.argument("table", type=click.Path(path_type=Path))
@click.argument("archs", type=click.File("rb"), default="-")
@click.option("--space", help="The space of the architectures, where it is a file of your own.")
def predict(table: Path, archs: BinaryIO, space: str | None) -> None:
    """Predict the latency of ARCHS by TABLE: JSON lines of `hwnas sample` in, JSON lines out."""
    from hwnas.luts import LatencyTable
    from hwnas.spaces import Arch, load_space, num_params

    read = LatencyTable.read(table)
    loaded = load_space(space or read.space)
    read.check_use(space=loaded, image_size=read.image_size, num_classes=read.num_classes)
    for number, line in enumerate(archs, 1):
        if not line.strip():
            continue
        try:
            arch = Arch.from_json(json.loads(line.decode()))
            loaded.check(arch)
        except (ValueError, RecursionError) as error:
            raise SpaceError(f"{archs.name}, line {number}, is not JSON: {error}") from error
        except SpaceError as error:
            raise SpaceError(f"{archs.name}, line {number}: {error}") from error
        blocks = loaded.blocks(arch, read.image_size, read.num_classes)
        latency = read.predict(blocks).to_json()
        click.echo(json.dumps({"latency_ms": latency, "params": num_params(blocks)}))
