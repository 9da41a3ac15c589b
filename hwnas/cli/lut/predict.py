"""``hwnas lut predict``: the latency of architectures, by a table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import BinaryIO

import click

from hwnas.errors import SpaceError


@click.command("predict")
@click.argument("table", type=click.Path(path_type=Path))
@click.argument("archs", type=click.File("rb"), default="-")
@click.option("--space", help="The space of the architectures, where it is a file of your own.")
def command(table: Path, archs: BinaryIO, space: str | None) -> None:
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
