"""``hwnas train``: train the supernet of a space."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from hwnas.cli._workspace import Workspace, workspace_option


@click.command("train")
@click.option("--space", "space_name", required=True, help="A space of `hwnas spaces`, or a .toml.")
@click.option(
    "--data",
    "data_spec",
    default="digits",
    metavar="DIR|digits",
    help="A folder train/CLASS/*.jpg (val and test beside train if there are any), or the "
    "handwritten digits that scikit-learn carries.",
)
@click.option(
    "--image-size",
    type=click.IntRange(min=1),
    metavar="PIXELS",
    help="Side of the images.  [default: 48 for digits, else 256]",
)
@click.option(
    "--epochs",
    type=click.IntRange(min=1),
    help="Times each image is trained on.  [default: 40 for digits, else 100]",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    help="Images a step.  [default: 64 for digits, else 128]",
)
@click.option(
    "--learning-rate",
    type=click.FloatRange(min=0, min_open=True),
    help="At its highest, after warm-up.  [default: 0.004 for digits, else 0.001]",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Of all that is random.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="RUN",
    help="Folder of the run.  [default: a folder of the workspace]",
)
@workspace_option
def command(
    *,
    space_name: str,
    data_spec: str,
    image_size: int | None,
    epochs: int | None,
    batch_size: int | None,
    learning_rate: float | None,
    seed: int,
    out: Path | None,
    workspace: Workspace,
) -> None:
    """Train the supernet of a space, one uniformly sampled architecture a step.

    A checkpoint is written after every epoch: the same command goes on where a killed one stopped
    and ends with the same weights. The folder of the run is printed on stdout.
    """
    from hwnas import train
    from hwnas.spaces import load_space

    space = load_space(space_name)
    given: dict[str, Any] = {
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
    }
    overrides = {name: value for name, value in given.items() if value is not None}
    recipe = replace(train.default_recipe(data_spec), seed=seed, **overrides)
    size = image_size or train.default_image_size(data_spec)
    data = train.load_data(data_spec, size, seed=seed)
    run_dir = out or workspace.supernet_dir(space.id, data.spec, size)
    train.train(
        space, data, run_dir, recipe=recipe, progress=lambda line: click.echo(line, err=True)
    )
    click.echo(str(run_dir))
    sizes = f"--image-size {size} --num-classes {len(data.class_names)}"
    click.echo(f"Next: hwnas profile --device cpu --space {space_name} {sizes}", err=True)
