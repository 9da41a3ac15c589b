"""Recipe: how long and how hard a supernet is trained. No torch in here."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hwnas.errors import UsageError

DIGITS = "digits"
"""The data set that scikit-learn carries."""


@dataclass(frozen=True)
class Recipe:
    """The settings of a training run. Raises ``UsageError`` for one that cannot be meant.

    The learning rate rises linearly over ``warmup_epochs`` to ``learning_rate`` and falls to zero
    along a cosine; a run shorter than its warm-up only rises. ``seed`` determines initial weights,
    sampled architectures, order of the images and their augmentation.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    warmup_epochs: int
    label_smoothing: float
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"epochs": 1, "batch_size": 1, "warmup_epochs": 0, "weight_decay": 0, "seed": 0}
        for name, low in least.items():
            value = getattr(self, name)
            if not low <= value < math.inf:
                raise UsageError(f"{name} must be {low} or more; got {value}")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise UsageError(f"learning_rate must be above 0; got {self.learning_rate}")
        if not 0 <= self.label_smoothing < 1:
            raise UsageError(f"label_smoothing must be in [0, 1); got {self.label_smoothing}")

    def learning_rate_at(self, progress_epochs: float) -> float:
        """The learning rate after ``progress_epochs`` epochs, a real number in [0, epochs)."""
        if progress_epochs < self.warmup_epochs:
            return self.learning_rate * progress_epochs / self.warmup_epochs
        done = (progress_epochs - self.warmup_epochs) / (self.epochs - self.warmup_epochs)
        return self.learning_rate * (1 + math.cos(math.pi * done)) / 2


_DIGITS_RECIPE = Recipe(
    epochs=40,
    batch_size=64,
    learning_rate=4e-3,
    weight_decay=0.05,
    warmup_epochs=3,
    label_smoothing=0.1,
)
_FOLDER_RECIPE = Recipe(  # AutoFormer, Table 2, but for length and batch
    epochs=100,
    batch_size=128,
    learning_rate=1e-3,
    weight_decay=0.05,
    warmup_epochs=5,
    label_smoothing=0.1,
)


def default_image_size(data_spec: str) -> int:
    """The image size in pixels that ``data_spec`` is trained at unless told otherwise."""
    return 48 if data_spec == DIGITS else 256


def default_recipe(data_spec: str) -> Recipe:
    """The recipe that ``data_spec`` is trained with unless told otherwise."""
    return _DIGITS_RECIPE if data_spec == DIGITS else _FOLDER_RECIPE
