"""What every space does: sampling, mutation, crossover, codes, costs; properties by hypothesis."""

from __future__ import annotations

import json
import math
from collections import Counter
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwnas.errors import SpaceError
from hwnas.spaces import SPACES, Arch, Block, Codes, Space, load_space, num_params, parse_space

TINY = """
family = "autovit"
id = "tiny"
params = [1, 100_000_000]
expansion = 2
pool_expansion = 2
head_dim = 4
stem = {width = [4, 8], stride = 2}
mbconv = [{width = [8, 12], depth = [1, 2], stride = 2}]
[[transformer]]
width = [12, 16]
depth = [1, 2]
heads = [1, 2]
ratio = [1, 1.5]
[[transformer]]
width = [16, 20]
depth = [2]
heads = [1, 3]
ratio = [2]
optional = true
"""
LOADED = {name: load_space(name) for name in SPACES} | {"tiny": parse_space(TINY, "tiny.toml")}

property_test = settings(deadline=None, database=None, derandomize=True, max_examples=25)
spaces = st.sampled_from(sorted(LOADED)).map(LOADED.__getitem__)
seeds = st.integers(0, 2**32 - 1)
probabilities = st.floats(0, 1)


@pytest.fixture(params=sorted(LOADED))
def space(request: pytest.FixtureRequest) -> Space:
    return LOADED[request.param]


def is_member(space: Space, arch: Arch) -> bool:
    """Membership written out from the definition of the hybrid family, apart from ``members``."""
    stages = arch.to_json()["stages"]
    for stage in space.stages:
        if stage.name not in stages:
            if not stage.optional:
                return False
            continue
        chosen = stages[stage.name]
        depth = chosen.get("depth", 1)
        if chosen["width"] not in stage.width or depth not in stage.depth:
            return False
        for name, values in stage.per_layer:
            if len(chosen[name]) != depth or not set(chosen[name]) <= set(values):
                return False
    widths = [stages[stage.name]["width"] for stage in space.stages if stage.name in stages]
    grows = widths[0] <= widths[1] and all(a < b for a, b in pairwise(widths[1:]))
    low, high = space.params_range
    return grows and low <= num_params(space.blocks(arch)) <= high


def all_members(space: Space, codes: Codes) -> bool:
    return all(is_member(space, space.decode(row)) for row in codes)


# Sampling.


@property_test
@given(space=spaces, seed=seeds, num=st.integers(0, 40))
def test_samples_are_members(space: Space, seed: int, num: int) -> None:
    codes = space.sample(num, np.random.default_rng(seed))
    assert codes.shape == (num, len(space.columns))
    assert codes.dtype == np.int8
    assert all_members(space, codes)
    assert space.members(codes).all()


def test_sampling_follows_its_seed(space: Space) -> None:
    first, again, other = (space.sample(20, np.random.default_rng(s)) for s in (3, 3, 4))
    assert (first == again).all()
    assert (first != other).any()


def test_sampling_reaches_every_member_of_a_small_space_and_nothing_else() -> None:
    space = LOADED["tiny"]
    layer = list(product((1, 2), (1, 1.5)))
    firsts = [choice for depth in (1, 2) for choice in product(layer, repeat=depth)]
    seconds: list[Any] = [None, *product((16, 20), list(product([(1, 2), (3, 2)], repeat=2)))]
    expected = set()
    for stem, width, depth, d, first, second in product(
        (4, 8), (8, 12), (1, 2), (12, 16), firsts, seconds
    ):
        if not (stem <= width < d and (second is None or d < second[0])):
            continue
        stages: dict[str, Any] = {"stem": {"width": stem}}
        stages["mbconv1"] = {"width": width, "depth": depth}
        for i, (dim, layers) in enumerate([(d, first), *([second] if second else [])], 1):
            heads, ratio = map(list, zip(*layers, strict=True))
            chosen = {"width": dim, "depth": len(layers), "heads": heads, "ratio": ratio}
            stages[f"transformer{i}"] = chosen
        expected.add(Arch.from_json({"space": "tiny", "stages": stages}))
    assert len(expected) == space.num_archs
    drawn = {space.decode(row) for row in space.sample(60_000, np.random.default_rng(0))}
    assert drawn == expected


def test_choices_are_drawn_uniformly() -> None:
    space = LOADED["tiny"]
    codes = space.sample(20_000, np.random.default_rng(1))
    for name in ("depth", "heads"):
        stage, layer = 2, None if name == "depth" else 0
        counts = Counter(codes[:, space.column(stage, name, layer)].tolist())
        # Neither the rule nor the range depends on it: half each, within five standard errors.
        assert abs(counts[0] / 20_000 - 0.5) < 5 * 0.5 / math.sqrt(20_000)


