"""From the latencies of whole networks to one latency a block, all solved for together.

A network's latency is the sum of its blocks' entries. Written relative to the measurement itself
(the noise is multiplicative), row n of N networks is

    1 = sum_k a[n, k] theta[k] / y[n] + batch effect + noise,    theta = Phi beta + delta

``Phi beta`` is a small cost model, for each kind of block non-negative coefficients of MACs,
elements moved and launches; ``delta[k]`` ~ N(0, (tau * prior[k])^2) lets the data move an entry
away from it where the data are strong. tau and the size of the batch effect are chosen by marginal
likelihood; rows that fit badly are weighted down (Huber), for the right tail of timings is heavy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hwnas.errors import TableError
from hwnas.spaces import Block

Array = npt.NDArray[np.float64]

# Standard deviations in units of a network's noise: of an entry around the cost model (relative to
# the entry), and of the batch effect.
_ENTRY_RATIOS = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 40.0)
_BATCH_RATIOS = (0.0, 0.3, 1.0, 3.0)
_HUBER = 1.345
_ITERATIONS = 4
_SCALES = np.array([1e-6, 1e-6, 1.0])  # MACs and elements in millions, launches as they are


class _Ratios(NamedTuple):
    entry: float
    batch: float


@dataclass(frozen=True)
class Fit:
    """Entries [K] in the order of the blocks given, their standard errors, and what was chosen."""

    entries_ms: Array
    se_ms: Array
    tau: float
    """How far entries stray from the cost model, relative to it."""
    noise: float
    """Relative standard deviation of one network's timing."""
    batch_sd: float
    """Relative standard deviation of the batch effect."""


def fit_entries(
    blocks: Sequence[Block], counts: Array, latency_ms: Array, batch: npt.NDArray[np.intp]
) -> Fit:
    """Solve for one latency a block.

    ``counts`` [N, K] says how often block k is in network n, ``latency_ms`` [N] what the network
    took, ``batch`` [N] in which batch it was timed.
    """
    if len(latency_ms) < 2:
        raise TableError("a table needs at least two timed networks: profile longer")
    rows = counts / latency_ms[:, None]
    target = np.ones(len(rows))
    features = _features(blocks)
    membership = (batch[:, None] == np.unique(batch)[None]).astype(np.float64)
    weights = np.ones(len(rows))
    prior = features @ _non_negative(rows @ features, target)
    ratios = _Ratios(5.0, 0.0)
    for _ in range(_ITERATIONS):
        spread = np.maximum(prior, 1e-3 * prior.mean())
        ratios = _choose(rows, features, spread, membership, weights, target)
        whiten = np.linalg.inv(
            np.linalg.cholesky(_covariance(rows, spread, membership, weights, ratios))
        )
        beta = _non_negative(whiten @ rows @ features, whiten @ target)
        prior = features @ beta
        solution = _solve(rows, features[:, beta > 0], spread, membership, weights, ratios)
        residual = target - rows @ solution.entries_ms - membership @ solution.effects
        scale = 1.4826 * np.median(np.abs(residual)) + 1e-12
        weights = np.minimum(1.0, _HUBER * scale / np.maximum(np.abs(residual), 1e-12))
    return Fit(
        np.maximum(solution.entries_ms, 0.0),
        solution.se_ms,
        ratios.entry * solution.noise,
        solution.noise,
        ratios.batch * solution.noise,
    )


def aliased(blocks: Sequence[Block], counts: Array) -> list[list[str]]:
    """Sets of blocks that no choice of timed networks tells apart, from the rank of the design.

    ``counts`` [N, K]; a constant per network ("base") is one of the unknowns.
    """
    design = np.hstack([np.ones((len(counts), 1)), counts])
    names = ["base", *(block.key for block in blocks)]
    _, singular, vt = np.linalg.svd(design, full_matrices=True)
    rank = int((singular > 1e-9 * singular[0]).sum())
    null = np.abs(vt[rank:]) > 1e-6
    sets: list[set[int]] = []
    for row in null:
        members = set(np.flatnonzero(row).tolist())
        touching = [s for s in sets if s & members]
        sets = [s for s in sets if not s & members] + [members.union(*touching)]
    return [[names[i] for i in sorted(s)] for s in sets]


