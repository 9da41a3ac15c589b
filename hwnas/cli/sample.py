"""``hwnas sample``."""

from __future__ import annotations

import click

_BATCH = 256


@click.command("sample")
@click.option("--space", required=True, help="A space of `hwnas spaces`, or FILE.toml.")
@click.option("--num", type=click.IntRange(min=1), default=1, help="How many to draw.")
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Same seed, same draws.")
def command(space: str, num: int, seed: int) -> None:
    """Draw architectures of a space at random, one JSON line each, as ARCH.json holds one.

    Fewer of them with the same seed are the first of more.
    """
    import numpy as np

    from hwnas.spaces import load_space

    loaded, rng = load_space(space), np.random.default_rng(seed)
    for start in range(0, num, _BATCH):
        for codes in loaded.sample(_BATCH, rng)[: num - start]:
            click.echo(str(loaded.decode(codes)))