def test_a_large_sample_is_drawn_in_batches_of_bounded_size() -> None:
    drawn = []

    class Counting(np.random.Generator):
        def integers(self, *args: Any, **kwargs: Any) -> Any:
            rows = super().integers(*args, **kwargs)
            drawn.append(len(rows))
            return rows

    codes = LOADED["autovit-xxs"].sample(20_000, Counting(np.random.PCG64(0)))
    assert len(codes) == 20_000
    assert max(drawn) <= 65_536  # at 57 columns, 30 MB where they are widened to look up costs


# Mutation.


@property_test
@given(space=spaces, seed=seeds, p_depth=probabilities, p_block=probabilities)
def test_mutants_are_members(space: Space, seed: int, p_depth: float, p_block: float) -> None:
    rng = np.random.default_rng(seed)
    parents = space.sample(10, rng)
    before = parents.copy()
    children = space.mutate(parents, rng, p_depth=p_depth, p_block=p_block)
    assert children.shape == parents.shape
    assert children.dtype == np.int8
    assert all_members(space, children)
    assert (parents == before).all()


@property_test
@given(space=spaces, seed=seeds)
def test_without_probability_nothing_mutates(space: Space, seed: int) -> None:
    rng = np.random.default_rng(seed)
    parents = space.sample(10, rng)
    assert (space.mutate(parents, rng, p_depth=0, p_block=0) == parents).all()


@property_test
@given(space=spaces, seed=seeds)
def test_block_mutation_keeps_depths_and_stages(space: Space, seed: int) -> None:
    rng = np.random.default_rng(seed)
    parents = space.sample(10, rng)
    children = space.mutate(parents, rng, p_depth=0, p_block=1)
    structure = [c.name in ("depth", "present") for c in space.columns]
    assert (children[:, structure] == parents[:, structure]).all()


@property_test
@given(space=spaces, seed=seeds)
def test_depth_mutation_keeps_widths_and_the_layers_that_remain(space: Space, seed: int) -> None:
    rng = np.random.default_rng(seed)
    parents = space.sample(10, rng)
    children = space.mutate(parents, rng, p_depth=1, p_block=0)
    for parent, child in zip(map(space.decode, parents), map(space.decode, children), strict=True):
        before, after = parent.to_json()["stages"], child.to_json()["stages"]
        for name in before.keys() & after.keys():
            assert before[name]["width"] == after[name]["width"]
            for choice in before[name].keys() & {"heads", "ratio"}:
                kept = min(len(before[name][choice]), len(after[name][choice]))
                assert before[name][choice][:kept] == after[name][choice][:kept]


def test_layers_that_a_greater_depth_adds_are_drawn_anew() -> None:
    space = LOADED["tiny"]
    rng = np.random.default_rng(0)
    depth, heads = space.column(2, "depth"), space.column(2, "heads", 1)
    parents = space.sample(10_000, rng)
    parents = parents[parents[:, depth] == 0]  # one layer: the second is not in use
    children = space.mutate(parents, rng, p_depth=1, p_block=0)
    second = children[children[:, depth] == 1, heads]
    assert abs(second.mean() - 0.5) < 5 * 0.5 / math.sqrt(len(second))


def test_mutation_rate_is_the_given_probability() -> None:
    space = LOADED["tiny"]
    rng = np.random.default_rng(0)
    parents = space.sample(20_000, rng)
    children = space.mutate(parents, rng, p_depth=0.4, p_block=0.2)
    for name, layer, p in (("depth", None, 0.4), ("heads", 0, 0.2)):
        column = space.column(2, name, layer)
        changed = (parents[:, column] != children[:, column]).mean()
        # Drawn anew with probability p; a new draw of two values differs half of the time.
        assert abs(changed - p / 2) < 5 * math.sqrt(p / 2 / 20_000)


def test_mutation_and_crossover_follow_their_seed(space: Space) -> None:
    a, b = np.split(space.sample(40, np.random.default_rng(0)), 2)

    def products(seed: int) -> Codes:
        rng = np.random.default_rng(seed)
        return np.concatenate(
            [space.mutate(a, rng, p_depth=0.5, p_block=0.5), space.crossover(a, b, rng)]
        )

    assert (products(5) == products(5)).all()
    assert (products(5) != products(6)).any()
    assert (products(5)[:20] != a).any()


