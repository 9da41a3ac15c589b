"""The tiny space in full, its exact table, and a supernet trained for an epoch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import tiny

from hwnas.luts import LatencyTable
from hwnas.spaces import Space
from hwnas.train import Data, Run, Split


@pytest.fixture(scope="session")
def space() -> Space:
    return tiny.tiny_space()


@pytest.fixture(scope="session")
def table(space: Space) -> LatencyTable:
    return tiny.exact_table(space)


@pytest.fixture(scope="session")
def everything(space: Space) -> tiny.Everything:
    return tiny.everything(space)


@pytest.fixture(scope="session")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("supernet")


@pytest.fixture(scope="session")
def run(run_dir: Path) -> Run:
    return tiny.tiny_run(run_dir)


@pytest.fixture(scope="session")
def data() -> Data:
    """A few of the digits, so that rating takes milliseconds."""
    whole = tiny.tiny_data()
    few = {name: Split(s.labels[:96], s.read) for name, s in whole.splits.items()}
    return replace(whole, splits=few)
