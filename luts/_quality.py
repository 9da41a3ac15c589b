"""How good a table is: its predictions held against networks it was not fitted to."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Quality:
    """Held-out error of a table. Errors are relative to the measured latency, as fractions."""

    networks: int
    """Held-out networks, each timed twice in different batches."""
    mape: float
    within_5pct: float
    within_10pct: float
    kendall: float
    spearman: float
    retest_mape: float
    """Mean relative difference between the two timings: the device's own noise."""
    relative_sd: float
    """Standard deviation of measured / predicted; prediction intervals come from it."""

    def to_json(self) -> dict[str, float]:
        """The fields as a JSON object."""
        return asdict(self)


def assess(predicted_ms: Values, first_ms: Values, second_ms: Values) -> Quality:
    """Hold predictions [N] against two timings [N] of the same networks."""
    from scipy.stats import kendalltau, spearmanr

    measured = (first_ms + second_ms) / 2
    error = np.abs(predicted_ms - measured) / measured
    return Quality(
        networks=len(measured),
        mape=float(error.mean()),
        within_5pct=float((error <= 0.05).mean()),
        within_10pct=float((error <= 0.10).mean()),
        kendall=float(kendalltau(predicted_ms, measured).statistic),
        spearman=float(spearmanr(predicted_ms, measured).statistic),
        retest_mape=float((np.abs(first_ms - second_ms) / measured).mean()),
        relative_sd=float(np.sqrt(np.mean((measured / predicted_ms - 1) ** 2))),
    )
