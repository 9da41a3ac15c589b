"""The supernet: its pieces against plain torch on sliced weights, it against what is extracted."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from hwnas.errors import SpaceError
from hwnas.spaces import Arch, Block, Codes, Space, load_space, parse_space
from hwnas.supernet import Supernet, build

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
heads = [1, 2, 3]
ratio = [1, 1.5]
[[transformer]]
width = [16, 20]
depth = [1, 2]
heads = [1, 3]
ratio = [2]
optional = true
stride = 1
"""
SMALL = {
    "stem": {"width": 4},
    "mbconv1": {"width": 8, "depth": 2},
    "transformer1": {"width": 12, "depth": 1, "heads": [2], "ratio": [1]},
    "transformer2": {"width": 16, "depth": 2, "heads": [1, 3], "ratio": [2, 2]},
}
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def tiny() -> Space:
    return parse_space(TINY, "tiny.toml")


@pytest.fixture
def supernet(tiny: Space) -> Supernet:
    """In training mode; its statistics, norms and biases show where they are used."""
    made = Supernet(tiny, image_size=32, num_classes=5, seed=0)
    generator = torch.Generator().manual_seed(1)
    for name, tensor in made.net.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2, generator=generator)
        elif "norm" in name and not name.endswith("num_batches_tracked"):
            tensor.normal_(0.5, 0.3, generator=generator)
        elif name.endswith("bias"):
            tensor.normal_(0, 0.3, generator=generator)
    return made


@pytest.fixture
def small(tiny: Space) -> Arch:
    arch = Arch.from_json({"space": "tiny", "stages": SMALL})
    tiny.check(arch)
    return arch


def images(num: int = 4, size: int = 32, seed: int = 0) -> Tensor:
    return torch.randn(num, 3, size, size, generator=torch.Generator().manual_seed(seed))


