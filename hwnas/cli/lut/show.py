"""``hwnas lut show``: where a table was measured, how good it is, where the time goes."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hwnas.cli._output import print_json, print_table, print_wrapped
from hwnas.errors import HwnasError, SpaceError, StorageError, TableError, UsageError

if TYPE_CHECKING:
    from hwnas.luts import Breakdown, LatencyTable

_BAR = 40  # characters of a bar of 100%


@click.command("show")
@click.argument("table", type=click.Path(path_type=Path))
@click.option(
    "--arch",
    "archs",
    multiple=True,
    metavar="ARCH.json",
    type=click.Path(path_type=Path),
    help="Break this architecture down beside the reference; may be given several times.",
)
@click.option("--space", help="The space of the table, where it is a file of your own.")
@click.option(
    "--picture",
    metavar="FILE.png|FILE.svg",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Draw the breakdowns as stacked bars, too.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON.")
def command(
    table: Path, *, archs: tuple[Path, ...], space: str | None, picture: Path | None, as_json: bool
) -> None:
    """Show TABLE: where it was measured, how good it is, its breakdown, and every entry.

    The breakdown adds up the entries of the table's reference network, and of each ARCH.json (a
    line of `hwnas sample`), by stage and kind of block.
    """
    from hwnas.files import read_json
    from hwnas.luts import LatencyTable

    if as_json and (archs or picture):
        raise UsageError("--json prints the table alone: leave out --arch and --picture")
    read = LatencyTable.read(table)
    if as_json:
        print_json(read_json(table, "latency table", TableError))
        return
    asked = bool(archs or space or picture)
    try:
        networks, why_none = _breakdowns(read, space, archs), ""
    except (HwnasError, OverflowError) as error:
        if asked:
            raise
        networks, why_none = [], str(error)
    if picture is not None:
        _draw(picture, read, networks)
    _show_facts(read)
    for network in networks:
        _show_breakdown(network)
    if why_none:
        click.echo()
        print_wrapped(f"breakdown       not shown: {why_none}; --space names a file of your own")
    _show_entries(read)


def _breakdowns(table: LatencyTable, space: str | None, archs: tuple[Path, ...]) -> list[Breakdown]:
    from hwnas.files import read_json
    from hwnas.luts import breakdown
    from hwnas.spaces import Arch, load_space

    loaded = load_space(space or table.space)
    table.check_use(space=loaded, image_size=table.image_size, num_classes=table.num_classes)
    found = [breakdown(table, loaded, table.reference.arch, name="reference")]
    for path in archs:
        try:
            arch = Arch.from_json(read_json(path, "architecture", StorageError))
            loaded.check(arch)
        except SpaceError as error:
            raise SpaceError(f"{path}: {error}") from error
        found.append(breakdown(table, loaded, arch, name=str(path)))
    return found


def _draw(path: Path, table: LatencyTable, networks: list[Breakdown]) -> None:
    from hwnas.report import write_breakdown

    runtime = f"{table.runtime.get('name')} {table.runtime.get('version')}"
    threads = f"{table.runtime['threads']} thread{'s' * (table.runtime['threads'] > 1)}"
    where = f"{table.device['id']}, {runtime}, {threads}"
    what = f"{table.space} at {table.image_size}x{table.image_size}"
    write_breakdown(path, networks, title=f"Latency by stage and kind of block: {what}, on {where}")
    click.echo(f"Written: {path}", err=True)


def _show_facts(table: LatencyTable) -> None:
    from hwnas.cli.profile import show_quality

    sizes = f"{table.image_size}x{table.image_size} pixels, {table.num_classes} classes"
    click.echo(f"space           {table.space}, {sizes}")
    fingerprint = ", ".join(f"{k} {v}" for k, v in table.device["fingerprint"].items())
    click.echo(f"device          {table.device['id']}: {fingerprint}")
    click.echo("runtime         " + ", ".join(f"{k} {v}" for k, v in table.runtime.items()))
    click.echo(f"created         {table.created}")
    show_quality(table)


def _show_breakdown(network: Breakdown) -> None:
    p = network.prediction
    click.echo(
        f"\n{network.name}: {p.predicted:.4f} ms predicted ({p.low:.4f} to {p.high:.4f}), of which"
    )
    rows = []
    for piece in network.pieces:
        share = piece.ms / p.predicted if p.predicted else 0.0
        bar = "█" * round(_BAR * share)
        cost = (f"{piece.ms:.4f}", f"{piece.se_ms:.4f}", f"{share:.1%}")
        rows.append((piece.stage, piece.kind, str(piece.num_blocks), *cost, bar))
    num_blocks = sum(piece.num_blocks for piece in network.pieces)
    rows.append(("total", "", str(num_blocks), f"{p.predicted:.4f}", "", "100.0%", ""))
    print_table(("stage", "kind", "blocks", "ms", "± se", "share", ""), rows)


def _show_entries(table: LatencyTable) -> None:
    by_kind = defaultdict(list)
    for key, entry in table.entries.items():
        by_kind[key.partition("/")[0]].append((key, entry))
    for kind, entries in by_kind.items():
        click.echo()
        rows = [
            (f"{e.ms:.4f}", f"{e.se_ms:.4f}", str(e.count), key.partition("/")[2])
            for key, e in sorted(entries)
        ]
        print_table(("ms", "± se", "seen", kind), rows)
