"""The 1,797 handwritten digits that scikit-learn carries: real images with no download."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from hwnas.train._data import Data, Split
from hwnas.train._recipe import DIGITS

_BRIGHTEST = 16  # pixels are counts from 0 to 16
_TEST_FRACTION = 0.2
_VAL_FRACTION = 0.2  # of what is not for testing


def load_digits(image_size: int) -> Data:
    """The digits, 8x8 and grey, enlarged to ``image_size``: 1,149 train, 288 val, 360 test.

    The splits are stratified and always the same.
    """
    from sklearn import datasets
    from sklearn.model_selection import train_test_split

    bunch = datasets.load_digits()
    grey = torch.from_numpy(bunch.images).float()[:, None] / _BRIGHTEST  # [N, 1, 8, 8]
    size = (image_size, image_size)
    images = F.interpolate(grey, size, mode="bilinear", align_corners=False)
    labels = torch.from_numpy(bunch.target).long()

    rest, test = train_test_split(
        range(len(labels)), test_size=_TEST_FRACTION, stratify=labels, random_state=0
    )
    train, val = train_test_split(
        rest, test_size=_VAL_FRACTION, stratify=labels[rest], random_state=0
    )
    mean, std = float(images[train].mean()), float(images[train].std())
    return Data(
        spec=DIGITS,
        image_size=image_size,
        class_names=tuple(str(name) for name in bunch.target_names),
        mean=(mean, mean, mean),
        std=(std, std, std),
        mirrors=False,
        splits={
            name: _split(images[chosen], labels[chosen])
            for name, chosen in (("train", train), ("val", val), ("test", test))
        },
    )


def _split(images: Tensor, labels: Tensor) -> Split:
    def read(chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        for indices in chunks:
            yield images[indices].expand(-1, 3, -1, -1)

    return Split(labels, read)
