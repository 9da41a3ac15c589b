from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hwnas.train import Data, load_data
from hwnas.train._data import augmented


@pytest.fixture(scope="module")
def digits() -> Data:
    return load_data("digits", 16)


def drawn(data: Data, **options: object) -> tuple[Tensor, Tensor]:
    batches = list(data.batches("val", 100, **options))  # type: ignore[arg-type]
    assert [len(labels) for _, labels in batches] == [100, 100, 88]
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


def test_batches_without_a_seed_keep_the_order(digits: Data) -> None:
    (images, labels), (again, _) = drawn(digits), drawn(digits)
    assert torch.equal(images, again)
    assert torch.equal(labels, digits.splits["val"].labels)
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64


def test_a_seed_shuffles_images_with_their_labels(digits: Data) -> None:
    plain, labels = drawn(digits)
    images, shuffled = drawn(digits, shuffle_seed=3)
    assert not torch.equal(labels, shuffled)
    label_of = {x.numpy().tobytes(): int(y) for x, y in zip(plain, labels, strict=True)}
    assert [label_of[x.numpy().tobytes()] for x in images] == shuffled.tolist()


def test_same_seed_same_augmented_batches(digits: Data) -> None:
    first, second, other = (drawn(digits, shuffle_seed=s, augment=True)[0] for s in (3, 3, 4))
    plain = drawn(digits, shuffle_seed=3)[0]
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert not torch.equal(first, plain)


def test_torchs_own_generator_is_left_alone(digits: Data) -> None:
    before = torch.get_rng_state()
    drawn(digits, shuffle_seed=3, augment=True)
    assert torch.equal(before, torch.get_rng_state())


def centroid(images: Tensor) -> Tensor:
    """The centre of brightness [B, 2] (x, y), in [-1, 1]."""
    side = (torch.arange(images.shape[-1]) * 2 + 1) / images.shape[-1] - 1
    total = images.sum((1, 2, 3))
    return torch.stack(
        ((images.sum((1, 2)) * side).sum(1) / total, (images.sum((1, 3)) * side).sum(1) / total), 1
    )


def test_augmentation_moves_a_spot_by_no_more_than_it_says() -> None:
    images = torch.zeros(500, 3, 64, 64)
    images[:, :, 30:34, 30:34] = 1  # at the centre, where turning moves nothing
    moved = centroid(augmented(images, torch.Generator().manual_seed(0), mirrors=False))
    # A tenth of the side is 0.2; turned by 10 degrees and scaled by 1/0.9 it is at most 0.2575.
    assert 0.19 < moved.abs().max() < 0.26
    assert moved.mean(0).abs().max() < 0.02


@pytest.mark.parametrize(("mirrors", "expected"), [(False, 0.0), (True, 0.5)])
def test_half_of_the_images_are_mirrored_where_that_is_allowed(
    mirrors: bool, expected: float
) -> None:
    images = torch.zeros(1000, 3, 32, 32)
    images[:, :, 14:18, 2:10] = 1  # far left
    turned = augmented(images, torch.Generator().manual_seed(0), mirrors=mirrors)
    share = (centroid(turned)[:, 0] > 0).float().mean().item()
    assert share == pytest.approx(expected, abs=0.05)
