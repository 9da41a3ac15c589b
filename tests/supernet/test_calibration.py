"""BatchNorm recalibration: what it computes, what it leaves alone, and that accuracy needs it."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor

from hwnas.errors import DataError
from hwnas.spaces import Codes, Space, parse_space
from hwnas.supernet import Supernet, recalibrate, recalibrate_subnet

TINY = """
family = "autovit"
id = "tiny"
params = [1, 100_000_000]
expansion = 2
pool_expansion = 4
head_dim = 8
stem = {width = [4, 16], stride = 2}
mbconv = [{width = [16, 32], depth = [1, 2], stride = 2}]
[[transformer]]
width = [40, 64]
depth = [1, 2]
heads = [1, 2]
ratio = [1, 2]
"""
BATCH = 64


@pytest.fixture(scope="module")
def tiny() -> Space:
    return parse_space(TINY, "tiny.toml")


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    """The handwritten digits of scikit-learn: images [1797, 3, 16, 16], classes [1797]."""
    images, labels = load_digits(return_X_y=True)
    maps = torch.tensor(images / 8 - 1, dtype=torch.float32).reshape(-1, 1, 8, 8)
    return F.interpolate(maps, scale_factor=2).repeat(1, 3, 1, 1), torch.tensor(labels)


@pytest.fixture(scope="module")
def trained(tiny: Space, digits: tuple[Tensor, Tensor]) -> Supernet:
    """A supernet trained for a few seconds, each step on an architecture drawn at random."""
    supernet = Supernet(tiny, image_size=16, num_classes=10, seed=0)
    optimizer = torch.optim.AdamW(supernet.parameters(), lr=1e-2)
    rng, (images, labels) = np.random.default_rng(0), digits
    for codes in tiny.sample(150, rng):
        batch = torch.from_numpy(rng.integers(0, 1_400, BATCH))
        optimizer.zero_grad()
        F.cross_entropy(supernet(images[batch], codes), labels[batch]).backward()
        optimizer.step()
    return supernet.eval()


@pytest.fixture
def supernet(trained: Supernet) -> Supernet:
    return copy.deepcopy(trained)


@pytest.fixture
def codes(tiny: Space) -> Codes:
    """The smallest architecture, whose every slice is smaller than the supernet's weights."""
    smallest = tiny.largest * 0
    assert tiny.members(smallest[None])[0]
    return smallest


@pytest.fixture
def batches(digits: tuple[Tensor, Tensor]) -> Sequence[Tensor]:
    return digits[0][: 4 * BATCH].split(BATCH)


@torch.no_grad()
def accuracy(logits: Tensor, labels: Tensor) -> float:
    return (logits.argmax(1) == labels).float().mean().item()


@torch.no_grad()
def test_without_recalibration_accuracy_falls(
    supernet: Supernet, tiny: Space, digits: tuple[Tensor, Tensor], batches: Sequence[Tensor]
) -> None:
    images, labels = digits[0][1_400:], digits[1][1_400:]
    without, recalibrated = [], []
    for row in tiny.sample(10, np.random.default_rng(1)):
        subnet = supernet.extract(row)
        without.append(accuracy(subnet(images), labels))
        recalibrate(subnet, batches)
        recalibrated.append(accuracy(subnet(images), labels))
    assert np.mean(recalibrated) > 0.75
    assert np.mean(recalibrated) - np.mean(without) > 0.2
    assert np.min(np.subtract(recalibrated, without)) > 0  # every subnet gains


@torch.no_grad()
def test_supernet_and_extracted_module_agree_after_recalibration(
    supernet: Supernet, codes: Codes, tiny: Space, batches: Sequence[Tensor]
) -> None:
    x = batches[0]
    for arch in (codes, tiny.decode(codes), tiny.largest):
        subnet = supernet.extract(arch)
        before = supernet(x, arch)
        recalibrate(subnet, batches)
        recalibrate_subnet(supernet, arch, iter(batches))
        torch.testing.assert_close(supernet(x, arch), subnet(x), rtol=1e-5, atol=1e-5)
        if arch is codes:
            assert (before - subnet(x)).abs().max() > 0.1


