"""Supernet: one set of entangled weights that every architecture of a space runs with.

The supernet *is* the plain network of the largest architecture. A subnet is the plain network of
its own blocks, run with the leading slices of the supernet's weights (weight entanglement:
AutoFormer, section 3.1; AutoViT, section 3.3.1). The slices are views, not copies, so gradients and
BatchNorm's running statistics land in the supernet's own tensors.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.func import functional_call

from hwnas.spaces import Arch, Block, Codes, Space
from hwnas.supernet._modules import MODULES, ConcatConv2d
from hwnas.supernet._network import Network, build


class Supernet(nn.Module):
    """All subnets of ``space`` in one module; ``supernet(x, arch)`` runs one of them.

    ``image_size`` (pixels) and ``num_classes`` fix the blocks an architecture expands into.
    """

    def __init__(self, space: Space, *, image_size: int, num_classes: int, seed: int | None = None):
        super().__init__()
        self.space = space
        self.image_size = image_size
        self.num_classes = num_classes
        slots, blocks = zip(*self.layout(space.largest), strict=True)
        self.net = build(blocks, slots, seed=seed)
        self._num_maps = {
            f"{name}.weight": m.num_maps
            for name, m in self.net.named_modules()
            if isinstance(m, ConcatConv2d)
        }
        # Plain modules without weights, made once for each slot and block; not children.
        self._pieces: dict[tuple[str, Block], tuple[nn.Module, dict[str, torch.Size]]] = {}

    def layout(self, codes: Codes) -> tuple[tuple[str, Block], ...]:
        """The (slot, block) pairs of a row of codes."""
        return self.space.layout(codes, self.image_size, self.num_classes)

    def forward(self, x: Tensor, arch: Arch | Codes) -> Tensor:
        """Images [B, 3, H, W] -> logits [B, classes] of the subnet ``arch``."""
        layout = self.layout(self._codes(arch))
        subnet = Network(layout, make=lambda slot, block: self._piece(slot, block)[0])
        logits: Tensor = functional_call(subnet, dict(self._weights(layout)), (x,), strict=False)
        return logits

    def train(self, mode: bool = True) -> Supernet:
        """Set training or evaluation mode, here and in the subnets."""
        super().train(mode)
        for piece, _ in self._pieces.values():
            piece.train(mode)
        return self

    def extract(self, arch: Arch | Codes) -> Network:
        """The plain network of ``arch`` with its weights and statistics copied."""
        layout = self.layout(self._codes(arch))
        with torch.device("meta"):
            subnet = Network(layout)
        weights = {name: tensor.detach().clone() for name, tensor in self._weights(layout)}
        subnet.load_state_dict(weights, assign=True)
        for parameter in subnet.parameters():
            parameter.requires_grad_()
        return subnet.train(self.training)

    @torch.no_grad()
    def absorb_statistics(self, subnet: Network) -> None:
        """Copy the BatchNorm statistics of an extracted subnet back into their slices."""
        source = dict(subnet.named_buffers())
        for name, tensor in self._weights(subnet.layout):
            if name in source:
                tensor.copy_(source[name])

    def _codes(self, arch: Arch | Codes) -> Codes:
        return self.space.encode(arch) if isinstance(arch, Arch) else arch

    def _piece(self, slot: str, block: Block) -> tuple[nn.Module, dict[str, torch.Size]]:
        if (slot, block) not in self._pieces:
            with torch.device("meta"):
                piece = MODULES[block.kind](block).train(self.training)
            shapes = {f"{slot}.{name}": t.shape for name, t in piece.state_dict().items()}
            self._pieces[slot, block] = piece, shapes
        return self._pieces[slot, block]

    def _weights(self, layout: tuple[tuple[str, Block], ...]) -> Iterator[tuple[str, Tensor]]:
        tensors = self.net.state_dict(keep_vars=True)  # anew: ``.to()`` replaces the buffers
        for slot, block in layout:
            for name, shape in self._piece(slot, block)[1].items():
                yield name, leading_slice(tensors[name], shape, self._num_maps.get(name, 1))


def leading_slice(tensor: Tensor, shape: torch.Size, num_maps: int = 1) -> Tensor:
    """The leading slice of ``tensor`` with ``shape``: a view, the tensor itself where they agree.

    With ``num_maps`` > 1 dimension 1 is that many equal runs, and the leading slice of each is
    taken (a copy).
    """
    if tensor.shape == shape:
        return tensor
    if num_maps > 1:
        runs = tensor.reshape(len(tensor), num_maps, -1, *tensor.shape[2:])
        return runs[: shape[0], :, : shape[1] // num_maps].flatten(1, 2)
    for dim, size in enumerate(shape):
        if size != tensor.shape[dim]:
            tensor = tensor.narrow(dim, 0, size)
    return tensor
