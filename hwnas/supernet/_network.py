"""Network: a plain module made of blocks, the one that is trained alone, timed and exported."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from hwnas.spaces import Block
from hwnas.supernet._modules import MODULES, Hybrid, initialize


class Network(nn.Module):
    """Blocks in the order in which they run, each a child named after its slot.

    The vit_layers that follow a hybrid block run inside it, on its unfolded tokens.
    """

    def __init__(
        self,
        layout: Iterable[tuple[str, Block]],
        make: Callable[[str, Block], nn.Module] = lambda slot, block: MODULES[block.kind](block),
    ):
        super().__init__()
        self.layout = tuple(layout)
        for slot, block in self.layout:
            self.add_module(slot, make(slot, block))

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The blocks, in the order in which they run."""
        return tuple(block for _, block in self.layout)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, 3, H, W] -> logits [B, classes]."""
        entered: tuple[Hybrid, Tensor] | None = None
        for (_, block), module in zip(self.layout, self.children(), strict=True):
            if entered and block.kind != "vit_layer":
                hybrid, before = entered
                x, entered = hybrid.leave(x, before), None
            if isinstance(module, Hybrid):
                entered = (module, x)
                x = module.enter(x)
            else:
                x = module(x)
        if entered:
            hybrid, before = entered
            x = hybrid.leave(x, before)
        return x


def build(
    blocks: Sequence[Block], slots: Sequence[str] | None = None, *, seed: int | None = None
) -> Network:
    """The plain network of ``blocks``; children are named after ``slots``, or block0, block1, ….

    With ``seed`` its initial weights are the same each time, and torch's generator is untouched.
    """
    names = slots if slots is not None else [f"block{i}" for i in range(len(blocks))]
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        network = Network(zip(names, blocks, strict=True))
        initialize(network)
    return network
