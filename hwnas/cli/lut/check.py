"""``hwnas lut check``: whether a table is whole, and whether it still holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hwnas.cli._output import print_json, print_table, print_wrapped
from hwnas.cli._workspace import Workspace, workspace_option
from hwnas.errors import DeviceError, TableError, UsageError

_NOISY = 2.0  # times the noise there was when the table was made: too much to condemn it

if TYPE_CHECKING:
    from hwnas.luts import Coverage, EntryCounts, LatencyTable, Retiming
    from hwnas.spaces import Space


@click.command("check")
@click.argument("table", type=click.Path(path_type=Path))
@click.option("--space", help="The space of the table, where it is a file of your own.")
@click.option("--device", help="The device of the table, where it is a file of your own.")
@click.option("--no-timing", is_flag=True, help="Read the table only; time nothing.")
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Which networks are timed.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead.")
@workspace_option
def command(
    table: Path,
    *,
    space: str | None,
    device: str | None,
    no_timing: bool,
    seed: int,
    as_json: bool,
    workspace: Workspace,
) -> None:
    """Check TABLE: its schema, whether it covers the space, and whether it still holds.

    Ten members that it has not seen are timed in the conditions it was measured in. It holds unless
    their mean error is larger than that of its held-out networks, the noise of the device and
    chance (1 in 100) explain. Exit status 1 where it does not hold, or where that cannot be told.
    """
    from hwnas.luts import LatencyTable, count_entries, coverage
    from hwnas.spaces import load_space

    read = LatencyTable.read(table)
    loaded = load_space(space or read.space)
    covered, counts = coverage(read, loaded), count_entries(read)
    if not as_json:
        _show_read(table, read, covered, counts)
    timing = None if no_timing else _retime(read, loaded, device, seed, workspace)
    if as_json:
        print_json(_to_json(table, read, covered, counts, timing))
    elif timing is not None:
        _show_timing(read, timing)
    if covered.missing or covered.foreign:
        click.echo(f"Warning: {_gaps(covered)}", err=True)
    if timing is not None:
        _judge(timing, read)


def _judge(timing: Retiming, table: LatencyTable) -> None:
    """Raise where the table does not hold, and where the device is too disturbed to say so."""
    disturbed = (
        f"the device is disturbed: the same networks timed again are {timing.retest_mape:.1%} "
        f"apart, {table.quality.retest_mape:.1%} when the table was made; check again when nothing "
        "else runs on it"
    )
    if timing.retest_mape <= _NOISY * table.quality.retest_mape:
        disturbed = ""
    if timing.holds and disturbed:
        click.echo(f"Warning: {disturbed}", err=True)
    elif disturbed:
        raise DeviceError(f"whether the table holds cannot be told, for {disturbed}")
    elif not timing.holds:
        raise TableError(
            f"the table no longer holds: {len(timing.networks)} networks miss their predictions by "
            f"{timing.mape:.1%} on average, {table.quality.mape:.1%} when it was made "
            f"(p = {timing.p_value:.2g}); measure anew with `hwnas profile --restart`"
        )


def _retime(
    table: LatencyTable, space: Space, device: str | None, seed: int, workspace: Workspace
) -> Retiming:
    from hwnas.devices import load_device, open_agent
    from hwnas.luts import retime, table_runtime

    description = load_device(device or table.device["id"])
    if description.id != table.device["id"]:
        raise UsageError(f"the table is of device {table.device['id']}, not of {description.id}")
    runtime = table_runtime(table)
    runtime.workspace = workspace.root
    with open_agent(description) as agent:
        click.echo("Timing 10 networks beside the reference, in three processes …", err=True)
        return retime(table, space, agent, runtime, seed=seed)


def _show_read(path: Path, table: LatencyTable, covered: Coverage, counts: EntryCounts) -> None:
    from hwnas.cli.profile import show_quality

    sizes = f"{table.image_size}x{table.image_size} pixels, {table.num_classes} classes"
    click.echo(f"schema          valid: {path}")
    click.echo(f"space           {table.space}, {sizes}")
    num, known = len(covered.blocks), len(covered.blocks) - len(covered.missing)
    click.echo(f"coverage        {known} of {num} blocks that a member can have")
    for key in covered.missing:
        click.echo(f"no entry        {key}")
    for key in covered.foreign:
        click.echo(f"in no member    {key}")
    click.echo(
        f"entries         {counts.resolved} resolved (above twice their standard error), "
        f"{counts.not_resolved} not; {counts.only_as_sum} known only as a sum"
    )
    show_quality(table)


def _show_timing(table: LatencyTable, timing: Retiming) -> None:
    click.echo()
    rows = [
        (f"{p.predicted:.4f}", f"{p.low:.4f}", f"{p.high:.4f}", f"{n.measured_ms:.4f}", n.error)
        for n in timing.networks
        for p in [n.prediction]
    ]
    print_table(
        ("predicted ms", "low", "high", "measured ms", "off by"),
        [(*numbers, f"{error:+.1%}") for *numbers, error in rows],
    )
    click.echo()
    for reason in dict.fromkeys(timing.failed):
        print_wrapped(f"not timed       {timing.failed.count(reason)} of the networks: {reason}")
    click.echo(f"within 95%      {timing.num_within} of {len(timing.networks)} networks")
    click.echo(
        f"mean error      {timing.mape:.1%}, signed {timing.bias:+.1%} "
        f"(when it was made: {table.quality.mape:.1%})"
    )
    click.echo(
        f"timed again     {timing.retest_mape:.1%} apart "
        f"(when it was made: {table.quality.retest_mape:.1%})"
    )
    drift = timing.reference_now_ms / timing.reference_then_ms - 1
    click.echo(
        f"device's speed  reference {timing.reference_then_ms:.4f} ms then, "
        f"{timing.reference_now_ms:.4f} ms now: {abs(drift):.1%} "
        f"{'slower' if drift > 0 else 'faster'}"
    )
    click.echo(
        f"holds           {'yes' if timing.holds else 'no'}: "
        f"where the table is as good as it says, the mean error is this large with p = "
        f"{timing.p_value:.2g}"
    )


def _gaps(covered: Coverage) -> str:
    if covered.foreign:
        return (
            f"entries of blocks that no member has: {len(covered.foreign)}; the space was another "
            "when the table was made: profile again"
        )
    return (
        f"blocks without an entry: {len(covered.missing)}; networks with them cannot be predicted: "
        "go on with `hwnas profile` and a larger --time-budget"
    )


def _to_json(
    path: Path,
    table: LatencyTable,
    covered: Coverage,
    counts: EntryCounts,
    timing: Retiming | None,
) -> dict[str, Any]:
    return {
        "lut": str(path),
        "space": table.space,
        "coverage": {
            "blocks": len(covered.blocks),
            "missing": list(covered.missing),
            "foreign": list(covered.foreign),
        },
        "entries": {
            "total": len(table.entries),
            "resolved": counts.resolved,
            "not_resolved": counts.not_resolved,
            "only_as_sum": counts.only_as_sum,
        },
        "quality": table.quality.to_json(),
        "timing": None if timing is None else _timing_json(timing),
    }


def _timing_json(timing: Retiming) -> dict[str, Any]:
    return {
        "holds": timing.holds,
        "p_value": timing.p_value,
        "within_interval": timing.num_within,
        "mape": timing.mape,
        "retest_mape": timing.retest_mape,
        "bias": timing.bias,
        "reference_ms": {"then": timing.reference_then_ms, "now": timing.reference_now_ms},
        "networks": [
            {"latency_ms": {**n.prediction.to_json(), "measured": n.measured_ms}}
            for n in timing.networks
        ],
        "failed": list(timing.failed),
    }
