"""Which networks to time: a planned, sequential design.

Every batch holds members of the space as they are, members with blocks taken out, and members cut
off behind some block, so that an entry is what the whole model loses when the block is removed and
the blocks that every member has (stem, head) are told apart. The first batches follow from the seed
alone and are D-optimal; later ones are chosen, from a pool that follows from the seed, to lower the
entries' variances most (A-optimal), given the fit to what was timed so far.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from hwnas.luts._fit import Array, fit_entries
from hwnas.spaces import Block, Space

Layout = tuple[Block, ...]
_POOL = 60
_SHARES = (("member", 4), ("removed", 3), ("cut", 3))
_PAIRS = 3
_RIDGE = 0.1


@dataclass(frozen=True)
class Variant:
    """A member of the space, by its codes, with the blocks at some positions taken out."""

    codes: tuple[int, ...]
    removed: tuple[int, ...] = ()

    def to_json(self) -> dict[str, list[int]]:
        """The fields as a JSON object."""
        return {"codes": list(self.codes), "removed": list(self.removed)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Variant:
        """Read what ``to_json`` wrote."""
        return cls(tuple(map(int, value["codes"])), tuple(map(int, value["removed"])))


@dataclass(frozen=True)
class Timings:
    """Networks that were timed: their blocks, latencies (ms) and batches."""

    networks: list[Layout]
    latency_ms: Array
    batch: npt.NDArray[np.intp]


@dataclass
class Design:
    """The networks to time for one space, image size and class count."""

    space: Space
    image_size: int
    num_classes: int
    seed: int
    _planned: list[list[Variant]] = field(default_factory=list)

    def planned(self, index: int) -> list[Variant]:
        """Batch ``index`` of those that follow from the seed alone (D-optimal, greedy)."""
        while len(self._planned) <= index:
            earlier = [self.blocks(v) for batch in self._planned for v in batch]
            self._planned.append(self._next_planned(len(self._planned), earlier))
        return self._planned[index]

    def informative(self, index: int, timed: Timings) -> list[Variant]:
        """Batch ``index``: what lowers the entries' variances most after ``timed`` (A-optimal)."""
        pools = self._pools(index)
        candidates = [self.blocks(v) for pool, _ in pools for v in pool]
        keys = keys_of([*timed.networks, *candidates])
        blocks, counts = [Block.parse(k) for k in keys], count_blocks(timed.networks, keys)
        fit = fit_entries(blocks, counts, timed.latency_ms, timed.batch)
        covariance, chosen = fit.covariance.copy(), []
        for pool, num in pools:
            rows = count_blocks([self.blocks(v) for v in pool], keys)
            noise = (fit.noise * (rows @ fit.entries_ms)) ** 2
            best = lower_most(rows, noise, covariance, num, by_variance=True)
            chosen += [pool[i] for i in best]
        return chosen

    def pairs(self, index: int) -> list[Variant]:
        """Networks that tell whether two adjacent blocks cost together what they cost singly.

        A member without the blocks that can be taken out, but for the first layer of a transformer
        stage, then with two adjacent ones of these put back: the first alone, the second alone,
        both; so for up to three pairs. (The first layer to enter an empty stage was seen to cost
        more than any that follows; it is taken out, too, where no two others are adjacent.)
        """
        rng = np.random.default_rng([self.seed, 5, index])
        codes = self._sample(1, rng)[0]
        network = self.blocks(Variant(codes))
        every = [i for i, block in enumerate(network) if keeps_shape(block)]
        removable = [i for i in every if network[i - 1].kind != "hybrid"]
        if not any(i + 1 in removable for i in removable):
            removable = every
        adjacent = [i for i in removable if i + 1 in removable]
        rng.shuffle(adjacent)
        # Pairs of different kinds and places first: one of each set of equal layers.
        first = {(network[i].kind, _place(network[i])): i for i in adjacent}
        ordered = [*first.values(), *(i for i in adjacent if i not in first.values())]
        variants = [Variant(codes, tuple(removable))]
        for i in ordered[:_PAIRS]:
            for back in ((i,), (i + 1,), (i, i + 1)):
                variants.append(Variant(codes, tuple(r for r in removable if r not in back)))
        return variants

    def held_out(self, num: int, *, again: bool = False) -> list[Variant]:
        """``num`` members to judge the table by; never part of a batch to fit.

        ``again``: the same in another order, so that each comes in other company.
        """
        variants = [Variant(c) for c in self._sample(num, np.random.default_rng([self.seed, 1]))]
        if not again:
            return variants
        rng = np.random.default_rng([self.seed, 4])
        return [variants[int(i)] for i in rng.permutation(num)]

    def reference(self) -> Variant:
        """The member that every batch is timed beside: of median MACs among 101 drawn."""
        codes = self.space.sample(101, np.random.default_rng([self.seed, 2]))
        macs = self.space.additive_cost(lambda b: b.cost.macs, self.image_size, self.num_classes)(
            codes
        )
        return Variant(tuple(map(int, codes[int(np.argsort(macs)[50])])))

    def blocks(self, variant: Variant) -> Layout:
        """The blocks of a variant, in the order in which they run."""
        codes = np.array(variant.codes, dtype=np.int8)
        pairs = self.space.layout(codes, self.image_size, self.num_classes)
        return tuple(b for i, (_, b) in enumerate(pairs) if i not in variant.removed)

    def _next_planned(self, index: int, earlier: list[Layout]) -> list[Variant]:
        chosen: list[Variant] = []
        for pool, num in self._pools(index):
            networks = [self.blocks(v) for v in pool]
            before = [*earlier, *(self.blocks(v) for v in chosen)]
            keys = keys_of([*networks, *before])
            timed = count_blocks(before, keys)
            precision = timed.T @ timed + _RIDGE * np.eye(len(keys))
            covariance = np.asarray(np.linalg.inv(precision), dtype=np.float64)
            rows = count_blocks(networks, keys)
            best = lower_most(rows, np.ones(len(rows)), covariance, num, by_variance=False)
            chosen += [pool[i] for i in best]
        return chosen

    def _pools(self, index: int) -> list[tuple[list[Variant], int]]:
        """Candidates for batch ``index`` and how many to take of them: whole, thinned, cut."""
        rng = np.random.default_rng([self.seed, 3, index])
        pools = []
        for share, num in _SHARES:
            pool = [Variant(codes) for codes in self._sample(_POOL, rng)]
            if share != "member":
                change = thinned if share == "removed" else cut
                pool = [Variant(v.codes, change(self.blocks(v), rng)) for v in pool]
            pools.append((pool, num))
        return pools

    def _sample(self, num: int, rng: np.random.Generator) -> list[tuple[int, ...]]:
        return [tuple(map(int, codes)) for codes in self.space.sample(num, rng)]


