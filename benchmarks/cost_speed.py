"""How fast candidates are costed: latency from a table and parameters, both, on one core.

Contestants, on the same codes in interleaved rounds:

- ``vectorised``: ``Space.additive_cost``, one look-up a part for all candidates at once;
- ``dict per part``: for each candidate a Python dict look-up a part, keyed by its codes;
- ``dict per block``: for each candidate expand its blocks, then look each of them up.

The table is made up (a launch cost and a rate of arithmetic), as costing does not care what it
holds. Marks: 200,000 archs/s; the best published once-for-all search costs 2,255 to 5,100 archs/s
(the range it was given to us as, on its authors' machines).
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before numpy

import argparse
import statistics
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hwnas.errors import HwnasError
from hwnas.files import write_json
from hwnas.spaces import SPACES, Block, Codes, Space, load_space

MARK_ARCHS_PER_S = 200_000
PUBLISHED_ARCHS_PER_S = (2_255, 5_100)
NUM_SLOW = 2_000  # candidates a round for the contestants that take them one by one

Costs = npt.NDArray[np.float64]
Contestant = Callable[[Codes], Costs]
"""Codes [N, columns] -> latency in ms and parameters [N, 2]."""


def latency_ms(block: Block) -> float:
    """A made-up entry of a latency table: 5 us a launch, 20 GMAC/s."""
    return 5e-3 * block.cost.launches + block.cost.macs / 20e6


def vectorised(space: Space) -> Contestant:
    """Cost whole matrices of codes."""
    latency, params = space.additive_cost(latency_ms), space.num_params

    def cost(codes: Codes) -> Costs:
        return np.stack([latency(codes), params(codes)], axis=1)

    return cost


def dict_per_part(space: Space) -> Contestant:
    """Cost one candidate after another; a part's sums are keyed by the codes of its columns."""
    tables = []
    for part in space.parts(256, 1000):
        values = [list(enumerate(space.columns[column].values)) for column in part.columns]
        sums = {}
        for chosen in product(*values):
            key, at = zip(*chosen, strict=True)
            blocks = [block for _, block in part.expand(*at)]
            sums[key] = (sum(map(latency_ms, blocks)), sum(b.cost.params for b in blocks))
        tables.append((part.columns, sums))

    def cost(codes: Codes) -> Costs:
        totals = []
        for row in codes.tolist():
            entries = [sums[tuple([row[c] for c in columns])] for columns, sums in tables]
            totals.append((sum(ms for ms, _ in entries), sum(num for _, num in entries)))
        return np.array(totals)

    return cost


def dict_per_block(space: Space) -> Contestant:
    """Cost one candidate after another; a block's entry is keyed by the block."""
    entries: dict[Block, tuple[float, int]] = {}

    def entry(block: Block) -> tuple[float, int]:
        if block not in entries:
            entries[block] = latency_ms(block), block.cost.params
        return entries[block]

    def cost(codes: Codes) -> Costs:
        totals = []
        for row in codes:
            found = [entry(block) for _, block in space.layout(row)]
            totals.append((sum(ms for ms, _ in found), sum(num for _, num in found)))
        return np.array(totals)

    return cost


def measure(space: Space, num_archs: int, rounds: int) -> dict[str, float]:
    """Archs/s of each contestant, the median of ``rounds`` interleaved rounds."""
    contestants: dict[str, tuple[Contestant, int]] = {
        "vectorised": (vectorised(space), num_archs),
        "dict per part": (dict_per_part(space), NUM_SLOW),
        "dict per block": (dict_per_block(space), NUM_SLOW),
    }
    codes = space.sample(num_archs, np.random.default_rng(0))
    expected = contestants["vectorised"][0](codes[:NUM_SLOW])
    for name, (cost, _) in contestants.items():  # warm up, and see that they agree
        if not np.allclose(cost(codes[:NUM_SLOW]), expected, rtol=1e-9):
            raise HwnasError(f"{name} gives other costs than the vectorised look-up")
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, (cost, num) in contestants.items():
            start = time.perf_counter()
            cost(codes[:num])
            rates[name].append(num / (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in rates.items()}


def main() -> None:
    """Parse, measure, print, write."""
    parser = argparse.ArgumentParser(description="Speed of costing candidates, one core.")
    parser.add_argument("--space", choices=SPACES, default="autovit-xxs")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, a few seconds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write flat records to FILE")
    args = parser.parse_args()
    rounds, num_archs = (5, 20_000) if args.quick else (25, 100_000)
    rates = measure(load_space(args.space), num_archs, rounds)
    fastest_dict = max(rate for name, rate in rates.items() if name != "vectorised")
    print(f"{args.space}, latency and parameters, one core, median of {rounds} interleaved rounds")
    print(f"{'method':<16}{'archs/s':>12}{'of the mark':>14}")
    for name, rate in rates.items():
        print(f"{name:<16}{rate:>12,.0f}{rate / MARK_ARCHS_PER_S:>13.2f}x")
    low, high = PUBLISHED_ARCHS_PER_S
    print(f"vectorised over the faster dict: {rates['vectorised'] / fastest_dict:.1f}x")
    print(
        f"mark: {MARK_ARCHS_PER_S:,} archs/s; published once-for-all: {low:,} to {high:,} archs/s"
    )
    if args.json:
        records = [
            {"method": name, "space": args.space, "archs_per_s": round(rate, 1)}
            for name, rate in rates.items()
        ]
        write_json(args.json, records)


if __name__ == "__main__":
    main()
