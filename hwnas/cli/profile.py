"""``hwnas profile``: measure the latency table of a device."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hwnas.cli._choose import sizes_for
from hwnas.cli._output import print_json, print_table
from hwnas.cli._progress import Progress
from hwnas.cli._types import DURATION, LATENCY, runtime_options
from hwnas.cli._workspace import Workspace, workspace_option
from hwnas.errors import UsageError

if TYPE_CHECKING:
    from hwnas.luts import Design, LatencyTable, PairCheck

_WORST_PAIRS = 3
_MOST_OPERATORS = 4


@click.command("profile")
@click.option("--device", default="cpu", help="A device of `hwnas devices`, or FILE.toml.")
@click.option("--space", default="autovit-xxs", help="A space of `hwnas spaces`, or FILE.toml.")
@runtime_options
@click.option(
    "--time-budget",
    type=DURATION,
    default="10m",
    help="How long to time on the device, such as 90s or 10m; exporting comes on top.",
)
@click.option(
    "--target-se",
    type=LATENCY,
    help="Stop before that, when no entry has a greater standard error, such as 10us.",
)
@click.option(
    "--keys",
    default="full",
    help="full: a latency for each block. paper: for each of AutoViT's modules, with no regard to "
    "where in the network they stand; from the same timings, which --keys full shares.",
)
@click.option(
    "--image-size",
    type=click.IntRange(min=1),
    help="Pixels on a side.  [default: as the supernet in the workspace, else 256]",
)
@click.option(
    "--num-classes",
    type=click.IntRange(min=1),
    help="Classes.  [default: as the supernet in the workspace, else 1000]",
)
@click.option("--threads", type=click.IntRange(min=1), default=1, help="Cores a network runs on.")
@click.option(
    "--rounds", type=click.IntRange(min=5), default=40, help="Timed runs of a network in a batch."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Which networks are timed.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Table to write.  [default: in the workspace]",
)
@click.option("--plan", is_flag=True, help="Print which networks would be timed; time none.")
@click.option("--restart", is_flag=True, help="Measure anew what an earlier run has measured.")
@click.option("--json", "as_json", is_flag=True, help="Print quality and path as JSON.")
@workspace_option
def command(
    *,
    device: str,
    space: str,
    runtime: str | None,
    precision: str | None,
    time_budget: float,
    target_se: float | None,
    keys: str,
    image_size: int | None,
    num_classes: int | None,
    threads: int,
    rounds: int,
    seed: int,
    out: Path | None,
    plan: bool,
    restart: bool,
    as_json: bool,
    workspace: Workspace,
) -> None:
    """Measure the latency table of a device: one latency for each block of a space.

    Whole networks are timed interleaved, with blocks taken out of them, and solved for all blocks
    together; 40 networks that are not fitted to, each timed twice, say how good the table is.
    Killed at any time, the same command goes on from what is on disk.
    """
    from hwnas.devices import Plan, load_device, open_agent
    from hwnas.luts import Conditions, Design, profile
    from hwnas.profilers import full_spec, load_runtime
    from hwnas.spaces import load_space

    if out == Path():
        raise UsageError("--out needs the name of a file; got an empty one")
    description = load_device(device)
    loaded = load_space(space)
    size, classes, why = sizes_for(loaded, workspace, image_size, num_classes)
    if plan:
        show_plan(Design(loaded, size, classes, seed), as_json=as_json)
        return
    with open_agent(description) as agent:
        backend = load_runtime(full_spec(runtime or description.runtime, precision=precision))
        backend.workspace = workspace.root
        path = out or workspace.table_path(description.id, backend.spec, loaded.id, size, classes)
        click.echo(f"Profiling at {size}x{size} pixels and {classes} classes ({why}).", err=True)
        how = Plan(backend.spec, rounds=rounds, threads=threads, seed=seed)
        progress = Progress()
        try:
            table = profile(
                Conditions(loaded, size, classes, description.id, how),
                agent,
                backend,
                path,
                time_budget_s=time_budget,
                progress=progress,
                target_se_ms=target_se,
                keys=keys,
                restart=restart,
            )
        finally:
            progress.close()
    if as_json:
        print_json({"lut": str(path), "quality": table.quality.to_json()})
    else:
        click.echo(f"table           {path}")
        show_quality(table)
    click.echo(f"Next: hwnas search --space {space} --latency {table.reference.ms:.3g}ms", err=True)


def show_quality(table: LatencyTable) -> None:
    """Print how good a table is."""
    q, method = table.quality, table.method
    if {"networks", "batches"} <= method.keys():
        click.echo(f"fitted to       {method['networks']} networks in {method['batches']} batches")
    click.echo(f"held out        {q.networks} networks, each timed twice")
    click.echo(f"mean error      {q.mape:.1%} (the same networks timed again: {q.retest_mape:.1%})")
    for keys, other in table.quality_by_keys.items():
        if keys != table.keys:
            click.echo(f"                {other.mape:.1%} with --keys {keys}")
    click.echo(f"within 5%, 10%  {q.within_5pct:.0%}, {q.within_10pct:.0%}")
    click.echo(f"rank agreement  Kendall {q.kendall:.3f}, Spearman {q.spearman:.3f}")
    mean, sd = (method.get(f"a_to_a_{name}") for name in ("mean", "sd"))
    if isinstance(mean, float) and isinstance(sd, float):
        click.echo(f"resolution      A/A {mean:+.2%} ± {sd:.2%}")
    for together in table.aliased:
        click.echo(f"only as a sum   {' + '.join(together)}")
    if table.pairs:
        show_pairs(table.pairs)
    total = sum(sum(operators.values()) for operators in table.placement.values())
    for processor, operators in table.placement.items():
        often = sorted(operators, key=lambda name: -operators[name])[:_MOST_OPERATORS]
        share = sum(operators.values()) / total
        click.echo(f"ran on          {processor}: {share:.1%} of operators ({', '.join(often)})")


def show_pairs(pairs: Sequence[PairCheck]) -> None:
    """Print what pairs of blocks cost together against singly: the summary and the worst."""
    resolved = sum(abs(pair.z) > 2 for pair in pairs)
    chance = 0.0455 * len(pairs)
    click.echo(
        f"additivity      {len(pairs)} pairs removed together: {resolved} differ from the sum of "
        f"their single removals by more than 2 standard errors ({chance:.1f} by chance)"
    )
    for pair in pairs[:_WORST_PAIRS]:
        click.echo(
            f"                {pair.together_ms - pair.singly_ms:+.3f} ± {pair.se_ms:.3f} ms of "
            f"{pair.singly_ms:.3f}: {pair.first} + {pair.second}"
        )


def show_plan(design: Design, *, as_json: bool) -> None:
    """Print the networks that follow from the seed alone, those that every table needs."""
    from hwnas.luts import planned
    from hwnas.spaces import num_macs

    rows = []
    for task, variants in planned(design):
        for i, variant in enumerate(variants):
            blocks = design.blocks(variant)
            if as_json:
                keys = [block.key for block in blocks]
                click.echo(json.dumps({"network": f"{task.name}/{i}", "blocks": keys}))
                continue
            shape = (str(len(blocks)), str(len(variant.removed)), f"{num_macs(blocks) / 1e6:.1f}")
            rows.append((f"{task.name}/{i}", *shape))
    if not as_json:
        print_table(("network", "blocks", "removed", "MMACs"), rows)
    click.echo(
        "Beyond these, each batch goes where the standard errors are then the largest, and every "
        "sixth removes pairs of blocks together; --json prints the blocks of each network.",
        err=True,
    )
