"""Where additivity fails: two blocks removed together against the sum of their single removals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hwnas.luts._design import Design, Variant
from hwnas.luts._measurements import Record

_NETWORKS_A_PAIR = 3


@dataclass(frozen=True)
class PairCheck:
    """What a network loses (ms) when two adjacent blocks are taken out, together and singly.

    ``se_ms`` is the standard error of the difference.
    """

    first: str
    second: str
    together_ms: float
    singly_ms: float
    se_ms: float

    @property
    def z(self) -> float:
        """The difference in standard errors."""
        return (self.together_ms - self.singly_ms) / self.se_ms if self.se_ms else 0.0

    def to_json(self) -> dict[str, Any]:
        """The fields as a JSON object."""
        return asdict(self)


def check_pairs(
    design: Design, records: Sequence[Record], reference_ms: float, noise: float
) -> list[PairCheck]:
    """A check for each pair of the batches of ``Design.pairs``, the worst first.

    ``noise`` is the relative standard deviation of timing one network. Within a batch, what is
    common to all its networks is out of the difference.
    """
    checks = []
    for record in records:
        role = record.task.partition("/")[0]
        if role != "pairs":
            continue
        latency = [
            reference_ms * record.batch.ratio(name) if name in record.batch.samples_ms else None
            for name in (f"{record.task}/{i}" for i in range(len(record.variants)))
        ]
        for start in range(1, len(record.variants), _NETWORKS_A_PAIR):
            quad = [latency[0], *latency[start : start + _NETWORKS_A_PAIR]]
            neither, first, second, both = quad
            if neither is None or first is None or second is None or both is None:
                continue
            a, b = (_put_back(design, record.variants, start + i) for i in (0, 1))
            se_ms = noise * math.sqrt(neither**2 + first**2 + second**2 + both**2)
            singly_ms = (both - second) + (both - first)
            checks.append(PairCheck(a, b, both - neither, singly_ms, se_ms))
    return sorted(checks, key=lambda check: -abs(check.z))


def _put_back(design: Design, variants: Sequence[Variant], index: int) -> str:
    """The key of the one block that variant ``index`` has and the first variant lacks."""
    (position,) = set(variants[0].removed) - set(variants[index].removed)
    whole = design.blocks(Variant(variants[0].codes))
    return whole[position].key
