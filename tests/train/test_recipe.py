from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR

from hwnas.errors import UsageError
from hwnas.train import default_image_size, default_recipe


def test_learning_rate_rises_then_follows_torchs_cosine() -> None:
    recipe = replace(default_recipe("digits"), epochs=12, warmup_epochs=4, learning_rate=0.8)
    assert [recipe.learning_rate_at(e) for e in (0, 1, 2, 3.5)] == pytest.approx([0, 0.2, 0.4, 0.7])
    optimizer = SGD([torch.zeros(1, requires_grad=True)], lr=0.8)
    scheduler = CosineAnnealingLR(optimizer, T_max=8)
    for epoch in range(4, 12):
        assert recipe.learning_rate_at(epoch) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()


def test_without_warmup_it_starts_at_its_highest() -> None:
    recipe = replace(default_recipe("digits"), warmup_epochs=0)
    assert recipe.learning_rate_at(0) == recipe.learning_rate


def test_a_run_shorter_than_its_warmup_only_rises() -> None:
    recipe = replace(default_recipe("digits"), epochs=1, warmup_epochs=4, learning_rate=0.8)
    assert recipe.learning_rate_at(0.5) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("epochs", 0, "epochs must be 1 or more; got 0"),
        ("batch_size", 0, "batch_size must be 1 or more; got 0"),
        ("warmup_epochs", -1, "warmup_epochs must be 0 or more; got -1"),
        ("weight_decay", math.nan, "weight_decay must be 0 or more; got nan"),
        ("seed", -1, "seed must be 0 or more; got -1"),
        ("learning_rate", 0.0, "learning_rate must be above 0; got 0"),
        ("learning_rate", math.inf, "learning_rate must be above 0; got inf"),
        ("label_smoothing", 1.0, r"label_smoothing must be in \[0, 1\); got 1.0"),
    ],
)
def test_a_setting_that_cannot_be_meant(name: str, value: float, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        replace(default_recipe("digits"), **{name: value})


def test_defaults_by_data_set() -> None:
    assert default_image_size("some/folder") == 256
    assert default_image_size("digits") < 256
    assert default_recipe("digits") != default_recipe("some/folder")
