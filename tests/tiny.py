"""A space, a trained supernet and an exact latency table, small enough for a second."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import numpy.typing as npt
from fakes import FakeRuntime, true_ms

from hwnas.luts import Entry, LatencyTable, Quality, Reference
from hwnas.spaces import Arch, Block, Space, num_params, parse_space
from hwnas.train import DIGITS, Data, Recipe, Run, load_data, load_run, train

SIZE = 16
CLASSES = 10
TOML = """
family = "autovit"
id = "tiny"
params = [24_000, 29_500]
expansion = 1
pool_expansion = 1
head_dim = 4
[stem]
width = [4, 6]
stride = 2
[[mbconv]]
width = [8, 10]
depth = [1, 2]
stride = 1
[[mbconv]]
width = [10, 12]
depth = [1, 2]
stride = 2
[[transformer]]
width = [14, 16]
depth = [1, 2]
heads = [1, 2]
ratio = [1, 2]
stride = 1
[[transformer]]
width = [18, 20]
depth = [1, 2]
heads = [1, 2]
ratio = [1.5]
stride = 1
optional = true
"""
FINGERPRINT = {"cpu": "fake", "cores": 2}
QUALITY = Quality(40, 0.01, 1.0, 1.0, 0.9, 0.95, 0.01, 0.02)


def tiny_space() -> Space:
    """A space of a few thousand architectures of a few thousand weights."""
    return parse_space(TOML, "tiny.toml")


def all_blocks(space: Space, image_size: int, num_classes: int) -> dict[str, Block]:
    """Every block that an architecture of ``space`` can have, by key."""
    found: dict[str, Block] = {}

    def note(block: Block) -> float:
        found[block.key] = block
        return 0.0

    space.additive_cost(note, image_size, num_classes)
    return found


def exact_table(
    space: Space,
    *,
    image_size: int = SIZE,
    num_classes: int = CLASSES,
    formula: Callable[[Block], float] = true_ms,
) -> LatencyTable:
    """What a profile of the fake device would find if nothing were noisy."""
    blocks = all_blocks(space, image_size, num_classes)
    arch = space.decode(space.sample(1, np.random.default_rng(0))[0])
    reference_ms = sum(map(formula, space.blocks(arch, image_size, num_classes)))
    return LatencyTable(
        device={"id": "cpu", "fingerprint": FINGERPRINT},
        runtime=FakeRuntime().describe(1),
        space=space.id,
        image_size=image_size,
        num_classes=num_classes,
        method={"name": "exact"},
        base_ms=0.0,
        entries={key: Entry(formula(block), 0.001, 5) for key, block in blocks.items()},
        aliased=(),
        reference=Reference(arch, reference_ms),
        quality=QUALITY,
        created="2026-01-01T00:00:00+00:00",
    )


def tiny_data() -> Data:
    """The digits, at a quarter of the usual area."""
    return load_data(DIGITS, SIZE)


def tiny_run(folder: Path) -> Run:
    """A supernet of the tiny space, trained for an epoch into ``folder``."""
    recipe = Recipe(1, 64, 4e-3, 0.05, 0, 0.0)
    train(tiny_space(), tiny_data(), folder, recipe=recipe, progress=lambda text: None)
    return load_run(folder)


@dataclass(frozen=True)
class Everything:
    """Every member of the tiny space, found by going through all choices one by one."""

    archs: tuple[Arch, ...]
    keys: tuple[str, ...]
    counts: npt.NDArray[np.float64]
    """How often each member [N] has each block [K]."""
    params: npt.NDArray[np.int64]

    def latency_ms(self, table: LatencyTable) -> npt.NDArray[np.float64]:
        """The members' latencies by ``table``; NaN where it lacks a block."""
        entries = {key: entry.ms for key, entry in table.entries.items()}
        missing = np.array([key not in entries for key in self.keys])
        total = table.base_ms + self.counts @ [entries.get(key, 0.0) for key in self.keys]
        return np.where(self.counts @ missing > 0, np.nan, total)


def everything(space: Space) -> Everything:
    """Go through the choices of the tiny space, with its rules written out once more."""
    low, high = space.params_range
    archs = [a for a in map(_arch, _all_choices()) if _grows(a)]
    archs = [a for a in archs if low <= num_params(space.blocks(a)) <= high]
    blocks = [space.blocks(a, SIZE, CLASSES) for a in archs]
    keys = sorted({b.key for network in blocks for b in network})
    counts = np.zeros((len(archs), len(keys)))
    for row, network in zip(counts, blocks, strict=True):
        for block in network:
            row[keys.index(block.key)] += 1
    params = np.array([Block.parse(key).cost.params for key in keys])
    return Everything(tuple(archs), tuple(keys), counts, np.rint(counts @ params).astype(np.int64))


def _all_choices() -> product[tuple[dict[str, object] | None, ...]]:
    stem = [{"width": w} for w in (4, 6)]
    first = [{"width": w, "depth": d} for w in (8, 10) for d in (1, 2)]
    second = [{"width": w, "depth": d} for w in (10, 12) for d in (1, 2)]
    layers = [(h, r) for h in (1, 2) for r in (1, 2)]
    third = _transformers((14, 16), layers)
    fourth = _transformers((18, 20), [(1, 1.5), (2, 1.5)])
    return product(stem, first, second, third, [None, *fourth])


def _transformers(
    widths: tuple[int, ...], layers: list[tuple[int, float]]
) -> list[dict[str, object]]:
    return [
        {"width": w, "depth": d, "heads": [h for h, _ in chosen], "ratio": [r for _, r in chosen]}
        for w in widths
        for d in (1, 2)
        for chosen in product(layers, repeat=d)
    ]


def _arch(choices: tuple[dict[str, object] | None, ...]) -> Arch:
    names = ("stem", "mbconv1", "mbconv2", "transformer1", "transformer2")
    stages = {n: c for n, c in zip(names, choices, strict=True) if c is not None}
    return Arch.from_json({"space": "tiny", "stages": stages})


def _grows(arch: Arch) -> bool:
    stem, *widths = (dict(choices)["width"] for _, choices in arch.stages)
    return stem <= widths[0] and all(a < b for a, b in pairwise(widths))
