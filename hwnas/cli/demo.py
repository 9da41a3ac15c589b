"""``hwnas demo``: the whole way on the embedded default."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hwnas.cli._output import print_json
from hwnas.cli._progress import Progress
from hwnas.cli._types import DURATION

if TYPE_CHECKING:
    from hwnas.luts import LatencyTable
    from hwnas.profilers import ExportReport

_SPACE = "autovit-xxs"
_POPULATION, _GENERATIONS, _PARENTS = 20, 4, 6
_SHARE_OF_REFERENCE = 0.9


@click.command("demo")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default="hwnas-demo",
    help="Folder for everything that is made.",
)
@click.option(
    "--time-budget", type=DURATION, default="2m", help="How long to measure the latency table."
)
@click.option("--epochs", type=click.IntRange(min=1), help="Of training.  [default: the recipe's]")
@click.option("--json", "as_json", is_flag=True, help="Print the page at the end as JSON.")
def command(*, out: Path, time_budget: float, epochs: int | None, as_json: bool) -> None:
    """Train, profile, search and export on handwritten digits and this machine's CPU.

    A supernet of autovit-xxs learns the 1,797 digits that scikit-learn carries; the CPU is
    measured; the most accurate network within nine tenths of a middling one's latency is searched,
    timed, tried on digits it never saw, and exported to ONNX and Core ML.
    """
    start = time.monotonic()
    progress = Progress()
    try:
        page = _run(out, time_budget, epochs, progress)
    finally:
        progress.close()
    page["seconds"] = round(time.monotonic() - start, 1)
    if as_json:
        print_json(page)
    else:
        _show(page)


def _run(out: Path, time_budget_s: float, epochs: int | None, progress: Progress) -> dict[str, Any]:
    import torch

    from hwnas.devices import LocalAgent, Plan
    from hwnas.luts import Conditions, profile
    from hwnas.profilers import Preprocessing, export_network, load_runtime
    from hwnas.search import Evolution, Settings, search
    from hwnas.spaces import load_space
    from hwnas.train import (
        DIGITS,
        accuracy,
        default_image_size,
        default_recipe,
        load_data,
        load_run,
        train,
    )

    # At this size a second thread gains little, and beside another busy process it costs manyfold.
    torch.set_num_threads(1)
    space, size = load_space(_SPACE), default_image_size(DIGITS)
    data, run_dir, table_path = load_data(DIGITS, size), out / "supernet", out / "cpu.json"
    recipe = default_recipe(DIGITS)
    recipe = recipe if epochs is None else replace(recipe, epochs=epochs)
    train(space, data, run_dir, recipe=recipe, progress=lambda text: progress(f"train: {text}"))
    run = load_run(run_dir)
    runtime, plan = load_runtime("onnxruntime"), Plan("onnxruntime", rounds=60)
    with LocalAgent() as agent:
        conditions = Conditions(space, size, len(data.class_names), "cpu", plan)
        table = profile(
            conditions,
            agent,
            runtime,
            table_path,
            time_budget_s=time_budget_s,
            progress=lambda text: progress(f"profile: {text}"),
        )
        budget_ms = float(f"{_SHARE_OF_REFERENCE * table.reference.ms:.3g}")
        found = search(
            table,
            table_path,
            run,
            run_dir,
            data,
            agent,
            runtime,
            out / "search",
            max_latency_ms=budget_ms,
            max_params=1_000_000,
            settings=Settings(Evolution(_POPULATION, _GENERATIONS, _PARENTS)),
            plan=plan,
            progress=lambda text: progress(f"search: {text}"),
        )
    reports = []
    for format, suffix in (("onnx", ".onnx"), ("coreml", ".mlpackage")):
        progress(f"export: {format}")
        reports.append(
            export_network(
                found.network,
                out / "search" / f"winner{suffix}",
                format=format,
                preprocessing=Preprocessing(data.mean, data.std, size),
                class_names=data.class_names,
            )
        )
    test_accuracy = accuracy(found.network, data.batches("test", 128))
    return _page(table, found.winner, test_accuracy, data.num_images("test"), reports, out)


def _page(
    table: LatencyTable,
    winner: dict[str, Any],
    test_accuracy: float,
    num_test: int,
    reports: list[ExportReport],
    out: Path,
) -> dict[str, Any]:
    return {
        "space": _SPACE,
        "table": {"path": str(out / "cpu.json"), **asdict(table.quality)},
        "latency_ms": winner["latency_ms"],
        "params": winner["params"],
        "val_accuracy": winner["accuracy"],
        "test_accuracy": test_accuracy,
        "test_images": num_test,
        "exports": [
            {"format": r.format, "path": str(r.path), "max_abs_error": r.detail["max_abs_error"]}
            for r in reports
        ],
        "search": str(out / "search"),
    }


def _show(page: dict[str, Any]) -> None:
    latency, table = page["latency_ms"], page["table"]
    test = f"{100 * page['test_accuracy']:.2f}% of {page['test_images']} digits never seen before"
    lines = {
        "table": f"{table['mape']:.1%} off on {table['networks']} held-out networks, "
        f"{table['within_10pct']:.0%} within 10%",
        "": f"(the same networks timed again: {table['retest_mape']:.1%} apart)",
        "budget": f"{latency['budget']:g} ms, 1 M parameters",
        "predicted": f"{latency['predicted']:.3f} ms "
        f"({latency['low']:.3f} to {latency['high']:.3f})",
        "measured": f"{latency['measured']:.3f} ± {latency['measured_half_interval']:.3f} ms",
        "parameters": f"{page['params']:,}",
        "accuracy": test,
    }
    click.echo("\nThe most accurate network within the budget, on this machine's CPU\n")
    for name, text in lines.items():
        click.echo(f"  {name:<12}{text}")
    click.echo("\nFiles\n")
    click.echo(f"  {table['path']}")
    click.echo(f"  {page['search']}/winner.json, winner.safetensors")
    for export in page["exports"]:
        error = export["max_abs_error"]
        checked = "not run: Core ML predicts on macOS" if error is None else f"off by {error:.1g}"
        click.echo(f"  {export['path']} ({checked})")
    click.echo(f"\n{page['seconds']:.0f} s in all. Next:\n")
    for line in (
        f"hwnas lut show {table['path']}",
        "hwnas train --space autovit-xxs --data FOLDER",
        "hwnas profile --space autovit-xxs",
        "hwnas search --space autovit-xxs --latency 10ms --params 2M",
    ):
        click.echo(f"  {line}")
