"""A network as pieces that are exported once each and joined: what all composers share.

A latency table times hundreds of networks made of about a hundred distinct blocks, so a runtime
whose exporter takes seconds exports each distinct block once and joins files instead.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hwnas.errors import ExportError
from hwnas.spaces import Block
from hwnas.supernet import Hybrid, build

Shape = tuple[int, ...]
IMAGE = -1
"""The source of a piece that reads the network's own input."""


def pieces(blocks: Sequence[Block]) -> list[tuple[Block, tuple[int, ...]]]:
    """The pieces of a network in the order in which they run, each with where its inputs come from.

    A source is the position of the piece that makes it, or ``IMAGE``. A hybrid block comes twice:
    with one source what enters it, with two what leaves it. Raises ``ExportError`` for no blocks.
    """
    if not blocks:
        raise ExportError("cannot compose a network of no blocks: give at least one")
    found: list[tuple[Block, tuple[int, ...]]] = []
    x, entered = IMAGE, None
    for block in (*blocks, None):
        if entered and (block is None or block.kind != "vit_layer"):
            hybrid, before = entered
            found.append((hybrid, (x, before)))
            x, entered = len(found) - 1, None
        if block is None:
            break
        if block.kind == "hybrid":
            entered = (block, x)
        found.append((block, (x,)))
        x = len(found) - 1
    return found


class Modules:
    """The module, in evaluation mode, of each distinct block: random weights by ``seed`` alone."""

    def __init__(self, seed: int):
        self._seed = seed
        self._modules: dict[Block, nn.Module] = {}

    def __call__(self, block: Block) -> nn.Module:
        """The module whose weights every ``block`` of a network has."""
        if block not in self._modules:
            (module,) = build((block,), seed=self._seed).children()
            _vary_vectors(module, self._seed)
            self._modules[block] = module.eval().requires_grad_(False)
        return self._modules[block]

    def part(self, block: Block, num_inputs: int) -> nn.Module:
        """What to export of a piece: of a hybrid what enters it (1 input) or what leaves it (2)."""
        module = self(block)
        if not isinstance(module, Hybrid):
            return module
        return _Enter(module) if num_inputs == 1 else _Leave(module)


class _Enter(nn.Module):
    def __init__(self, hybrid: Hybrid):
        super().__init__()
        self.hybrid = hybrid

    def forward(self, x: Tensor) -> Tensor:
        return self.hybrid.enter(x)


class _Leave(nn.Module):
    def __init__(self, hybrid: Hybrid):
        super().__init__()
        self.hybrid = hybrid

    def forward(self, tokens: Tensor, x: Tensor) -> Tensor:
        return self.hybrid.leave(tokens, x)


@torch.no_grad()
def _vary_vectors(module: nn.Module, seed: int) -> None:
    """Make biases and norms differ from 0 and 1, as in a trained network.

    An exporter merges equal tensors, and a runtime may drop an addition of zeros.
    """
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        if parameter.ndim == 1:
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.01)
