"""Space: what may be chosen, which choices belong together, and how an Arch expands into Blocks.

Inside, an architecture is a row of *codes*: for each column (a choice) the index into its values,
and 0 where the choice is not in use (a layer beyond the depth, a stage left out), so that equal
architectures have equal rows. Sampling, mutation, crossover and costing work on whole matrices of
codes; ``Arch`` is for people and files.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property, lru_cache
from itertools import product
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from hwnas.errors import SpaceError
from hwnas.spaces._arch import Arch, Value
from hwnas.spaces._block import Block
from hwnas.spaces._parts import (
    AdditiveCost,
    Codes,
    Costs,
    Mask,
    Part,
    Rule,
    Stage,
    columns_of,
)

Accept: TypeAlias = Callable[[Codes], Mask]

REFERENCE_IMAGE_SIZE = 256
REFERENCE_NUM_CLASSES = 1000
_MAX_DRAWS = 4_000_000
_MAX_BATCH = 65_536
_MAX_RETRIES = 100


class Space(ABC):
    """A search space: stages of choices, a rule between them, and a range of parameters.

    A family gives ``rules`` and ``parts``; the rest is the same for all.
    """

    def __init__(self, space_id: str, stages: tuple[Stage, ...], params_range: tuple[int, int]):
        self.id = space_id
        self.stages = stages
        self.params_range = params_range
        self.definition = ""
        self.columns = tuple(columns_of(stages))
        self._index = {(c.stage, c.name, c.layer): i for i, c in enumerate(self.columns)}

    # What a family defines.

    @abstractmethod
    def rules(self) -> tuple[Rule, ...]:
        """What holds between stages, such as growing widths."""

    @abstractmethod
    def parts(self, image_size: int, num_classes: int) -> tuple[Part, ...]:
        """How an architecture expands into blocks, in the order in which they run."""

    @abstractmethod
    def silent_choices(self) -> dict[str, str]:
        """What the family's paper leaves open, and what was chosen here."""

    # Blocks and costs.

    def column(self, stage: int, name: str, layer: int | None = None) -> int:
        """The index of a column."""
        return self._index[stage, name, layer]

    def layout(
        self,
        codes: Codes,
        image_size: int = REFERENCE_IMAGE_SIZE,
        num_classes: int = REFERENCE_NUM_CLASSES,
    ) -> tuple[tuple[str, Block], ...]:
        """The (slot, block) pairs of one row of codes [columns], in the order in which they run."""
        pairs: list[tuple[str, Block]] = []
        for part in self._cached_parts(image_size, num_classes):
            pairs += part.expand(*(self.columns[c].values[codes[c]] for c in part.columns))
        return tuple(pairs)

    def blocks(
        self,
        arch: Arch,
        image_size: int = REFERENCE_IMAGE_SIZE,
        num_classes: int = REFERENCE_NUM_CLASSES,
    ) -> tuple[Block, ...]:
        """The blocks of ``arch``, in the order in which they run."""
        pairs = self.layout(self.encode(arch), image_size, num_classes)
        return tuple(block for _, block in pairs)

    def additive_cost(
        self,
        value: Callable[[Block], float],
        image_size: int = REFERENCE_IMAGE_SIZE,
        num_classes: int = REFERENCE_NUM_CLASSES,
    ) -> AdditiveCost:
        """A vectorised cost, the sum of ``value`` over an architecture's blocks."""
        return AdditiveCost(self.columns, self._cached_parts(image_size, num_classes), value)

    def num_params(
        self,
        codes: Codes,
        image_size: int = REFERENCE_IMAGE_SIZE,
        num_classes: int = REFERENCE_NUM_CLASSES,
    ) -> npt.NDArray[np.int64]:
        """Trainable parameters of each row of ``codes`` [N, columns]."""
        cost = self._cached_params(image_size, num_classes)
        return np.rint(cost(codes)).astype(np.int64)

    @cached_property
    def _cached_parts(self) -> Callable[[int, int], tuple[Part, ...]]:
        return lru_cache(maxsize=None)(self.parts)

    @cached_property
    def _cached_params(self) -> Callable[[int, int], AdditiveCost]:
        return lru_cache(maxsize=None)(
            lambda size, classes: self.additive_cost(lambda b: b.cost.params, size, classes)
        )

    # Membership.

    @cached_property
    def rule_tables(self) -> tuple[tuple[tuple[int, ...], Mask], ...]:
        """For each rule its columns, and whether it allows each combination of their codes."""
        tables = []
        for rule in self.rules():
            values = [self.columns[c].values for c in rule.columns]
            allowed = np.array([rule.allowed(*v) for v in product(*values)], dtype=bool)
            tables.append((rule.columns, allowed.reshape([len(v) for v in values])))
        return tuple(tables)

    def follows_rules(self, codes: Codes) -> Mask:
        """Which rows of ``codes`` [N, columns] obey every rule."""
        obeys = np.ones(len(codes), dtype=bool)
        for columns, allowed in self.rule_tables:
            obeys &= allowed[tuple(codes[:, c] for c in columns)]
        return obeys

    def members(self, codes: Codes) -> Mask:
        """Which rows are in the space: the rule holds and the parameters are in the range.

        Parameters are counted at 1000 classes, as the paper does, whatever the data set.
        """
        low, high = self.params_range
        params = self.num_params(codes)
        return self.follows_rules(codes) & (low <= params) & (params <= high)

    def contains(self, arch: Arch) -> bool:
        """Whether ``arch`` is in the space."""
        try:
            return bool(self.members(self.encode(arch)[None])[0])
        except SpaceError:
            return False

    def check(self, arch: Arch) -> Codes:
        """The codes of ``arch``. Raises ``SpaceError`` saying why where it is not a member."""
        codes = self.encode(arch)
        for rule, (columns, allowed) in zip(self.rules(), self.rule_tables, strict=True):
            if not allowed[tuple(codes[c] for c in columns)]:
                raise SpaceError(f"the architecture breaks a rule of {self.id}: {rule.says}")
        params, (low, high) = int(self.num_params(codes[None])[0]), self.params_range
        if not low <= params <= high:
            raise SpaceError(
                f"the architecture has {params:,} parameters; {self.id} holds {low:,} to {high:,}"
            )
        return codes

    @cached_property
    def largest(self) -> Codes:
        """Every choice at its greatest: the supernet's own size, in the range or not."""
        return np.array([len(c.values) - 1 for c in self.columns], dtype=np.int8)

    @cached_property
    def num_archs(self) -> int:
        """How many architectures obey the rule, before the parameter range."""
        layers = [
            sum(math.prod(len(v) for _, v in s.per_layer) ** d for d in s.depth)
            for s in self.stages
        ]
        outer = [i for i, c in enumerate(self.columns) if c.name in ("present", "width")]
        total = 0
        for indices in product(*(range(len(self.columns[i].values)) for i in outer)):
            row = np.zeros((1, len(self.columns)), dtype=np.int8)
            row[0, outer] = indices
            present = self._present(row)[0]
            if (self.tidy(row) == row).all() and self.follows_rules(row)[0]:
                total += math.prod(n for n, p in zip(layers, present, strict=True) if p)
        return total

    # Drawing and changing.

    def sample(self, num: int, rng: np.random.Generator) -> Codes:
        """Draw ``num`` members [num, columns], each choice uniform, non-members thrown away."""
        found, drawn, kept = 0, 0, [np.empty((0, len(self.columns)), dtype=np.int8)]
        while found < num:
            if drawn > _MAX_DRAWS and not found:
                low, high = self.params_range
                raise SpaceError(
                    f"no architecture of {self.id} with {low:,} to {high:,} parameters was found "
                    f"in {drawn:,} draws: widen its range of parameters"
                )
            batch = min(max(256, 16 * (num - found), drawn), _MAX_BATCH)
            codes = self.tidy(self._draw(batch, rng))
            drawn += batch
            kept.append(codes[self.members(codes)])
            found += len(kept[-1])
        return np.concatenate(kept)[:num]

    def mutate(
        self,
        codes: Codes,
        rng: np.random.Generator,
        *,
        p_depth: float,
        p_block: float,
        accept: Accept | None = None,
    ) -> Codes:
        """Mutate each row of ``codes`` [N, columns] (AutoViT, section 3.3.2).

        A stage changes its depth with probability ``p_depth``; then each block, and each stage's
        width, is drawn anew with ``p_block``. Every product is a member and, where ``accept`` is
        given, accepted; a row that no retry could change so is returned as it is.
        """

        def propose(parents: Codes) -> Codes:
            fresh = self._draw(len(parents), rng)
            change = np.where(self._is_depth, p_depth, p_block) > self._draw_groups(parents, rng)
            return np.where(change | ~self._active(parents), fresh, parents)

        return self._until_member(codes, propose, accept)

    def crossover(
        self, first: Codes, second: Codes, rng: np.random.Generator, accept: Accept | None = None
    ) -> Codes:
        """Cross row by row: each stage's depth and width, and each layer, from either parent.

        A layer that only one parent has comes from that parent. Every product is a member and,
        where ``accept`` is given, accepted; failing that, the row of ``first``.
        """
        partners = np.concatenate([first, second], axis=1)

        def propose(pairs: Codes) -> Codes:
            a, b = np.split(pairs, 2, axis=1)
            take = self._draw_groups(a, rng) < 0.5
            take = np.where(self._active(a), take, True) & self._active(b)
            child = np.where(take, b, a)
            return np.concatenate([child, b], axis=1)

        return self._until_member(partners, propose, accept)[:, : first.shape[1]]

    def _until_member(
        self, codes: Codes, propose: Callable[[Codes], Codes], accept: Accept | None
    ) -> Codes:
        result, todo, width = codes.copy(), np.arange(len(codes)), len(self.columns)
        for _ in range(_MAX_RETRIES):
            if not len(todo):
                break
            proposed = propose(codes[todo])
            proposed[:, :width] = self.tidy(proposed[:, :width])
            good = self.members(proposed[:, :width])
            if accept is not None and good.any():
                good[good] = accept(proposed[good, :width])
            result[todo[good]] = proposed[good]
            todo = todo[~good]
        return result

    def _draw(self, num: int, rng: np.random.Generator) -> Codes:
        sizes = [len(c.values) for c in self.columns]
        return rng.integers(0, sizes, size=(num, len(sizes)), dtype=np.int8)

    @cached_property
    def _is_depth(self) -> Mask:
        return np.array([c.name in ("depth", "present") for c in self.columns])

    @cached_property
    def _groups(self) -> npt.NDArray[np.intp]:
        keys = [
            (c.stage, c.layer, None if c.layer is not None else c.name == "width")
            for c in self.columns
        ]
        order = {key: i for i, key in enumerate(dict.fromkeys(keys))}
        return np.array([order[key] for key in keys])

    def _draw_groups(self, codes: Codes, rng: np.random.Generator) -> Costs:
        """One uniform number for each row and each group of columns that change together."""
        return rng.random((len(codes), int(self._groups.max()) + 1))[:, self._groups]

    def _present(self, codes: Codes) -> Mask:
        present = np.ones((len(codes), len(self.stages)), dtype=bool)
        for i, stage in enumerate(self.stages):
            if stage.optional:
                present[:, i] = codes[:, self.column(i, "present")] == 1
        return present

    def _active(self, codes: Codes) -> Mask:
        """Which choices are in use: those of present stages, and of layers within the depth."""
        present = self._present(codes)
        active = np.ones(codes.shape, dtype=bool)
        for i, column in enumerate(self.columns):
            if column.name == "present":
                continue
            active[:, i] = present[:, column.stage]
            if column.layer is not None:
                depths = np.array(self.stages[column.stage].depth)
                depth = depths[codes[:, self.column(column.stage, "depth")]]
                active[:, i] &= column.layer < depth
        return active

    def tidy(self, codes: Codes) -> Codes:
        """The rows with 0 for every choice that is not in use, so that equal ones are equal."""
        return np.where(self._active(codes), codes, 0).astype(np.int8)

    # Between codes and architectures.

    def decode(self, codes: Codes) -> Arch:
        """The architecture of one row of codes [columns]."""
        active, stages = self._active(codes[None])[0], []
        for i, stage in enumerate(self.stages):
            mine = [j for j, c in enumerate(self.columns) if c.stage == i and c.name != "present"]
            if not active[mine[0]]:
                continue
            choices: dict[str, Value] = {}
            for j in mine:
                column, value = self.columns[j], self.columns[j].values[codes[j]]
                if column.layer is None:
                    if column.name == "width" or len(stage.depth) > 1 or stage.per_layer:
                        choices[column.name] = value
                elif active[j]:
                    layers = choices.get(column.name, ())
                    choices[column.name] = (*(layers if isinstance(layers, tuple) else ()), value)
            stages.append((stage.name, tuple(choices.items())))
        return Arch(self.id, tuple(stages))

    def encode(self, arch: Arch) -> Codes:
        """The codes [columns] of ``arch``. Raises ``SpaceError`` naming the choice that is off."""
        if arch.space != self.id:
            raise SpaceError(f"the architecture is of space {arch.space!r}, not of {self.id!r}")
        given = {name: dict(choices) for name, choices in arch.stages}
        if unknown := set(given) - {stage.name for stage in self.stages}:
            raise SpaceError(f"{self.id} has no stage {min(unknown)!r}")
        codes = np.zeros(len(self.columns), dtype=np.int8)
        for i, stage in enumerate(self.stages):
            choices = given.get(stage.name)
            if choices is None:
                if not stage.optional:
                    raise SpaceError(f"the architecture lacks stage {stage.name!r} of {self.id}")
                continue
            if stage.optional:
                codes[self.column(i, "present")] = 1
            self._encode_stage(codes, i, choices)
        return codes

    def _encode_stage(self, codes: Codes, index: int, choices: dict[str, Value]) -> None:
        stage = self.stages[index]
        depth = choices.get("depth", stage.depth[0] if len(stage.depth) == 1 else None)
        known = {"width", "depth", *(name for name, _ in stage.per_layer)}
        if unknown := set(choices) - known:
            raise SpaceError(f"stage {stage.name!r} of {self.id} has no choice {min(unknown)!r}")
        for j, column in enumerate(self.columns):
            if column.stage != index or column.name == "present":
                continue
            value = depth if column.name == "depth" else choices.get(column.name)
            where = f"{stage.name}.{column.name}"
            if column.layer is not None:
                if not isinstance(value, tuple) or len(value) != depth:
                    raise SpaceError(f"{where} must be a list of {depth}, one a layer; got {value}")
                if column.layer >= len(value):
                    continue
                value = value[column.layer]
            if value not in column.values:
                expected = ", ".join(f"{v:g}" for v in column.values)
                raise SpaceError(f"{where} is {value}; {self.id} has {expected}")
            codes[j] = column.values.index(value)