def close(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


# What a piece must compute, written out with plain functions on slices of the supernet's weights.


def batch_norm(s: State, name: str, x: Tensor) -> Tensor:
    """In training: statistics of the batch, the first channels' weights."""
    n = x.shape[1]
    weight, bias = s[f"{name}.weight"][:n], s[f"{name}.bias"][:n]
    return F.batch_norm(x, None, None, weight, bias, training=True)


def conv(s: State, name: str, x: Tensor, out: int, *, stride: int = 1) -> Tensor:
    """A convolution without padding loss, BatchNorm; first input and output channels."""
    weight = s[f"{name}.conv.weight"][:out, : x.shape[1]]
    y = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
    return batch_norm(s, f"{name}.norm", y)


def expected_conv(s: State, slot: str, b: Block, x: Tensor) -> Tensor:
    return F.silu(conv(s, slot, x, b["out"], stride=b["stride"]))


def expected_mbconv(s: State, slot: str, b: Block, x: Tensor) -> Tensor:
    inner = b["in"] * b["expand"]
    y = F.silu(conv(s, f"{slot}.expand", x, inner))
    depthwise = s[f"{slot}.depthwise.conv.weight"][:inner]
    y = F.conv2d(y, depthwise, stride=b["stride"], padding=1, groups=inner)
    y = F.silu(batch_norm(s, f"{slot}.depthwise.norm", y))
    y = conv(s, f"{slot}.project", y, b["out"])
    return x + y if b["in"] == b["out"] and b["stride"] == 1 else y


def expected_vit_layer(s: State, slot: str, b: Block, x: Tensor) -> Tensor:
    d, heads, size, hidden = b["d"], b["heads"], b["head_dim"], int(b["d"] * b.real("ratio"))

    def norm(name: str, x: Tensor) -> Tensor:
        weight, bias = s[f"{slot}.{name}.weight"][:d], s[f"{slot}.{name}.bias"][:d]
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight + bias

    def linear(name: str, x: Tensor, rows: slice) -> Tensor:
        weight = s[f"{slot}.{name}.weight"][rows, : x.shape[-1]]
        return x @ weight.T + s[f"{slot}.{name}.bias"][rows]

    y, outs = norm("norm1", x), []
    for head in range(heads):
        first = 3 * size * head
        q, k, v = (
            linear("attn.qkv", y, slice(first + i * size, first + (i + 1) * size)) for i in range(3)
        )
        outs.append((q @ k.transpose(-2, -1) / size**0.5).softmax(-1) @ v)
    x = x + linear("attn.proj", torch.cat(outs, -1), slice(d))
    hidden_units = F.silu(linear("fc1", norm("norm2", x), slice(hidden)))
    return x + linear("fc2", hidden_units, slice(d))


def expected_mbpool(s: State, slot: str, b: Block, x: Tensor) -> Tensor:
    inner = b["in"] * b["expand"]
    y = F.silu(conv(s, f"{slot}.expand", x, inner)).mean((2, 3))
    return y @ s[f"{slot}.classify.weight"][:, :inner].T + s[f"{slot}.classify.bias"]


def expected_enter(s: State, slot: str, b: Block, x: Tensor) -> Tensor:
    y = F.silu(conv(s, f"{slot}.local", x, b["c"]))
    y = F.conv2d(y, s[f"{slot}.up.weight"][: b["d"], : b["c"]])
    # A token for each of the four pixels of each 2x2 patch: [B * 4, N, d].
    pixels = [y[:, :, i::2, j::2].flatten(2).transpose(1, 2) for i in (0, 1) for j in (0, 1)]
    return torch.stack(pixels, 1).flatten(0, 1)


def expected_leave(s: State, slot: str, b: Block, tokens: Tensor, x: Tensor) -> Tensor:
    c, d, widest = b["c"], b["d"], s[f"{slot}.fuse.norm.weight"].shape[0]
    weight, bias = s[f"{slot}.norm.weight"][:d], s[f"{slot}.norm.bias"][:d]
    tokens = F.layer_norm(tokens, (d,), weight, bias).unflatten(0, (-1, 4))
    y = x.new_empty(len(x), d, *x.shape[2:])
    for p, (i, j) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        y[:, :, i::2, j::2] = tokens[:, p].transpose(1, 2).unflatten(2, (x.shape[2] // 2, -1))
    y = F.silu(conv(s, f"{slot}.project", y, c))
    # The first channels of each of the two maps, which lie ``widest`` apart.
    fuse = s[f"{slot}.fuse.conv.weight"][:c]
    fused = F.conv2d(x, fuse[:, :c]) + F.conv2d(y, fuse[:, widest : widest + c])
    return F.silu(batch_norm(s, f"{slot}.fuse.norm", fused))


EXPECTED: dict[str, Callable[[State, str, Block, Tensor], Tensor]] = {
    "conv": expected_conv,
    "mbconv": expected_mbconv,
    "vit_layer": expected_vit_layer,
    "mbpool": expected_mbpool,
}


@contextmanager
def recording() -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Record (input, output) of each block that runs, hybrids apart: they are entered and left."""
    records = []

    def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if type(module).__name__ in ("Conv", "MBConv", "ViTLayer", "MBPool"):
            records.append((inputs[0], output))

    handle = register_module_forward_hook(record)
    try:
        yield records
    finally:
        handle.remove()


@pytest.mark.parametrize("kind", [*EXPECTED, "hybrid"])
@torch.no_grad()
def test_each_piece_runs_with_leading_slices(
    supernet: Supernet, tiny: Space, small: Arch, kind: str
) -> None:
    state = {name: t.clone() for name, t in supernet.net.state_dict().items()}
    compared = 0
    for codes in (tiny.encode(small), *tiny.sample(10, np.random.default_rng(0))):
        with recording() as records:
            supernet(images(), codes)
        layout, records_left, entered = supernet.layout(codes), iter(records), None
        before = after = images()
        for slot, block in layout:
            if block.kind == "hybrid":
                entered = (slot, block, after)
                continue
            before, output = next(records_left)
            if entered and kind == "hybrid":
                if block.kind == "vit_layer" and slot.endswith("_0"):
                    close(before, expected_enter(state, *entered))
                elif block.kind != "vit_layer":
                    close(before, expected_leave(state, *entered[:2], after, entered[2]))
                    compared, entered = compared + 1, None
            elif block.kind == kind:
                close(output, EXPECTED[kind](state, slot, block, before))
                compared += 1
            after = output
        assert next(records_left, None) is None
    assert compared >= 11  # at least one for each arch


def test_statistics_of_a_training_step_land_in_the_leading_slice_only(
    supernet: Supernet, small: Arch
) -> None:
    norm = supernet.net.get_submodule("stem.norm")
    mean, var = norm.running_mean.clone(), norm.running_var.clone()
    weight = supernet.net.get_submodule("stem.conv").weight[:4]
    x = images()
    maps = F.conv2d(x, weight, stride=2, padding=1).transpose(0, 1).flatten(1).detach()
    supernet(x, small)
    close(norm.running_mean[:4], 0.9 * mean[:4] + 0.1 * maps.mean(1))
    close(norm.running_var[:4], 0.9 * var[:4] + 0.1 * maps.var(1, unbiased=True))
    assert torch.equal(norm.running_mean[4:], mean[4:])
    assert torch.equal(norm.running_var[4:], var[4:])
    assert norm.num_batches_tracked == 1


def test_evaluation_leaves_statistics_alone_and_uses_them(supernet: Supernet, small: Arch) -> None:
    supernet.eval()
    before = copy.deepcopy(supernet.net.state_dict())
    alone = supernet(images(1), small)
    close(supernet(images(4), small)[:1], alone)
    for name, tensor in supernet.net.state_dict().items():
        assert torch.equal(tensor, before[name]), name


# Whole networks.


@torch.no_grad()
def test_a_hundred_archs_give_the_same_numbers_when_extracted() -> None:
    space = load_space("autovit-xxs")
    supernet = Supernet(space, image_size=32, num_classes=10, seed=0)
    for codes in space.sample(100, np.random.default_rng(0)):
        subnet = supernet.extract(codes)  # before the forward: from equal statistics
        # Evaluation after training, with the statistics that training has just moved in both.
        for training in (True, False):
            supernet.train(training)
            subnet.train(training)
            close(supernet(images(), codes), subnet(images()))


@pytest.mark.parametrize("name", ["autovit-xs", "autovit-s"])
@pytest.mark.parametrize("image_size", [48, 64])
def test_other_spaces_and_sizes_give_the_same_numbers(name: str, image_size: int) -> None:
    space = load_space(name)
    supernet = Supernet(space, image_size=image_size, num_classes=10, seed=0)
    with torch.no_grad():
        for codes in space.sample(3, np.random.default_rng(0)):
            for training in (True, False):
                subnet = supernet.train(training).extract(codes)
                x = images(4, image_size)
                close(supernet(x, codes), subnet(x))


def test_arch_and_codes_are_the_same_argument(supernet: Supernet, tiny: Space, small: Arch) -> None:
    supernet.eval()
    assert torch.equal(supernet(images(), small), supernet(images(), tiny.encode(small)))


def test_an_arch_of_another_space_is_refused(supernet: Supernet) -> None:
    other = load_space("autovit-xxs")
    with pytest.raises(SpaceError, match="is of space 'autovit-xxs', not of 'tiny'"):
        supernet(images(), other.decode(other.largest))


def test_the_largest_arch_runs_with_the_whole_weights(supernet: Supernet, tiny: Space) -> None:
    supernet.eval()
    close(supernet(images(), tiny.largest), supernet.net(images()))
    slots, blocks = zip(*supernet.layout(tiny.largest), strict=True)
    assert supernet.net.blocks == blocks
    assert [name for name, _ in supernet.net.named_children()] == list(slots)


def test_the_supernet_holds_each_weight_once(supernet: Supernet, tiny: Space) -> None:
    for codes in tiny.sample(5, np.random.default_rng(0)):
        supernet(images(), codes)
    largest = tiny.num_params(tiny.largest[None], 32, 5)[0]
    assert sum(p.numel() for p in supernet.parameters()) == largest


@pytest.mark.parametrize("name", ["autovit-xxs", "autovit-xs", "autovit-s"])
def test_extracted_networks_have_the_params_of_the_space(name: str) -> None:
    space = load_space(name)
    supernet = Supernet(space, image_size=32, num_classes=10, seed=0)
    codes = space.sample(5, np.random.default_rng(0))
    counted = [sum(p.numel() for p in supernet.extract(row).parameters()) for row in codes]
    assert counted == space.num_params(codes, 32, 10).tolist()


def test_an_extracted_state_loads_into_a_plain_build(supernet: Supernet, small: Arch) -> None:
    subnet = supernet.eval().extract(small)
    slots, blocks = zip(*subnet.layout, strict=True)
    plain = build(blocks, slots, seed=7).eval()
    plain.load_state_dict(subnet.state_dict())
    close(plain(images()), supernet(images(), small))


def test_an_extracted_network_is_a_copy_that_can_be_trained(
    supernet: Supernet, small: Arch
) -> None:
    before = copy.deepcopy(supernet.net.state_dict())
    subnet = supernet.extract(small)
    assert all(p.requires_grad and p.is_leaf and p.is_contiguous() for p in subnet.parameters())
    F.cross_entropy(subnet(images()), torch.arange(4)).backward()
    torch.optim.SGD(subnet.parameters(), lr=1.0).step()
    for name, tensor in supernet.net.state_dict().items():
        assert torch.equal(tensor, before[name]), name


# Gradients.


def leading(tensor: Tensor, name: str, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """The part of ``tensor`` that a weight of ``shape`` uses, and a mask of what it does not."""
    mask = torch.zeros_like(tensor, dtype=torch.bool)
    if name.endswith("fuse.conv.weight"):
        c, widest = shape[0], tensor.shape[0]
        columns = [*range(c), *range(widest, widest + c)]
        mask[:c, columns] = True
        return tensor[:c][:, columns], ~mask
    index = tuple(slice(size) for size in shape)
    mask[index] = True
    return tensor[index], ~mask


def test_gradients_are_those_of_the_extracted_and_nowhere_else(
    supernet: Supernet, small: Arch
) -> None:
    subnet, labels = supernet.extract(small), torch.arange(4)
    F.cross_entropy(supernet(images(), small), labels).backward()
    F.cross_entropy(subnet(images()), labels).backward()
    grads = {name: p.grad for name, p in subnet.named_parameters()}
    assert "transformer1_1.fc1.weight" not in grads  # depth 1: the second layer is not sampled
    for name, parameter in supernet.net.named_parameters():
        if name not in grads:
            assert parameter.grad is None, name
            continue
        used, unused = leading(parameter.grad, name, grads[name].shape)
        close(used, grads[name])
        assert used.any() or name.endswith("bias"), name  # BatchNorm cancels some of the biases
        assert not parameter.grad[unused].any(), name


# Modes, copies and conversions.


def test_modes_reach_pieces_made_before_and_after(
    supernet: Supernet, tiny: Space, small: Arch
) -> None:
    codes = [tiny.encode(small), tiny.largest]
    supernet(images(), codes[0])
    supernet.eval()
    for row in codes:
        assert torch.equal(supernet(images(), row), supernet(images(), row))
    before = supernet(images(), codes[1])
    supernet.train()
    supernet(images(), codes[1])
    supernet.eval()
    assert not torch.equal(supernet(images(), codes[1]), before)


def converted(supernet: Supernet) -> Supernet:
    return supernet.double()


def copied(supernet: Supernet) -> Supernet:
    return copy.deepcopy(supernet).double()


def reloaded(supernet: Supernet) -> Supernet:
    other = Supernet(supernet.space, image_size=32, num_classes=5, seed=9).double()
    other.load_state_dict(supernet.state_dict())
    return other


@pytest.mark.parametrize("change", [converted, copied, reloaded])
def test_weights_and_statistics_stay_entangled(
    supernet: Supernet, small: Arch, change: Callable[[Supernet], Supernet]
) -> None:
    supernet(images(), small)  # so that a piece or tensor kept from before the change is found out
    changed = change(supernet)
    subnet = changed.extract(small)
    close(changed(images().double(), small), subnet(images().double()))
    tracked = changed.net.get_submodule("stem.norm").running_mean
    assert tracked.dtype == torch.float64
    close(tracked[:4], subnet.get_submodule("stem.norm").running_mean)


def test_a_seed_gives_the_same_supernet(tiny: Space) -> None:
    states = [
        Supernet(tiny, image_size=32, num_classes=5, seed=seed).state_dict() for seed in (3, 3, 4)
    ]
    same: list[Any] = [torch.equal(states[0][name], states[1][name]) for name in states[0]]
    assert all(same)
    assert any(not torch.equal(states[0][name], states[2][name]) for name in states[0])


def test_statistics_of_an_extracted_subnet_are_absorbed_into_their_slices(
    supernet: Supernet, tiny: Space, small: Arch
) -> None:
    before = copy.deepcopy(supernet.net.state_dict())
    subnet = supernet.extract(small)
    subnet(images(seed=5))
    supernet.absorb_statistics(subnet)
    close(supernet.eval()(images(), small), subnet.eval()(images()))
    codes: Codes = tiny.encode(small)
    shapes = {name: t.shape for name, t in supernet.extract(codes).state_dict().items()}
    for name, tensor in supernet.net.state_dict().items():
        changed = tensor != before[name]
        if "running" in name and name in shapes:
            assert changed[: shapes[name][0]].all(), name
            assert not changed[shapes[name][0] :].any(), name
        elif not name.endswith("num_batches_tracked"):
            assert not changed.any(), name


def test_a_supernet_that_was_moved_runs_and_extracts_with_its_new_tensors() -> None:
    space = load_space("autovit-xxs")
    supernet = Supernet(space, image_size=32, num_classes=3, seed=0).to(torch.float64).train()
    (codes,) = space.sample(1, np.random.default_rng(0))
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    supernet(images, codes).sum().backward()
    norm = supernet.net.get_submodule("stem.norm")
    assert norm.running_mean.abs().sum() > 0  # of the buffer that stands there now
    assert supernet.extract(codes).get_parameter("head.classify.bias").dtype == torch.float64
