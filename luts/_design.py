"""Which networks to time: a planned, sequential design with a fixed answer for each seed.

Every batch holds members of the space as they are, members with blocks taken out, and members cut
off behind some block, so that an entry is what the whole model loses when the block is removed and
the blocks that every member has (stem, head) are told apart. From a pool of candidates the batch is
chosen greedily to determine the entries best (D-optimal, given what earlier batches hold).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from hwnas.spaces import Block, Space

Layout = tuple[Block, ...]
_POOL = 60
_SHARES = (("member", 4), ("removed", 3), ("cut", 3))


@dataclass
class Design:
    """A deterministic sequence of batches of networks for one space, image size and class count."""

    space: Space
    image_size: int
    num_classes: int
    seed: int
    _batches: list[list[Layout]] = field(default_factory=list)

    def batch(self, index: int) -> list[Layout]:
        """The networks of batch ``index``: a function of the seed alone."""
        while len(self._batches) <= index:
            self._batches.append(self._next(len(self._batches)))
        return self._batches[index]

    def held_out(self, num: int) -> list[Layout]:
        """``num`` members to judge the table by; never part of a batch to fit."""
        rng = np.random.default_rng([self.seed, 1])
        return [self.layout(codes) for codes in self.space.sample(num, rng)]

    def reference(self) -> npt.NDArray[np.int8]:
        """The member that every batch is timed beside: of median MACs among 101 drawn."""
        codes = self.space.sample(101, np.random.default_rng([self.seed, 2]))
        macs = self.space.additive_cost(lambda b: b.cost.macs, self.image_size, self.num_classes)(
            codes
        )
        median: npt.NDArray[np.int8] = codes[int(np.argsort(macs)[50])]
        return median

    def layout(self, codes: npt.NDArray[np.int8]) -> Layout:
        """The blocks of a row of codes."""
        pairs = self.space.layout(codes, self.image_size, self.num_classes)
        return tuple(block for _, block in pairs)

    def _next(self, index: int) -> list[Layout]:
        rng = np.random.default_rng([self.seed, 3, index])
        chosen: list[Layout] = []
        earlier = [network for batch in self._batches for network in batch]
        for share, num in _SHARES:
            pool = [self.layout(codes) for codes in self.space.sample(_POOL, rng)]
            if share == "removed":
                pool = [remove(network, rng) for network in pool]
            elif share == "cut":
                pool = [network[: rng.integers(1, len(network))] for network in pool]
            chosen += most_informative(pool, num, [*earlier, *chosen])
        return chosen


def remove(network: Layout, rng: np.random.Generator) -> Layout:
    """Take out a random number of the blocks that keep their input's shape."""
    removable = [i for i, block in enumerate(network) if keeps_shape(block)]
    num = int(rng.integers(1, len(removable) + 1)) if removable else 0
    gone = set(rng.choice(removable, size=num, replace=False).tolist()) if num else set()
    return tuple(block for i, block in enumerate(network) if i not in gone)


def keeps_shape(block: Block) -> bool:
    """Whether the network still fits together when ``block`` is taken out."""
    if block.kind == "mbconv":
        return block["in"] == block["out"] and block["stride"] == 1
    return block.kind == "vit_layer"


def most_informative(pool: Sequence[Layout], num: int, earlier: Sequence[Layout]) -> list[Layout]:
    """The ``num`` networks of ``pool`` that raise the design's determinant most (greedy)."""
    keys = sorted({b.key for network in [*pool, *earlier] for b in network})
    counts, before = count_blocks(pool, keys), count_blocks(earlier, keys)
    covariance = np.linalg.inv(before.T @ before + 0.1 * np.eye(len(keys)))
    left, chosen = list(range(len(pool))), []
    for _ in range(num):
        gains = np.einsum("ij,jk,ik->i", counts[left], covariance, counts[left])
        best = left.pop(int(np.argmax(gains)))
        chosen.append(pool[best])
        step = covariance @ counts[best]
        covariance -= np.outer(step, step) / (1 + counts[best] @ step)
    return chosen


def count_blocks(networks: Sequence[Layout], keys: Sequence[str]) -> npt.NDArray[np.float64]:
    """How often each block occurs in each network [N, K]."""
    column = {key: i for i, key in enumerate(keys)}
    counts = np.zeros((len(networks), len(keys)))
    for row, network in zip(counts, networks, strict=True):
        for block in network:
            row[column[block.key]] += 1
    return counts
