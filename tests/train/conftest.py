"""A space and a data set small enough to be trained in a second."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hwnas.spaces import Space, parse_space

SPACE_TOML = """
family = "autovit"
id = "tiny"
params = [1_000, 1_000_000]
expansion = 1
pool_expansion = 1
head_dim = 4
[stem]
width = [4, 6]
stride = 2
[[mbconv]]
width = [8, 10]
depth = [1, 2]
stride = 2
[[transformer]]
width = [12, 16]
depth = [1, 2]
heads = [1, 2]
ratio = [1, 2]
stride = 1
"""


@pytest.fixture
def space() -> Space:
    """A space whose largest network has a few thousand weights."""
    return parse_space(SPACE_TOML, "tiny")


@pytest.fixture
def space_file(tmp_path: Path) -> Path:
    """The same space as a user's own file."""
    path = tmp_path / "tiny.toml"
    path.write_text(SPACE_TOML)
    return path


MakeFolder = Callable[..., Path]


@pytest.fixture
def make_folder(tmp_path: Path) -> MakeFolder:
    """``make_folder(train={"cat": 5, "dog": 4}, val=…)``: images of one colour for each class."""

    def make(**splits: dict[str, int]) -> Path:
        root = tmp_path / "images"
        for split, classes in splits.items():
            for label, (name, count) in enumerate(classes.items()):
                folder = root / split / name if split != "plain" else root / name
                folder.mkdir(parents=True)
                for i in range(count):
                    pixels = np.full((20, 30, 3), (50 * label, 100, i), dtype=np.uint8)
                    Image.fromarray(pixels).save(folder / f"{i}.png")
        return root

    return make
