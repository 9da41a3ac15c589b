"""Tables that are exact, and the space that one of them is of."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import TOML, exact_table, tiny_space

from hwnas.luts import LatencyTable
from hwnas.spaces import load_space


@pytest.fixture(scope="session")
def table() -> LatencyTable:
    return exact_table(load_space("autovit-xxs"), image_size=64)


@pytest.fixture
def files(tmp_path: Path, table: LatencyTable) -> Path:
    """``xxs.json`` and ``tiny.json``, tables; ``tiny.toml``, the space of the second."""
    table.write(tmp_path / "xxs.json")
    exact_table(tiny_space()).write(tmp_path / "tiny.json")
    (tmp_path / "tiny.toml").write_text(TOML)
    return tmp_path
