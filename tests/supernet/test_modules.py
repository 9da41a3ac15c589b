"""The plain modules against timm's, on copied weights."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from timm.models._efficientnet_blocks import InvertedResidual
from timm.models.byobnet import LayerFn
from timm.models.mobilevit import MobileVitBlock
from timm.models.vision_transformer import Block as TimmViTBlock
from torch import Tensor, nn

from hwnas.spaces import Block
from hwnas.supernet import Network, build

LayerNorm = partial(nn.LayerNorm, eps=1e-5)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def randomize(module: nn.Module) -> None:
    """Give every weight, bias and BatchNorm statistic a value that would show where it is used."""
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2)
            elif not name.endswith("num_batches_tracked"):
                tensor.normal_(0.1, 0.5)


def copy_weights(source: nn.Module, target: nn.Module, names: dict[str, str]) -> None:
    """Copy the submodules of ``source`` to those of ``target`` that ``names`` maps them to."""
    for mine, theirs in names.items():
        target.get_submodule(theirs).load_state_dict(source.get_submodule(mine).state_dict())


def by_kind(tensor: Tensor, head_dim: int) -> Tensor:
    """Rows head by head (q, k, v of each) to timm's order: all q, then all k, then all v."""
    return tensor.unflatten(0, (-1, 3, head_dim)).transpose(0, 1).flatten(0, 2)


def timm_layer(layer: nn.Module, block: Block) -> nn.Module:
    """timm's ViT block with the weights of ``layer``; its heads are d / heads wide."""
    d, heads, head_dim = block["d"], block["heads"], block["head_dim"]
    theirs = TimmViTBlock(
        d, heads, block.real("ratio"), qkv_bias=True, act_layer=nn.SiLU, norm_layer=LayerNorm
    )
    names = {"norm1": "norm1", "norm2": "norm2", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}
    copy_weights(layer, theirs, names | {"attn.proj": "attn.proj"})
    qkv = layer.get_submodule("attn.qkv").state_dict()
    theirs.attn.qkv.load_state_dict({name: by_kind(t, head_dim) for name, t in qkv.items()})
    return theirs


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def same_in_both_modes(ours: Network, theirs: nn.Module, x: Tensor, names: dict[str, str]) -> None:
    """Equal outputs in evaluation and in training, and equal running statistics after it."""
    close(ours.eval()(x), theirs.eval()(x))
    close(ours.train()(x), theirs.train()(x))
    for mine, their in names.items():
        norm, other = ours.get_submodule(mine), theirs.get_submodule(their)
        close(norm.running_mean, other.running_mean)
        close(norm.running_var, other.running_var)


@pytest.mark.parametrize(
    ("d", "heads", "head_dim", "ratio"), [(32, 4, 8, 2), (24, 3, 8, 1.5), (96, 3, 32, 1.33)]
)
def test_transformer_layer_is_timms(d: int, heads: int, head_dim: int, ratio: float) -> None:
    block = Block.of(
        "vit_layer", d=d, heads=heads, head_dim=head_dim, ratio=ratio, pixels=4, tokens=9
    )
    ours = build([block], ["layer"])
    randomize(ours)
    theirs = timm_layer(ours.get_submodule("layer"), block)
    x = torch.randn(8, 9, d)
    close(ours(x), theirs(x))
    assert block.cost.params == sum(p.numel() for p in theirs.parameters())


@pytest.mark.parametrize("expand", [1, 4])
@pytest.mark.parametrize(
    ("c_in", "c_out", "stride", "size"),
    [(16, 16, 1, 8), (16, 24, 1, 8), (16, 16, 2, 8), (16, 24, 2, 9)],
)
def test_mbconv_is_timms_inverted_residual(
    c_in: int, c_out: int, stride: int, size: int, expand: int
) -> None:
    sizes = {"in": c_in, "out": c_out, "expand": expand, "kernel": 3, "stride": stride}
    block = Block.of("mbconv", **sizes, res=size)
    ours = build([block], ["mbconv"])
    randomize(ours)
    theirs = InvertedResidual(c_in, c_out, 3, stride, exp_ratio=expand, act_layer=nn.SiLU)
    places = {"expand": ("conv_pw", "bn1"), "depthwise": ("conv_dw", "bn2")}
    places["project"] = ("conv_pwl", "bn3")
    convs = {f"mbconv.{mine}.conv": conv for mine, (conv, _) in places.items()}
    norms = {f"mbconv.{mine}.norm": norm for mine, (_, norm) in places.items()}
    copy_weights(ours, theirs, convs | norms)
    same_in_both_modes(ours, theirs, torch.randn(4, c_in, size, size), norms)
    assert block.cost.params == sum(p.numel() for p in theirs.parameters())


