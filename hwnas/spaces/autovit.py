"""The hybrid spaces of AutoViT, Table 1: a stem, MBConv stages, MobileViT stages, an MBPool head.

Where the paper is silent, these choices bring all three parameter ranges out (counted at 1000
classes and 256x256, the paper's setting; ``hwnas spaces`` prints what comes out):

- Channels. A transformer stage's *width* is its hidden dimension d (section 3.2). The channels C
  around it are the width of the stage before, as in MobileViT (48, 64, 80 around 64, 80, 96), so
  that d > C is the rule that width grows.
- Resolution. The stem halves it, the second and third MBConv stages halve it, the first
  transformer stage keeps it (32x32), the second and third halve it, the fourth keeps it (8x8). An
  MBConv leads into every transformer stage after the first. A side that is odd is rounded up.
- Patches are 2x2 where the map's side is even, 1x1 (plain attention over all pixels) otherwise.
- Convolutions are 3x3; the one that fuses a stage's input with its output is 1x1. MBConv keeps its
  expanding 1x1 convolution at expansion 1. Activations are SiLU throughout.
- A head of attention has 8 channels in XXS and XS, 32 in S: 16 in all three, the nearest round
  number, misses the ranges of all three.
- MBPool expands to 6 C channels, pools, and maps them to the classes: its 1000 features are the
  1000 logits. One more 1000x1000 classifier behind it would by itself take 1 M of XXS's 1.8 M.

Table 3 of the paper lists winners whose widths are not in Table 1; Table 1 binds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from hwnas.errors import SpaceError, unknown_name
from hwnas.spaces._block import Block, reduced
from hwnas.spaces._parts import Part, Rule, Stage
from hwnas.spaces._space import Space

_KERNEL = 3
_MUST_GROW = "widths must grow from stage to stage"
_SLOTS = tuple[tuple[str, Block], ...]
_FIELDS = (
    "family", "id", "params", "expansion", "pool_expansion", "head_dim",
    "stem", "mbconv", "transformer",
)  # fmt: skip
_MAX_CHOICES = 127  # codes are int8


class AutoViTSpace(Space):
    """The hybrid family. ``fields`` are those of a space file (see ``hwnas/spaces/*.toml``)."""

    def __init__(self, fields: Mapping[str, Any]):
        """Read ``fields``. Raises ``SpaceError`` for one that is off, ``KeyError`` if missing."""
        _known("the space", fields, _FIELDS)
        stem, mbconv, transformer = fields["stem"], fields["mbconv"], fields["transformer"]
        stages = [_stage("stem", stem)]
        stages += [_stage(f"mbconv{i}", f, "depth") for i, f in enumerate(mbconv, 1)]
        stages += [_transformer(f"transformer{i}", f) for i, f in enumerate(transformer, 1)]
        low, high = (_whole("params", value) for value in fields["params"])
        if not isinstance(fields["id"], str):
            raise SpaceError(f"id must be a text; got {fields['id']!r}")
        super().__init__(fields["id"], tuple(stages), (low, high))
        tables = (stem, *mbconv, *transformer)
        self._strides = [_whole("stride", table.get("stride", 1)) for table in tables]
        self._num_mbconv = len(mbconv)
        self._expansion = _whole("expansion", fields["expansion"])
        self._pool_expansion = _whole("pool_expansion", fields["pool_expansion"])
        self._head_dim = _whole("head_dim", fields["head_dim"])
        self._refuse_unbuildable()

    def _refuse_unbuildable(self) -> None:
        first = self._num_mbconv + 1
        optional = [stage.optional for stage in self.stages]
        if any(optional[:-1]):
            raise SpaceError("only the last transformer stage of a space may be optional")
        if all(optional[first:]):
            raise SpaceError("a space needs a transformer stage that is not optional")
        if self._strides[first] != 1:
            raise SpaceError("the first transformer stage must have stride 1: no MBConv leads in")
        if optional[-1] and self._strides[-1] != 1:
            raise SpaceError("an optional stage must have stride 1: the head has one resolution")

    def rules(self) -> tuple[Rule, ...]:
        """Widths grow from stage to stage; the first MBConv stage may be as wide as the stem."""
        width = [self.column(i, "width") for i in range(len(self.stages))]
        rules = [Rule(_MUST_GROW, (width[0], width[1]), lambda stem, first: stem <= first)]
        for i, stage in enumerate(self.stages[2:], 2):
            present = (self.column(i, "present"),) if stage.optional else ()
            rules.append(Rule(_MUST_GROW, (width[i - 1], width[i], *present), _grows))
        return tuple(rules)

    def silent_choices(self) -> dict[str, str]:
        """What Table 1 leaves open, for ``hwnas spaces``."""
        names = [stage.name for stage in self.stages]
        halving = [n for n, s in zip(names, self._strides, strict=True) if s == 2]
        return {
            "halve the resolution": ", ".join(halving),
            "channels around a transformer": "the width of the stage before",
            "head dimension": str(self._head_dim),
            "kernels": "3x3; the fusing convolution 1x1",
            "patches": "2x2, or 1x1 where the side is odd",
            "activation": "SiLU",
        }

    def parts(self, image_size: int, num_classes: int) -> tuple[Part, ...]:
        """Stem, MBConv layers, transformer stages and head, each by the columns it depends on."""
        if image_size < 1 or num_classes < 1:
            raise SpaceError(f"no network for {image_size}-pixel images and {num_classes} classes")
        parts = [self._stem(image_size)]
        res = reduced(image_size, self._strides[0])
        first = self._num_mbconv + 1
        for i in range(1, len(self.stages)):
            stride = self._strides[i]
            if i < first:
                parts += self._mbconv_stage(i, res, stride)
            else:
                parts += self._transformer_stage(i, res, stride, leads=i > first)
            res = reduced(res, stride)
        return (*parts, self._head(res, num_classes))

    def _stem(self, image_size: int) -> Part:
        def expand(width: int) -> _SLOTS:
            sizes = {"in": 3, "out": width, "kernel": _KERNEL, "stride": self._strides[0]}
            return (("stem", Block.of("conv", **sizes, res=image_size)),)

        return Part((self.column(0, "width"),), expand)

    def _mbconv_stage(self, stage: int, res: int, stride: int) -> list[Part]:
        name, width = self.stages[stage].name, self.column(stage, "width")

        def lead(before: int, after: int) -> _SLOTS:
            return ((f"{name}_0", self._mbconv(before, after, stride, res)),)

        parts = [Part((self.column(stage - 1, "width"), width), lead)]
        for layer in range(1, max(self.stages[stage].depth)):

            def expand(width: int, depth: int, layer: int = layer) -> _SLOTS:
                block = self._mbconv(width, width, 1, reduced(res, stride))
                return ((f"{name}_{layer}", block),) if layer < depth else ()

            parts.append(Part((width, self.column(stage, "depth")), expand))
        return parts

    def _mbconv(self, before: int, after: int, stride: int, res: int) -> Block:
        sizes = {"in": before, "out": after, "expand": self._expansion, "kernel": _KERNEL}
        return Block.of("mbconv", **sizes, stride=stride, res=res)

    def _transformer_stage(self, stage: int, res: int, stride: int, leads: bool) -> list[Part]:
        spec, own = self.stages[stage], self.column(stage, "width")
        channels, name = self.column(stage - 1, "width"), spec.name
        present = (self.column(stage, "present"),) if spec.optional else ()
        after = reduced(res, stride)
        patch = 2 if after % 2 == 0 else 1

        def lead(c_before: int, c: int, here: int = 1) -> _SLOTS:
            return ((f"{name}_lead", self._mbconv(c_before, c, stride, res)),) if here else ()

        def shell(c: int, d: int, here: int = 1) -> _SLOTS:
            block = Block.of("hybrid", c=c, d=d, kernel=_KERNEL, patch=patch, res=after)
            return ((name, block),) if here else ()

        parts = []
        if leads:
            parts.append(Part((self.column(stage - 2, "width"), channels, *present), lead))
        parts.append(Part((channels, own, *present), shell))
        grid = {"pixels": patch**2, "tokens": (after // patch) ** 2}
        return parts + [self._vit_layer(stage, i, grid) for i in range(max(spec.depth))]

    def _vit_layer(self, stage: int, layer: int, grid: Mapping[str, int]) -> Part:
        spec, head_dim = self.stages[stage], self._head_dim

        def expand(d: int, depth: int, heads: int, ratio: float, here: int = 1) -> _SLOTS:
            if not here or layer >= depth:
                return ()
            sizes = {"d": d, "heads": heads, "head_dim": head_dim, "ratio": ratio, **grid}
            block = Block.of("vit_layer", **sizes)
            return ((f"{spec.name}_{layer}", block),)

        columns = [self.column(stage, name) for name in ("width", "depth")]
        columns += [self.column(stage, name, layer) for name, _ in spec.per_layer]
        if spec.optional:
            columns.append(self.column(stage, "present"))
        return Part(tuple(columns), expand)

    def _head(self, res: int, num_classes: int) -> Part:
        def block(c: int) -> _SLOTS:
            sizes = {"in": c, "expand": self._pool_expansion, "features": num_classes}
            return (("head", Block.of("mbpool", **sizes, res=res)),)

        last = len(self.stages) - 1
        if not self.stages[last].optional:
            return Part((self.column(last - 1, "width"),), block)
        columns = [self.column(last - 2, "width"), self.column(last - 1, "width")]

        def expand(c_without: int, c_with: int, here: int) -> _SLOTS:
            return block(c_with if here else c_without)

        return Part((*columns, self.column(last, "present")), expand)


def _stage(name: str, fields: Mapping[str, Any], *choices: str) -> Stage:
    _known(name, fields, ("width", "stride", *choices))
    depth = _ascending(f"{name}.depth", fields["depth"]) if "depth" in choices else (1,)
    return Stage(name, _ascending(f"{name}.width", fields["width"]), depth)


def _transformer(name: str, fields: Mapping[str, Any]) -> Stage:
    stage = _stage(name, fields, "depth", "heads", "ratio", "optional")
    heads = _ascending(f"{name}.heads", fields["heads"])
    ratio = _ascending(f"{name}.ratio", fields["ratio"], of=int | float)
    optional = fields.get("optional", False)
    if not isinstance(optional, bool):
        raise SpaceError(f"{name}.optional must be true or false; got {optional!r}")
    return replace(stage, per_layer=(("heads", heads), ("ratio", ratio)), optional=optional)


def _known(where: str, fields: Mapping[str, Any], names: Sequence[str]) -> None:
    if unknown := set(fields) - set(names):
        raise SpaceError(unknown_name(f"field of {where}", min(unknown), names))


def _whole(name: str, value: object) -> int:
    if not isinstance(value, int) or value < 1:
        raise SpaceError(f"{name} must be a positive whole number; got {value!r}")
    return value


def _grows(before: int, after: int, present: int = 1) -> bool:
    return before < after or not present


def _ascending(name: str, values: Sequence[Any], *, of: Any = int) -> tuple[Any, ...]:
    numbers = isinstance(values, list) and all(isinstance(v, of) for v in values)
    if not numbers or not all(0 < v < math.inf for v in values) or not values:
        kind = "whole numbers" if of is int else "numbers"
        raise SpaceError(f"{name} must be a list of positive {kind}; got {values!r}")
    if values != sorted(set(values)) or len(values) > _MAX_CHOICES:
        raise SpaceError(f"{name} must ascend, with at most {_MAX_CHOICES} values; got {values!r}")
    return tuple(values)
