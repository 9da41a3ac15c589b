from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import kendalltau

from hwnas.errors import TableError
from hwnas.luts import Entry, LatencyTable, PairCheck, Reference, assess
from hwnas.spaces import Arch, Block, load_space

STEM = Block.of("conv", **{"in": 3, "out": 16, "kernel": 3, "stride": 2, "res": 32})
HEAD = Block.of("mbpool", **{"in": 64, "expand": 6, "features": 10, "res": 1})


@pytest.fixture
def table() -> LatencyTable:
    rng = np.random.default_rng(0)
    latency = rng.uniform(1, 2, 40)
    return LatencyTable(
        device={"id": "cpu", "fingerprint": {"cpu": "A", "cores": 2}},
        runtime={"name": "fake", "version": "1", "threads": 1},
        space="autovit-xxs",
        image_size=32,
        num_classes=10,
        method={"name": "joint removal"},
        base_ms=0.25,
        entries={STEM.key: Entry(1.0, 0.1, 12), HEAD.key: Entry(0.5, 0.02, 7)},
        aliased=(("base", STEM.key),),
        reference=Reference(Arch("autovit-xxs", (("stem", (("width", 16),)),)), 1.5),
        quality=assess(latency * 1.1, latency, latency),
        created="2026-01-01T00:00:00+00:00",
        keys="paper",
        placement={"cpu": {"softmax": 3}, "neural engine": {"conv": 9, "linear": 4}},
        quality_by_keys={"full": assess(latency, latency, latency)},
        pairs=(PairCheck(STEM.key, HEAD.key, 1.0, 0.9, 0.02),),
    )


def test_written_and_read_back_is_the_same(table: LatencyTable, tmp_path: Path) -> None:
    table.write(tmp_path / "t.json")
    assert LatencyTable.read(tmp_path / "t.json") == table


def test_prediction_is_base_and_entries_with_its_interval(table: LatencyTable) -> None:
    prediction = table.predict([STEM, HEAD, HEAD])
    assert prediction.predicted == pytest.approx(0.25 + 1.0 + 0.5 + 0.5)
    # Every held-out network took 1 / 1.1 of its prediction: off by 9.1% of the prediction.
    half = 2.02 * (1 - 1 / 1.1) * 2.25
    assert prediction.high - prediction.predicted == pytest.approx(half)
    assert prediction.predicted - prediction.low == pytest.approx(half)


def test_a_missing_entry_is_named(table: LatencyTable) -> None:
    absent = Block.of("conv", **{"in": 3, "out": 24, "kernel": 3, "stride": 2, "res": 32})
    with pytest.raises(TableError, match="no entry for block conv/in=3/out=24"):
        table.predict([absent])
    assert np.isnan(table.value(absent))


def test_recalibration_is_a_line_through_every_prediction(table: LatencyTable) -> None:
    before = table.predict([STEM, HEAD]).predicted
    after = table.recalibrated(1.2, -0.1).predict([STEM, HEAD]).predicted
    assert after == pytest.approx(1.2 * before - 0.1)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"space_id": "autovit-s"}, "of space autovit-xxs, but autovit-s"),
        ({"image_size": 64}, "of image size 32, but 64"),
        ({"num_classes": 5}, "of number of classes 10, but 5"),
    ],
)
def test_a_table_of_something_else_is_refused(
    table: LatencyTable, change: dict[str, Any], match: str
) -> None:
    asked = {"space_id": "autovit-xxs", "image_size": 32, "num_classes": 10} | change
    space = load_space(asked.pop("space_id"))
    with pytest.raises(TableError, match=match):
        table.check_use(space=space, **asked)


def test_a_table_of_another_device_or_runtime_is_refused(table: LatencyTable) -> None:
    device, runtime = {"cpu": "A", "cores": 2}, {"name": "fake", "version": "1", "threads": 1}
    table.check_device(device, runtime)
    with pytest.raises(TableError, match="another device: cpu was 'A' and is 'B'"):
        table.check_device({**device, "cpu": "B"}, runtime)
    with pytest.raises(TableError, match="another runtime: version was '1' and is '2'"):
        table.check_device(device, {**runtime, "version": "2"})


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda v: v.update(schema=99), "has schema 99; this hwnas reads schema 2"),
        (lambda v: v.pop("schema"), "is not a latency table"),
        (lambda v: v.pop("quality"), "lacks the field 'quality'"),
        (lambda v: v["quality"].pop("mape"), "damaged.*mape"),
        (lambda v: v["entries"][0].update(ms=-1), "below zero"),
        (lambda v: v["entries"][0].update(ms="fast"), "not a finite number"),
        (lambda v: v["entries"][0].update(block="nonsense"), "unknown block kind 'nonsense'"),
        (lambda v: v["entries"].append(v["entries"][0]), "has two entries"),
        (lambda v: v.update(entries=[]), "has no entries"),
        (lambda v: v.update(image_size=10**400), "image_size is not a whole number from 1 to"),
        (lambda v: v["pairs"][0].update(first="nonsense"), "unknown block kind 'nonsense'"),
        (lambda v: v["placement"].update(cpu=3), "damaged"),
        (lambda v: v.update(entries=3), "damaged"),
        (lambda v: v.update(device={"id": 3, "fingerprint": {}}), "an id and a fingerprint"),
        (lambda v: v.update(base_ms=None), "base_ms is None"),
        (lambda v: v["reference"].update(arch=[]), "an architecture is an object"),
    ],
)
def test_a_damaged_table_is_one_sentence(
    table: LatencyTable, tmp_path: Path, damage: Any, match: str
) -> None:
    path = tmp_path / "t.json"
    table.write(path)
    value = json.loads(path.read_text())
    damage(value)
    path.write_text(json.dumps(value))
    with pytest.raises(TableError, match=match):
        LatencyTable.read(path)


def test_a_truncated_table(table: LatencyTable, tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    table.write(path)
    path.write_text(path.read_text()[:500])
    with pytest.raises(TableError, match="is not a whole latency table"):
        LatencyTable.read(path)
    with pytest.raises(TableError, match="no latency table at"):
        LatencyTable.read(tmp_path / "absent.json")


def test_quality_against_its_definitions() -> None:
    rng = np.random.default_rng(1)
    first = rng.uniform(1, 2, 30)
    second, predicted = first * 1.02, first * rng.uniform(0.9, 1.1, 30)
    quality = assess(predicted, first, second)
    mean = first * 1.01
    error = np.abs(predicted / mean - 1)
    assert quality.networks == 30
    assert quality.mape == pytest.approx(error.mean())
    assert quality.within_5pct == pytest.approx(np.mean(error <= 0.05))
    assert quality.within_10pct == pytest.approx(np.mean(error <= 0.10))
    assert quality.retest_mape == pytest.approx(0.02 / 1.01)
    assert quality.kendall == pytest.approx(kendalltau(predicted, mean).statistic)
