from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from fakes import FakeAgent, FakeRuntime, true_ms

from hwnas.devices import Artifact, Measurement, Plan
from hwnas.errors import DeviceError
from hwnas.luts import BATCH_SIZE, LatencyTable
from hwnas.luts._timing import REFERENCES
from hwnas.search._verify import Verification, correction, time_finalists
from hwnas.spaces import Block, Space

PLAN = Plan("fake", rounds=20)


def networks(space: Space, num: int) -> list[tuple[Block, ...]]:
    codes = space.sample(num, np.random.default_rng(7))
    return [tuple(block for _, block in space.layout(row, 16, 10)) for row in codes]


def time(space: Space, table: LatencyTable, agent: FakeAgent, num: int = 3) -> Verification:
    finalists = networks(space, num)
    return time_finalists(finalists, table, space, agent, FakeRuntime(), PLAN)


def test_latencies_are_at_the_speed_of_the_profile(space: Space, table: LatencyTable) -> None:
    today = FakeAgent(lambda block: 1.7 * true_ms(block), noise=0.0)
    found = time(space, table, today)
    for timed, blocks in zip(found.timed, networks(space, 3), strict=True):
        assert timed.measured_ms == pytest.approx(sum(map(true_ms, blocks)), rel=1e-3)
        assert timed.half_interval_ms < 1e-5  # samples are rounded to 1e-5 ms
    assert today.batches == 6
    # The fake device's drift is uniform in [0.8, 1.4].
    assert 1.0 < found.reference_ms / (1.7 * table.reference.ms) < 1.2


def test_the_interval_holds_the_latency_most_of_the_time(space: Space, table: LatencyTable) -> None:
    inside = []
    for seed in range(12):
        plan = Plan("fake", rounds=20, seed=100 * seed)
        finalists = networks(space, 5)
        found = time_finalists(finalists, table, space, FakeAgent(noise=0.02), FakeRuntime(), plan)
        for timed, blocks in zip(found.timed, finalists, strict=True):
            error_ms = abs(timed.measured_ms - sum(map(true_ms, blocks)))
            inside.append(error_ms <= timed.half_interval_ms)
    assert 0.85 < np.mean(inside) < 1.0


def test_a_finalist_that_fails_leaves_the_others(space: Space, table: LatencyTable) -> None:
    broken = [b.key for b in networks(space, 3)[1]]
    agent = FakeAgent(fails=lambda blocks: [b.key for b in blocks] == broken)
    found = time(space, table, agent)
    assert [timed is None for timed in found.timed] == [False, True, False]


@pytest.mark.parametrize("num", [1, 5, 12])
def test_a_batch_is_no_smaller_than_those_of_the_profile(
    space: Space, table: LatencyTable, num: int
) -> None:
    sizes = []

    class Counts(FakeAgent):
        def measure(self, artifacts: Sequence[Artifact], plan: Plan) -> list[Measurement]:
            sizes.append(len(artifacts))
            return super().measure(artifacts, plan)

    assert len(time(space, table, Counts(), num).timed) == num
    assert set(sizes) == {len(REFERENCES) + max(num, BATCH_SIZE)}


def test_where_all_fail_it_says_why(space: Space, table: LatencyTable) -> None:
    class FailsLate(FakeAgent):
        def measure(self, artifacts: Sequence[Artifact], plan: Plan) -> list[Measurement]:
            measured = super().measure(artifacts, plan)
            if self.batches < 3:
                return measured
            return [
                m if m.artifact_id in REFERENCES else Measurement(m.artifact_id, error="hung")
                for m in measured
            ]

    with pytest.raises(DeviceError, match="no finalist could be timed: hung"):
        time(space, table, FailsLate())


def test_few_points_or_close_ones_are_corrected_by_a_scale() -> None:
    assert correction([1.0, 2.0, 4.0], [1.2, 2.2, 4.4]) == (pytest.approx(1.1), 0.0)
    close = [1.0, 1.05, 1.1, 1.15, 1.18]
    assert correction(close, [1.3 * p for p in close]) == (pytest.approx(1.3), 0.0)


def test_points_apart_are_corrected_by_a_line() -> None:
    predicted = [1.0, 1.5, 2.0, 3.0]
    scale, offset_ms = correction(predicted, [0.8 * p + 0.7 for p in predicted])
    assert (scale, offset_ms) == (pytest.approx(0.8), pytest.approx(0.7))


def test_a_line_that_falls_is_not_believed() -> None:
    assert correction([1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 2.0, 1.0]) == (
        pytest.approx((1.5 + 2 / 3) / 2),
        0.0,
    )
