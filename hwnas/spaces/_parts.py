"""What a space is made of: stages, columns, parts and rules; and costs that add up over parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from hwnas.spaces._block import Block

Codes: TypeAlias = npt.NDArray[np.int8]
Mask: TypeAlias = npt.NDArray[np.bool_]
Costs: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Stage:
    """The choices of one stage: a width and a depth for all of it, the rest for each layer."""

    name: str
    width: tuple[int, ...]
    depth: tuple[int, ...] = (1,)
    per_layer: tuple[tuple[str, tuple[float, ...]], ...] = ()
    optional: bool = False
    """Whether the stage may be left out whole."""


@dataclass(frozen=True)
class Column:
    """One choice: its stage, its name, its layer (None: the whole stage), its values, ascending."""

    stage: int
    name: str
    layer: int | None
    values: tuple[float, ...]


@dataclass(frozen=True)
class Part:
    """A piece of the network that depends on few columns.

    ``expand`` takes the values of ``columns``, in order, and gives (slot, block) pairs; none where
    the part is not there. A slot is the name of the place in the supernet that holds the weights.
    """

    columns: tuple[int, ...]
    expand: Callable[..., tuple[tuple[str, Block], ...]]


@dataclass(frozen=True)
class Rule:
    """A condition on few columns that every member obeys: ``allowed`` takes their values.

    ``says`` is the condition in words, such as "widths must grow".
    """

    says: str

    columns: tuple[int, ...]
    allowed: Callable[..., bool]


class AdditiveCost:
    """A cost that is a sum over blocks, for whole matrices of codes: one look-up a part."""

    def __init__(
        self, columns: Sequence[Column], parts: Sequence[Part], value: Callable[[Block], float]
    ):
        self.tables: list[tuple[tuple[int, ...], Costs]] = []
        """For each part its columns, and its cost for every combination of their codes."""
        for part in parts:
            values = [columns[c].values for c in part.columns]
            sums = [sum(value(block) for _, block in part.expand(*v)) for v in product(*values)]
            table = np.array(sums, dtype=np.float64).reshape([len(v) for v in values])
            self.tables.append((part.columns, table))

    def __call__(self, codes: Codes) -> Costs:
        """The cost of each row of ``codes`` [N, columns]; NaN where a block has no value."""
        total = np.zeros(len(codes))
        by_column = np.ascontiguousarray(codes.T).astype(np.intp)
        for read, table in self.tables:
            index = by_column[read[0]].copy()
            for column, size in zip(read[1:], table.shape[1:], strict=True):
                index *= size
                index += by_column[column]
            total += table.ravel()[index]
        return total


def columns_of(stages: Iterable[Stage]) -> Iterable[Column]:
    """The columns of ``stages``, in the order of a row of codes."""
    for i, stage in enumerate(stages):
        if stage.optional:
            yield Column(i, "present", None, (0, 1))
        yield Column(i, "width", None, stage.width)
        yield Column(i, "depth", None, stage.depth)
        for layer in range(max(stage.depth)):
            for name, values in stage.per_layer:
                yield Column(i, name, layer, values)
