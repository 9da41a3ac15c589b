"""Top-1 accuracy of a network, and of a subnet that inherits the supernet's weights."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from hwnas.errors import DataError
from hwnas.spaces import Arch, Codes
from hwnas.supernet import Supernet, recalibrate


@torch.no_grad()
def accuracy(network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """The share of images [B, 3, H, W] whose greatest logit is their label [B]: top-1, in [0, 1].

    The network runs in evaluation mode and is left in the mode it came in.
    """
    was_training = network.training
    network.eval()
    try:
        right = total = 0
        for images, labels in batches:
            right += int((network(images).argmax(1) == labels).sum())
            total += len(labels)
    finally:
        network.train(was_training)
    if not total:
        raise DataError("there are no images to measure the accuracy on")
    return right / total


def inherited_accuracy(
    supernet: Supernet,
    arch: Arch | Codes,
    *,
    calibration: Iterable[Tensor],
    batches: Iterable[tuple[Tensor, Tensor]],
) -> float:
    """The accuracy on ``batches`` of the subnet ``arch`` with the weights it inherits.

    ``calibration``: batches of training images [B, 3, H, W] for its BatchNorm statistics.
    """
    subnet = supernet.extract(arch)
    recalibrate(subnet, calibration)
    return accuracy(subnet, batches)
