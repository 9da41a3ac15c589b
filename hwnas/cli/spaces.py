"""``hwnas spaces``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from hwnas.cli._output import print_json, print_table, print_wrapped

if TYPE_CHECKING:
    from hwnas.spaces import Space


@click.command("spaces")
@click.argument("files", nargs=-1, metavar="[FILE.toml]...")
@click.option("--json", "as_json", is_flag=True, help="Print a list of objects instead.")
def command(files: tuple[str, ...], as_json: bool) -> None:
    """Show the search spaces, and those of FILE.toml: their size and range of parameters.

    Parameters and MACs are counted at 256x256 pixels and 1000 classes. The number of architectures
    is that before the range of parameters is applied.
    """
    from hwnas.spaces import SPACES, load_space

    spaces = [load_space(name) for name in dict.fromkeys((*SPACES, *files))]
    facts = [_facts(space) for space in spaces]
    if as_json:
        print_json(facts)
        return
    header = ("space", "architectures", "parameters", "largest: parameters", "MACs")
    print_table(header, [_row(space) for space in facts])
    for space in spaces:
        click.echo(f"\n{space.id}, where its paper is silent:")
        for what, choice in space.silent_choices().items():
            print_wrapped(f"  {what}: {choice}")


def _facts(space: Space) -> dict[str, Any]:
    from hwnas.spaces import (
        REFERENCE_IMAGE_SIZE,
        REFERENCE_NUM_CLASSES,
        num_macs,
        num_params,
    )

    largest = [block for _, block in space.layout(space.largest)]
    return {
        "id": space.id,
        "architectures": space.num_archs,
        "params_range": list(space.params_range),
        "image_size": REFERENCE_IMAGE_SIZE,
        "num_classes": REFERENCE_NUM_CLASSES,
        "largest": {"params": num_params(largest), "macs": num_macs(largest)},
        "stages": [
            {
                "name": stage.name,
                "optional": stage.optional,
                "width": list(stage.width),
                "depth": list(stage.depth),
                **{name: list(values) for name, values in stage.per_layer},
            }
            for stage in space.stages
        ],
        "silent_choices": space.silent_choices(),
    }


def _row(facts: dict[str, Any]) -> tuple[str, ...]:
    low, high = facts["params_range"]
    params, macs = facts["largest"]["params"], facts["largest"]["macs"]
    return (
        facts["id"],
        f"{facts['architectures']:.1e}".replace("e+", "e"),
        f"{low / 1e6:.1f} to {high / 1e6:.1f} M",
        f"{params / 1e6:.2f} M",
        f"{macs / 1e9:.2f} G",
    )
