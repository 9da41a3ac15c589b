"""Budgets: what a candidate costs by the table, and what the space can reach at all."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from hwnas.errors import BudgetError
from hwnas.luts import LatencyTable
from hwnas.search._least import least
from hwnas.spaces import AdditiveCost, Codes, Space

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Budget:
    """Latency (ms) by ``table``, and parameters of the network as deployed, for one space.

    ``max_params`` None sets no bound beside the space's own range.
    """

    space: Space
    table: LatencyTable
    max_latency_ms: float
    max_params: int | None

    def latency_ms(self, codes: Codes) -> Array:
        """Predicted latency of each row of ``codes`` [N, columns]; vectorised.

        Raises ``TableError`` naming the block where the table lacks one.
        """
        latency: Array = self.table.base_ms + self._latency(codes)
        unknown = np.flatnonzero(np.isnan(latency))
        if len(unknown):
            size, classes = self.table.image_size, self.table.num_classes
            for _, block in self.space.layout(codes[unknown[0]], size, classes):
                self.table.ms(block)
        return latency

    def num_params(self, codes: Codes) -> npt.NDArray[np.int64]:
        """Parameters of each row of ``codes``, with the table's number of classes."""
        return self.space.num_params(codes, self.table.image_size, self.table.num_classes)

    def meets(self, codes: Codes) -> npt.NDArray[np.bool_]:
        """Which rows of ``codes`` are within both budgets."""
        meets: npt.NDArray[np.bool_] = self.latency_ms(codes) <= self.max_latency_ms
        if self.max_params is not None:
            meets &= self.num_params(codes) <= self.max_params
        return meets

    def with_table(self, table: LatencyTable) -> Budget:
        """The same budget, by another (recalibrated) table."""
        return Budget(self.space, table, self.max_latency_ms, self.max_params)

    def fastest(self) -> Codes:
        """The member of least predicted latency within the parameter budget.

        Raises ``BudgetError`` with the least reachable where even that breaks a budget.
        """
        fastest = least(self.space, self._latency, self._params, self.max_params)
        if fastest is None or self.latency_ms(fastest[None])[0] > self.max_latency_ms:
            raise BudgetError(self._out_of_reach())
        return fastest

    def _out_of_reach(self) -> str:
        """The sentence for budgets that nothing meets: what the space can reach at least."""
        space, latency, params = self.space, self._latency, self._params
        fewest = least(space, params, params)
        if fewest is None:
            return f"{space.id} holds no architecture at all: widen its range of parameters"
        bound, num_least = self.max_params, int(self.num_params(fewest[None])[0])
        fastest = least(space, latency, params, None if bound and bound < num_least else bound)
        if fastest is None:
            fastest = fewest
        latency_ms = float(self.latency_ms(fastest[None])[0])  # names a block without an entry
        wanted = f"{self.max_latency_ms:g} ms" + (f" and {bound:,} parameters" if bound else "")
        return (
            f"no architecture of {space.id} keeps to {wanted}: the least it can reach is "
            f"{latency_ms:.3f} ms (with {self.num_params(fastest[None])[0]:,} parameters) and "
            f"{num_least:,} parameters"
        )

    @cached_property
    def _latency(self) -> AdditiveCost:
        return self.space.additive_cost(
            self.table.value, self.table.image_size, self.table.num_classes
        )

    @cached_property
    def _params(self) -> AdditiveCost:
        return self.space.additive_cost(
            lambda b: b.cost.params, self.table.image_size, self.table.num_classes
        )