def thinned(network: Layout, rng: np.random.Generator) -> tuple[int, ...]:
    """The positions of a random number of the blocks that keep their input's shape."""
    removable = [i for i, block in enumerate(network) if keeps_shape(block)]
    num = int(rng.integers(1, len(removable) + 1)) if removable else 0
    return tuple(sorted(map(int, rng.choice(removable, size=num, replace=False)))) if num else ()


def cut(network: Layout, rng: np.random.Generator) -> tuple[int, ...]:
    """The positions behind a random block."""
    return tuple(range(int(rng.integers(1, len(network))), len(network)))


def keeps_shape(block: Block) -> bool:
    """Whether the network still fits together when ``block`` is taken out."""
    if block.kind == "mbconv":
        return block["in"] == block["out"] and block["stride"] == 1
    return block.kind == "vit_layer"


def lower_most(
    rows: Array, noise: Array, covariance: Array, num: int, *, by_variance: bool
) -> list[int]:
    """The ``num`` of the networks ``rows`` [N, K] that teach most of the entries, greedily.

    ``noise`` [N] is the variance of timing each; ``covariance`` [K, K], of the entries, is brought
    up to date in place. By variance: the sum of the entries' variances falls most (A-optimal);
    otherwise their determinant does (D-optimal).
    """
    left, chosen = list(range(len(rows))), []
    for _ in range(num):
        leverage = rows[left] @ covariance
        spread = np.einsum("ij,ij->i", leverage, rows[left])
        if by_variance:
            gains = np.einsum("ij,ij->i", leverage, leverage) / (noise[left] + spread)
        else:
            gains = spread / noise[left]
        best = left.pop(int(np.argmax(gains)))
        chosen.append(best)
        step = covariance @ rows[best]
        covariance -= np.outer(step, step) / (noise[best] + rows[best] @ step)
    return chosen


def keys_of(networks: Sequence[Layout]) -> list[str]:
    """The keys of all blocks of ``networks``, sorted."""
    return sorted({block.key for network in networks for block in network})


def count_blocks(networks: Sequence[Layout], keys: Sequence[str]) -> Array:
    """How often each block occurs in each network [N, K]."""
    column = {key: i for i, key in enumerate(keys)}
    counts = np.zeros((len(networks), len(keys)))
    for row, network in zip(counts, networks, strict=True):
        for block in network:
            row[column[block.key]] += 1
    return counts


def _place(block: Block) -> int:
    return block["tokens"] if block.kind == "vit_layer" else block["res"]
