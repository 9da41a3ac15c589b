"""BatchNorm recalibration: a subnet's running statistics are not the supernet's."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from hwnas.errors import DataError
from hwnas.spaces import Arch, Codes
from hwnas.supernet._supernet import Supernet


@torch.no_grad()
def recalibrate(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replace the BatchNorm statistics of ``network`` by those of training images [B, 3, H, W].

    In a supernet the running statistics mix those of every subnet that was sampled, and are right
    for none; an extracted network must be recalibrated before it is evaluated. The statistics are
    the plain average over ``batches``; everything else stays in its mode. Raises ``DataError``
    where there are no batches.
    """
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    momenta, modes = [m.momentum for m in norms], {m: m.training for m in network.modules()}
    network.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative average
        norm.train()
    seen = False
    try:
        for images in batches:
            network(images)
            seen = True
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, mode in modes.items():
            module.training = mode
    if not seen:
        raise DataError("recalibrating BatchNorm needs at least one batch of training images")


def recalibrate_subnet(supernet: Supernet, arch: Arch | Codes, batches: Iterable[Tensor]) -> None:
    """Recalibrate the slices of the supernet's BatchNorm statistics that ``arch`` runs with."""
    subnet = supernet.extract(arch)
    recalibrate(subnet, batches)
    supernet.absorb_statistics(subnet)
