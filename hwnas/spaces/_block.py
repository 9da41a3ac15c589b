"""Block: the unit that is built, counted, timed and looked up; and the arithmetic of its cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from hwnas.errors import SpaceError, unknown_name


class Cost(NamedTuple):
    """What a block costs on paper, before any device has run it."""

    params: int
    """Trainable parameters."""
    macs: int
    """Multiply-accumulates for one image, attention's two matrix products included."""
    elements: int
    """Numbers moved, about: weights read once, activations of the operators read and written."""
    launches: int
    """Operators, about, after folding BatchNorm and activations into their convolution."""


@dataclass(frozen=True)
class Block:
    """A block signature: its kind and the sizes that determine its cost.

    ``key`` is its stable text form, such as
    ``vit_layer/d=64/heads=3/head_dim=8/ratio=2/pixels=4/tokens=256``.
    """

    kind: str
    sizes: tuple[tuple[str, float], ...]

    @classmethod
    def of(cls, kind: str, **sizes: float) -> Block:
        """Make a block of ``kind``; the sizes keep the order they are given in."""
        return cls(kind, tuple(sizes.items()))

    @classmethod
    def parse(cls, key: str) -> Block:
        """Read a block back from its key. Raises ``SpaceError`` for anything else."""
        kind, *fields = key.split("/")
        try:
            pairs = [field.split("=") for field in fields]
            sizes = tuple((name, _number(value)) for name, value in pairs)
        except ValueError:
            raise SpaceError(f"{key!r} is not a block key: expected kind/name=number/…") from None
        if kind not in COSTS:
            raise SpaceError(unknown_name("block kind", kind, COSTS))
        block = cls(kind, sizes)
        try:
            block.cost  # noqa: B018  needs every size of the kind
        except (KeyError, ValueError, ArithmeticError) as error:
            raise SpaceError(f"{key!r} is no {kind}: {error} is missing or odd") from None
        return block

    @cached_property
    def key(self) -> str:
        """The stable text form, used in tables and messages."""
        return "/".join([self.kind, *(f"{name}={_number(value)}" for name, value in self.sizes)])

    @cached_property
    def _by_name(self) -> dict[str, float]:
        return dict(self.sizes)

    def __getitem__(self, name: str) -> int:
        """The integer size called ``name``."""
        return int(self._by_name[name])

    def real(self, name: str) -> float:
        """The size called ``name`` where it need not be whole, such as an MLP ratio."""
        return self._by_name[name]

    @cached_property
    def cost(self) -> Cost:
        """Parameters, MACs, elements moved and launches of this block."""
        return COSTS[self.kind](self)


def _number(number: str | float) -> float:
    value = float(number)
    return int(value) if value.is_integer() else value


def reduced(resolution: int, stride: int) -> int:
    """The side of a feature map of side ``resolution`` after a padded convolution of ``stride``."""
    return math.ceil(resolution / stride)


def num_params(blocks: Iterable[Block]) -> int:
    """Trainable parameters of a network made of ``blocks``."""
    return sum(block.cost.params for block in blocks)


def num_macs(blocks: Iterable[Block]) -> int:
    """Multiply-accumulates of a network made of ``blocks``, for one image."""
    return sum(block.cost.macs for block in blocks)


def _conv(b: Block) -> Cost:
    weights = b["in"] * b["out"] * b["kernel"] ** 2
    pixels = reduced(b["res"], b["stride"]) ** 2
    moved = b["in"] * b["res"] ** 2 + b["out"] * pixels
    return Cost(weights + 2 * b["out"], weights * pixels, weights + moved, 1)


def _mbconv(b: Block) -> Cost:
    inner, kernel = b["in"] * b["expand"], b["kernel"] ** 2
    before, after = b["res"] ** 2, reduced(b["res"], b["stride"]) ** 2
    weights = b["in"] * inner + kernel * inner + inner * b["out"]
    macs = b["in"] * inner * before + (kernel * inner + inner * b["out"]) * after
    moved = (b["in"] + 2 * inner) * before + (2 * inner + b["out"]) * after
    return Cost(weights + 4 * inner + 2 * b["out"], macs, weights + moved, 3)


def _hybrid(b: Block) -> Cost:
    c, d, pixels = b["c"], b["d"], b["res"] ** 2
    weights = c * c * b["kernel"] ** 2 + c * d + d * c + 2 * c * c
    moved = (2 * c + c + d + 2 * d + 2 * d + d + c + 3 * c) * pixels
    folds = 2 if b["patch"] > 1 else 0  # each a copy of the whole map
    return Cost(weights + 6 * c + 2 * d, weights * pixels, weights + moved, 5 + folds)


def _vit_layer(b: Block) -> Cost:
    d, inner = b["d"], b["heads"] * b["head_dim"]
    hidden, tokens = int(d * b.real("ratio")), b["pixels"] * b["tokens"]
    scores = b["heads"] * b["pixels"] * b["tokens"] ** 2
    weights = 4 * d * inner + 2 * d * hidden
    biases_and_norms = 3 * inner + d + hidden + d + 4 * d
    macs = weights * tokens + 2 * scores * b["head_dim"]
    moved = weights + (8 * d + 8 * inner + 2 * hidden) * tokens + 4 * scores
    return Cost(weights + biases_and_norms, macs, moved, 12)


def _mbpool(b: Block) -> Cost:
    inner, pixels = b["in"] * b["expand"], b["res"] ** 2
    weights = b["in"] * inner + inner * b["features"]
    macs = b["in"] * inner * pixels + inner * b["features"]
    moved = weights + (b["in"] + 2 * inner) * pixels + b["features"]
    return Cost(weights + 2 * inner + b["features"], macs, moved, 3)


COSTS: dict[str, Callable[[Block], Cost]] = {
    "conv": _conv,
    "mbconv": _mbconv,
    "hybrid": _hybrid,
    "vit_layer": _vit_layer,
    "mbpool": _mbpool,
}
