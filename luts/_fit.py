"""From the latencies of whole networks to one latency a block, all solved for together.

A network's latency is the sum of its blocks' entries. Written relative to the measurement itself
(the noise is multiplicative), row n of N networks is

    1 = sum_k a[n, k] theta[k] / y[n] + batch effect + noise,    theta = Phi beta + delta

``Phi beta`` is a small cost model, for each kind of block non-negative coefficients of MACs,
elements moved and launches; ``delta[k]`` ~ N(0, (tau * prior[k])^2), with a tau for each kind, lets
the data move an entry away from it where the data are strong. How far the entries of a kind stray
and how large the batch effect is are not known either: the answer is a mean over draws of them from
their posterior (Gibbs sampling on a grid, by marginal likelihood), so that standard errors hold
what is not known about them. Rows that fit badly are weighted down (Huber), for the right tail of
timings is heavy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hwnas.errors import TableError
from hwnas.spaces import Block

Array = npt.NDArray[np.float64]

# Standard deviations in units of a network's noise: of an entry around the cost model (relative to
# the entry), and of the batch effect.
_ENTRY_RATIOS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
_BATCH_RATIOS = (0.0, 0.3, 1.0, 3.0)
_HUBER = 1.345
_ITERATIONS = 4
_DRAWS = 20
_SCALES = np.array([1e-6, 1e-6, 1.0])  # MACs and elements in millions, launches as they are
_RIDGE = 1e-6  # keeps coefficients that the data cannot tell apart from running away


@dataclass(frozen=True)
class Fit:
    """Entries [K] in the order of the blocks given, how well they are known, and what was found."""

    entries_ms: Array
    covariance: Array
    """Of the entries [K, K], in ms squared."""
    tau: dict[str, float]
    """For each kind of block, how far its entries stray from the cost model, relative to it."""
    noise: float
    """Relative standard deviation of one network's timing."""
    batch_sd: float
    """Relative standard deviation of the batch effect."""

    @property
    def se_ms(self) -> Array:
        """Standard errors of the entries [K]."""
        root: Array = np.sqrt(np.diag(self.covariance))
        return root


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
    membership = (batch[:, None] == np.unique(batch)[None]).astype(np.float64)
    features = cost_features(blocks)
    features /= np.linalg.norm(rows @ features, axis=0) + 1e-30
    weights = np.ones(len(rows))
    spread = _spread(features @ _non_negative(*_normal(rows @ features, weights)))
    kinds = list(dict.fromkeys(block.kind for block in blocks))
    group = np.array([kinds.index(block.kind) for block in blocks])
    ratios = np.array([_ENTRY_RATIOS[2]] * len(kinds) + [_BATCH_RATIOS[1]])
    for _ in range(_ITERATIONS):
        system = _System(rows, features, spread, group, membership, weights)
        best = system.sweep(ratios, lambda likelihood: int(np.argmax(likelihood)))
        ratios = best.ratios
        spread = _spread(features @ best.beta)
        residual = 1 - rows @ (features @ best.beta) - system.random @ system.unknowns(best)
        scale = 1.4826 * np.median(np.abs(residual)) + 1e-12
        weights = np.minimum(1.0, _HUBER * scale / np.maximum(np.abs(residual), 1e-12))
    return _average(system, best, kinds)


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


def cost_features(blocks: Sequence[Block]) -> Array:
    """What the cost model sees of each block [K, 3 x kinds]: MACs, elements, launches."""
    kinds = list(dict.fromkeys(block.kind for block in blocks))
    table = np.zeros((len(blocks), 3 * len(kinds)))
    for i, block in enumerate(blocks):
        cost = (block.cost.macs, block.cost.elements, block.cost.launches)
        start = 3 * kinds.index(block.kind)
        table[i, start : start + 3] = np.array(cost) * _SCALES
    return table


def _spread(prior: Array) -> Array:
    floored: Array = np.maximum(prior, 1e-3 * prior.mean())
    return floored


def _normal(matrix: Array, weights: Array) -> tuple[Array, Array]:
    weighted = matrix * weights[:, None]
    return weighted.T @ matrix, weighted.sum(0)


def _non_negative(gram: Array, moment: Array) -> Array:
    """The x >= 0 that minimises x' gram x - 2 moment' x."""
    from scipy.optimize import nnls

    lower = np.linalg.cholesky(gram + _RIDGE * np.eye(len(gram)))
    solution: Array = nnls(lower.T, np.linalg.solve(lower, moment))[0]
    return solution


@dataclass(frozen=True)
class _Solution:
    """The cost model for one choice of ratios, and how likely the timings are under it."""

    ratios: Array
    """One for each kind of block, and one for the batches."""
    beta: Array
    noise: float
    log_likelihood: float


