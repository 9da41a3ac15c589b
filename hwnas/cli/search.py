"""``hwnas search``: the most accurate network within a latency and a parameter budget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from hwnas.cli._choose import space_for, supernet_for
from hwnas.cli._output import print_json, print_wrapped
from hwnas.cli._progress import Progress
from hwnas.cli._types import COUNT, LATENCY, runtime_options
from hwnas.cli._workspace import Workspace, workspace_option
from hwnas.errors import TableError, UsageError


@click.command("search")
@click.option("--latency", type=LATENCY, required=True, help="Budget, such as 10ms or 0.01s.")
@click.option("--params", type=COUNT, help="Budget of parameters, such as 2M or 1500k.")
@click.option("--device", default="cpu", help="A device of `hwnas devices`, or FILE.toml.")
@runtime_options
@click.option("--space", help="A space of `hwnas spaces`, or FILE.toml.  [default: by --params]")
@click.option(
    "--supernet",
    type=click.Path(path_type=Path),
    help="Folder of a trained supernet.  [default: the one in the workspace]",
)
@click.option(
    "--lut",
    type=click.Path(path_type=Path),
    help="Latency table.  [default: the one in the workspace]",
)
@click.option("--population", type=click.IntRange(min=2), default=50, help="Of a generation.")
@click.option("--generations", type=click.IntRange(min=1), default=20, help="Of the evolution.")
@click.option("--parents", type=click.IntRange(min=1), default=10, help="Of a generation.")
@click.option("--p-depth", type=click.FloatRange(0, 1), default=0.2, help="Mutation of a depth.")
@click.option("--p-block", type=click.FloatRange(0, 1), default=0.4, help="Mutation of a block.")
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Same seed, same search.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for what is found.  [default: in the workspace]",
)
@click.option("--json", "as_json", is_flag=True, help="Print winner.json instead.")
@workspace_option
def command(
    *,
    latency: float,
    params: int | None,
    device: str,
    runtime: str | None,
    precision: str | None,
    space: str | None,
    supernet: Path | None,
    lut: Path | None,
    population: int,
    generations: int,
    parents: int,
    p_depth: float,
    p_block: float,
    seed: int,
    out: Path | None,
    as_json: bool,
    workspace: Workspace,
) -> None:
    """Find the most accurate network within a latency and a parameter budget.

    Coarse to fine: the table says which skeletons meet the budgets, an evolution around the best
    rates subnets by validation accuracy with inherited weights, and the finalists are timed on the
    device. The winner's measured latency is within the budget. Killed at any time, the same command
    goes on without rating anything twice.
    """
    from hwnas.devices import Plan, load_device, open_agent
    from hwnas.luts import LatencyTable
    from hwnas.profilers import full_spec, load_runtime
    from hwnas.search import Evolution, Settings
    from hwnas.search import search as run_search
    from hwnas.train import load_data, load_run

    description = load_device(device)
    with open_agent(description) as agent:
        backend = load_runtime(full_spec(runtime or description.runtime, precision=precision))
        backend.workspace = workspace.root
        if supernet is None:
            supernet = supernet_for(space_for(space, params), workspace, space)
        run = load_run(supernet)
        if space is not None and space_for(space, params).id != run.space.id:
            raise UsageError(f"the supernet in {supernet} is of {run.space.id}, not of {space}")
        path = lut or workspace.table_path(
            description.id, backend.spec, run.space.id, run.image_size, len(run.class_names)
        )
        if lut is None and not path.exists():
            raise TableError(
                f"no latency table at {path}: measure one with `hwnas profile --device {device} "
                f"--space {space or run.space.id} --image-size {run.image_size} "
                f"--num-classes {len(run.class_names)}`, or name one with --lut"
            )
        table = LatencyTable.read(path)
        folder = out or workspace.search_dir(run.space.id, latency)
        progress = Progress()
        try:
            found = run_search(
                table,
                path,
                run,
                supernet,
                load_data(run.data_spec, run.image_size, seed=run.seed),
                agent,
                backend,
                folder,
                max_latency_ms=latency,
                max_params=params,
                settings=Settings(
                    Evolution(population, generations, parents, p_depth, p_block), seed=seed
                ),
                plan=Plan(backend.spec, threads=int(table.runtime["threads"]), seed=seed),
                progress=progress,
            )
        finally:
            progress.close()
    if as_json:
        print_json(found.winner)
    else:
        show_winner(found.winner)
        click.echo(f"written         {folder / 'winner.json'}, {folder / 'winner.safetensors'}")
    for warning in found.warnings:
        click.echo(f"Warning: {warning}", err=True)
    click.echo(f"Next: hwnas export {folder} --format onnx (or coreml, torch)", err=True)


def show_winner(winner: dict[str, Any]) -> None:
    """Print what was found."""
    latency, candidates = winner["latency_ms"], winner["candidates"]
    click.echo(f"accuracy        {100 * winner['accuracy']:.2f}% on the validation images")
    click.echo(
        f"latency         {latency['measured']:.3f} ± {latency['measured_half_interval']:.3f} ms "
        f"measured; budget {latency['budget']:g} ms"
    )
    click.echo(
        f"predicted       {latency['predicted']:.3f} ms "
        f"({latency['low']:.3f} to {latency['high']:.3f})"
    )
    click.echo(f"parameters      {winner['params']:,}")
    print_wrapped(
        f"candidates      {candidates['sampled']:,} sampled, {candidates['feasible_total']:,} "
        f"within the budgets, {candidates['evaluated']:,} rated"
    )
