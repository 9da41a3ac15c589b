"""Blocks: their keys, and their costs against the torch modules that they describe."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hwnas.errors import SpaceError
from hwnas.spaces import Block, num_macs, num_params
from hwnas.supernet import build

STEM = Block.of("conv", **{"in": 3, "out": 16, "kernel": 3, "stride": 2, "res": 33})
HEAD = Block.of("mbpool", **{"in": 12, "expand": 6, "features": 10, "res": 5})


def mbconv(c_in: int, c_out: int, *, expand: int, kernel: int, stride: int, res: int) -> Block:
    sizes = {"in": c_in, "out": c_out, "expand": expand, "kernel": kernel}
    return Block.of("mbconv", **sizes, stride=stride, res=res)


def vit_layer(d: int, heads: int, *, ratio: float, pixels: int, tokens: int) -> Block:
    return Block.of(
        "vit_layer", d=d, heads=heads, head_dim=8, ratio=ratio, pixels=pixels, tokens=tokens
    )


CONVOLUTIONAL = (
    STEM,
    mbconv(8, 8, expand=1, kernel=3, stride=1, res=16),
    mbconv(8, 12, expand=4, kernel=5, stride=2, res=17),
    mbconv(12, 8, expand=2, kernel=3, stride=2, res=16),
)
BLOCKS = (
    *CONVOLUTIONAL,
    Block.of("hybrid", c=12, d=20, kernel=3, patch=2, res=8),
    Block.of("hybrid", c=12, d=20, kernel=3, patch=1, res=7),
    vit_layer(24, 3, ratio=1.5, pixels=4, tokens=16),
    vit_layer(20, 1, ratio=1.33, pixels=1, tokens=49),
    HEAD,
)


def example(block: Block, batch: int = 1) -> torch.Tensor:
    """An input of the block: images, or [B * P, N, d] tokens."""
    if block.kind == "vit_layer":
        return torch.randn(batch * block["pixels"], block["tokens"], block["d"])
    channels = block["c"] if block.kind == "hybrid" else block["in"]
    return torch.randn(batch, channels, block["res"], block["res"])


@pytest.mark.parametrize("block", BLOCKS, ids=lambda b: b.key)
def test_params_are_those_of_the_module(block: Block) -> None:
    assert block.cost.params == sum(p.numel() for p in build([block]).parameters())


@pytest.mark.parametrize("block", BLOCKS, ids=lambda b: b.key)
def test_macs_are_half_the_flops_that_torch_counts(block: Block) -> None:
    # The plain attention: not every torch counts the fused one on a CPU.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        build([block])(example(block))
    assert 2 * block.cost.macs == counter.get_total_flops()


@pytest.mark.parametrize("block", CONVOLUTIONAL, ids=lambda b: b.key)
def test_elements_of_convolutions_are_the_numbers_they_read_and_write(block: Block) -> None:
    moved = []

    def count(conv: nn.Conv2d, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        moved.append(conv.weight.numel() + inputs[0].numel() + output.numel())

    network = build([block]).eval()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count)
    network(example(block))
    assert block.cost.elements == sum(moved)
    assert block.cost.launches == len(moved)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda b: b.key)
def test_elements_cover_at_least_weights_input_and_output(block: Block) -> None:
    network, x = build([block]).eval(), example(block)
    weights = sum(p.numel() for p in network.parameters() if p.dim() > 1)
    assert block.cost.elements >= weights + x.numel() + network(x).numel()


def test_folding_patches_costs_two_launches_more_than_whole_pixels() -> None:
    sizes = {"c": 12, "d": 20, "kernel": 3, "res": 8}
    patches, pixels = (Block.of("hybrid", patch=patch, **sizes) for patch in (2, 1))
    assert patches.cost.launches - pixels.cost.launches == 2
    assert patches.cost.macs == pixels.cost.macs


def test_stem_by_hand() -> None:
    # 3 -> 16 channels, 3x3, a 33x33 map halved to 17x17; two numbers of BatchNorm a channel.
    assert STEM.cost.params == 3 * 16 * 9 + 2 * 16
    assert STEM.cost.macs == 3 * 16 * 9 * 17 * 17


def test_a_network_is_the_sum_of_its_blocks() -> None:
    assert num_params([STEM, HEAD]) == (432 + 32) + (12 * 72 + 2 * 72 + 72 * 10 + 10)
    assert num_macs([STEM, HEAD]) == 432 * 17**2 + 12 * 72 * 5**2 + 72 * 10
    assert num_params([]) == num_macs([]) == 0


def test_key_is_the_documented_text() -> None:
    block = vit_layer(64, 3, ratio=2.0, pixels=4, tokens=256)
    assert block.key == "vit_layer/d=64/heads=3/head_dim=8/ratio=2/pixels=4/tokens=256"


@settings(deadline=None, database=None, derandomize=True)
@given(
    d=st.integers(1, 10**7),
    heads=st.integers(1, 64),
    ratio=st.floats(0.01, 8, allow_nan=False),
    tokens=st.integers(1, 10**6),
)
def test_a_block_survives_its_key(d: int, heads: int, ratio: float, tokens: int) -> None:
    block = vit_layer(d, heads, ratio=ratio, pixels=4, tokens=tokens)
    again = Block.parse(block.key)
    assert again == block
    assert hash(again) == hash(block)
    assert again.real("ratio") == ratio


def test_nearly_equal_ratios_have_different_keys() -> None:
    keys = {vit_layer(64, 2, ratio=r, pixels=1, tokens=4).key for r in (1.0000001, 1, 1.0)}
    assert len(keys) == 2


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("", "unknown block kind ''"),
        ("vit_layr/d=64", "did you mean 'vit_layer'"),
        ("vit_layer/d", "is not a block key"),
        ("vit_layer/d=wide", "is not a block key"),
        ("vit_layer/d=6=4", "is not a block key"),
        ("vit_layer/d=64", "is no vit_layer: 'heads' is missing"),
        ("conv/in=3/out=16/kernel=3/stride=0/res=32", "is no conv"),
        ("conv/in=3/out=inf/kernel=3/stride=1/res=32", "is no conv"),
        ("conv/in=nan/out=16/kernel=3/stride=1/res=32", "is no conv"),
    ],
)
def test_a_damaged_key_is_refused(key: str, message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        Block.parse(key)


def test_sizes_by_name() -> None:
    block = vit_layer(64, 3, ratio=1.5, pixels=4, tokens=256)
    assert (block["d"], block["heads"], block["tokens"]) == (64, 3, 256)
    assert math.isclose(block.real("ratio"), 1.5)
