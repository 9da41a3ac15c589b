from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score
from torch import nn

from hwnas.errors import DataError
from hwnas.spaces import Space
from hwnas.supernet import Supernet, recalibrate
from hwnas.train import accuracy, inherited_accuracy


def batches(num: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (
            torch.randn(n, 3, 16, 16, generator=generator),
            torch.randint(4, (n,), generator=generator),
        )
        for n in (8, 8, num - 16)
    ]


def test_accuracy_weighs_every_image_the_same() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(768, 4))
    data = batches(19)
    predicted = [network(x).argmax(1).numpy() for x, _ in data]
    expected = accuracy_score(torch.cat([y for _, y in data]), np.concatenate(predicted))
    assert accuracy(network, iter(data)) == pytest.approx(expected)


@pytest.mark.parametrize("mode", [True, False])
def test_network_is_evaluated_without_dropout_and_left_in_its_mode(mode: bool) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Dropout(1.0), nn.Linear(768, 4)).train(mode)
    with torch.no_grad():
        constant = int(network[2].bias.argmax())  # what dropping every pixel would answer
    images, _ = batches(19)[0]
    labels = network.eval()(images).argmax(1)
    network.train(mode)
    assert len(set(labels.tolist()) - {constant}) > 0
    assert accuracy(network, [(images, labels)]) == 1.0
    assert network.training is mode


def test_accuracy_of_no_images() -> None:
    with pytest.raises(DataError, match="no images to measure the accuracy on"):
        accuracy(nn.Identity(), [])


def test_inherited_accuracy_recalibrates_a_copy(space: Space) -> None:
    supernet = Supernet(space, image_size=16, num_classes=4, seed=0)
    codes = space.sample(1, np.random.default_rng(0))[0]
    data, calibration = batches(19), [3 * x + 1 for x, _ in batches(24)]
    subnet = supernet.extract(codes)
    recalibrate(subnet, calibration)
    with torch.no_grad():  # an untrained network gives all images one class: even them out
        mean = subnet.eval()(torch.cat([x for x, _ in data])).mean(0)
        subnet.head.classify.bias -= mean
        supernet.net.head.classify.bias -= mean
    before = {name: tensor.clone() for name, tensor in supernet.state_dict().items()}
    labelled = [(x, subnet.eval()(x).argmax(1)) for x, _ in data]
    assert len(set(torch.cat([y for _, y in labelled]).tolist())) > 1
    assert accuracy(supernet.extract(codes), labelled) < 1.0
    assert inherited_accuracy(supernet, codes, calibration=calibration, batches=labelled) == 1.0
    assert all(torch.equal(before[name], t) for name, t in supernet.state_dict().items())