@pytest.mark.parametrize(("patch", "size"), [(2, 8), (1, 7)])
def test_hybrid_stage_is_timms_mobilevit_block(patch: int, size: int) -> None:
    c, d, depth = 12, 32, 2
    layer = Block.of(
        "vit_layer", d=d, heads=4, head_dim=8, ratio=2, pixels=patch**2, tokens=(size // patch) ** 2
    )
    hybrid = Block.of("hybrid", c=c, d=d, kernel=3, patch=patch, res=size)
    ours = build([hybrid, *[layer] * depth], ["hybrid", *(f"layer{i}" for i in range(depth))])
    randomize(ours)
    theirs = MobileVitBlock(
        c,
        transformer_dim=d,
        transformer_depth=depth,
        patch_size=patch,
        num_heads=4,
        layers=LayerFn(
            act=nn.SiLU, conv_norm_act=partial(LayerFn().conv_norm_act, act_layer=nn.SiLU)
        ),
        transformer_norm_layer=LayerNorm,
    )
    places = {"local": "conv_kxk", "project": "conv_proj", "fuse": "conv_fusion"}
    norms = {f"hybrid.{mine}.norm": f"{their}.bn" for mine, their in places.items()}
    convs = {"hybrid.local.conv": "conv_kxk.conv", "hybrid.project.conv": "conv_proj.conv"}
    copy_weights(ours, theirs, norms | convs | {"hybrid.up": "conv_1x1", "hybrid.norm": "norm"})
    # timm fuses with a 3x3 convolution, AutoViT with 1x1: the same where only the centre is set.
    with torch.no_grad():
        theirs.conv_fusion.conv.weight.zero_()
        fuse = ours.get_submodule("hybrid.fuse.conv").weight
        theirs.conv_fusion.conv.weight[:, :, 1:2, 1:2] = fuse
    for i in range(depth):
        theirs.transformer[i] = timm_layer(ours.get_submodule(f"layer{i}"), layer)
    same_in_both_modes(ours, theirs, torch.randn(4, c, size, size), norms)


def test_the_head_expands_pools_and_classifies() -> None:
    block = Block.of("mbpool", **{"in": 6, "expand": 3, "features": 5, "res": 4})
    network = build([block], ["head"]).eval()
    randomize(network)
    head, x = network.get_submodule("head"), torch.randn(2, 6, 4, 4)
    expand = nn.Sequential(head.get_submodule("expand.conv"), head.get_submodule("expand.norm"))
    pooled = nn.functional.adaptive_avg_pool2d(nn.functional.silu(expand(x)), 1).flatten(1)
    close(network(x), head.get_submodule("classify")(pooled))


def test_layers_run_between_entering_and_leaving_their_hybrid() -> None:
    hybrid = Block.of("hybrid", c=4, d=8, kernel=3, patch=2, res=4)
    layer = Block.of("vit_layer", d=8, heads=1, head_dim=8, ratio=1, pixels=4, tokens=4)
    stem = Block.of("conv", **{"in": 4, "out": 4, "kernel": 3, "stride": 1, "res": 4})
    network, x = build([hybrid, layer, stem, hybrid], seed=0).eval(), torch.randn(2, 4, 4, 4)
    first, vit, conv, last = network.children()
    y = conv(first.leave(vit(first.enter(x)), x))
    close(network(x), last.leave(last.enter(y), y))


def test_unfolding_gathers_the_pixels_of_each_patch() -> None:
    network = build([Block.of("hybrid", c=1, d=1, kernel=3, patch=2, res=4)], ["hybrid"]).eval()
    hybrid = network.get_submodule("hybrid")
    hybrid.local = nn.Identity()
    hybrid.up.weight.data.fill_(1)
    pixels = torch.arange(16.0).reshape(1, 1, 4, 4)
    tokens = hybrid.enter(pixels)[..., 0]
    # Row p holds pixel p of each 2x2 patch; patches are numbered row by row.
    assert tokens.tolist() == [[0, 2, 8, 10], [1, 3, 9, 11], [4, 6, 12, 14], [5, 7, 13, 15]]


def test_seeded_weights_are_the_same_and_leave_torchs_generator_alone() -> None:
    block = Block.of("conv", **{"in": 3, "out": 8, "kernel": 3, "stride": 2, "res": 8})
    state = torch.get_rng_state()
    first, again, other = (build([block], seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    key = "block0.conv.weight"
    assert torch.equal(first[key], again[key])
    assert not torch.equal(first[key], other[key])


def test_initial_convolutions_are_he_normal_and_linears_small() -> None:
    sizes = {"in": 64, "out": 256, "kernel": 3, "stride": 1, "res": 8}
    head = Block.of("mbpool", **{"in": 256, "expand": 1, "features": 100, "res": 8})
    network = build([Block.of("conv", **sizes), head], ["stem", "head"], seed=0)
    conv = network.get_submodule("stem.conv").weight
    assert abs(conv.std().item() / (2 / (256 * 9)) ** 0.5 - 1) < 0.02
    classify = network.get_submodule("head.classify")
    assert abs(classify.weight.std().item() / 0.02 - 1) < 0.02
    assert classify.bias.abs().max() == 0


def test_names_and_blocks_must_be_as_many() -> None:
    block = Block.of("conv", **{"in": 3, "out": 8, "kernel": 3, "stride": 2, "res": 8})
    with pytest.raises(ValueError, match="argument"):
        build([block], ["stem", "head"])