@torch.no_grad()
def test_statistics_are_the_average_over_the_batches(
    supernet: Supernet, codes: Codes, batches: Sequence[Tensor]
) -> None:
    subnet = supernet.extract(codes)
    recalibrate(subnet, batches)
    stem = subnet.get_submodule("stem.conv").weight
    maps = [F.conv2d(x, stem, stride=2, padding=1).transpose(0, 1).flatten(1) for x in batches]
    norm = subnet.get_submodule("stem.norm")
    mean = torch.stack([m.mean(1) for m in maps]).mean(0)
    var = torch.stack([m.var(1, unbiased=True) for m in maps]).mean(0)
    torch.testing.assert_close(norm.running_mean, mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.running_var, var, rtol=1e-4, atol=1e-5)


def test_on_one_batch_evaluation_is_what_training_would_compute(
    supernet: Supernet, codes: Codes, batches: Sequence[Tensor]
) -> None:
    subnet = supernet.extract(codes)
    recalibrate(subnet, batches[:1])
    # Training normalizes by the biased variance, the statistics hold the unbiased one.
    expected = subnet.train()(batches[0])
    torch.testing.assert_close(subnet.eval()(batches[0]), expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_recalibration_changes_statistics_and_nothing_else(
    supernet: Supernet, codes: Codes, batches: Sequence[Tensor], training: bool
) -> None:
    subnet = supernet.train(training).extract(codes)
    frozen = subnet.get_submodule("stem.norm")
    frozen.eval().momentum = 0.3
    modes = [module.training for module in subnet.modules()]
    before = copy.deepcopy(subnet.state_dict())
    recalibrate(subnet, batches)
    assert [module.training for module in subnet.modules()] == modes
    assert frozen.momentum == 0.3
    assert subnet.get_submodule("head.expand.norm").momentum == 0.1
    for name, tensor in subnet.state_dict().items():
        is_statistic = "running" in name or name.endswith("num_batches_tracked")
        assert torch.equal(tensor, before[name]) is not is_statistic, name
    assert all(parameter.grad is None for parameter in subnet.parameters())


def test_recalibrating_a_subnet_leaves_the_rest_of_the_supernet_alone(
    supernet: Supernet, codes: Codes, batches: Sequence[Tensor]
) -> None:
    before = copy.deepcopy(supernet.net.state_dict())
    recalibrate_subnet(supernet, codes, batches)
    shapes = {name: t.shape for name, t in supernet.extract(codes).state_dict().items()}
    for name, tensor in supernet.net.state_dict().items():
        changed = tensor != before[name]
        if "running" in name and name in shapes:
            assert changed[: shapes[name][0]].all(), name
            assert not changed[shapes[name][0] :].any(), name
        elif not name.endswith("num_batches_tracked"):
            assert not changed.any(), name


def test_modes_and_momentum_are_restored_when_a_batch_fails(
    supernet: Supernet, codes: Codes, batches: Sequence[Tensor]
) -> None:
    subnet = supernet.extract(codes)
    with pytest.raises(RuntimeError, match="channels"):
        recalibrate(subnet, [batches[0], batches[0][:, :1]])
    assert not any(module.training for module in subnet.modules())
    assert subnet.get_submodule("stem.norm").momentum == 0.1


def test_recalibrating_on_nothing_is_refused(supernet: Supernet, codes: Codes) -> None:
    before = copy.deepcopy(supernet.net.state_dict())
    with pytest.raises(DataError, match="at least one batch"):
        recalibrate_subnet(supernet, codes, [])
    for name, tensor in supernet.net.state_dict().items():
        assert torch.equal(tensor, before[name]), name
