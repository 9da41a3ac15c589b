"""The checkout and the package as a whole."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

import hwnas
from hwnas.cli import COMMANDS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
LINKED = ("devices", "luts", "profilers")
HEAVY = {"coremltools", "matplotlib", "onnx", "onnxruntime", "scipy", "sklearn", "timm"}
HEAVY |= {"torch", "tvm"}


@pytest.fixture(scope="module")
def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.mark.parametrize("name", LINKED)
def test_the_links_stand(name: str) -> None:
    link = ROOT / "hwnas" / name
    if not link.is_symlink() or link.resolve() != ROOT / name:
        pytest.fail(
            f"this checkout has lost the link hwnas/{name} -> ../{name}: "
            f"put it back with `git checkout hwnas/{name}` where links are allowed",
            pytrace=False,
        )


def modules_after(code: str) -> set[str]:
    """The top-level modules that a fresh Python has imported after ``code``."""
    show = "import json, sys; print(json.dumps(list(sys.modules)), file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{show}"], capture_output=True, text=True, check=True
    )
    return {module.partition(".")[0] for module in json.loads(done.stderr.splitlines()[-1])}


def test_what_import_hwnas_pulls_in() -> None:
    assert not modules_after("import hwnas") & (HEAVY | {"click", "numpy"})


def test_what_help_pulls_in() -> None:
    code = "from hwnas.cli import main\nmain(['--help'], standalone_mode=False)"
    assert not modules_after(code) & (HEAVY | {"numpy"})


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    code = f"from hwnas.cli import main\nmain([{command!r}, '--help'], standalone_mode=False)"
    assert not modules_after(code) & HEAVY


def test_the_version_has_one_source(pyproject: dict[str, Any]) -> None:
    assert "version" not in pyproject["project"]
    assert pyproject["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "hwnas.__version__"}
    assert re.fullmatch(r"\d+\.\d+\.\d+", hwnas.__version__)


def test_constraints_are_pins_and_name_no_host(pyproject: dict[str, Any]) -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    marker = r"(; python_version (<|>=) '3\.11')?"
    assert [p for p in pins if not re.fullmatch(r"[a-z0-9-]+==[0-9.]+(post\d+)?" + marker, p)] == []
    pinned = {pin.partition("==")[0] for pin in pins}
    project = pyproject["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    names = {re.split("[<>=;]", requirement)[0].strip() for requirement in wanted}
    assert names - pinned == set()


def test_the_wheel_owns_one_name(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("hwnas", *LINKED):
        shutil.copytree(ROOT / name, source / name, symlinks=True)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = f"from setuptools import build_meta; build_meta.build_wheel({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=source, capture_output=True, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = set(archive.namelist())
    assert {name.partition("/")[0] for name in packed} == {
        "hwnas",
        f"hwnas-{hwnas.__version__}.dist-info",
    }
    for folder in ("hwnas", *LINKED):
        below = "" if folder == "hwnas" else "hwnas/"
        kept = [p for p in (ROOT / folder).rglob("*") if p.suffix in (".py", ".toml", ".json")]
        assert {f"{below}{path.relative_to(ROOT)}" for path in kept} <= packed