class _System:
    """The mixed model; sums over networks are taken once for all ratios that are tried."""

    def __init__(
        self,
        rows: Array,
        features: Array,
        spread: Array,
        group: npt.NDArray[np.intp],
        membership: Array,
        weights: Array,
    ):
        self.rows, self.features, self.spread = rows, features, spread
        self.num_networks, self.num_entries = rows.shape
        self.random = np.hstack([rows * spread, membership])  # [N, K + batches]
        batches = np.full(membership.shape[1], group.max() + 1)
        self._group = np.concatenate([group, batches])
        fixed = rows @ features
        weighted = self.random * weights[:, None]
        self._gram = weighted.T @ self.random
        self._cross = weighted.T @ fixed
        self._moment = weighted.sum(0)
        self._fixed_gram, self._fixed_moment = _normal(fixed, weights)
        self._total = float(weights.sum())

    def _inner(self, scales: Array) -> Array:
        return np.eye(len(scales)) + scales[:, None] * self._gram * scales

    def sweep(self, ratios: Array, pick: Callable[[Array], int]) -> _Solution:
        """Choose each ratio in turn, given the others, by ``pick`` from log-likelihoods."""
        for i in range(len(ratios)):
            grid = _BATCH_RATIOS if i == len(ratios) - 1 else _ENTRY_RATIOS
            tried = [self.solve(np.where(np.arange(len(ratios)) == i, v, ratios)) for v in grid]
            chosen = tried[pick(np.array([s.log_likelihood for s in tried]))]
            ratios = chosen.ratios
        return chosen

    def solve(self, ratios: Array) -> _Solution:
        """Generalised least squares for the cost model, the noise profiled out."""
        scales = ratios[self._group]
        lower = np.linalg.cholesky(self._inner(scales))
        cross = np.linalg.solve(lower, scales[:, None] * self._cross)
        moment = np.linalg.solve(lower, scales * self._moment)
        gram = self._fixed_gram - cross.T @ cross
        target = self._fixed_moment - cross.T @ moment
        beta = _non_negative(gram, target)
        total = self._total - moment @ moment
        residual = max(1e-12, float(total - 2 * target @ beta + beta @ gram @ beta))
        likelihood = -self.num_networks / 2 * np.log(residual) - np.log(np.diag(lower)).sum()
        freedom = max(1, self.num_networks - int((beta > 0).sum()))
        return _Solution(ratios, beta, float(np.sqrt(residual / freedom)), float(likelihood))

    def unknowns(self, solution: _Solution) -> Array:
        """Entries around the cost model, in units of ``spread``, and batch effects."""
        scales = solution.ratios[self._group]
        moment = scales * (self._moment - self._cross @ solution.beta)
        found: Array = scales * np.linalg.solve(self._inner(scales), moment)
        return found

    def entries(self, solution: _Solution) -> tuple[Array, Array]:
        """The entries [K] and their covariance [K, K], given the ratios."""
        active = self.features[:, solution.beta > 0]
        cross = self._cross[:, solution.beta > 0]
        scales = solution.ratios[self._group]
        inverse = np.linalg.inv(self._inner(scales)) * scales[:, None] * scales
        gram = self._fixed_gram[np.ix_(solution.beta > 0, solution.beta > 0)]
        of_beta = np.linalg.inv(gram - cross.T @ inverse @ cross + _RIDGE * np.eye(len(gram)))
        kept = slice(0, self.num_entries)
        # theta = active beta + spread delta, and delta given beta is linear in beta.
        slope = active - self.spread[:, None] * (inverse @ cross)[kept]
        delta = self.spread[:, None] * inverse[kept, kept] * self.spread
        covariance = solution.noise**2 * (delta + slope @ of_beta @ slope.T)
        strayed = self.spread * self.unknowns(solution)[kept]
        return self.features @ solution.beta + strayed, covariance


def _average(system: _System, start: _Solution, kinds: Sequence[str]) -> Fit:
    """Mean and covariance over draws of the ratios, the same draws each time."""
    rng = np.random.default_rng(0)

    def draw(likelihood: Array) -> int:
        weights = np.exp(likelihood - likelihood.max())
        return int(rng.choice(len(weights), p=weights / weights.sum()))

    draws = [start]
    for _ in range(_DRAWS):
        draws.append(system.sweep(draws[-1].ratios, draw))
    found = [system.entries(d) for d in draws[1:]]
    entries = np.array([mean for mean, _ in found])
    within = np.mean([covariance for _, covariance in found], axis=0)
    noise = np.array([d.noise for d in draws[1:]])
    strayed = np.mean([d.ratios * d.noise for d in draws[1:]], axis=0)
    return Fit(
        np.maximum(entries.mean(0), 0.0),
        within + np.cov(entries, rowvar=False, bias=True),
        dict(zip(kinds, map(float, strayed[:-1]), strict=True)),
        float(noise.mean()),
        float(strayed[-1]),
    )