@property_test
@given(space=spaces, seed=seeds)
def test_products_are_accepted_or_their_parent(space: Space, seed: int) -> None:
    rng = np.random.default_rng(seed)
    parents, partners = np.split(space.sample(20, rng), 2)
    median = np.median(space.num_params(parents))

    def accept(codes: Codes) -> Any:
        return space.num_params(codes) <= median

    for children in (
        space.mutate(parents, rng, p_depth=0.3, p_block=0.3, accept=accept),
        space.crossover(parents, partners, rng, accept=accept),
    ):
        changed = (children != parents).any(axis=1)
        assert accept(children[changed]).all()
        assert all_members(space, children)


def test_a_parent_that_cannot_change_so_is_returned_as_it_is() -> None:
    space = LOADED["tiny"]
    rng = np.random.default_rng(0)
    parents = space.sample(5, rng)

    def never(codes: Codes) -> Any:
        return np.zeros(len(codes), dtype=bool)

    assert (space.mutate(parents, rng, p_depth=1, p_block=1, accept=never) == parents).all()
    assert (space.crossover(parents, parents[::-1], rng, accept=never) == parents).all()


# Crossover.


def layers_of(choices: dict[str, Any]) -> list[tuple[float, float]]:
    """The (heads, ratio) of each layer of a stage."""
    return list(zip(choices.get("heads", ()), choices.get("ratio", ()), strict=True))


@property_test
@given(space=spaces, seed=seeds)
def test_children_are_members_made_of_their_parents(space: Space, seed: int) -> None:
    rng = np.random.default_rng(seed)
    first, second = np.split(space.sample(20, rng), 2)
    children = space.crossover(first, second, rng)
    assert all_members(space, children)
    for rows in zip(first, second, children, strict=True):
        a, b, child = (space.decode(row).to_json()["stages"] for row in rows)
        for stage, choices in child.items():
            parents = [parent[stage] for parent in (a, b) if stage in parent]
            for name, value in choices.items():
                if not isinstance(value, list):
                    assert value in [parent[name] for parent in parents]
            for i, layer in enumerate(layers_of(choices)):
                layers = [layers_of(parent) for parent in parents]
                assert layer in [parent[i] for parent in layers if i < len(parent)]


@property_test
@given(space=spaces, seed=seeds)
def test_crossing_an_arch_with_itself_changes_nothing(space: Space, seed: int) -> None:
    rng = np.random.default_rng(seed)
    codes = space.sample(10, rng)
    assert (space.crossover(codes, codes, rng) == codes).all()


def test_crossover_takes_from_both_parents_evenly() -> None:
    space = LOADED["tiny"]
    rng = np.random.default_rng(0)
    first, second = np.split(space.sample(40_000, rng), 2)
    children = space.crossover(first, second, rng)
    for name, layer in (("depth", None), ("heads", 0)):
        column = space.column(2, name, layer)
        differ = first[:, column] != second[:, column]
        share = (children[differ, column] == second[differ, column]).mean()
        assert abs(share - 0.5) < 5 * 0.5 / math.sqrt(differ.sum())


# Codes and architectures.


@property_test
@given(space=spaces, seed=seeds)
def test_codes_survive_arch_and_json(space: Space, seed: int) -> None:
    for row in space.sample(10, np.random.default_rng(seed)):
        arch = space.decode(row)
        again = Arch.from_json(json.loads(json.dumps(arch.to_json())))
        assert again == arch
        assert hash(again) == hash(arch)
        assert json.loads(str(arch)) == arch.to_json()
        assert (space.encode(again) == row).all()
        assert (space.check(again) == row).all()


@property_test
@given(space=spaces, seed=seeds)
def test_equal_rows_are_equal_archs(space: Space, seed: int) -> None:
    codes = space.sample(50, np.random.default_rng(seed))
    archs = {space.decode(row) for row in codes}
    assert len(archs) == len(np.unique(codes, axis=0))


