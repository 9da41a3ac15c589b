"""Data: labelled images in splits, and the normalised batches that are drawn from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hwnas.errors import DataError

Rgb = tuple[float, float, float]

SPLITS = ("train", "val", "test")

_MAX_SCALE = 0.1
_MAX_SHIFT = 0.1  # of the image's side
_MAX_ANGLE = math.radians(10)


@dataclass(frozen=True)
class Split:
    """Labelled images: ``labels`` int64 [N], and ``read``, which gives the images.

    ``read`` takes chunks of indices, each int64 [B], and gives for each, in order, the images
    float32 [B, 3, S, S] in [0, 1]. Taking all chunks at once lets it read ahead.
    """

    labels: Tensor
    read: Callable[[Iterable[Tensor]], Iterator[Tensor]]


@dataclass(frozen=True)
class Data:
    """A data set at one image size; ``mean`` and ``std`` are of each channel's pixels in [0, 1].

    ``spec`` is what ``load_data`` makes it from again. ``mirrors``: whether a mirrored image is
    still one of its class, as it is not with digits.
    """

    spec: str
    image_size: int
    class_names: tuple[str, ...]
    mean: Rgb
    std: Rgb
    mirrors: bool
    splits: Mapping[str, Split]

    def num_images(self, split: str) -> int:
        """Images in ``split``: train, val or test. Raises ``DataError`` where there is none."""
        return len(self._split(split).labels)

    def batches(
        self,
        split: str,
        batch_size: int,
        *,
        shuffle_seed: int | None = None,
        augment: bool = False,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Normalised images float32 [B, 3, S, S] (channels last) and labels int64 [B], once each.

        The last batch may be smaller. ``shuffle_seed`` determines order and augmentation; without
        it the order is the split's own. Raises ``DataError`` naming an image that cannot be read.
        """
        chosen = self._split(split)
        generator = torch.Generator().manual_seed(shuffle_seed or 0)
        order = torch.arange(len(chosen.labels))
        if shuffle_seed is not None:
            order = torch.randperm(len(order), generator=generator)
        return self._batches(chosen, torch.split(order, batch_size), generator if augment else None)

    def _split(self, split: str) -> Split:
        if split not in self.splits:
            known = ", ".join(self.splits)
            raise DataError(f"the data {self.spec} has no {split} split; it has {known}")
        return self.splits[split]

    def _batches(
        self, split: Split, chunks: Iterable[Tensor], generator: torch.Generator | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (self.mean, self.std))
        for indices, pixels in zip(chunks, split.read(chunks), strict=True):
            images = pixels
            if generator is not None:
                images = augmented(pixels, generator, mirrors=self.mirrors)
            normalised = ((images - mean) / std).contiguous(memory_format=torch.channels_last)
            yield normalised, split.labels[indices]


def augmented(images: Tensor, generator: torch.Generator, *, mirrors: bool) -> Tensor:
    """Each of ``images`` [B, 3, S, S] a little scaled, shifted and turned; half of them mirrored.

    By up to 10 % either way, a tenth of the side (before scaling and turning), and 10 degrees;
    black comes in at the edges.
    """
    uniform = torch.rand(5, len(images), generator=generator) * 2 - 1
    scale, angle = 1 + _MAX_SCALE * uniform[0], _MAX_ANGLE * uniform[1]
    flip = torch.where(uniform[4] < 0, -1.0, 1.0) if mirrors else torch.ones(len(images))
    cos, sin = scale * angle.cos(), scale * angle.sin()
    shift = 2 * _MAX_SHIFT * uniform[2:4]  # the grid spans [-1, 1]
    rows = (torch.stack((flip * cos, -sin, shift[0])), torch.stack((flip * sin, cos, shift[1])))
    affine = torch.stack(rows).permute(2, 0, 1)  # [B, 2, 3]
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)
