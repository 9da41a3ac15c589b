from __future__ import annotations

import numpy as np
import pytest

from hwnas.luts._design import Design, Layout, count_blocks, keeps_shape, most_informative, remove
from hwnas.profilers._onnx_compose import Composer
from hwnas.spaces import load_space


@pytest.fixture(scope="module")
def design() -> Design:
    return Design(load_space("autovit-xxs"), 32, 10, seed=3)


def layouts(space_id: str, num: int) -> list[Layout]:
    return Design(load_space(space_id), 32, 10, seed=5).held_out(num)


def test_a_batch_depends_on_the_seed_alone(design: Design) -> None:
    again = Design(design.space, 32, 10, seed=3)
    assert again.batch(2) == design.batch(2)
    assert Design(design.space, 32, 10, seed=4).batch(0) != design.batch(0)


def test_every_planned_network_can_be_built(design: Design) -> None:
    composer = Composer(image_size=32)
    for network in design.batch(0):
        composer.compose(network)


def test_no_held_out_network_is_fitted_to(design: Design) -> None:
    fitted = {network for i in range(20) for network in design.batch(i)}
    assert not fitted & set(design.held_out(40))


def test_the_reference_is_a_member_of_middling_cost(design: Design) -> None:
    codes = design.reference()
    assert design.space.members(codes[None])[0]
    macs = design.space.additive_cost(lambda block: block.cost.macs, 32, 10)
    sample = macs(design.space.sample(500, np.random.default_rng(0)))
    low, high = np.quantile(sample, [0.3, 0.7])
    assert low < macs(codes[None])[0] < high


def test_only_blocks_that_keep_the_shape_are_taken_out() -> None:
    rng = np.random.default_rng(0)
    for network in layouts("autovit-xxs", 20):
        smaller = remove(network, rng)
        assert len(smaller) < len(network)
        kept = iter(smaller)
        gone = []
        following = next(kept)
        for block in network:
            if block == following:
                following = next(kept, None)
            else:
                gone.append(block)
        assert all(keeps_shape(block) for block in gone)


def test_the_planned_design_beats_a_random_one() -> None:
    pool = layouts("autovit-xxs", 60)
    keys = sorted({block.key for network in pool for block in network})

    def log_det(networks: list[Layout]) -> float:
        counts = count_blocks(networks, keys)
        return float(np.linalg.slogdet(counts.T @ counts + 0.1 * np.eye(len(keys)))[1])

    chosen = most_informative(pool, 15, [])
    rng = np.random.default_rng(0)
    random = [log_det([pool[i] for i in rng.choice(60, 15, replace=False)]) for _ in range(50)]
    assert log_det(chosen) > max(random)
