"""The AutoViT spaces against the paper: Table 1, its parameter ranges and its winners."""

from __future__ import annotations

from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hwnas.errors import SpaceError
from hwnas.spaces import SPACES, Arch, Space, load_space, num_macs, num_params, parse_space
from hwnas.supernet import build

# Table 1: widths of the stem, three MBConv stages and four transformer stages; heads; parameters.
TABLE_1: dict[str, dict[str, Any]] = {
    "autovit-xxs": {
        "widths": [(16, 24), (16, 24), (24, 32), (32, 48), (48, 64), (64, 80), (80, 96), (96, 112)],
        "heads": (2, 3, 4),
        "params": (1.0e6, 1.8e6),
    },
    "autovit-xs": {
        "widths": [
            (16, 24), (24, 32), (32, 48), (48, 64), (64, 80), (80, 96), (96, 112), (112, 128),
        ],
        "heads": (4, 5, 6),
        "params": (1.6e6, 2.6e6),
    },
    "autovit-s": {
        "widths": [
            (16, 24), (24, 32), (32, 48), (48, 64), (64, 96), (96, 128), (128, 160), (160, 192),
        ],
        "heads": (7, 8, 9),
        "params": (4.0e6, 7.2e6),
    },
}  # fmt: skip
STAGES = ["stem", "mbconv1", "mbconv2", "mbconv3"] + [f"transformer{i}" for i in range(1, 5)]
MBCONV_DEPTHS = [(1, 2), (2, 3), (2, 3)]
# Table 2: parameters and multiply-accumulates of the three winners.
WINNERS = {
    "autovit-xxs": (1.8e6, 0.3e9),
    "autovit-xs": (2.5e6, 0.8e9),
    "autovit-s": (6.3e6, 1.3e9),
}


@pytest.fixture(params=SPACES)
def space(request: pytest.FixtureRequest) -> Space:
    return load_space(request.param)


def arch_of(space: Space, widths: list[int], *, depth: int = 2) -> Arch:
    """The architecture with these stage widths and the smallest of everything else."""
    stages: dict[str, dict[str, Any]] = {"stem": {"width": widths[0]}}
    for name, width, depths in zip(STAGES[1:4], widths[1:4], MBCONV_DEPTHS, strict=True):
        stages[name] = {"width": width, "depth": depths[0]}
    heads = TABLE_1[space.id]["heads"][0]
    for name, width in zip(STAGES[4:], widths[4:], strict=False):
        layers = {"heads": [heads] * depth, "ratio": [1.5] * depth}
        stages[name] = {"width": width, "depth": depth, **layers}
    return Arch.from_json({"space": space.id, "stages": stages})


def test_every_choice_of_table_1(space: Space) -> None:
    paper = TABLE_1[space.id]
    assert [stage.name for stage in space.stages] == STAGES
    assert [stage.width for stage in space.stages] == paper["widths"]
    assert [stage.depth for stage in space.stages[1:4]] == MBCONV_DEPTHS
    for stage in space.stages[4:]:
        assert stage.depth == (2, 3, 4, 5)
        assert dict(stage.per_layer) == {"heads": paper["heads"], "ratio": (1.5, 2)}
    assert [stage.optional for stage in space.stages] == [False] * 7 + [True]
    assert space.params_range == paper["params"]


def test_expansions_and_classes_of_table_1(space: Space) -> None:
    blocks = [block for _, block in space.layout(space.largest)]
    assert {b["expand"] for b in blocks if b.kind == "mbconv"} == {1}
    assert [(b["expand"], b["features"]) for b in blocks if b.kind == "mbpool"] == [(6, 1000)]


def test_the_largest_is_within_a_tenth_of_the_upper_end(space: Space) -> None:
    largest, high = int(space.num_params(space.largest[None])[0]), TABLE_1[space.id]["params"][1]
    assert abs(largest / high - 1) < 0.1


def test_the_winner_is_reachable_within_15_percent(space: Space) -> None:
    codes = space.sample(20_000, np.random.default_rng(0))
    params, macs = WINNERS[space.id]
    off = np.maximum(
        np.abs(space.num_params(codes) / params - 1),
        np.abs(space.additive_cost(lambda block: block.cost.macs)(codes) / macs - 1),
    )
    nearest = space.decode(codes[off.argmin()])
    assert space.contains(nearest)
    assert abs(num_params(space.blocks(nearest)) / params - 1) < 0.15
    assert abs(num_macs(space.blocks(nearest)) / macs - 1) < 0.15


@pytest.mark.parametrize("image_size", [48, 65, 256])
def test_costs_of_whole_networks_are_those_of_torch(space: Space, image_size: int) -> None:
    codes = np.vstack([space.sample(3, np.random.default_rng(1)), space.largest])
    params = space.num_params(codes, image_size, 10)
    macs = space.additive_cost(lambda block: block.cost.macs, image_size, 10)(codes)
    for row, num, num_macs_ in zip(codes, params, macs, strict=True):
        with torch.device("meta"):
            network = build([block for _, block in space.layout(row, image_size, 10)])
            with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
                network(torch.empty(1, 3, image_size, image_size))
        assert num == sum(p.numel() for p in network.parameters())
        assert 2 * num_macs_ == counter.get_total_flops()


