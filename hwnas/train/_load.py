"""From the name of a data set to its ``Data``."""

from __future__ import annotations

from pathlib import Path

from hwnas.errors import UsageError
from hwnas.train._data import Data
from hwnas.train._digits import load_digits
from hwnas.train._folder import load_folder
from hwnas.train._recipe import DIGITS


def load_data(spec: str, image_size: int, *, seed: int = 0) -> Data:
    """The data set ``spec``, ``digits`` or a folder of class folders, at ``image_size`` pixels.

    ``seed`` draws the validation split of a folder that has none of its own. Raises ``DataError``
    where the folder cannot be used, ``UsageError`` for a size below 1.
    """
    if image_size < 1:
        raise UsageError(f"expected an image size of at least 1 pixel; got {image_size}")
    if spec == DIGITS:
        return load_digits(image_size)
    return load_folder(Path(spec), image_size, seed=seed)
