"""``hwnas lut diff``: what differs between two tables."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hwnas.cli._output import print_json, print_table, print_wrapped

if TYPE_CHECKING:
    from hwnas.luts import EntryDiff, TableDiff


@click.command("diff")
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option("--all", "show_all", is_flag=True, help="List every entry in both tables.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead.")
def command(a: Path, b: Path, *, show_all: bool, as_json: bool) -> None:
    """Hold table B against table A, entry by entry (B minus A).

    Of the entries that are called different, 5% at most are so by chance (false discovery rate,
    Benjamini and Hochberg). Tables of different spaces are compared where they overlap.
    """
    from hwnas.luts import LatencyTable, diff

    first, second = LatencyTable.read(a), LatencyTable.read(b)
    found = diff(first, second)
    if as_json:
        print_json({"a": str(a), "b": str(b), **_to_json(found)})
        return
    click.echo(f"A               {a}, created {first.created}")
    click.echo(f"B               {b}, created {second.created}")
    if not found.conditions:
        click.echo("measured        under the same conditions")
    for condition in found.conditions:
        print_wrapped(f"differs         {condition.name}: {condition.a} in A, {condition.b} in B")
    _show_summary(found)
    chosen = [e for e in found.entries if show_all or e.significant]
    if chosen:
        click.echo()
        header = ("A ms", "B ms", "    B - A", "± se", "     z", "", "block")
        print_table(header, [_row(entry) for entry in chosen])


def _show_summary(found: TableDiff) -> None:
    num = len(found.entries)
    click.echo(f"compared        {num} entries: {found.num_significant} differ significantly")
    if not math.isnan(found.median_ratio):
        click.echo(
            f"ratio B / A     {found.median_ratio:.4f} in the median; "
            f"B divided by it: {found.num_beyond_ratio} differ significantly"
        )
    for name, keys in (("A", found.only_a), ("B", found.only_b)):
        if keys:
            click.echo(f"only in {name}       {len(keys)}")


def _row(entry: EntryDiff) -> tuple[str, ...]:
    numbers = (f"{entry.a_ms:.4f}", f"{entry.b_ms:.4f}", f"{entry.difference_ms:+9.4f}")
    mark = "*" if entry.significant else ""
    return (*numbers, f"{entry.se_ms:.4f}", f"{entry.z:+6.1f}", mark, entry.block)


def _to_json(found: TableDiff) -> dict[str, Any]:
    return {
        "conditions": [{"name": c.name, "a": c.a, "b": c.b} for c in found.conditions],
        "compared": len(found.entries),
        "significant": found.num_significant,
        "median_ratio": None if math.isnan(found.median_ratio) else found.median_ratio,
        "significant_beyond_ratio": found.num_beyond_ratio,
        "only_a": list(found.only_a),
        "only_b": list(found.only_b),
        "entries": [
            {
                "block": e.block,
                "a_ms": e.a_ms,
                "b_ms": e.b_ms,
                "difference_ms": e.difference_ms,
                "se_ms": e.se_ms,
                "z": e.z if math.isfinite(e.z) else None,
                "significant": e.significant,
            }
            for e in found.entries
        ],
    }
