from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as transforms

from hwnas.errors import DataError
from hwnas.train import Data, load_data

MakeFolder = Callable[..., Path]
MEAN = torch.tensor((0.485, 0.456, 0.406)).view(3, 1, 1)
STD = torch.tensor((0.229, 0.224, 0.225)).view(3, 1, 1)


def pixels_of(data: Data, split: str) -> tuple[np.ndarray, list[int]]:
    """The middle pixel of each image as 8-bit numbers [N, 3], and the labels."""
    batches = list(data.batches(split, 3))
    images = torch.cat([x for x, _ in batches]) * STD + MEAN
    labels = torch.cat([y for _, y in batches]).tolist()
    return images[:, :, 4, 4].mul(255).round().int().numpy(), labels


def test_splits_as_they_stand(make_folder: MakeFolder) -> None:
    root = make_folder(train={"cat": 5, "dog": 4}, val={"cat": 2, "dog": 2}, test={"dog": 3})
    data = load_data(str(root), 8)
    assert data.class_names == ("cat", "dog")
    assert [data.num_images(s) for s in ("train", "val", "test")] == [9, 4, 3]
    pixels, labels = pixels_of(data, "train")
    assert labels == [0] * 5 + [1] * 4
    assert pixels.tolist() == [[50 * c, 100, i] for c, n in ((0, 5), (1, 4)) for i in range(n)]
    assert pixels_of(data, "test")[1] == [1, 1, 1]  # dog keeps its number where cat is missing


@pytest.mark.parametrize("layout", ["train", "plain"])
def test_val_is_split_off_the_training_images(make_folder: MakeFolder, layout: str) -> None:
    root = make_folder(**{layout: {"cat": 30, "dog": 20, "emu": 2}})
    data = load_data(str(root), 8, seed=1)
    train, val = (pixels_of(data, split) for split in ("train", "val"))
    assert val[1] == [0, 0, 0, 1, 1, 2]
    both = [tuple(p) for p in (*train[0].tolist(), *val[0].tolist())]
    assert len(both) == len(set(both)) == 52
    other = load_data(str(root), 8, seed=2)
    assert not np.array_equal(pixels_of(other, "val")[0], val[0])
    with pytest.raises(DataError, match="has no test split; it has train, val"):
        data.batches("test", 2)


def test_same_pixels_as_torchvision(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for folder in ("train/a", "train/b", "val/a"):
        (tmp_path / folder).mkdir(parents=True)
        noise = rng.integers(0, 256, (40, 60), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / folder / "0.png")  # grey: read as RGB
    data = load_data(str(tmp_path), 20)
    images, _ = next(data.batches("train", 2))
    with Image.open(tmp_path / "train" / "a" / "0.png") as image:
        expected = transforms.center_crop(transforms.resize(image.convert("RGB"), 20), 20)
    got = images[0] * STD + MEAN
    assert (got - transforms.to_tensor(expected)).abs().max() < 1.5 / 255  # one level of rounding


def test_files_that_are_no_images_are_passed_over(make_folder: MakeFolder) -> None:
    root = make_folder(train={"cat": 4, "dog": 4})
    (root / "train" / "cat" / "notes.txt").write_text("not an image")
    (root / "train" / "cat" / "._0.png").write_bytes(b"a hidden file")
    (root / "train" / ".cache").mkdir()
    data = load_data(str(root), 8)
    assert data.class_names == ("cat", "dog")
    assert data.num_images("train") + data.num_images("val") == 8


@pytest.mark.parametrize("damage", ["cut", "text", "empty"])
def test_an_unreadable_image_is_named(make_folder: MakeFolder, damage: str) -> None:
    root = make_folder(train={"cat": 6, "dog": 6}, val={"cat": 1, "dog": 1})
    broken = root / "train" / "dog" / "3.png"
    content = broken.read_bytes()
    broken.write_bytes({"cut": content[:50], "text": b"hello", "empty": b""}[damage])
    batches = load_data(str(root), 8).batches("train", 4)
    with pytest.raises(DataError, match=r"cannot read the image .*dog/3\.png"):
        list(batches)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no data folder at .*nowhere: give a folder of class"):
        load_data(str(tmp_path / "nowhere"), 8)


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"two classes or more in .*; found none"):
        load_data(str(tmp_path), 8)


def test_one_class(make_folder: MakeFolder) -> None:
    with pytest.raises(DataError, match=r"two classes or more in .*train; found cat"):
        load_data(str(make_folder(train={"cat": 5})), 8)


def test_empty_class(make_folder: MakeFolder) -> None:
    root = make_folder(train={"cat": 5, "dog": 0})
    with pytest.raises(DataError, match=r"the class folder .*dog holds no images"):
        load_data(str(root), 8)


def test_empty_val(make_folder: MakeFolder) -> None:
    root = make_folder(train={"cat": 5, "dog": 5})
    (root / "val").mkdir()
    with pytest.raises(DataError, match="val holds no class folders"):
        load_data(str(root), 8)


def test_val_without_train(make_folder: MakeFolder) -> None:
    with pytest.raises(DataError, match="has a folder val but no folder train"):
        load_data(str(make_folder(val={"cat": 5, "dog": 5})), 8)


def test_class_only_in_val(make_folder: MakeFolder) -> None:
    root = make_folder(train={"cat": 5, "dog": 5}, val={"emu": 1})
    with pytest.raises(DataError, match="val/emu is of a class that the training images do not"):
        load_data(str(root), 8)


def test_single_image_cannot_be_split(make_folder: MakeFolder) -> None:
    with pytest.raises(DataError, match="class 'dog' has a single image"):
        load_data(str(make_folder(train={"cat": 5, "dog": 1})), 8)
