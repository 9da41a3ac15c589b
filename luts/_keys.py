"""Coarser keyings of the same timings: several blocks that share one latency."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from hwnas.luts._fit import Array
from hwnas.spaces import Block


def _autovit_module(block: Block) -> str | None:
    """The module of AutoViT's table that ``block`` belongs to (section 3.3.2).

    46 in autovit-xxs: 2 widths of the stem, 4 of an MBConv, and of a transformer layer 5 widths x 4
    numbers of heads x 2 MLP ratios. None for what that table leaves out: the shell of a transformer
    stage and the head.
    """
    if block.kind in ("conv", "mbconv"):
        return f"{block.kind}/out={block['out']}"
    if block.kind == "vit_layer":
        return f"vit_layer/d={block['d']}/heads={block['heads']}/ratio={block.real('ratio'):g}"
    return None


KEYINGS: dict[str, Callable[[Block], str | None]] = {
    "full": lambda block: block.key,
    "paper": _autovit_module,
}


@dataclass(frozen=True)
class CoarseFit:
    """For each block [K] the latency of its module and the standard error; and the base (ms)."""

    entries_ms: Array
    se_ms: Array
    base_ms: float


def fit_modules(
    blocks: Sequence[Block],
    module: Callable[[Block], str | None],
    counts: Array,
    latency_ms: Array,
) -> CoarseFit:
    """One latency a module and one for every network, by non-negative least squares.

    Relative to what was measured, as the full fit is, but with no cost model to lean on: this is
    the table of the paper. A block without a module has 0 ms: its cost is in the base.
    """
    from scipy.optimize import nnls

    modules = sorted({m for m in map(module, blocks) if m is not None})
    belongs = np.array([[module(b) == m for m in modules] for b in blocks], dtype=np.float64)
    unknowns = np.hstack([np.ones((len(counts), 1)), counts @ belongs])
    rows = unknowns / latency_ms[:, None]
    solution, _ = nnls(rows, np.ones(len(rows)))
    residual = 1 - rows @ solution
    freedom = max(1, len(rows) - rows.shape[1])
    covariance = np.linalg.pinv(rows.T @ rows) * (residual @ residual / freedom)
    se = np.sqrt(np.maximum(0.0, np.diag(covariance)))
    return CoarseFit(belongs @ solution[1:], belongs @ se[1:], float(solution[0]))
