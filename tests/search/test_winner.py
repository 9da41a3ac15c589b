from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from hwnas.errors import CheckpointError
from hwnas.search._winner import load_winner
from hwnas.spaces import load_space
from hwnas.supernet import Network, build

SIZE = 32
SPACE = load_space("autovit-xxs")
CODES = SPACE.sample(1, np.random.default_rng(0))[0]

Record = dict[str, Any]


@pytest.fixture
def network() -> Network:
    slots, blocks = zip(*SPACE.layout(CODES, SIZE, 3), strict=True)
    return build(blocks, slots, seed=7)


@pytest.fixture
def folder(network: Network, tmp_path: Path) -> Path:
    """What a search leaves."""
    record = {
        "space": SPACE.id,
        "space_definition": "",
        "arch": SPACE.decode(CODES).to_json(),
        "network": {
            "image_size": SIZE,
            "num_classes": 3,
            "class_names": ["ant", "bee", "cat"],
            "mean": [0.5, 0.25, 0.125],
            "std": [1, 0.3, 0.4],
        },
    }
    (tmp_path / "winner.json").write_text(json.dumps(record))
    safetensors.torch.save_file(network.state_dict(), tmp_path / "winner.safetensors")
    return tmp_path


def rewrite(folder: Path, change: Callable[[Record], object]) -> None:
    path = folder / "winner.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def rewrite_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    path = folder / "winner.safetensors"
    tensors = safetensors.torch.load_file(path)
    change(tensors)
    safetensors.torch.save_file(tensors, path)


def test_winner_comes_back(folder: Path, network: Network) -> None:
    winner = load_winner(folder)
    image = torch.randn(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(winner.network(image), network.eval()(image))
    assert not winner.network.training
    assert winner.arch == SPACE.decode(CODES)
    assert winner.class_names == ("ant", "bee", "cat")
    assert winner.preprocessing.mean == (0.5, 0.25, 0.125)
    assert winner.preprocessing.std == (1.0, 0.3, 0.4)
    assert winner.preprocessing.image_size == SIZE


def test_winner_of_a_space_of_the_users_own(folder: Path) -> None:
    definition = SPACE.definition.replace('id = "autovit-xxs"', 'id = "mine"')

    def change(record: Record) -> None:
        record.update(space="mine", space_definition=definition)
        record["arch"]["space"] = "mine"

    rewrite(folder, change)
    assert load_winner(folder).arch.space == "mine"


def test_class_names_may_be_unknown(folder: Path) -> None:
    rewrite(folder, lambda record: record["network"].update(class_names=None))
    assert load_winner(folder).class_names is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.pop("arch"), "it lacks 'arch'"),
        (lambda r: r["network"].pop("mean"), "it lacks 'mean'"),
        (lambda r: r.update(space="autovit-z"), "unknown space 'autovit-z'"),
        (lambda r: r.update(space_definition="= ="), "is not TOML"),
        (lambda r: r["arch"]["stages"].pop("stem"), "lacks stage 'stem'"),
        (lambda r: r.update(network=3), "not subscriptable"),
        (lambda r: r["network"].update(image_size="32"), "image_size is '32'"),
        (lambda r: r["network"].update(num_classes=0), "num_classes is 0"),
        (lambda r: r["network"].update(num_classes=True), "num_classes is True"),
        (lambda r: r["network"].update(class_names=["ant"]), "class_names are not 3 names"),
        (lambda r: r["network"].update(mean=[0.5, 0.5]), r"mean is \[0\.5, 0\.5\], not three"),
        (lambda r: r["network"].update(std=None), "std is None, not three"),
    ],
)
def test_record_that_is_off_is_said(
    folder: Path, change: Callable[[Record], object], message: str
) -> None:
    rewrite(folder, change)
    with pytest.raises(CheckpointError, match=rf"winner\.json is not a search result: .*{message}"):
        load_winner(folder)


def test_record_that_is_no_object(folder: Path) -> None:
    (folder / "winner.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"winner\.json is not a search result"):
        load_winner(folder)


def test_record_cut_short(folder: Path) -> None:
    path = folder / "winner.json"
    path.write_text(path.read_text()[:100])
    with pytest.raises(CheckpointError, match="is not a whole search result"):
        load_winner(folder)


def test_no_record(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no search result at"):
        load_winner(tmp_path)


@pytest.mark.parametrize("keep", [0, 5, 100, 50_000])
def test_weights_cut_short(folder: Path, keep: int) -> None:
    path = folder / "winner.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"winner\.safetensors is damaged or cut short"):
        load_winner(folder)


def test_no_weights(folder: Path) -> None:
    (folder / "winner.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no weights of the winner at"):
        load_winner(folder)


def test_weights_that_cannot_be_read(folder: Path) -> None:
    (folder / "winner.safetensors").unlink()
    (folder / "winner.safetensors").mkdir()
    with pytest.raises(CheckpointError, match="cannot read the weights"):
        load_winner(folder)


NAME = "head.classify.bias"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(NAME), f"lacks the tensor '{NAME}'"),
        (lambda t: t.update(extra=torch.zeros(1)), "has a tensor 'extra'"),
        (
            lambda t: t.update({NAME: torch.zeros(4)}),
            rf"{NAME} is float32 \[4\], and the winner's is float32 \[3\]",
        ),
        (lambda t: t.update({NAME: t[NAME].half()}), f"{NAME} is float16"),
        (lambda t: t.update({NAME: t[NAME] / 0}), f"{NAME} holds numbers that are not finite"),
    ],
)
def test_weights_of_something_else(
    folder: Path, change: Callable[[dict[str, torch.Tensor]], object], message: str
) -> None:
    rewrite_tensors(folder, change)
    with pytest.raises(CheckpointError, match=message):
        load_winner(folder)