@pytest.mark.parametrize("stages", [3, 4])
@pytest.mark.parametrize("image_size", [32, 33, 48, 64, 224, 256])
def test_every_image_size_gives_logits(image_size: int, stages: int) -> None:
    space = load_space("autovit-xxs")
    codes = space.sample(50, np.random.default_rng(2))
    row = next(r for r in codes if len(space.decode(r).stages) == 4 + stages)
    network = build([block for _, block in space.layout(row, image_size, 7)], seed=0).eval()
    with torch.no_grad():
        logits = network(torch.randn(2, 3, image_size, image_size))
    assert logits.shape == (2, 7)
    assert torch.isfinite(logits).all()


def test_resolutions_at_256_pixels(space: Space) -> None:
    layout = dict(space.layout(space.largest))
    sides = {slot: block["res"] for slot, block in layout.items() if block.kind == "hybrid"}
    assert sides == dict(zip(STAGES[4:], [32, 16, 8, 8], strict=True))
    tokens = {slot: block["tokens"] for slot, block in layout.items() if block.kind == "vit_layer"}
    assert [tokens[f"{stage}_0"] for stage in STAGES[4:]] == [256, 64, 16, 16]


def test_patches_are_single_pixels_where_the_side_is_odd() -> None:
    space = load_space("autovit-xxs")
    blocks = [block for _, block in space.layout(space.largest, image_size=72)]
    hybrids = [(b["res"], b["patch"]) for b in blocks if b.kind == "hybrid"]
    assert hybrids == [(9, 1), (5, 1), (3, 1), (3, 1)]
    layers = {(b["pixels"], b["tokens"]) for b in blocks if b.kind == "vit_layer"}
    assert layers == {(1, 81), (1, 25), (1, 9)}


def test_layers_follow_depth_and_channels_follow_the_stage_before() -> None:
    space = load_space("autovit-xs")
    layout = space.layout(space.encode(arch_of(space, [16, 24, 32, 48, 64, 80, 96], depth=3)))
    kinds = [block.kind for _, block in layout]
    assert kinds == (
        ["conv"] + ["mbconv"] * (1 + 2 + 2)
        + ["hybrid"] + ["vit_layer"] * 3
        + ["mbconv", "hybrid", *["vit_layer"] * 3] * 2
        + ["mbpool"]
    )  # fmt: skip
    assert [(b["c"], b["d"]) for _, b in layout if b.kind == "hybrid"] == [
        (48, 64), (64, 80), (80, 96),
    ]  # fmt: skip
    assert layout[-1][1]["in"] == 80


def test_width_must_grow_from_stage_to_stage() -> None:
    space = load_space("autovit-s")
    good = [16, 24, 32, 48, 64, 96, 128, 160]
    assert space.contains(arch_of(space, good, depth=5))
    for stage in range(1, 7):  # as wide as the one after it
        same = [*good[:stage], good[stage + 1], *good[stage + 1 :]]
        arch = arch_of(space, same, depth=5)
        assert not space.contains(arch)
        with pytest.raises(SpaceError, match="widths must grow"):
            space.check(arch)


def test_the_first_mbconv_may_be_as_wide_as_the_stem_but_no_narrower() -> None:
    space = load_space("autovit-xxs")
    rest = [32, 48, 64, 80, 96, 112]
    assert space.contains(arch_of(space, [24, 24, *rest], depth=5))
    with pytest.raises(SpaceError, match="widths must grow"):
        space.check(arch_of(space, [24, 16, *rest], depth=5))


def test_an_arch_outside_the_range_is_not_in_the_space(space: Space) -> None:
    smallest = arch_of(space, [low for low, _ in TABLE_1[space.id]["widths"]][:7])
    assert num_params(space.blocks(smallest)) < TABLE_1[space.id]["params"][0]
    assert not space.contains(smallest)
    with pytest.raises(SpaceError, match=r"has [\d,]+ parameters; autovit-x*s holds"):
        space.check(smallest)


def test_an_arch_above_the_range_is_not_in_the_space() -> None:
    text = load_space("autovit-xxs").definition.replace("1_800_000", "1_100_000")
    narrow = parse_space(text, "narrow.toml")
    above = arch_of(narrow, [16, 24, 32, 48, 64, 80, 96, 112], depth=5)
    assert num_params(narrow.blocks(above)) > 1_100_000
    assert load_space("autovit-xxs").contains(above)
    assert not narrow.contains(above)
    with pytest.raises(SpaceError, match="autovit-xxs holds 1,000,000 to 1,100,000"):
        narrow.check(above)


def test_the_number_of_archs_is_that_of_an_enumeration(space: Space) -> None:
    paper = TABLE_1[space.id]
    layers = sum((len(paper["heads"]) * 2) ** depth for depth in (2, 3, 4, 5))
    total = 0
    for transformers in (3, 4):
        rows = product(*paper["widths"][: 4 + transformers])
        valid = sum(w[0] <= w[1] and all(a < b for a, b in pairwise(w[1:])) for w in rows)
        total += valid * 2**3 * layers**transformers
    assert space.num_archs == total


def test_what_the_paper_leaves_open_is_told(space: Space) -> None:
    told = space.silent_choices()
    assert told["halve the resolution"] == "stem, mbconv2, mbconv3, transformer2, transformer3"
    assert told["head dimension"] == {"autovit-s": "32"}.get(space.id, "8")


@pytest.mark.parametrize(("image_size", "num_classes"), [(0, 10), (32, 0), (-1, -1)])
def test_no_network_for_no_pixels_or_classes(image_size: int, num_classes: int) -> None:
    space = load_space("autovit-xxs")
    with pytest.raises(SpaceError, match="no network for"):
        space.layout(space.largest, image_size, num_classes)
