"""The latency table: what each block costs on one device, and how well it is known."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from hwnas.errors import SpaceError, TableError
from hwnas.files import read_json, write_json
from hwnas.luts._additivity import PairCheck
from hwnas.luts._quality import Quality
from hwnas.luts._timing import add_up
from hwnas.spaces import Arch, Block, Space

SCHEMA = 2
_MOST = 10**9
_T95 = 2.02  # Student's t, for the 40 held-out networks that the spread comes from


@dataclass(frozen=True)
class Entry:
    """What the whole model loses without a block (ms), how sure, and how often it was timed."""

    ms: float
    se_ms: float
    count: int


@dataclass(frozen=True)
class Prediction:
    """A network's predicted latency with its 95% interval (ms)."""

    predicted: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        """The fields as a JSON object."""
        return {"predicted": self.predicted, "low": self.low, "high": self.high}


@dataclass(frozen=True)
class Reference:
    """The network that every batch was timed beside: its architecture and its latency (ms)."""

    arch: Arch
    ms: float


@dataclass(frozen=True)
class LatencyTable:
    """A removal-based latency table, ``luts/*.json``.

    ``device`` is {"id", "fingerprint"}; ``runtime`` names the runtime, its version and settings.
    """

    device: Mapping[str, Any]
    runtime: Mapping[str, Any]
    space: str
    image_size: int
    num_classes: int
    method: Mapping[str, Any]
    base_ms: float
    """What every network costs; 0 where it is in the entries of the blocks that every one has."""
    entries: Mapping[str, Entry]
    aliased: tuple[tuple[str, ...], ...]
    """Sets of blocks of which only the sum was determined by the networks that were timed."""
    reference: Reference
    quality: Quality
    created: str
    keys: str = "full"
    """``full``: each block has its own entry; else the keying by which blocks share one."""
    quality_by_keys: Mapping[str, Quality] = field(default_factory=dict)
    """The same as ``quality`` for every keying of the same timings."""
    pairs: tuple[PairCheck, ...] = ()
    """Where two blocks were removed together as well as singly, the worst first."""
    placement: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Where the operators ran, of a runtime that chooses: processor -> operator -> how many."""

    def ms(self, block: Block) -> float:
        """The entry of ``block`` (ms). Raises ``TableError`` naming a block that has none."""
        entry = self.entries.get(block.key)
        if entry is None:
            raise TableError(
                f"the table has no entry for block {block.key}: it was never in a network that was "
                "timed; profile longer, with a larger --time-budget"
            )
        return entry.ms

    def predict(self, blocks: Iterable[Block]) -> Prediction:
        """The latency of a network of ``blocks``: base and entries summed, with its interval.

        The interval is for one network's measured latency; its width is the spread of measured
        around predicted latencies of the held-out networks.
        """
        predicted = self.base_ms + math.fsum(self.ms(block) for block in blocks)
        margin = _T95 * self.quality.relative_sd * predicted
        return Prediction(predicted, max(0.0, predicted - margin), predicted + margin)

    @cached_property
    def value(self) -> Callable[[Block], float]:
        """An entry's ms, NaN where there is none: for costing whole matrices of codes."""
        entries = {key: entry.ms for key, entry in self.entries.items()}
        return lambda block: entries.get(block.key, math.nan)

    def check_use(self, *, space: Space, image_size: int, num_classes: int) -> None:
        """Raise ``TableError`` where the table is of another space, image size or class count."""
        for what, mine, theirs in (
            ("space", self.space, space.id),
            ("image size", self.image_size, image_size),
            ("number of classes", self.num_classes, num_classes),
        ):
            if mine != theirs:
                raise TableError(
                    f"the latency table is of {what} {mine}, but {theirs} is asked for: "
                    "profile that one, or name another table with --lut"
                )

    def check_device(self, fingerprint: Mapping[str, Any], runtime: Mapping[str, Any]) -> None:
        """Raise ``TableError`` naming the field in which the device or runtime differs."""
        for what, mine, theirs in (
            ("device", self.device["fingerprint"], fingerprint),
            ("runtime", self.runtime, runtime),
        ):
            for name in sorted(set(mine) | set(theirs)):
                if mine.get(name) != theirs.get(name):
                    raise TableError(
                        f"the latency table was measured on another {what}: {name} was "
                        f"{mine.get(name)!r} and is {theirs.get(name)!r}; profile this one"
                    )

    def recalibrated(self, scale: float, offset_ms: float) -> LatencyTable:
        """The table with every prediction p turned into ``scale * p + offset_ms``."""
        entries = {
            k: replace(e, ms=e.ms * scale, se_ms=e.se_ms * scale) for k, e in self.entries.items()
        }
        return replace(self, base_ms=self.base_ms * scale + offset_ms, entries=entries)

    def write(self, path: Path) -> None:
        """Write the table, whole or not at all."""
        entries = [
            {"block": key, "ms": e.ms, "se_ms": e.se_ms, "count": e.count}
            for key, e in sorted(self.entries.items())
        ]
        write_json(
            path,
            {
                "schema": SCHEMA,
                "device": dict(self.device),
                "runtime": dict(self.runtime),
                "space": self.space,
                "image_size": self.image_size,
                "num_classes": self.num_classes,
                "method": dict(self.method),
                "keys": self.keys,
                "base_ms": self.base_ms,
                "entries": entries,
                "aliased": [list(keys) for keys in self.aliased],
                "reference": {"arch": self.reference.arch.to_json(), "ms": self.reference.ms},
                "quality": self.quality.to_json(),
                "quality_by_keys": {k: q.to_json() for k, q in self.quality_by_keys.items()},
                "placement": self.placement,
                "pairs": [pair.to_json() for pair in self.pairs],
                "created": self.created,
            },
        )

    @classmethod
    def read(cls, path: Path) -> LatencyTable:
        """Read and validate a table. Raises ``TableError`` saying what is wrong with it."""
        value = read_json(path, "latency table", TableError)
        if not isinstance(value, dict) or "schema" not in value:
            raise TableError(f"{path} is not a latency table: it has no field 'schema'")
        if value["schema"] != SCHEMA:
            raise TableError(
                f"{path} has schema {value['schema']!r}; this hwnas reads schema {SCHEMA}: "
                "profile again, or use the hwnas that wrote it"
            )
        try:
            return cls._from_json(value)
        except KeyError as error:
            raise TableError(f"{path} is damaged: it lacks the field {error.args[0]!r}") from error
        except (TypeError, ValueError, AttributeError, OverflowError, SpaceError) as error:
            raise TableError(f"{path} is damaged: {error}") from error

    @classmethod
    def _from_json(cls, value: dict[str, Any]) -> LatencyTable:
        entries: dict[str, Entry] = {}
        for e in value["entries"]:
            key = Block.parse(str(e["block"])).key
            if key in entries:
                raise ValueError(f"block {key} has two entries")
            entries[key] = Entry(_ms(e["ms"], key), _ms(e["se_ms"], key), _whole(e["count"], key))
        if not entries:
            raise ValueError("it has no entries")
        device, runtime = dict(value["device"]), dict(value["runtime"])
        if not isinstance(device["id"], str) or not isinstance(device["fingerprint"], dict):
            raise ValueError("device must hold an id and a fingerprint")
        _whole(runtime["threads"], "threads")
        reference = value["reference"]
        return cls(
            device=device,
            runtime=runtime,
            space=str(value["space"]),
            image_size=_whole(value["image_size"], "image_size"),
            num_classes=_whole(value["num_classes"], "num_classes"),
            method=dict(value["method"]),
            keys=str(value["keys"]),
            base_ms=_finite(value["base_ms"], "base_ms"),
            entries=entries,
            aliased=tuple(tuple(map(str, keys)) for keys in value["aliased"]),
            reference=Reference(Arch.from_json(reference["arch"]), _ms(reference["ms"], "ms")),
            quality=_quality(value["quality"]),
            quality_by_keys={str(k): _quality(q) for k, q in value["quality_by_keys"].items()},
            pairs=tuple(map(_pair, value["pairs"])),
            placement=add_up([value["placement"]]),
            created=str(value["created"]),
        )


def _quality(value: Mapping[str, Any]) -> Quality:
    numbers = {name: _finite(number, name) for name, number in value.items()}
    return Quality(**{**numbers, "networks": int(numbers["networks"])})  # type: ignore[arg-type]


def _pair(value: Mapping[str, Any]) -> PairCheck:
    return PairCheck(
        Block.parse(str(value["first"])).key,
        Block.parse(str(value["second"])).key,
        _finite(value["together_ms"], "together_ms"),
        _finite(value["singly_ms"], "singly_ms"),
        _finite(value["se_ms"], "se_ms"),
    )


def _finite(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name} is {value!r}, not a finite number")
    return float(value)


def _whole(value: object, name: str) -> int:
    if type(value) is not int or not 1 <= value <= _MOST:
        raise ValueError(f"{name} is not a whole number from 1 to {_MOST}")
    return value


def _ms(value: object, name: str) -> float:
    number = _finite(value, name)
    if number < 0:
        raise ValueError(f"{name} is {number} ms, below zero")
    return number