def _features(blocks: Sequence[Block]) -> Array:
    kinds = list(dict.fromkeys(block.kind for block in blocks))
    table = np.zeros((len(blocks), 3 * len(kinds)))
    for i, block in enumerate(blocks):
        cost = (block.cost.macs, block.cost.elements, block.cost.launches)
        start = 3 * kinds.index(block.kind)
        table[i, start : start + 3] = np.array(cost) * _SCALES
    return table


def _non_negative(matrix: Array, target: Array) -> Array:
    from scipy.optimize import nnls

    norms = np.linalg.norm(matrix, axis=0) + 1e-30
    # A whisper of ridge keeps coefficients that the data cannot tell apart from running away.
    ridge = np.vstack([matrix / norms, 1e-3 * np.eye(matrix.shape[1])])
    solution: Array = nnls(ridge, np.concatenate([target, np.zeros(matrix.shape[1])]))[0] / norms
    return solution


def _covariance(
    rows: Array, spread: Array, membership: Array, weights: Array, ratios: _Ratios
) -> Array:
    """Covariance of the targets around the cost model, in units of the noise's variance."""
    entries = rows * (ratios.entry * spread)
    effects = ratios.batch * membership
    covariance: Array = np.diag(1 / weights) + entries @ entries.T + effects @ effects.T
    return covariance


def _choose(
    rows: Array, features: Array, spread: Array, membership: Array, weights: Array, target: Array
) -> _Ratios:
    """The ratios of greatest marginal likelihood, the noise profiled out."""
    best, chosen = -np.inf, _Ratios(5.0, 0.0)
    for ratios in map(_Ratios._make, product(_ENTRY_RATIOS, _BATCH_RATIOS)):
        lower = np.linalg.cholesky(_covariance(rows, spread, membership, weights, ratios))
        y = np.linalg.solve(lower, target)
        x = np.linalg.solve(lower, rows @ features)
        residual = y - x @ _non_negative(x, y)
        likelihood = -len(y) / 2 * np.log(residual @ residual) - np.log(np.diag(lower)).sum()
        if likelihood > best:
            best, chosen = likelihood, ratios
    return chosen


@dataclass(frozen=True)
class _Solution:
    entries_ms: Array
    se_ms: Array
    effects: Array
    noise: float


def _solve(
    rows: Array,
    features: Array,
    spread: Array,
    membership: Array,
    weights: Array,
    ratios: _Ratios,
) -> _Solution:
    """Henderson's mixed-model equations for (beta, delta, batch effects)."""
    num_beta, num_entries = features.shape[1], len(spread)
    columns = [rows @ features, rows * spread]
    precision = [np.zeros(num_beta), np.full(num_entries, ratios.entry**-2)]
    if ratios.batch > 0:
        columns.append(membership)
        precision.append(np.full(membership.shape[1], ratios.batch**-2))
    x = np.hstack(columns)
    root = np.sqrt(weights)[:, None]
    norms = np.linalg.norm(root * x, axis=0) + 1e-30
    penalty = np.concatenate(precision) / norms**2
    gram = (root * x / norms).T @ (root * x / norms) + np.diag(penalty + 1e-10)
    inverse = np.linalg.inv(gram)
    unknowns = inverse @ ((root * x / norms).T @ root[:, 0]) / norms
    residual = root[:, 0] * (1 - x @ unknowns)
    freedom = max(1.0, len(rows) - float(np.trace(inverse @ (gram - np.diag(penalty + 1e-10)))))
    noise = float(np.sqrt(residual @ residual / freedom))
    to_entries = np.hstack(
        [features, np.diag(spread), np.zeros((num_entries, x.shape[1] - num_beta - num_entries))]
    )
    scaled = to_entries / norms
    se = noise * np.sqrt(np.maximum(0.0, np.einsum("ij,jk,ik->i", scaled, inverse, scaled)))
    effects = (
        unknowns[num_beta + num_entries :] if ratios.batch > 0 else np.zeros(membership.shape[1])
    )
    return _Solution(to_entries @ unknowns, se, effects, noise)
