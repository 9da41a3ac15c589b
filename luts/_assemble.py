"""From the batches that were timed to a table: fit, judge, and say how it came about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

import numpy as np

from hwnas.devices import Plan
from hwnas.luts._additivity import check_pairs
from hwnas.luts._design import Design, Layout, Timings, Variant, count_blocks, keys_of
from hwnas.luts._fit import Array, Fit, aliased, fit_entries
from hwnas.luts._keys import KEYINGS, fit_modules
from hwnas.luts._measurements import Record
from hwnas.luts._quality import assess
from hwnas.luts._table import Entry, LatencyTable, Reference
from hwnas.luts._timing import add_up
from hwnas.spaces import Block

_FITTED = ("fit", "pairs")


def timings(design: Design, records: Sequence[Record]) -> Timings:
    """The networks that were timed to fit the entries, those that failed left out."""
    scale = _reference_ms(records)
    networks: list[Layout] = []
    latency_ms: list[float] = []
    batch: list[int] = []
    for number, record in enumerate(records):
        if record.task.partition("/")[0] in _FITTED:
            for name, variant in _timed(record):
                networks.append(design.blocks(variant))
                latency_ms.append(scale * record.batch.ratio(name))
                batch.append(number)
    return Timings(networks, np.array(latency_ms), np.array(batch))


def largest_se_ms(design: Design, records: Sequence[Record]) -> float:
    """The greatest standard error of an entry (ms)."""
    timed = timings(design, records)
    keys = keys_of(timed.networks)
    return float(_fit(keys, timed).se_ms.max())


def assemble(
    design: Design,
    plan: Plan,
    conditions: Mapping[str, Any],
    records: Sequence[Record],
    keys: str,
    stopped: str,
) -> LatencyTable:
    """The table of ``records``, its blocks keyed as ``KEYINGS[keys]`` says."""
    reference_ms = _reference_ms(records)
    timed = timings(design, records)
    names = keys_of(timed.networks)
    blocks, counts = [Block.parse(k) for k in names], count_blocks(timed.networks, names)
    fit = _fit(names, timed)
    coarse = fit_modules(blocks, KEYINGS["paper"], counts, timed.latency_ms)
    held_out, first, second = _held_out(design, records, names)
    held_out_counts = count_blocks(held_out, names)
    quality = {
        "full": assess(held_out_counts @ fit.entries_ms, first, second),
        "paper": assess(coarse.base_ms + held_out_counts @ coarse.entries_ms, first, second),
    }
    chosen = fit if keys == "full" else coarse
    entries = {
        name: Entry(float(ms), float(se), int(num))
        for name, ms, se, num in zip(
            names, chosen.entries_ms, chosen.se_ms, counts.sum(0), strict=True
        )
    }
    return LatencyTable(
        device=conditions["device"],
        runtime=conditions["runtime"],
        space=design.space.id,
        image_size=design.image_size,
        num_classes=design.num_classes,
        method={**_method(plan, fit, len(timed.networks), records), "stopped": stopped},
        keys=keys,
        base_ms=0.0 if keys == "full" else coarse.base_ms,
        entries=entries,
        aliased=tuple(tuple(keys) for keys in aliased(blocks, counts)),
        reference=Reference(_arch(design), reference_ms),
        quality=quality[keys],
        quality_by_keys=quality,
        pairs=tuple(check_pairs(design, records, reference_ms, _noise(first, second))),
        placement=add_up(record.batch.placement for record in records),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )


def _arch(design: Design) -> Any:
    return design.space.decode(np.array(design.reference().codes, dtype=np.int8))


def _fit(keys: Sequence[str], timed: Timings) -> Fit:
    blocks = [Block.parse(key) for key in keys]
    counts = count_blocks(timed.networks, keys)
    return fit_entries(blocks, counts, timed.latency_ms, timed.batch)


def _method(plan: Plan, fit: Fit, num_networks: int, records: Sequence[Record]) -> dict[str, Any]:
    a_to_a = np.array([record.batch.a_to_a() for record in records])
    return {
        "name": "joint removal",
        "networks": num_networks,
        "failed": sum(len(record.batch.failed) for record in records),
        "batches": len(records),
        "rounds": plan.rounds,
        "warmup_rounds": plan.warmup_rounds,
        "seed": plan.seed,
        "device_s": round(sum(record.batch.device_s for record in records), 1),
        "network_noise": fit.noise,
        "batch_sd": fit.batch_sd,
        "entry_tau": fit.tau,
        "a_to_a_mean": float(a_to_a.mean()),
        "a_to_a_sd": float(a_to_a.std()),
    }


def _reference_ms(records: Sequence[Record]) -> float:
    return float(np.median([record.batch.reference_ms() for record in records]))


def _timed(record: Record) -> list[tuple[str, Variant]]:
    named = ((f"{record.task}/{i}", variant) for i, variant in enumerate(record.variants))
    return [(name, variant) for name, variant in named if name in record.batch.samples_ms]


def _held_out(
    design: Design, records: Sequence[Record], keys: Sequence[str]
) -> tuple[list[Layout], Array, Array]:
    """Held-out networks that were timed twice and can be predicted, and both latencies (ms)."""
    scale = _reference_ms(records)
    found: dict[str, dict[Variant, float]] = {"held-out-1": {}, "held-out-2": {}}
    for record in records:
        role = record.task.partition("/")[0]
        for name, variant in _timed(record) if role in found else ():
            found[role][variant] = scale * record.batch.ratio(name)
    known = set(keys)
    both = [
        variant
        for variant in found["held-out-1"]
        if variant in found["held-out-2"] and known.issuperset(keys_of([design.blocks(variant)]))
    ]
    first, second = (np.array([latency[v] for v in both]) for latency in found.values())
    return [design.blocks(v) for v in both], first, second


def _noise(first: Array, second: Array) -> float:
    """The relative standard deviation of one timing, from networks timed twice."""
    return float(np.std(np.log(first / second)) / np.sqrt(2))
