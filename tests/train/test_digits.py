from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn import datasets

from hwnas.errors import DataError, UsageError
from hwnas.train import load_data


def test_splits_hold_every_digit_once_in_equal_shares() -> None:
    data = load_data("digits", 8)
    assert [data.num_images(s) for s in ("train", "val", "test")] == [1149, 288, 360]
    bunch = datasets.load_digits()
    pixels, labels = [], []
    for split in ("train", "val", "test"):
        images, targets = next(data.batches(split, 2000))
        grey = images * data.std[0] + data.mean[0]
        assert torch.equal(grey[:, 0], grey[:, 2])
        pixels.append(grey[:, 0].mul(16).round().flatten(1).numpy())
        labels.append(targets.numpy())
        shares = np.bincount(targets) / len(targets)
        np.testing.assert_allclose(shares, np.bincount(bunch.target) / 1797, atol=0.004)
    got = np.column_stack((np.concatenate(pixels), np.concatenate(labels)))
    expected = np.column_stack((bunch.data, bunch.target))
    order, wanted = np.lexsort(got.T), np.lexsort(expected.T)
    np.testing.assert_array_equal(got[order], expected[wanted])


def test_training_pixels_are_normalised() -> None:
    data = load_data("digits", 16)
    images = torch.cat([x for x, _ in data.batches("train", 100)])
    assert images.shape == (1149, 3, 16, 16)
    assert images.mean().item() == pytest.approx(0, abs=1e-4)
    assert images.std().item() == pytest.approx(1, abs=1e-4)
    assert data.class_names == tuple("0123456789")


def test_splits_do_not_depend_on_the_seed() -> None:
    first, second = (load_data("digits", 8, seed=s).batches("val", 288) for s in (0, 1))
    assert torch.equal(next(first)[0], next(second)[0])


def test_unknown_split() -> None:
    with pytest.raises(DataError, match="digits has no extra split; it has train, val, test"):
        load_data("digits", 8).num_images("extra")


def test_image_size_below_one() -> None:
    with pytest.raises(UsageError, match="image size of at least 1 pixel; got 0"):
        load_data("digits", 0)