def damaged(**changes: Any) -> Arch:
    """The tiny space's arch with ``stage__choice=value`` replaced, dropped where None."""
    stages: dict[str, Any] = {
        "stem": {"width": 8},
        "mbconv1": {"width": 8, "depth": 1},
        "transformer1": {"width": 16, "depth": 2, "heads": [1, 2], "ratio": [1, 1.5]},
    }
    for path, value in changes.items():
        stage, _, choice = path.partition("__")
        target = stages.setdefault(stage, {}) if choice else stages
        target[choice or stage] = value
        if value is None:
            del target[choice or stage]
    return Arch.from_json({"space": "tiny", "stages": stages})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stem": None}, "lacks stage 'stem' of tiny"),
        ({"transformer1": None}, "lacks stage 'transformer1'"),
        ({"stem__width": 16}, "stem.width is 16; tiny has 4, 8"),
        ({"stem__width": None}, "stem.width is None"),
        ({"stem__width": [8]}, r"stem.width is \(8,\)"),
        ({"mbconv1__depth": 3}, "mbconv1.depth is 3; tiny has 1, 2"),
        ({"mbconv1__depth": None}, "mbconv1.depth is None"),
        ({"mbconv1__heads": [1]}, "stage 'mbconv1' of tiny has no choice 'heads'"),
        ({"mbconv9__width": 8}, "tiny has no stage 'mbconv9'"),
        ({"transformer1__heads": 2}, "transformer1.heads must be a list of 2, one a layer; got 2"),
        ({"transformer1__heads": [1]}, "must be a list of 2"),
        ({"transformer1__heads": [1, 2, 2]}, "must be a list of 2"),
        ({"transformer1__heads": None}, "must be a list of 2, one a layer; got None"),
        ({"transformer1__heads": [1, 3]}, "transformer1.heads is 3; tiny has 1, 2"),
        ({"transformer1__ratio": [1, 1.25]}, "transformer1.ratio is 1.25; tiny has 1, 1.5"),
        ({"transformer1__present": 1}, "has no choice 'present'"),
    ],
)
def test_an_arch_that_is_off_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    space = LOADED["tiny"]
    assert space.contains(damaged())
    arch = damaged(**changes)
    with pytest.raises(SpaceError, match=message):
        space.encode(arch)
    assert not space.contains(arch)


def test_an_arch_of_another_space_is_refused() -> None:
    with pytest.raises(SpaceError, match="is of space 'tiny', not of 'autovit-s'"):
        LOADED["autovit-s"].encode(damaged())


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, 'an object with "space" and "stages"'),
        ([], 'an object with "space" and "stages"'),
        ({"stages": {}}, 'an object with "space" and "stages"'),
        ({"space": 3, "stages": {}}, 'an object with "space" and "stages"'),
        ({"space": "tiny"}, 'no object "stages"'),
        ({"space": "tiny", "stages": []}, 'no object "stages"'),
        ({"space": "tiny", "stages": {"stem": 8}}, "stage 'stem' .* not an object of choices"),
        ({"space": "tiny", "stages": {"stem": {"width": "8"}}}, "stem.width .* not a number"),
        ({"space": "tiny", "stages": {"stem": {"width": True}}}, "stem.width .* not a number"),
        ({"space": "tiny", "stages": {"stem": {"width": None}}}, "stem.width .* not a number"),
        ({"space": "tiny", "stages": {"stem": {"width": [[8]]}}}, "stem.width .* not a number"),
    ],
)
def test_a_damaged_arch_file_is_refused(value: object, message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        Arch.from_json(value)


# Costs.


@property_test
@given(space=spaces, seed=seeds, image_size=st.sampled_from([32, 57, 256]))
def test_additive_cost_is_the_sum_over_blocks(space: Space, seed: int, image_size: int) -> None:
    def value(block: Block) -> float:
        return math.sin(len(block.key)) + 1e-6 * block.cost.elements

    codes = space.sample(10, np.random.default_rng(seed))
    networks = [space.blocks(space.decode(row), image_size, 10) for row in codes]
    expected = [math.fsum(map(value, blocks)) for blocks in networks]
    costs = space.additive_cost(value, image_size, 10)(codes)
    np.testing.assert_allclose(costs, expected, rtol=1e-12)
    assert space.num_params(codes, image_size, 10).tolist() == [num_params(b) for b in networks]


def test_a_block_without_a_value_makes_its_archs_nan_and_no_others() -> None:
    space = LOADED["autovit-xxs"]
    codes = space.sample(200, np.random.default_rng(0))
    layouts = [[block for _, block in space.layout(row)] for row in codes]
    unknown = next(b for b in layouts[0] if b.kind == "vit_layer")
    cost = space.additive_cost(lambda block: math.nan if block == unknown else 1.0)(codes)
    assert np.isnan(cost).tolist() == [unknown in blocks for blocks in layouts]
    assert 0 < np.isnan(cost).sum() < 200
    known = ~np.isnan(cost)
    assert cost[known].tolist() == [len(b) for b, k in zip(layouts, known, strict=True) if k]


def test_costs_of_no_archs(space: Space) -> None:
    assert space.num_params(space.sample(0, np.random.default_rng(0))).shape == (0,)
