from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from fakes import true_ms
from PIL import Image
from tiny import exact_table, tiny_space

from hwnas.luts import LatencyTable
from hwnas.spaces import Arch, load_space

Run = Callable[..., Result]


def test_show(hwnas: Run, files: Path, table: LatencyTable) -> None:
    result = hwnas("lut", "show", "xxs.json")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[:4] == [
        "space           autovit-xxs, 64x64 pixels, 10 classes",
        "device          cpu: cpu fake, cores 2",
        "runtime         name fake, version 1, threads 1",
        "created         2026-01-01T00:00:00+00:00",
    ]
    assert "mean error      1.0% (the same networks timed again: 1.0%)" in lines
    assert "rank agreement  Kendall 0.900, Spearman 0.950" in lines
    for key, entry in table.entries.items():
        kind, _, sizes = key.partition("/")
        (line,) = [line for line in lines if line.split()[3:] == [sizes]]
        assert line.split()[:3] == [f"{entry.ms:.4f}", "0.0010", "5"]
        headers = [line for line in lines if line.split()[-1:] == [kind]]
        assert len(headers) == 1


def test_show_json_is_the_file(hwnas: Run, files: Path) -> None:
    result = hwnas("lut", "show", "xxs.json", "--json")
    assert json.loads(result.stdout) == json.loads((files / "xxs.json").read_text())


XXS = load_space("autovit-xxs")


def rows(stdout: str, name: str) -> list[list[str]]:
    """The words of each line of the breakdown of ``name``, without its two headers."""
    lines = stdout.splitlines()
    (start,) = [i for i, line in enumerate(lines) if line.startswith(f"{name}: ")]
    end = lines.index("", start)
    return [line.split() for line in lines[start + 2 : end]]


def expected_ms(arch: Arch) -> dict[tuple[str, str], float]:
    """By stage and kind, from the device's own formula."""
    found: dict[tuple[str, str], float] = {}
    for slot, block in XXS.layout(XXS.encode(arch), 64, 10):
        key = (slot.partition("_")[0], block.kind)
        found[key] = found.get(key, 0.0) + true_ms(block)
    return found


def check_rows(shown: list[list[str]], arch: Arch) -> None:
    expected = expected_ms(arch)
    total_ms = sum(expected.values())
    *pieces, total = shown
    assert {(stage, kind) for stage, kind, *_ in pieces} == set(expected)
    for stage, kind, _, ms, _, share, *bar in pieces:
        assert float(ms) == pytest.approx(expected[stage, kind], abs=6e-5)
        assert share == f"{100 * expected[stage, kind] / total_ms:.1f}%"
        assert "".join(bar) == "█" * round(40 * expected[stage, kind] / total_ms)
    assert total[0] == "total"
    assert float(total[2]) == pytest.approx(total_ms, abs=6e-5)
    stages = list(dict.fromkeys(stage for stage, *_ in pieces))
    order = ["stem", *(stage.name for stage in XXS.stages[1:]), "head"]
    assert stages == [stage for stage in order if stage in stages]


def test_the_breakdown_of_the_reference(hwnas: Run, files: Path, table: LatencyTable) -> None:
    result = hwnas("lut", "show", "xxs.json")
    check_rows(rows(result.stdout, "reference"), table.reference.arch)


@pytest.fixture
def archs(files: Path) -> list[Arch]:
    """Two architectures, in ``a.json`` and ``b.json``."""
    found = [XXS.decode(codes) for codes in XXS.sample(2, np.random.default_rng(3))]
    for name, arch in zip(("a.json", "b.json"), found, strict=True):
        (files / name).write_text(str(arch))
    return found


def test_the_breakdown_of_other_architectures(hwnas: Run, archs: list[Arch]) -> None:
    result = hwnas("lut", "show", "xxs.json", "--arch", "a.json", "--arch", "b.json")
    assert result.exit_code == 0
    check_rows(rows(result.stdout, "a.json"), archs[0])
    check_rows(rows(result.stdout, "b.json"), archs[1])


def test_a_picture(hwnas: Run, files: Path, archs: list[Arch]) -> None:
    result = hwnas("lut", "show", "xxs.json", "--arch", "a.json", "--picture", "out/two.png")
    assert result.exit_code == 0
    assert result.stderr == "Written: out/two.png\n"
    assert rows(result.stdout, "a.json")
    with Image.open(files / "out/two.png") as image:
        assert image.format == "PNG"
        image.load()
    hwnas("lut", "show", "xxs.json", "--picture", "one.svg")
    text = (files / "one.svg").read_text()
    assert ">reference<" in text
    assert ">Latency by stage and kind of block: autovit-xxs at 64x64, on cpu, fake 1" in text
    assert not list(files.rglob("*.tmp"))


def test_a_space_that_is_not_found(hwnas: Run, files: Path) -> None:
    result = hwnas("lut", "show", "tiny.json")
    assert result.exit_code == 0
    sentence = " ".join(result.stdout.split())
    assert "breakdown not shown: unknown space 'tiny': " in sentence
    assert "--space names a file of your own" in sentence
    assert "total" not in result.stdout
    for key in exact_table(tiny_space()).entries:
        assert f" {key.partition('/')[2]}\n" in result.stdout
    shown = rows(hwnas("lut", "show", "tiny.json", "--space", "tiny.toml").stdout, "reference")
    assert shown[0][:2] == ["stem", "conv"]


def test_a_reference_that_the_table_cannot_predict(hwnas: Run, files: Path) -> None:
    value = json.loads((files / "xxs.json").read_text())
    value["entries"] = [e for e in value["entries"] if not e["block"].startswith("mbpool/")]
    (files / "xxs.json").write_text(json.dumps(value))
    result = hwnas("lut", "show", "xxs.json")
    assert result.exit_code == 0
    assert "breakdown       not shown: the table has no entry for block" in result.stdout
    result = hwnas("lut", "show", "xxs.json", "--picture", "a.png")
    assert result.exit_code == 1
    assert not (files / "a.png").exists()
