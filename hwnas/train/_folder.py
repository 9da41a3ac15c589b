"""A folder of class folders, read as it is needed."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from hwnas.errors import DataError
from hwnas.train._data import SPLITS, Data, Split

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
_VAL_FRACTION = 0.1
_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
_NUM_READERS = 4  # decoding runs outside Python's lock
_BATCHES_AHEAD = 2

Labelled = list[tuple[Path, int]]


def load_folder(root: Path, image_size: int, *, seed: int) -> Data:
    """``root/train/CLASS/*`` with ``val`` and ``test`` beside it, or ``root/CLASS/*`` alone.

    Without ``val`` a tenth of each class's training images, drawn by ``seed``, is held out for it.
    An image is scaled to ``image_size`` along its shorter side and cropped to its centre. Raises
    ``DataError`` where folders are missing or empty; images are opened only when read.
    """
    if not root.is_dir():
        raise DataError(f"no data folder at {root}: give a folder of class folders, or 'digits'")
    folders = {name: root / name for name in SPLITS if (root / name).is_dir()} or {"train": root}
    if "train" not in folders:
        raise DataError(f"{root} has a folder {min(folders)} but no folder train")
    names = tuple(path.name for path in _class_dirs(folders["train"]))
    if len(names) < 2:
        raise DataError(
            f"expected a folder of images for each of two classes or more in {folders['train']}; "
            f"found {', '.join(names) or 'none'}"
        )
    images = {name: _labelled(folder, names) for name, folder in folders.items()}
    if "val" not in images:
        images["train"], images["val"] = _hold_out(images["train"], names, seed)
    return Data(
        spec=str(root.resolve()),
        image_size=image_size,
        class_names=names,
        mean=_IMAGENET_MEAN,
        std=_IMAGENET_STD,
        mirrors=True,
        splits={name: _split(labelled, image_size) for name, labelled in images.items()},
    )


def _class_dirs(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _labelled(folder: Path, names: Sequence[str]) -> Labelled:
    labelled: Labelled = []
    for path in _class_dirs(folder):
        if path.name not in names:
            raise DataError(f"{path} is of a class that the training images do not have")
        images = sorted(
            image
            for image in path.iterdir()
            if image.suffix.lower() in _SUFFIXES and not image.name.startswith(".")
        )
        if not images:
            raise DataError(f"the class folder {path} holds no images")
        labelled += [(image, names.index(path.name)) for image in images]
    if not labelled:
        raise DataError(f"{folder} holds no class folders")
    return labelled


def _hold_out(images: Labelled, names: Sequence[str], seed: int) -> tuple[Labelled, Labelled]:
    """Split ``images`` in two, the second with a tenth of each class, and one at the least."""
    rng = np.random.default_rng(seed)
    labels = np.array([label for _, label in images])
    held_out: set[int] = set()
    for label, name in enumerate(names):
        mine = np.flatnonzero(labels == label)
        if len(mine) < 2:
            raise DataError(
                f"class {name!r} has a single image; without a folder val, it takes two or more"
            )
        num = max(1, round(_VAL_FRACTION * len(mine)))
        held_out.update(rng.choice(mine, num, replace=False).tolist())
    kept = [image for i, image in enumerate(images) if i not in held_out]
    return kept, [images[i] for i in sorted(held_out)]


def _split(images: Labelled, image_size: int) -> Split:
    paths = [path for path, _ in images]

    def read(chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        ahead: deque[list[Future[Tensor]]] = deque()
        with ThreadPoolExecutor(_NUM_READERS) as readers:
            for indices in chunks:
                ahead.append([readers.submit(_read, paths[i], image_size) for i in indices])
                if len(ahead) > _BATCHES_AHEAD:
                    yield _stack(ahead.popleft())
            while ahead:
                yield _stack(ahead.popleft())

    return Split(torch.tensor([label for _, label in images]), read)


def _stack(images: Iterable[Future[Tensor]]) -> Tensor:
    pixels = torch.stack([image.result() for image in images])  # [B, S, S, 3]
    return pixels.permute(0, 3, 1, 2).float() / 255


def _read(path: Path, image_size: int) -> Tensor:
    """The image as uint8 [S, S, 3]."""
    try:
        with Image.open(path) as image:
            image.draft("RGB", (image_size, image_size))  # lets JPEG decode at a fraction
            fitted = ImageOps.fit(
                image.convert("RGB"), (image_size, image_size), Image.Resampling.BILINEAR
            )
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"cannot read the image {path}: {error}") from error
    return torch.from_numpy(np.array(fitted))
